#!/usr/bin/env bash
# CLIP4Clip's meanP on ActivityNet, paragraphs: the mean of the frames, no new parameters.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip meanP" "$CLIP4CLIP_MEMORY" 40.5/72.4/-/2.0/7.4 42.5/74.1/85.8/2.0/6.6
train activity --sim_header meanP "$@"
