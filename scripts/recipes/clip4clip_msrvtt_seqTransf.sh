#!/usr/bin/env bash
# CLIP4Clip's seqTransf on MSR-VTT 1k-A, 9k training videos: a Transformer over the frames.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip seqTransf" "$CLIP4CLIP_MEMORY" 44.5/71.4/81.6/2.0/15.3 42.7/70.9/80.6/2.0/11.6
train msrvtt --sim_header seqTransf "$@"
