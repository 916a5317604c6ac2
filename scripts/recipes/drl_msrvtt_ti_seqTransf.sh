#!/usr/bin/env bash
# DRL's TI + seqTransf on MSR-VTT 1k-A: every word against every frame, unweighted.
# DRL's own command leaves --cdcr at its default of 3, so the published figures may include it; here it is off.
source "$(dirname "$0")/recipe.sh"
published "TI + seqTransf" "$DRL" 44.8/73.0/82.2/2/13.4 42.6/72.7/82.8/2/9.1
train msrvtt --sim_header ti --agg_module seqTransf --cdcr 0 "$@"
