#!/usr/bin/env bash
# From a fresh clone to a results table on two CPU cores: virtual environment, a miniature of MSR-VTT, a tiny CLIP with
# random weights, training with weighted token-wise interaction (wti) and with mean pooling (meanP) in two processes, a
# separate evaluation of each checkpoint, the table.
#   SEED=1 ./scripts/quickstart.sh      another seed; likewise OUTPUT (folder), EPOCHS, TRAIN_VIDEOS, TEST_VIDEOS
#   NEWEST=1 ./scripts/quickstart.sh    the newest packages instead of those in constraints.txt
set -euo pipefail
source "$(dirname "$0")/environment.sh"
environment requirements.txt

OUTPUT=${OUTPUT:-runs/quickstart}
SEED=${SEED:-42}
DATA=$OUTPUT/mini_msrvtt
EPOCHS=${EPOCHS:-20}
TRAIN_VIDEOS=${TRAIN_VIDEOS:-600}
TEST_VIDEOS=${TEST_VIDEOS:-100}
MASTER_PORT=${MASTER_PORT:-$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
mkdir -p "$OUTPUT"

echo "1. data and weights"
"$PYTHON" -m scripts.make_mini_msrvtt --output "$DATA" --train_videos "$TRAIN_VIDEOS" --test_videos "$TEST_VIDEOS"
"$PYTHON" -m scripts.make_tiny_clip --output "$OUTPUT/tiny_clip.pt" --embed_dim 64 --vision_width 64 --text_width 64 --seed "$SEED"

flags=(
    --datatype msrvtt --train_csv "$DATA/MSRVTT_train.csv" --val_csv "$DATA/MSRVTT_test.csv"
    --data_path "$DATA/MSRVTT_data.json" --features_path "$DATA/videos"
    --pretrained_clip_name "$OUTPUT/tiny_clip.pt" --max_words 32 --max_frames 4 --feature_framerate 1 --slice_framepos 2
    --batch_size_val 50 --num_thread_reader 1 --seed "$SEED"
)
for head in wti meanP; do
    # a training refuses a folder with another run's checkpoints
    rm -rf "${OUTPUT:?}/$head" "${OUTPUT:?}/$head-eval"
    echo "2. train $head"
    # --freeze_layer_num -1 and a rate without --coef_lr: these weights are random, so all of CLIP has to learn
    OMP_NUM_THREADS=1 "$PYTHON" -m torch.distributed.launch --nproc_per_node=2 --master_port="$MASTER_PORT" \
        main_task_retrieval.py --do_train --output_dir "$OUTPUT/$head" --sim_header "$head" \
        --epochs "$EPOCHS" --batch_size 50 --lr 5e-4 --freeze_layer_num -1 --n_display 12 "${flags[@]}"
    echo "3. evaluate the checkpoint of $head"
    "$PYTHON" main_task_retrieval.py --do_eval --output_dir "$OUTPUT/$head-eval" --sim_header "$head" \
        --init_model "$OUTPUT/$head/pytorch_model.bin.$((EPOCHS - 1))" "${flags[@]}"
done

echo "4. results"
"$PYTHON" -m scripts.miniature.quickstart_table "$OUTPUT/wti" "$OUTPUT/meanP"
echo "finished in $SECONDS s; everything is in $OUTPUT"
