#!/usr/bin/env bash
# CLIP4Clip's seqLSTM on LSMDC: an LSTM over the frames.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip seqLSTM" "$CLIP4CLIP"
train lsmdc --sim_header seqLSTM "$@"
