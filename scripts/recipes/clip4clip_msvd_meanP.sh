#!/usr/bin/env bash
# CLIP4Clip's meanP on MSVD, several captions per video: the mean of the frames, no new parameters.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip meanP" "$CLIP4CLIP_MEMORY" 46.2/76.1/84.6/2.0/10.0 56.6/79.7/84.3/1.0/7.6
train msvd --sim_header meanP "$@"
