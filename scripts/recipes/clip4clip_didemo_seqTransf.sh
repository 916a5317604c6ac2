#!/usr/bin/env bash
# CLIP4Clip's seqTransf on DiDeMo, paragraphs: a Transformer over the frames.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip seqTransf" "$CLIP4CLIP_MEMORY" 42.8/68.5/79.2/2.0/18.9
train didemo --sim_header seqTransf "$@"
