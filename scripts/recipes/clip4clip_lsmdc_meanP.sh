#!/usr/bin/env bash
# CLIP4Clip's meanP on LSMDC: the mean of the frames, no new parameters.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip meanP" "$CLIP4CLIP"
train lsmdc --sim_header meanP "$@"
