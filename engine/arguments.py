"""The flags: CLIP4Clip's names, types and defaults, and ours; a contradiction is an error before anything is loaded."""

import argparse
import logging
import math
import os

import util
from dataloaders.data_dataloaders import DATALOADER_DICT
from dataloaders.frame_cache import FRAME_FORMATS
from dataloaders.unreadable import MAX_UNREADABLE_SHARE, UNREADABLE_VIDEO_POLICIES
from modules.clip_weights import describe_clip
from modules.configuration import (
    AGG_MODULES,
    AGGREGATING_HEADERS,
    CROSS_MODELS,
    GATHERS,
    SIM_HEADERS,
    TIGHT_HEADERS,
    CLIP4ClipConfig,
    check_cross_model,
)
from modules.losses import CDCR_MODES
from modules.module_clip import LINEAR_PATCHES
from modules.post_processing import POST_PROCESSES
from modules.retrieval import SIMILARITY_DTYPES
from modules.token_interaction import WTI_ARCHITECTURES, WTI_PADDINGS

logger = logging.getLogger(__name__)

PRECISIONS = ("clip_fp16", "fp32", "bf16", "fp16")


class UnreadFlag(argparse.Action):
    """A flag that CLIP4Clip parses and never reads: stored, and listed in the one warning line."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, True if self.nargs == 0 else values)
        namespace.unread_flags = [*namespace.unread_flags, option_string]


def build_parser() -> argparse.ArgumentParser:
    """The parser with every flag of CLIP4Clip, and ours."""
    parser = argparse.ArgumentParser(
        description="CLIP4Clip on Retrieval Task, with weighted token-wise interaction (WTI)",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_run_flags(parser.add_argument_group("what to run"))
    add_data_flags(parser.add_argument_group("data"))
    add_model_flags(parser.add_argument_group("model"))
    add_training_flags(parser.add_argument_group("training"))
    add_evaluation_flags(parser.add_argument_group("evaluation"))
    add_unread_flags(parser.add_argument_group("accepted for CLIP4Clip's scripts, without effect"))
    parser.set_defaults(unread_flags=[])
    return parser


def add_run_flags(group) -> None:
    group.add_argument("--do_train", action="store_true", help="train, and evaluate after every epoch")
    group.add_argument("--do_eval", action="store_true", help="evaluate the checkpoint of --init_model")
    group.add_argument("--output_dir", type=str, required=True, help="folder for log.txt, results and checkpoints")
    group.add_argument(
        "--init_model", type=str, default=None, help="checkpoint (CLIP4Clip's, DRL's or ours) to start from"
    )
    group.add_argument(
        "--resume_model", type=str, default=None, help="pytorch_opt.bin.N to go on from, with --init_model"
    )
    group.add_argument(
        "--resume", type=str, default=None, choices=["auto"],
        help="auto: go on from the newest whole training checkpoint in --output_dir, or start where there is none",
    )  # fmt: skip
    group.add_argument(
        "--save_steps", type=int, default=0,
        help="write a training checkpoint every N optimizer steps, beside that of each epoch's end; 0: only there",
    )  # fmt: skip
    group.add_argument(
        "--keep_last", type=int, default=0,
        help="keep the checkpoints of the last N epochs and of the best one; 0: of all",
    )  # fmt: skip
    group.add_argument("--cache_dir", type=str, default="", help="folder for downloads")
    group.add_argument("--seed", type=int, default=42, help="random seed")
    group.add_argument("--n_display", type=int, default=100, help="log every N optimizer steps")
    group.add_argument("--task_type", type=str, default="retrieval", choices=["retrieval"], help="the one task")
    group.add_argument(
        "--local_rank", "--local-rank", type=int, default=0, help="set by the launcher; its LOCAL_RANK goes first"
    )


def add_data_flags(group) -> None:
    group.add_argument(
        "--datatype", type=str, default="msrvtt", choices=sorted(DATALOADER_DICT), help="which data set's reader"
    )
    group.add_argument(
        "--train_csv", type=str, default="data/.train.csv", help="MSR-VTT, custom: csv of the training split"
    )
    group.add_argument("--val_csv", type=str, default="data/.val.csv", help="MSR-VTT, custom: csv of the test split")
    group.add_argument("--data_path", type=str, default="data/caption.pickle", help="annotation file or folder")
    group.add_argument(
        "--features_path",
        type=str,
        default="data/videos_feature.pickle",
        help="folder of the videos, searched recursively",
    )
    group.add_argument(
        "--expand_msrvtt_sentences",
        action="store_true",
        help="MSR-VTT: every caption is a training sample; otherwise one random caption per video and epoch",
    )
    group.add_argument("--max_words", type=int, default=20, help="tokens per text, start and end token included")
    group.add_argument("--max_frames", type=int, default=100, help="frames per video")
    group.add_argument("--feature_framerate", type=int, default=1, help="frames sampled per second of video")
    group.add_argument(
        "--slice_framepos", type=int, default=0, choices=[0, 1, 2],
        help="which frames of a longer video: 0 the first, 1 the last, 2 evenly spread",
    )  # fmt: skip
    group.add_argument(
        "--train_frame_order", type=int, default=0, choices=[0, 1, 2], help="0 ordinary, 1 reversed, 2 random"
    )
    group.add_argument(
        "--eval_frame_order", type=int, default=0, choices=[0, 1, 2], help="0 ordinary, 1 reversed, 2 random"
    )
    group.add_argument(
        "--num_thread_reader", type=int, default=1, help="worker processes per loader; 0: in this process"
    )
    group.add_argument(
        "--frame_cache", type=str, default=None,
        help="folder for decoded frames: each video is decoded once for all captions, epochs, processes and runs",
    )  # fmt: skip
    group.add_argument(
        "--frame_cache_format", type=str, default="exact", choices=FRAME_FORMATS,
        help="exact: the frames as they are; jpeg: about a tenth of the space, and slightly other pixels",
    )  # fmt: skip
    group.add_argument(
        "--bad_videos", type=str, default="fail", choices=UNREADABLE_VIDEO_POLICIES,
        help="a video that gives no frames stops the run, or is skipped: in training another sample takes its place, "
        f"in evaluation it counts as a miss; above {MAX_UNREADABLE_SHARE:.0%}% of a split the run stops all the same",
    )  # fmt: skip
    group.add_argument("--batch_size_val", type=int, default=3500, help="texts or videos encoded at once in evaluation")


def add_model_flags(group) -> None:
    group.add_argument(
        "--pretrained_clip_name", type=str, default="ViT-B/32",
        help="OpenAI's name, open_clip's MODEL:TAG or MODEL:FILE, or a file",
    )  # fmt: skip
    group.add_argument(
        "--sim_header", type=str, default="meanP", choices=SIM_HEADERS, help="how texts and videos are compared"
    )
    group.add_argument(
        "--agg_module", type=str, default="none", choices=AGG_MODULES,
        help=f"temporal aggregation of the frames for {', '.join(AGGREGATING_HEADERS)}",
    )  # fmt: skip
    group.add_argument(
        "--wti_arch", type=int, default=2, choices=WTI_ARCHITECTURES, help="linear layers of wti's weight networks"
    )
    group.add_argument(
        "--wti_padding", type=str, default="zero", choices=WTI_PADDINGS,
        help="padded words and frames count as cosine 0 (as published), or are left out of the maximum",
    )  # fmt: skip
    group.add_argument(
        "--cdcr", type=int, default=0, choices=CDCR_MODES,
        help="channel decorrelation: 0 off, 1 of one random match a pair, 2 of best matches, 3 weighted",
    )  # fmt: skip
    group.add_argument("--cdcr_alpha1", type=float, default=1.0, help="weight of CDCR's diagonal")
    group.add_argument("--cdcr_alpha2", type=float, default=0.06, help="weight of CDCR's other entries")
    group.add_argument("--cdcr_lambda", type=float, default=0.001, help="weight of CDCR in the loss")
    group.add_argument(
        "--linear_patch", type=str, default="2d", choices=LINEAR_PATCHES, help="patches of one frame, or of three"
    )
    group.add_argument("--cross_model", type=str, default="cross-base", help=f"one of {', '.join(CROSS_MODELS)}")
    group.add_argument(
        "--cross_num_hidden_layers", type=int, default=4, help="blocks of seqTransf and of tightTransf's cross encoder"
    )
    group.add_argument(
        "--loose_type", action="store_true", help="decides nothing: tightTransf is tight, the other heads are loose"
    )
    group.add_argument(
        "--freeze_layer_num", type=int, default=0,
        help="freeze CLIP's embeddings and the blocks below this number; -1 freezes nothing",
    )  # fmt: skip
    group.add_argument(
        "--precision", type=str, default=None, choices=PRECISIONS,
        help="clip_fp16: CLIP's matrices and their moments in float16, the published recipe (default on CUDA); "
        "fp32 (default on CPU); bf16, fp16: weights in float32, the encoders compute in that type",
    )  # fmt: skip
    group.add_argument("--compile", action="store_true", help="compile CLIP's towers; the first steps take minutes")
    group.add_argument(
        "--grad_checkpointing", action="store_true",
        help="compute the activations of each block again in the backward pass: about a third slower, far less memory",
    )  # fmt: skip


def add_training_flags(group) -> None:
    group.add_argument("--lr", type=float, default=0.0001, help="learning rate of everything but CLIP")
    group.add_argument("--coef_lr", type=float, default=1.0, help="CLIP's learning rate is lr * coef_lr")
    group.add_argument("--epochs", type=int, default=20, help="passes over the training split")
    group.add_argument(
        "--batch_size", type=int, default=256,
        help="pairs per optimizer step over all processes and accumulation steps",
    )  # fmt: skip
    group.add_argument(
        "--gradient_accumulation_steps", type=int, default=1,
        help="splits --batch_size; each part sees only its own negatives",
    )  # fmt: skip
    group.add_argument(
        "--grad_cache_chunk", type=int, default=0,
        help="encode this many pairs of a process at once, and score the whole batch all the same: the loss and "
        "gradients of the whole batch in the memory of a part; 0: all at once",
    )  # fmt: skip
    group.add_argument(
        "--gather", type=str, default="published", choices=GATHERS,
        help="over several processes: the published gradients, or exactly those of one process on the same batch",
    )  # fmt: skip
    group.add_argument(
        "--skip_nonfinite", type=int, default=0,
        help="leave out up to N steps in a row whose loss or gradient is not finite, before the run stops",
    )  # fmt: skip
    group.add_argument("--warmup_proportion", type=float, default=0.1, help="share of the steps with a rising rate")


def add_evaluation_flags(group) -> None:
    group.add_argument(
        "--similarity_dtype", type=str, default="fp32", choices=tuple(SIMILARITY_DTYPES),
        help="numbers in which ti and wti compare words with frames in evaluation; bf16 is faster, and moves near ties",
    )  # fmt: skip
    group.add_argument(
        "--holdout", type=int, default=0,
        help="training videos kept out of training to pick the epoch; 0: the test split picks it, as published",
    )  # fmt: skip
    group.add_argument(
        "--post_process", type=str, default="none", choices=POST_PROCESSES,
        help="after the raw numbers, also those of dual softmax (needs all test queries at once) or of QB-Norm "
        "(needs the training captions)",
    )  # fmt: skip
    group.add_argument("--dsl_temperature", type=float, default=100.0, help="dual softmax: multiplies the cosines")
    group.add_argument("--qb_norm_beta", type=float, default=20.0, help="QB-Norm: multiplies the cosines")
    group.add_argument("--qb_norm_size", type=int, default=5000, help="QB-Norm: training captions in the bank")


def add_unread_flags(group) -> None:
    for name, kind, default in (
        ("lr_decay", float, 0.9), ("video_dim", int, 1024), ("margin", float, 0.1), ("hard_negative_rate", float, 0.5),
        ("negative_weighting", int, 1), ("n_pair", int, 1), ("n_gpu", int, 1), ("world_size", int, 0), ("rank", int, 0),
        ("text_num_hidden_layers", int, 12), ("visual_num_hidden_layers", int, 12), ("fp16_opt_level", str, "O1"),
    ):  # fmt: skip
        group.add_argument(f"--{name}", action=UnreadFlag, type=kind, default=default, help=" ")
    for name in ("do_pretrain", "do_lower_case", "use_mil", "sampled_use_mil", "fp16"):
        group.add_argument(f"--{name}", action=UnreadFlag, nargs=0, default=False, help=" ")


def get_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the flags; whatever contradicts is an argument error before anything is loaded."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        check_args(args)
    except ValueError as error:
        parser.error(str(error))
    if int(os.environ.get("RANK", 0)) == 0:
        if args.unread_flags:
            logger.warning(
                "these flags have no effect here (nor in CLIP4Clip, which never reads them): %s",
                " ".join(args.unread_flags),
            )
        if args.loose_type and args.sim_header in TIGHT_HEADERS:
            logger.warning("--loose_type is ignored: --sim_header %s is a tight head", args.sim_header)
    return args


def check_args(args: argparse.Namespace) -> None:
    """Raise ValueError naming the first flag that makes no sense, alone or with others."""
    if not args.do_train and not args.do_eval:
        raise ValueError("give --do_train, --do_eval or both")
    for name in (
        "epochs", "batch_size", "batch_size_val", "gradient_accumulation_steps", "n_display", "feature_framerate",
        "qb_norm_size",
    ):  # fmt: skip
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)} must be at least 1")
    for name in ("num_thread_reader", "grad_cache_chunk", "save_steps", "keep_last", "skip_nonfinite"):
        if getattr(args, name) < 0:
            raise ValueError(f"--{name} {getattr(args, name)} must not be negative")
    if not 0 <= args.seed < 2**32:  # numpy's bound
        raise ValueError(f"--seed {args.seed} must be in [0, {2**32 - 1}]")
    if not (args.lr > 0 and math.isfinite(args.lr)):
        raise ValueError(f"--lr {args.lr} must be a positive number")
    if not (args.coef_lr >= 0 and math.isfinite(args.coef_lr)):
        raise ValueError(f"--coef_lr {args.coef_lr} must not be negative")
    for name in ("dsl_temperature", "qb_norm_beta"):
        if not 0 < getattr(args, name) < math.inf:
            raise ValueError(f"--{name} {getattr(args, name)} must be a positive number")
    if args.holdout and (args.holdout < 2 or not args.do_train):
        raise ValueError(f"--holdout {args.holdout} must be at least 2 videos, and belongs to --do_train")
    if not 0 <= args.warmup_proportion < 1:
        raise ValueError(f"--warmup_proportion {args.warmup_proportion} must be in [0, 1)")
    if args.freeze_layer_num < -1:
        raise ValueError(f"--freeze_layer_num {args.freeze_layer_num} must be -1 (freeze nothing) or more")
    if args.resume_model and not args.init_model:
        raise ValueError("--resume_model holds the optimizer only; give the weights of the same epoch by --init_model")
    if args.resume and (args.resume_model or not args.do_train):
        raise ValueError("--resume auto belongs to --do_train and finds its files itself: leave out --resume_model")
    check_cross_model(args.cross_model)
    processes = util.launched_world_size()
    if args.do_train and args.batch_size % (processes * args.gradient_accumulation_steps):
        raise ValueError(
            f"--batch_size {args.batch_size} is not divisible by processes * --gradient_accumulation_steps "
            f"({processes} * {args.gradient_accumulation_steps})"
        )
    CLIP4ClipConfig.from_namespace(args)
    context_length = describe_clip(args.pretrained_clip_name).context_length
    if context_length is not None and args.max_words > context_length:
        raise ValueError(
            f"--max_words {args.max_words} exceeds the {context_length} tokens that {args.pretrained_clip_name} reads"
        )
