#!/usr/bin/env bash
# CLIP4Clip's seqLSTM on MSR-VTT 1k-A, 9k training videos: an LSTM over the frames.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip seqLSTM" "$CLIP4CLIP"
train msrvtt --sim_header seqLSTM "$@"
