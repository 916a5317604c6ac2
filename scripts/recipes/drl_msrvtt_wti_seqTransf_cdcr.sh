#!/usr/bin/env bash
# DRL's WTI + seqTransf with channel decorrelation (CDCR) on MSR-VTT 1k-A.
source "$(dirname "$0")/recipe.sh"
published "WTI + seqTransf + CDCR" "$DRL" 47.6/73.4/83.3/2/12.8 45.1/72.9/83.5/2/9.2
train msrvtt --sim_header wti --agg_module seqTransf --cdcr 3 --cdcr_alpha1 0.11 --cdcr_alpha2 0.0 "$@"
