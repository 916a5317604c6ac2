#!/usr/bin/env bash
# CLIP4Clip's seqTransf on ActivityNet, paragraphs: a Transformer over the frames.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip seqTransf" "$CLIP4CLIP_MEMORY" 40.5/72.4/-/2.0/7.5
train activity --sim_header seqTransf "$@"
