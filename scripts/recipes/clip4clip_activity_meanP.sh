#!/usr/bin/env bash
# CLIP4Clip's meanP on ActivityNet, paragraphs: the mean of the frames, no new parameters.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip meanP" "$CLIP4CLIP"
train activity --sim_header meanP "$@"
