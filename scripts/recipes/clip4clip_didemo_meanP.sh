#!/usr/bin/env bash
# CLIP4Clip's meanP on DiDeMo, paragraphs: the mean of the frames, no new parameters.
source "$(dirname "$0")/recipe.sh"
published "CLIP4Clip meanP" "$CLIP4CLIP_MEMORY" 43.4/70.2/80.6/2.0/17.5 42.5/70.6/80.2/2.0/11.6
train didemo --sim_header meanP "$@"
