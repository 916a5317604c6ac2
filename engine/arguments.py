"""The command line of `main_task_retrieval.py`: parsed and checked before anything is loaded."""

import argparse
import logging
import math
import os
from collections.abc import Sequence
from typing import Any

import util
from dataloaders.data_config import DataConfig, default_frame_sampling
from engine.flags import FLAG_GROUPS, FLAGS, Flag, check_minimums
from engine.recorded_flags import differing_flags, flags_file, recorded_flags
from modules.checkpoint import read_frame_sampling, run_folder
from modules.clip_weights import describe_clip
from modules.configuration import CLIP4ClipConfig, check_cross_model
from modules.heads import HEADS

logger = logging.getLogger(__name__)


class UnreadFlag(argparse.Action):
    """A flag that CLIP4Clip parses and never reads: stored, and listed in one warning line."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, True if self.nargs == 0 else values)
        namespace.unread_flags = [*namespace.unread_flags, option_string]


class DefaultsHelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show the default of a flag in its help, unless it is a switch or has no default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if has_default(action.default) else action.help


def has_default(value: Any) -> bool:
    """Return whether a default says something: 0 does; None, False and "" stand for a flag that is not given."""
    return value is not None and value is not False and value != ""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag of CLIP4Clip, and ours."""
    parser = argparse.ArgumentParser(
        description="CLIP4Clip on Retrieval Task, with weighted token-wise interaction (WTI)",
        formatter_class=DefaultsHelpFormatter,
    )
    for title, flags in FLAG_GROUPS.items():
        add_flags(parser.add_argument_group(title), flags)
    parser.set_defaults(unread_flags=[])
    return parser


def add_flags(group, flags: Sequence[Flag]) -> None:
    """Add the flags to a group of a parser, or to the parser."""
    for flag in flags:
        options: dict[str, Any] = {"default": flag.default, "help": flag.help.replace("%", "%%")}
        if not flag.is_read:
            options["action"] = UnreadFlag
        if flag.kind is not bool:
            options |= {"type": flag.kind, "choices": list(flag.choices) or None, "required": flag.required}
            if flag.is_repeatable:
                options |= {"action": "append", "metavar": "PATTERN"}
        elif flag.is_read:
            options["action"] = "store_true"
        else:
            options["nargs"] = 0
        group.add_argument(f"--{flag.name}", *flag.aliases, **options)


def get_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the flags; a contradiction is an argument error before anything is loaded.

    An evaluation alone takes the flags that the command line does not give from flags.json beside its checkpoint, where
    they decide what the model computes and how it reads texts and frames.
    """
    parser = build_parser()
    not_given = object()
    args = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(FLAGS, not_given)))
    given = {name: value for name, value in vars(args).items() if value is not not_given}
    try:
        is_evaluation = "do_eval" in given and "do_train" not in given
        recorded = recorded_flags(given.get("init_model")) if is_evaluation else {}
        args = argparse.Namespace(**{name: flag.default for name, flag in FLAGS.items()} | recorded | given)
        check_args(args)
    except ValueError as error:
        parser.error(str(error))
    if int(os.environ.get("RANK", 0)) == 0:
        if args.unread_flags:
            logger.warning(
                "these flags have no effect here (nor in CLIP4Clip, which never reads them): %s",
                " ".join(args.unread_flags),
            )
        if args.loose_type and HEADS[args.sim_header].reads_pairs:
            logger.warning("--loose_type is ignored: --sim_header %s is a tight head", args.sim_header)
    return args


def log_recorded_flags(args: argparse.Namespace) -> None:
    """Log the flags that an evaluation has from its checkpoint's flags.json, and warn of those that differ from it."""
    file = None if args.do_train else flags_file(args.init_model)
    if file is None:
        return
    recorded = recorded_flags(args.init_model)
    different = differing_flags(vars(args), recorded)
    same = " ".join(f"--{name} {value}" for name, value in recorded.items() if name not in different)
    logger.info("flags of the training, from %s: %s", file, same)
    for name, value in different.items():
        logger.warning("--%s %s differs from the training's %s in %s", name, getattr(args, name), value, file)


def resolve_frame_sampling(args: argparse.Namespace) -> None:
    """Set `frame_sampling`, if it is not given, to that of the run that is resumed or evaluated, else to the default.

    A run on another data set does not count.
    """
    default = default_frame_sampling(args.datatype)
    folder = None
    if args.resume:
        folder = args.output_dir
    elif args.resume_model or (args.init_model and not args.do_train):
        folder = run_folder(args.resume_model or args.init_model)
    recorded = read_frame_sampling(folder, args.datatype) if folder else None
    is_given = args.frame_sampling is not None
    args.frame_sampling = args.frame_sampling or recorded or default
    if int(os.environ.get("RANK", 0)) == 0:
        if is_given and recorded not in (None, args.frame_sampling):
            logger.warning(
                "--frame_sampling %s differs from the run's in %s: %s", args.frame_sampling, folder, recorded
            )
        elif args.frame_sampling != default and not is_given:
            logger.warning(
                "frames are sampled as by the run in %s, --frame_sampling %s; the default of --datatype %s is %s",
                folder, args.frame_sampling, args.datatype, default,
            )  # fmt: skip


def check_args(args: argparse.Namespace) -> None:
    """Raise ValueError naming the first flag whose value is not valid, alone or with others."""
    if not args.do_train and not args.do_eval:
        raise ValueError("give --do_train, --do_eval or both")
    resolve_frame_sampling(args)
    check_minimums(args, tuple(FLAGS.values()))
    data = DataConfig.from_namespace(args)
    if not (args.lr > 0 and math.isfinite(args.lr)):
        raise ValueError(f"--lr {args.lr} must be a positive number")
    if not (args.coef_lr >= 0 and math.isfinite(args.coef_lr)):
        raise ValueError(f"--coef_lr {args.coef_lr} must not be negative")
    for name in ("dsl_temperature", "qb_norm_beta"):
        if not 0 < getattr(args, name) < math.inf:
            raise ValueError(f"--{name} {getattr(args, name)} must be a positive number")
    if args.holdout and not args.do_train:
        raise ValueError(f"--holdout {args.holdout} belongs to --do_train")
    if not 0 <= args.warmup_proportion < 1:
        raise ValueError(f"--warmup_proportion {args.warmup_proportion} must be in [0, 1)")
    if args.freeze_layer_num < -1:
        raise ValueError(f"--freeze_layer_num {args.freeze_layer_num} must be -1 (freeze nothing) or more")
    if args.resume_model and not args.init_model:
        raise ValueError("--resume_model holds the optimizer only; give the weights of the same epoch by --init_model")
    if args.resume and (args.resume_model or not args.do_train):
        raise ValueError("--resume auto belongs to --do_train and finds its files itself: leave out --resume_model")
    if args.accept_changed_data and not args.resume:
        raise ValueError("--accept_changed_data belongs to --resume auto")
    check_cross_model(args.cross_model)
    if args.do_train:
        data.samples_per_step(util.launched_world_size())
    CLIP4ClipConfig.from_namespace(args)
    context_length = describe_clip(args.pretrained_clip_name, is_needed=not args.init_model).context_length
    if context_length is not None and args.max_words > context_length:
        raise ValueError(
            f"--max_words {args.max_words} exceeds the {context_length} tokens that {args.pretrained_clip_name} reads"
        )
