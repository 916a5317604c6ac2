#!/usr/bin/env bash
# CLIP4Clip's tightTransf on MSR-VTT 1k-A, 9k training videos: a cross encoder over every pair.
# Negatives come from one process only, so that NPROC changes their number.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip tightTransf" "$CLIP4CLIP"
train msrvtt --sim_header tightTransf "$@"
