#!/usr/bin/env bash
# A checkpoint (ours, CLIP4Clip's, DRL's) on ActivityNet, paragraphs, with the head it was trained with:
#   CHECKPOINT=pytorch_model.bin.4 SIM_HEADER=wti AGG_MODULE=seqTransf DATA_PATH=... ./scripts/recipes/eval_activity.sh
source "$(dirname "$0")/recipe.sh"
evaluate_checkpoint activity "$@"
