#!/usr/bin/env bash
# CLIP4Clip's seqTransf on LSMDC: a Transformer over the frames.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip seqTransf" "$CLIP4CLIP"
train lsmdc --sim_header seqTransf "$@"
