#!/usr/bin/env bash
# CLIP4Clip's seqLSTM on MSVD, several captions per video: an LSTM over the frames.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip seqLSTM" "$CLIP4CLIP"
train msvd --sim_header seqLSTM "$@"
