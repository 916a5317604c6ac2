#!/usr/bin/env bash
# DRL's XTI + seqTransf on MSR-VTT 1k-A: a cross encoder over every pair. CDCR does not apply to it.
source "$(dirname "$0")/recipe.sh"
published "XTI + seqTransf" "$DRL" 42.4/71.3/80.9/2/15.2 40.1/69.2/79.6/2/15.8
train msrvtt --sim_header xti --agg_module seqTransf --cdcr 0 "$@"
