"""Every flag once: name, type, default and help, and what depends on it; `engine.arguments` makes the parser of them.

The names, types and defaults of CLIP4Clip's flags are CLIP4Clip's. All lists of flags elsewhere are made from this one:
those of the commands that encode videos and texts, those in the configuration hash of metrics.json, and those in the
fingerprint of an index.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dataloaders.data_dataloaders import DATALOADER_DICT
from dataloaders.frame_cache import FRAME_FORMATS
from dataloaders.rawvideo_util import FRAME_SAMPLINGS
from dataloaders.unreadable import MAX_UNREADABLE_SHARE, UNREADABLE_VIDEO_POLICIES
from dataloaders.video_files import EXCLUDE_HELP
from modules.configuration import AGG_MODULES, AGGREGATING_HEADERS, CROSS_MODELS, GATHERS, SIM_HEADERS
from modules.losses import CDCR_MODES
from modules.module_clip import LINEAR_PATCHES
from modules.post_processing import POST_PROCESSES
from modules.retrieval import SIMILARITY_DTYPES
from modules.token_interaction import WTI_ARCHITECTURES, WTI_PADDINGS

PRECISIONS = ("clip_fp16", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Flag:
    """A flag of `main_task_retrieval.py`, and what depends on it.

    Attributes:
        kind: type of the value; `bool` is a switch, False unless given.
        minimum: least value of a number, 0 or 1; None where there is no bound, or another check.
        decides_numbers: two runs that differ in this flag alone may have different metrics.
        survives_faults: it only decides how a fault is survived, so that a resumed run may change it.
        names_data: the value is a path of which only the last part decides the numbers: the files may lie anywhere.
        is_repeatable: it may be given several times; the value is a list, or None.
        is_read: False for flags that CLIP4Clip parses and never reads.
        of_encoder: index, embed and show_wti have it: it decides how a checkpoint reads videos and texts.
        encoder_default, encoder_help: its default and help there, where they differ.
        is_recorded: those commands take its value from the training's flags.json.
        decides_videos: the vectors of an index depend on it, other than through the weights.
    """

    name: str
    kind: type
    default: Any
    help: str
    choices: Sequence = ()
    minimum: int | None = None
    required: bool = False
    aliases: tuple[str, ...] = ()
    decides_numbers: bool = True
    survives_faults: bool = False
    names_data: bool = False
    is_repeatable: bool = False
    is_read: bool = True
    of_encoder: bool = False
    encoder_default: Any = None
    encoder_help: str = ""
    is_recorded: bool = True
    decides_videos: bool = False


RUN_FLAGS = (
    Flag("do_train", bool, False, "train, and evaluate after every epoch"),
    Flag("do_eval", bool, False, "evaluate the checkpoint of --init_model", decides_numbers=False),
    Flag(
        "output_dir", str, None, "folder for log.txt, results and checkpoints", required=True, decides_numbers=False
    ),
    Flag(
        "init_model", str, None, "checkpoint to start from (CLIP4Clip's, DRL's or ours)",
        of_encoder=True, encoder_default="", is_recorded=False,
        encoder_help="checkpoint (CLIP4Clip's, DRL's or ours); without one CLIP itself, for heads without weights",
    ),
    Flag(
        "resume_model", str, None, "pytorch_opt.bin.N: continue that training from its next epoch, with --init_model"
    ),
    Flag(
        "resume", str, None,
        "auto: continue from the newest training checkpoint in --output_dir, or start at the beginning without one",
        choices=("auto",), decides_numbers=False,
    ),
    Flag(
        "save_steps", int, 0,
        "write a training checkpoint every N optimizer steps and at the end of each epoch; 0: only at the end of each "
        "epoch",
        minimum=0, decides_numbers=False,
    ),
    Flag(
        "accept_changed_data", bool, False,
        "with --resume auto: go on although captions or videos have changed since; metrics.json lists what has changed",
        decides_numbers=False,
    ),
    Flag(
        "keep_last", int, 0, "keep the checkpoints of the last N epochs and of the best one; 0: of all epochs",
        minimum=0, decides_numbers=False,
    ),
    Flag(
        "cache_dir", str, "", "folder for downloads", decides_numbers=False, of_encoder=True, is_recorded=False
    ),
    Flag("seed", int, 42, "random seed"),
    Flag("n_display", int, 100, "log every N optimizer steps", minimum=1, decides_numbers=False),
    Flag("task_type", str, "retrieval", "the only task", choices=("retrieval",), decides_numbers=False),
    Flag(
        "local_rank", int, 0, "set by the launcher; LOCAL_RANK in the environment takes precedence",
        aliases=("--local-rank",), decides_numbers=False,
    ),
)  # fmt: skip

DATA_FLAGS = (
    Flag("datatype", str, "msrvtt", "data set", choices=sorted(DATALOADER_DICT)),
    Flag("train_csv", str, "data/.train.csv", "MSR-VTT, custom: csv of the training split", names_data=True),
    Flag("val_csv", str, "data/.val.csv", "MSR-VTT, custom: csv of the test split", names_data=True),
    Flag("data_path", str, "data/caption.pickle", "annotation file or folder", names_data=True),
    Flag(
        "features_path", str, "data/videos_feature.pickle", "folder of the videos, searched recursively",
        names_data=True,
    ),
    Flag("exclude", str, None, EXCLUDE_HELP, decides_numbers=False, is_repeatable=True),
    Flag(
        "expand_msrvtt_sentences", bool, False,
        "MSR-VTT: every caption is a training sample; otherwise one random caption per video and epoch",
    ),
    Flag(
        "max_words", int, 20, "tokens per text, start and end token included", minimum=1,
        of_encoder=True, encoder_default=32,
    ),
    Flag(
        "max_frames", int, 100, "frames per video", minimum=1,
        of_encoder=True, encoder_default=12, decides_videos=True,
    ),
    Flag(
        "feature_framerate", int, 1, "frames sampled per second of video", minimum=1,
        of_encoder=True, decides_videos=True,
    ),
    Flag(
        "slice_framepos", int, 0,
        "frames kept of a video with more than --max_frames: 0 the first, 1 the last, 2 evenly spread",
        choices=(0, 1, 2), of_encoder=True, encoder_default=2, decides_videos=True,
    ),
    Flag(
        "frame_sampling", str, None,
        "published: frames by their numbers and the header's rate, as in CLIP4Clip; time: the frames shown at the "
        "sampled seconds, by their timestamps; default: time for custom, published for the other data sets",
        choices=FRAME_SAMPLINGS, of_encoder=True, encoder_default="time", is_recorded=False, decides_videos=True,
        encoder_help="published: frames by their numbers and the header's rate, as in CLIP4Clip; time: the frames "
        "shown at the sampled seconds, by their timestamps",
    ),
    Flag("train_frame_order", int, 0, "0 ordinary, 1 reversed, 2 random", choices=(0, 1, 2)),
    Flag("eval_frame_order", int, 0, "0 ordinary, 1 reversed, 2 random", choices=(0, 1, 2)),
    Flag(
        "num_thread_reader", int, 1, "worker processes per loader; 0: read in the main process",
        minimum=0, decides_numbers=False,
    ),
    Flag(
        "frame_cache", str, None,
        "folder for decoded frames: each video is decoded once for all captions, epochs, processes and runs",
        decides_numbers=False,
    ),
    Flag(
        "frame_cache_format", str, "exact",
        "exact: the same pixels; jpeg: about a tenth of the space, with slightly different pixels",
        choices=FRAME_FORMATS,
    ),
    Flag(
        "bad_videos", str, "fail",
        "a video without readable frames: fail stops the run; skip takes another sample in training and counts a miss "
        f"in evaluation, and still stops the run above {MAX_UNREADABLE_SHARE:.0%} of a split, or one file",
        choices=UNREADABLE_VIDEO_POLICIES, survives_faults=True,
    ),
    Flag(
        "batch_size_val", int, 3500, "texts or videos encoded at once in evaluation",
        minimum=1, decides_numbers=False,
    ),
)  # fmt: skip

MODEL_FLAGS = (
    Flag(
        "pretrained_clip_name", str, "ViT-B/32",
        "CLIP to start from: OpenAI's name, open_clip's MODEL:TAG or MODEL:FILE, or a file of weights",
        of_encoder=True,
    ),
    Flag(
        "sim_header", str, "meanP", "similarity head: how texts and videos are compared", choices=SIM_HEADERS,
        of_encoder=True, decides_videos=True,
    ),
    Flag(
        "agg_module", str, "none", f"temporal aggregation of the frames for {', '.join(AGGREGATING_HEADERS)}",
        choices=AGG_MODULES, of_encoder=True, decides_videos=True,
    ),
    Flag(
        "wti_arch", int, 2, "linear layers in wti's weight networks", choices=WTI_ARCHITECTURES,
        of_encoder=True, decides_videos=True,
    ),
    Flag(
        "wti_padding", str, "zero",
        "padded words and frames: zero counts them with cosine 0, as published; exclude leaves them out of the maximum",
        choices=WTI_PADDINGS, of_encoder=True, decides_videos=True,
    ),
    Flag(
        "cdcr", int, 0,
        "channel decorrelation (CDCR): 0 off; 1 one random word and frame per pair; 2 every word with its best frame "
        "and every frame with its best word; 3 the same, weighted",
        choices=CDCR_MODES,
    ),
    Flag("cdcr_alpha1", float, 1.0, "weight of the diagonal in CDCR"),
    Flag("cdcr_alpha2", float, 0.06, "weight of the off-diagonal entries in CDCR"),
    Flag("cdcr_lambda", float, 0.001, "weight of CDCR in the loss"),
    Flag(
        "linear_patch", str, "2d", "patches of one frame (2d) or of three frames (3d)", choices=LINEAR_PATCHES,
        of_encoder=True, decides_videos=True,
    ),
    Flag("cross_model", str, "cross-base", f"one of {', '.join(CROSS_MODELS)}"),
    Flag(
        "cross_num_hidden_layers", int, 4, "Transformer blocks in seqTransf and in the cross encoder",
        of_encoder=True, decides_videos=True,
    ),
    Flag(
        "loose_type", bool, False, "no effect: tightTransf and xti are tight, the other heads are loose",
        decides_numbers=False,
    ),
    Flag(
        "freeze_layer_num", int, 0, "freeze CLIP's embeddings and the blocks below this number; -1: freeze nothing"
    ),
    Flag(
        "precision", str, None,
        "clip_fp16: CLIP's matrices and their optimizer moments in float16, the published recipe; fp32; bf16 or fp16: "
        "weights in float32, encoders under autocast to that type; default: clip_fp16 on CUDA, fp32 on the CPU",
        choices=PRECISIONS,
        of_encoder=True, encoder_default="fp32", is_recorded=False, decides_videos=True,
        encoder_help="clip_fp16: CLIP's matrices in float16; bf16 or fp16: weights in float32, encoders under autocast",
    ),
    Flag("compile", bool, False, "compile CLIP's towers; the first steps take minutes"),
    Flag(
        "grad_checkpointing", bool, False,
        "recompute the activations of each block in the backward pass: about a third slower, far less memory",
    ),
)  # fmt: skip

TRAINING_FLAGS = (
    Flag("lr", float, 0.0001, "learning rate of everything but CLIP"),
    Flag("coef_lr", float, 1.0, "CLIP's learning rate is lr * coef_lr"),
    Flag("epochs", int, 20, "passes over the training split", minimum=1),
    Flag(
        "batch_size", int, 256, "pairs per optimizer step, over all processes and accumulation steps", minimum=1
    ),
    Flag(
        "gradient_accumulation_steps", int, 1,
        "split --batch_size into this many parts; the negatives of a pair come from its own part", minimum=1,
    ),
    Flag(
        "grad_cache_chunk", int, 0,
        "encode this many pairs at once per process and score the whole batch: its loss and gradients in the memory of "
        "a part; 0: encode all at once",
        minimum=0,
    ),
    Flag(
        "gather", str, "published",
        "gradients over several processes: as published, or exactly those of one process on the same batch",
        choices=GATHERS,
    ),
    Flag(
        "skip_nonfinite", int, 0,
        "skip up to N consecutive steps whose loss or gradient is not finite before the run stops", minimum=0,
        survives_faults=True,
    ),
    Flag("warmup_proportion", float, 0.1, "share of the steps in which the learning rate rises"),
)  # fmt: skip

EVALUATION_FLAGS = (
    Flag(
        "similarity_dtype", str, "fp32",
        "number type in which ti and wti compare words with frames in evaluation; bf16 is faster and can change the "
        "order of near ties",
        choices=tuple(SIMILARITY_DTYPES),
    ),
    Flag(
        "holdout", int, 0,
        "training videos held out to pick the epoch; 0: the epoch is picked on the test split, as published",
    ),
    Flag(
        "post_process", str, "none",
        "report the numbers after dual softmax (needs all test queries at once) or QB-Norm (needs the training "
        "captions) beside the raw ones",
        choices=POST_PROCESSES,
    ),
    Flag("dsl_temperature", float, 100.0, "dual softmax: factor on the cosines"),
    Flag("qb_norm_beta", float, 20.0, "QB-Norm: factor on the cosines"),
    Flag("qb_norm_size", int, 5000, "QB-Norm: training captions in the query bank", minimum=1),
)  # fmt: skip

UNREAD_FLAGS = tuple(
    Flag(name, kind, default, " ", decides_numbers=False, is_read=False)
    for name, kind, default in (
        ("lr_decay", float, 0.9), ("video_dim", int, 1024), ("margin", float, 0.1), ("hard_negative_rate", float, 0.5),
        ("negative_weighting", int, 1), ("n_pair", int, 1), ("n_gpu", int, 1), ("world_size", int, 0), ("rank", int, 0),
        ("text_num_hidden_layers", int, 12), ("visual_num_hidden_layers", int, 12), ("fp16_opt_level", str, "O1"),
        ("do_pretrain", bool, False), ("do_lower_case", bool, False), ("use_mil", bool, False),
        ("sampled_use_mil", bool, False), ("fp16", bool, False),
    )
)  # fmt: skip

FLAG_GROUPS = {
    "what to run": RUN_FLAGS,
    "data": DATA_FLAGS,
    "model": MODEL_FLAGS,
    "training": TRAINING_FLAGS,
    "evaluation": EVALUATION_FLAGS,
    "accepted for CLIP4Clip's scripts, without effect": UNREAD_FLAGS,
}
FLAGS = {flag.name: flag for flags in FLAG_GROUPS.values() for flag in flags}


def check_minimums(values: Any, flags: Sequence[Flag]) -> None:
    """Raise ValueError for the first flag whose value in the namespace `values` is below its minimum."""
    for flag in flags:
        if flag.minimum is not None and getattr(values, flag.name) < flag.minimum:
            bound = "must not be negative" if flag.minimum == 0 else f"must be at least {flag.minimum}"
            raise ValueError(f"--{flag.name} {getattr(values, flag.name)} {bound}")
