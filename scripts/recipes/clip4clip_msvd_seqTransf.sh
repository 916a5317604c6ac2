#!/usr/bin/env bash
# CLIP4Clip's seqTransf on MSVD, several captions per video: a Transformer over the frames.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip seqTransf" "$CLIP4CLIP_MEMORY" 45.2/75.5/84.3/2.0/10.3 62.0/87.3/92.6/1.0/4.3
train msvd --sim_header seqTransf "$@"
