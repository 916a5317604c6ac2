#!/usr/bin/env bash
# CLIP4Clip's seqTransf on MSVD, several captions per video: a Transformer over the frames.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip seqTransf" "$CLIP4CLIP"
train msvd --sim_header seqTransf "$@"
