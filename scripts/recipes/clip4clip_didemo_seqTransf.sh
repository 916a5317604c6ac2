#!/usr/bin/env bash
# CLIP4Clip's seqTransf on DiDeMo, paragraphs: a Transformer over the frames.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip seqTransf" "$CLIP4CLIP"
train didemo --sim_header seqTransf "$@"
