#!/usr/bin/env bash
# DRL's WTI + seqTransf with CDCR and ViT-B/16 on MSR-VTT 1k-A; alpha as published for ViT-B/32.
source "$(dirname "$0")/recipe.sh"
published "WTI + seqTransf + CDCR, ViT-B/16" "$DRL_PAPER"
CLIP=${CLIP:-ViT-B/16}
train msrvtt --sim_header wti --agg_module seqTransf --cdcr 3 --cdcr_alpha1 0.11 --cdcr_alpha2 0.0 "$@"
