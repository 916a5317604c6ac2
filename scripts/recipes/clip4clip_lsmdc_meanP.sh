#!/usr/bin/env bash
# CLIP4Clip's meanP on LSMDC: the mean of the frames, no new parameters.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip meanP" "$CLIP4CLIP_MEMORY" 20.7/38.9/47.2/13.0/65.3
train lsmdc --sim_header meanP "$@"
