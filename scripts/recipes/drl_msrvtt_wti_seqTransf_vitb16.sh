#!/usr/bin/env bash
# DRL's WTI + seqTransf with ViT-B/16 on MSR-VTT 1k-A.
# DRL's own command leaves --cdcr at its default of 3, so the published figures may include it; here it is off.
source "$(dirname "$0")/recipe.sh"
published "WTI + seqTransf, ViT-B/16" "$DRL_PAPER"
CLIP=${CLIP:-ViT-B/16}
train msrvtt --sim_header wti --agg_module seqTransf --cdcr 0 "$@"
