"""The flags that decide what vectors an encoder makes, and where their values come from."""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from modules.clip_weights import OPENAI_CLIPS
from modules.configuration import AGG_MODULES, SIM_HEADERS
from modules.module_clip import LINEAR_PATCHES
from modules.token_interaction import WTI_ARCHITECTURES, WTI_PADDINGS

TRAINING_FLAGS_FILE = "flags.json"  # which a training writes beside its checkpoints
PRECISIONS = ("fp32", "clip_fp16", "bf16", "fp16")


class Flag(NamedTuple):
    """What a flag is without any word of it, what it means, and its choices where it has some."""

    default: str | int
    help: str
    choices: tuple = ()


FLAGS = {
    "init_model": Flag("", "checkpoint (CLIP4Clip's, DRL's or ours); without one CLIP itself, for heads of no weights"),
    "pretrained_clip_name": Flag("ViT-B/32", "OpenAI's name, open_clip's MODEL:TAG or MODEL:FILE, or a file"),
    "sim_header": Flag("meanP", "how texts and videos are compared", SIM_HEADERS),
    "agg_module": Flag("none", "temporal aggregation of the frames for xti, ti and wti", AGG_MODULES),
    "wti_arch": Flag(2, "linear layers of wti's weight networks", WTI_ARCHITECTURES),
    "wti_padding": Flag("zero", "padded words and frames count as cosine 0, or for nothing", WTI_PADDINGS),
    "linear_patch": Flag("2d", "patches of one frame, or of three", LINEAR_PATCHES),
    "cross_num_hidden_layers": Flag(4, "blocks of seqTransf and of the cross encoder"),
    "max_words": Flag(32, "tokens per text, start and end token included"),
    "max_frames": Flag(12, "frames per video"),
    "feature_framerate": Flag(1, "frames sampled per second of video"),
    "slice_framepos": Flag(2, "frames of a longer video: 0 the first, 1 the last, 2 evenly spread", (0, 1, 2)),
    "precision": Flag("fp32", "numbers that the encoders compute in", PRECISIONS),
    "cache_dir": Flag("", "folder for downloads"),
}
# A training's precision is that of its device: its weights are as good in fp32, which every device computes.
OF_TRAINING = {*FLAGS} - {"init_model", "precision", "cache_dir"}


def add_encoder_flags(parser: argparse.ArgumentParser) -> None:
    """All of `FLAGS`; one that is not given is None, as an index or a checkpoint may know it."""
    group = parser.add_argument_group(
        "model", "What is not given is as the index, or else the flags.json beside the checkpoint, says."
    )
    for name, flag in FLAGS.items():
        default = f" (else {flag.default})" if flag.default != "" else ""
        group.add_argument(
            f"--{name}", type=type(flag.default), choices=flag.choices or None, help=f"{flag.help}{default}"
        )


def given_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The flags of `add_encoder_flags` that the command line gave, for `Encoder.load`."""
    return {name: getattr(args, name) for name in FLAGS if getattr(args, name, None) is not None}


def resolve_flags(init_model: str | os.PathLike | None, settings: Mapping | None, given: Mapping) -> dict[str, Any]:
    """A value for each of `FLAGS`: as given, else as in the `settings` of an index, else as in training, else default.

    Raises TypeError for an unknown name, ValueError naming the source for a value of another type or out of range,
    FileNotFoundError for a checkpoint that is not there.
    """
    unknown = sorted(given.keys() - FLAGS.keys())
    if unknown:
        raise TypeError(f"no flags of an encoder: {', '.join(unknown)}; there are {', '.join(FLAGS)}")
    given = {name: value for name, value in given.items() if value is not None}
    settings = {name: value for name, value in (settings or {}).items() if name in FLAGS}
    remembered = settings.pop("init_model", "")
    checkpoint = locate_checkpoint(os.fspath(init_model or ""), remembered)
    of_training = read_training_flags(checkpoint)
    for source, values in (("flags", given), ("settings of the index", settings), (TRAINING_FLAGS_FILE, of_training)):
        check_types(source, values)
    values = {name: flag.default for name, flag in FLAGS.items()} | of_training | settings
    if checkpoint and is_lost_file(values["pretrained_clip_name"]):
        # A plain file of weights tells nothing that the checkpoint lacks, so that its copy elsewhere is whole.
        values["pretrained_clip_name"] = FLAGS["pretrained_clip_name"].default
    values |= given | {"init_model": checkpoint}
    values["pretrained_clip_name"] = with_whole_path(values["pretrained_clip_name"])
    for name in ("feature_framerate", "max_frames"):
        if values[name] < 1:
            raise ValueError(f"--{name} {values[name]} must be at least 1")
    return values


def with_whole_path(clip_name: str) -> str:
    """The name, in which FILE or MODEL:FILE has its whole path: a search may start in another folder."""
    model, colon, file = clip_name.rpartition(":")
    path = os.path.expanduser(file)
    return f"{model}{colon}{os.path.abspath(path)}" if os.path.isfile(path) else clip_name


def locate_checkpoint(given: str, remembered: str) -> str:
    """The whole path of the checkpoint that is given, or else remembered by an index; "" for none, an address as is."""
    path = given or remembered
    if not path or "://" in path:
        return path
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.isfile(path):
        advice = "" if given else "; the index was made with it: say by --init_model where it lies now"
        raise FileNotFoundError(f"--init_model: no file at {path}{advice}")
    return path


def read_training_flags(checkpoint: str) -> dict[str, Any]:
    """What the flags.json beside a checkpoint says of the model; nothing where there is none."""
    path = Path(checkpoint).parent / TRAINING_FLAGS_FILE
    if not checkpoint or not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no flags but a {type(content).__name__}")
    return {name: value for name, value in content.items() if name in OF_TRAINING and value is not None}


def check_types(source: str, values: Mapping) -> None:
    """Raise ValueError where a value has not the type of its flag, or is none of its choices."""
    for name, value in values.items():
        flag = FLAGS[name]
        if type(value) is not type(flag.default):
            raise ValueError(f"{source}: {name} is {value!r}, not of type {type(flag.default).__name__}")
        if flag.choices and value not in flag.choices:
            raise ValueError(f"{source}: {name} is {value!r}; choose from {', '.join(map(str, flag.choices))}")


def is_lost_file(clip_name: str) -> bool:
    """True for what is neither a known name nor an address nor a file: a file that lies elsewhere."""
    return clip_name not in OPENAI_CLIPS and ":" not in clip_name and not Path(clip_name).expanduser().is_file()
