"""State dicts in weights files of every form, under the model's own keys: what wraps them is taken off.

Wrappers are the outer keys of training checkpoints (`{"state_dict": ...}`) and the prefixes that torch.compile, DDP,
FSDP and Lightning give to keys.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from modules.tensor_files import load_tensors
from modules.tensor_pickle import Placeholder

logger = logging.getLogger(__name__)

OUTER_KEYS = ("state_dict", "model_state_dict", "model", "module")
AVERAGED_KEYS = ("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema")  # moving averages of the weights
# parts of keys: those of torch.compile, DDP, FSDP and checkpoint wrappers at any place, Lightning's at the beginning
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
LEADING_WRAPPER = "model"


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the state dict in a file: TorchScript archive, file of `torch.save`, or safetensors.

    It may be the whole content or below one of `OUTER_KEYS`; prefixes of wrappers are removed from its keys. No code in
    the file runs.

    Raises:
        FileNotFoundError: no file at `path`.
        ValueError: the file is damaged, or is not a state dict of tensors; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}")
    content = read_safetensors(path) if path.suffix == ".safetensors" else load_tensors(path)
    with errors_naming(str(path)):
        content = unwrap(content)
        check_state_dict(content)
        return without_wrappers(content)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file; raises ValueError naming a damaged one."""
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except OSError:
        raise
    except Exception as error:  # beside its own error, the library raises KeyError and others, without the file's name
        raise ValueError(f"{path} cannot be read as safetensors: {type(error).__name__}: {error}") from error


@contextmanager
def errors_naming(origin: str) -> Iterator[None]:
    """Begin the message of a ValueError in the block with the origin of the weights; "" leaves it as it is."""
    try:
        yield
    except ValueError as error:
        if not origin:
            raise
        raise ValueError(f"{origin}: {error}") from error


def unwrap(content: Any) -> Any:
    """Return the state dict below the outer keys of a training checkpoint, as often as they are nested.

    Averaged weights are taken only if there are no others; a warning names those that are read or left.
    """
    while isinstance(content, dict):
        found = [key for key in (*OUTER_KEYS, *AVERAGED_KEYS) if has_tensors(content.get(key))]
        if not found:
            break
        for key in found:
            if key in AVERAGED_KEYS:
                logger.warning("averaged weights under %r are %s", key, "read" if key == found[0] else "not read")
        content = content[found[0]]
    return content


def has_tensors(value: Any) -> bool:
    """Return whether a value is a dict with tensors in it, or in dicts in it."""
    parts = value.values() if isinstance(value, dict) else ()
    return any(isinstance(part, torch.Tensor) or has_tensors(part) for part in parts)


def check_state_dict(content: Any) -> None:
    """Raise ValueError unless the content is a dict of tensors by names; the message describes what it is instead."""
    if not isinstance(content, dict):
        raise ValueError(f"the file holds a {type(content).__name__}, not a state dict of tensors")
    if not has_tensors({key: value for key, value in content.items() if not str(key).startswith("optim")}) and (
        "optimizer_state_dict" in content or "optimizer" in content
    ):
        raise ValueError(
            "the file holds the optimizer of a training, not weights: the weights of pytorch_opt.bin.N are in "
            "pytorch_model.bin.N, those of optimizer.bin in model.bin"
        )
    foreign = [key for key, value in content.items() if not isinstance(value, torch.Tensor)]
    unnamed = [key for key in content if not isinstance(key, str)]
    if foreign or unnamed or not content:
        raise ValueError(
            f"the file holds a dict with keys such as {shown(list(content))}, not a state dict of tensors"
            f"{explain_entry(content, foreign[0]) if foreign else ''}"
        )


def explain_entry(content: Mapping, key: Any) -> str:
    """Return what an entry of a dict is that is not a tensor, and what to do about it."""
    value = content[key]
    if isinstance(value, Placeholder):
        if value.kind.startswith("numpy."):
            return f": {key!r:.100} is a numpy array; save its torch.from_numpy"
        return f": {key!r:.100} is an object of {value.kind:.100}; save its state_dict()"
    if has_tensors(value):
        return f": its weights may be those under {key!r:.100}; save them alone"
    return f": {key!r:.100} is of type {type(value).__name__}"


def shown(keys: list) -> str:
    """Return the first keys as a list for messages, without characters that a terminal would interpret."""
    return ascii([key[:100] if isinstance(key, str) else key for key in keys[:5]])


def without_wrappers(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same weights without the prefixes of wrappers, such as `module._orig_mod.`.

    Raises ValueError for keys that are not texts, and for two keys that name one weight.
    """
    weights: dict[str, torch.Tensor] = {}
    origins: dict[str, str] = {}
    for key, value in state_dict.items():
        if not isinstance(key, str):
            raise ValueError(f"a key is {key!r:.100}, not a text")
        name = without_wrapper(key)
        if name in weights:
            raise ValueError(f"the keys {origins[name]!r:.200} and {key!r:.200} name one weight")
        weights[name], origins[name] = value, key
    return weights


def without_wrapper(key: str) -> str:
    """Return a key without the parts that wrappers added.

    >>> without_wrapper("model._orig_mod.module.clip.visual._orig_mod.proj")
    'clip.visual.proj'
    """
    parts = [part for part in key.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] == LEADING_WRAPPER:
        parts.pop(0)
    return ".".join(parts)


def clip_part(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights under `clip.` in a checkpoint, with CLIP's own names; empty if there are none."""
    return {key.removeprefix("clip."): value for key, value in weights.items() if key.startswith("clip.")}
