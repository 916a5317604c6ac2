#!/usr/bin/env bash
# A checkpoint (ours, CLIP4Clip's, DRL's) on MSR-VTT 1k-A, 9k training videos, with the head it was trained with:
#   CHECKPOINT=pytorch_model.bin.4 SIM_HEADER=wti AGG_MODULE=seqTransf DATA_PATH=... ./scripts/recipes/eval_msrvtt.sh
source "$(dirname "$0")/recipe.sh"
evaluate_checkpoint msrvtt "$@"
