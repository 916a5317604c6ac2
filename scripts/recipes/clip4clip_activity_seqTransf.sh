#!/usr/bin/env bash
# CLIP4Clip's seqTransf on ActivityNet, paragraphs: a Transformer over the frames.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip seqTransf" "$CLIP4CLIP"
train activity --sim_header seqTransf "$@"
