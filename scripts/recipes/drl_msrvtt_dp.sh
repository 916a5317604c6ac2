#!/usr/bin/env bash
# DRL's DP (dot product of pooled vectors, our meanP) on MSR-VTT 1k-A, no temporal aggregation.
# DRL's own command leaves --cdcr at its default of 3, so the published figures may include it; here it is off.
source "$(dirname "$0")/recipe.sh"
published "DP" "$DRL_PAPER"
train msrvtt --sim_header meanP --cdcr 0 "$@"
