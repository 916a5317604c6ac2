"""The flags of a training, from the flags.json beside its checkpoint, for whoever opens that checkpoint.

Only those count that decide what the model computes and how it reads texts and frames: `engine.flags` marks them.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.flags import FLAGS
from modules.checkpoint import FLAGS_FILE, read_flags, run_folder
from modules.clip_weights import is_file_name, is_missing_file

RECORDED_FLAGS = tuple(name for name, flag in FLAGS.items() if flag.of_encoder and flag.is_recorded)


def flags_file(checkpoint: str | os.PathLike | None) -> Path | None:
    """Return the flags.json of a checkpoint's run; None without one, without a checkpoint, and for an address."""
    path = os.fspath(checkpoint or "")
    if not path or "://" in path or not Path(path).is_file():
        return None
    file = run_folder(path) / FLAGS_FILE
    return file if file.is_file() else None


def recorded_flags(checkpoint: str | os.PathLike | None) -> dict[str, Any]:
    """Return the flags of the run that wrote a checkpoint, those of `RECORDED_FLAGS`; empty without flags.json.

    Raises ValueError naming a damaged file, or a value of another type or not among the choices.
    """
    file = flags_file(checkpoint)
    if file is None:
        return {}
    content = read_flags(file.parent)
    recorded = {name: content[name] for name in RECORDED_FLAGS if content.get(name) is not None}
    check_types(str(file), recorded)
    clip_name = recorded.get("pretrained_clip_name", "ViT-B/32")
    if is_missing_file(clip_name):  # a file of the training's machine, to whatever its name is relative
        recorded["pretrained_clip_name"] = os.path.abspath(os.path.expanduser(clip_name))
    return recorded


def differing_flags(values: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recorded flags that differ from those in force; two plain files of CLIP weights do not differ."""
    different = {name: value for name, value in recorded.items() if values[name] != value}
    if all(is_file_name(source.get("pretrained_clip_name", "")) for source in (values, recorded)):
        different.pop("pretrained_clip_name", None)
    return different


def check_types(source: str, values: Mapping) -> None:
    """Raise ValueError for the first value that is not of its flag's type or not among its choices."""
    for name, value in values.items():
        flag = FLAGS[name]
        if type(value) is not flag.kind:
            raise ValueError(f"{source}: {name} is {value!r}, not of type {flag.kind.__name__}")
        if flag.choices and value not in flag.choices:
            raise ValueError(f"{source}: {name} is {value!r}; choose from {', '.join(map(str, flag.choices))}")
