#!/usr/bin/env bash
# CLIP4Clip's seqLSTM on DiDeMo, paragraphs: an LSTM over the frames.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip seqLSTM" "$CLIP4CLIP"
train didemo --sim_header seqLSTM "$@"
