#!/usr/bin/env bash
# CLIP4Clip's tightTransf on MSVD, several captions per video: a cross encoder over every pair.
# Negatives come from one process only, so that NPROC changes their number.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip tightTransf" "$CLIP4CLIP"
train msvd --sim_header tightTransf "$@"
