#!/usr/bin/env bash
# DRL's zero-shot row on MSR-VTT 1k-A: unchanged CLIP, the mean of the frames, no training.
source "$(dirname "$0")/recipe.sh"
published "zero-shot" "$DRL" 31.1/53.7/63.4/4/41.6 26.5/50.1/61.7/5/39.9
evaluate msrvtt --sim_header meanP --cdcr 0 "$@"
