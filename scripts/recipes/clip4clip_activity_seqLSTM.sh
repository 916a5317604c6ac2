#!/usr/bin/env bash
# CLIP4Clip's seqLSTM on ActivityNet, paragraphs: an LSTM over the frames.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip seqLSTM" "$CLIP4CLIP"
train activity --sim_header seqLSTM "$@"
