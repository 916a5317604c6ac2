"""The flags with which a command opens a checkpoint to encode videos and texts, and where their values come from.

They are those of `engine.flags` that say so, with their help. A value is the one given on the command line, else that
of the index, else that in the training's flags.json, else the default.
"""

import argparse
import os
from collections.abc import Collection, Mapping
from typing import Any

from engine.flags import FLAGS, Flag, check_minimums
from engine.recorded_flags import check_types, recorded_flags
from modules.checkpoint import FLAGS_FILE, locate_weights

ENCODER_FLAGS = {name: flag for name, flag in FLAGS.items() if flag.of_encoder}


SETTINGS_OF_OLDER_INDEXES = {"frame_sampling": "published"}
"""Flags that an index need not record, with the value that they have then."""


def default_of(flag: Flag) -> str | int:
    """Return the default of one of `ENCODER_FLAGS`."""
    return flag.default if flag.encoder_default is None else flag.encoder_default


def add_encoder_flags(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """Add all of `ENCODER_FLAGS` but some; one that is not given is None, as an index or flags.json may have it."""
    group = parser.add_argument_group(
        "model", f"Flags that are not given come from the index, if there is one, then from {FLAGS_FILE} beside the "
        "checkpoint.",
    )  # fmt: skip
    for name, flag in ENCODER_FLAGS.items():
        if name not in without:
            default = default_of(flag)
            fallback = f" (else {default})" if default != "" else ""
            group.add_argument(
                f"--{name}", type=flag.kind, choices=list(flag.choices) or None,
                help=f"{flag.encoder_help or flag.help}{fallback}".replace("%", "%%"),
            )  # fmt: skip


def given_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags of `add_encoder_flags` that the command line gave, for `Encoder.load`."""
    return {name: getattr(args, name) for name in ENCODER_FLAGS if getattr(args, name, None) is not None}


def resolve_flags(init_model: str | os.PathLike | None, settings: Mapping | None, given: Mapping) -> dict[str, Any]:
    """Return a value for each of `ENCODER_FLAGS`: given, else of the index (`settings`), else recorded, else default.

    Raises:
        TypeError: unknown name.
        ValueError: a value of another type, out of range, or not among the choices; the message names its source.
        FileNotFoundError: no checkpoint at this path.
    """
    unknown = sorted(given.keys() - ENCODER_FLAGS.keys())
    if unknown:
        raise TypeError(f"unknown flags of an encoder: {', '.join(unknown)}; choose from {', '.join(ENCODER_FLAGS)}")
    given = {name: value for name, value in given.items() if value is not None}
    settings = SETTINGS_OF_OLDER_INDEXES | settings if settings else {}
    settings = {name: value for name, value in settings.items() if name in ENCODER_FLAGS}
    checkpoint = locate_checkpoint(os.fspath(init_model or ""), settings.pop("init_model", ""))
    for source, values in (("flags", given), ("settings of the index", settings)):
        check_types(source, values)
    defaults = {name: default_of(flag) for name, flag in ENCODER_FLAGS.items()}
    values = defaults | recorded_flags(checkpoint) | settings | given | {"init_model": checkpoint}
    values["pretrained_clip_name"] = with_whole_path(values["pretrained_clip_name"])
    check_minimums(argparse.Namespace(**values), tuple(ENCODER_FLAGS.values()))
    return values


def with_whole_path(clip_name: str) -> str:
    """Return the name with the whole path of FILE or MODEL:FILE: a search may start in another folder."""
    model, colon, file = clip_name.rpartition(":")
    path = os.path.expanduser(file)
    return f"{model}{colon}{os.path.abspath(path)}" if os.path.isfile(path) else clip_name


def locate_checkpoint(given: str, remembered: str) -> str:
    """Return the whole path of the checkpoint that is given, else of the one that an index remembers.

    "" stands for no checkpoint; an address stays as it is. Raises FileNotFoundError.
    """
    path = given or remembered
    if not path or "://" in path:
        return path
    path = os.path.abspath(os.path.expanduser(path))
    try:
        return str(locate_weights(path))
    except FileNotFoundError as error:
        advice = "" if given else "; the index was made with it: give its present place by --init_model"
        raise FileNotFoundError(f"{error}{advice}") from error
