# shellcheck shell=bash disable=SC2034
# Sourced by the recipes, one script per published row (clip4clip_*.sh, drl_*.sh), and by eval_*.sh. A recipe holds only
# its own part: `published` gives the figures of a row, `train` or `evaluate` runs it with the settings common to all.
#
#   DATA_PATH=/data/msrvtt NPROC=4 ./scripts/recipes/drl_msrvtt_wti_seqTransf.sh [FLAGS]
#
# DATA_PATH      folder of the annotations, required; without it a script lists the files that it expects
# FEATURES_PATH  folder of the videos (default: CLIP4Clip's name for it, or videos, in DATA_PATH)
# NPROC          processes (default: the number of visible GPUs, or 1)
# OUTPUT         folder for log.txt and checkpoints (default: ckpts/NAME_OF_THE_SCRIPT)
# CLIP           weights (default: ViT-B/32)
# DRY_RUN=1      print the command, one argument per line, and run nothing
# PYTHON         interpreter (default: that of the quickstart's .venv, else python3)
# FLAGS follow those of the recipe and override them: --epochs 1 --seed 3 (but not --output_dir)
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
NAME=$(basename "$0" .sh)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=${VENV:-$ROOT/.venv}/bin/python
    [ -x "$PYTHON" ] || PYTHON=python3
fi
# sources of figures, for the recipes
CLIP4CLIP="CLIP4Clip's paper (https://arxiv.org/abs/2104.08860)"
DRL="DRL's README"
DRL_PAPER="DRL's paper (https://arxiv.org/abs/2203.07111)"

published_rows=()

# published ROW SOURCE [TEXT_TO_VIDEO [VIDEO_TO_TEXT]]: figures as R@1/R@5/R@10/MdR/MnR, left out if SOURCE alone has them
published() {
    published_rows+=(--published "$1" "$2" "${3:-}" "${4:-}")
}

# train DATA FLAGS: CLIP4Clip's settings, the same for every data set, then FLAGS
train() {
    data_set "$1" "train test" "${@:2}"
    launch --do_train --epochs 5 --batch_size 128 --lr 1e-4 --coef_lr 1e-3 --freeze_layer_num 0 --n_display 50 \
        "${data_flags[@]}" "${@:2}"
}

# evaluate DATA FLAGS: the test split only
evaluate() {
    data_set "$1" test "${@:2}"
    launch --do_eval "${data_flags[@]}" "${@:2}"
}

# evaluate_checkpoint DATA FLAGS: CHECKPOINT beside the figures of every recipe of the data set
evaluate_checkpoint() {
    [ -n "${CHECKPOINT:-}" ] || fail "set CHECKPOINT to the weights to evaluate, such as ckpts/.../pytorch_model.bin.4"
    [ -n "${SIM_HEADER:-}" ] || fail "set SIM_HEADER, and AGG_MODULE if any, to those that CHECKPOINT was trained with"
    eval "$(cat "$ROOT"/scripts/recipes/*_"$1"_*.sh | grep '^published ')"
    evaluate "$1" --init_model "$CHECKPOINT" --sim_header "$SIM_HEADER" --agg_module "${AGG_MODULE:-none}" "${@:2}"
}

# data_set DATA SPLITS FLAGS: sets data_flags; if DATA_PATH or files of SPLITS are missing, fails with the expected tree
data_set() {
    local videos files train_files tree file length=(--max_words 32 --max_frames 12)
    case $1 in
        msrvtt)
            videos=MSRVTT_Videos files=(MSRVTT_JSFUSION_test.csv) train_files=(MSRVTT_train.9k.csv MSRVTT_data.json) ;;
        msvd)
            videos=MSVD_Videos files=(test_list.txt raw-captions.pkl) train_files=(train_list.txt) ;;
        lsmdc)
            videos=LSMDC_Videos files=(LSMDC16_challenge_1000_publictect.csv) train_files=(LSMDC16_annos_training.csv) ;;
        activity)
            videos=Activity_Videos files=(val_ids.json val_1.json) train_files=(train_ids.json train.json)
            length=(--max_words 64 --max_frames 64) ;;
        didemo)
            videos=DiDeMo_Videos files=(test_list.txt test_data.json) train_files=(train_list.txt train_data.json)
            length=(--max_words 64 --max_frames 64) ;;
    esac
    [ "$2" = test ] || files+=("${train_files[@]}")
    tree="DATA_PATH/
$(printf '├── %s\n' "${files[@]}")
└── $videos/ (or videos/; or name a folder elsewhere by FEATURES_PATH), searched recursively"

    [ -n "${DATA_PATH:-}" ] || fail "set DATA_PATH to the folder of the $1 annotations:
$tree"
    FEATURES_PATH=${FEATURES_PATH:-$(default_videos "$videos")}
    # a dry run, and flags that name other files, do not need the files of the tree
    case "${DRY_RUN:-0} $* " in
        1\ * | *\ --train_csv[\ =]* | *\ --val_csv[\ =]* | *\ --data_path[\ =]*) ;;
        *)
            for file in "${files[@]/#/$DATA_PATH/}" "$FEATURES_PATH"; do
                [ -e "$file" ] || fail "$file does not exist; DATA_PATH=$DATA_PATH should hold
$tree"
            done ;;
    esac

    data_flags=(--datatype "$1" --features_path "$FEATURES_PATH" "${length[@]}" --feature_framerate 1
        --slice_framepos 2 --num_thread_reader 4 --batch_size_val 16)
    if [ "$1" = msrvtt ]; then
        data_flags+=(--train_csv "$DATA_PATH/MSRVTT_train.9k.csv" --val_csv "$DATA_PATH/MSRVTT_JSFUSION_test.csv"
            --data_path "$DATA_PATH/MSRVTT_data.json" --expand_msrvtt_sentences)
    else
        data_flags+=(--data_path "$DATA_PATH")
    fi
}

default_videos() {
    if [ ! -d "$DATA_PATH/$1" ] && [ -d "$DATA_PATH/videos" ]; then
        echo "$DATA_PATH/videos"
    else
        echo "$DATA_PATH/$1"
    fi
}

# launch FLAGS: the published figures, the run, the published figures beside those of the run
launch() {
    local output=${OUTPUT:-ckpts/$NAME} start=() flag
    # the closing table reads the results in this folder; argparse takes abbreviations of the flag
    for flag in "$@"; do
        case $flag in --o | --ou*) fail "use OUTPUT=FOLDER instead of $flag" ;; esac
    done
    local nproc=${NPROC:-$("$PYTHON" -c "import torch; print(max(1, torch.cuda.device_count()))")}
    [[ $nproc =~ ^[1-9][0-9]*$ ]] || fail "NPROC=$nproc must be a number of processes"
    [ "$nproc" = 1 ] || start=(-m torch.distributed.run --standalone "--nproc_per_node=$nproc")
    # ${start[@]+...}: bash before 4.4 takes an empty array for an unset variable
    local command=("$PYTHON" ${start[@]+"${start[@]}"} "$ROOT/main_task_retrieval.py"
        --output_dir "$output" --pretrained_clip_name "${CLIP:-ViT-B/32}" "$@")
    if [ "${DRY_RUN:-0}" = 1 ]; then
        printf '%s\n' "${command[@]}"
        return
    fi
    recipe_table
    "${command[@]}"
    recipe_table --run "$output"
}

recipe_table() {
    PYTHONPATH=$ROOT "$PYTHON" "$ROOT/scripts/recipes/recipe_table.py" "${published_rows[@]}" "$@"
}

fail() {
    echo "$NAME.sh: $1" >&2
    exit 2
}
