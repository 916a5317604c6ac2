#!/usr/bin/env bash
# CLIP4Clip's seqTransf on MSR-VTT 1k-A, 9k training videos: a Transformer over the frames.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip seqTransf" "$CLIP4CLIP"
train msrvtt --sim_header seqTransf "$@"
