#!/usr/bin/env bash
# CLIP4Clip's seqTransf on LSMDC: a Transformer over the frames.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip seqTransf" "$CLIP4CLIP_MEMORY" 22.6/41.0/49.1/11.0/61.0 20.8/39.0/48.6/12.0/54.2
train lsmdc --sim_header seqTransf "$@"
