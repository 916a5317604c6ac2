#!/usr/bin/env bash
# CLIP4Clip's meanP on MSVD, several captions per video: the mean of the frames, no new parameters.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip meanP" "$CLIP4CLIP"
train msvd --sim_header meanP "$@"
