#!/usr/bin/env bash
# DRL's DP + seqTransf (the dot product of pooled vectors, our head seqTransf) on MSR-VTT 1k-A.
# DRL's own command leaves --cdcr at its default of 3, so the published figures may include it; here it is off.
source "$(dirname "$0")/recipe.sh"
published "DP + seqTransf" "$DRL" 42.8/71.1/81.1/2/15.6 44.1/70.9/80.9/2/11.7
train msrvtt --sim_header seqTransf --cdcr 0 "$@"
