"""Checkpoints in CLIP4Clip's form: `pytorch_model.bin.{epoch}` is a state dict, `pytorch_opt.bin.{epoch}` the rest.

Epochs in file names and in the optimizer file count from 0.
"""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modules.distributed import broadcast_weights, get_rank, local_main_process_first
from modules.file_utils import cached_path
from modules.heads import fitting_heads, head_key_prefixes
from modules.initialization import check_vocabulary
from modules.modeling import CLIP4Clip
from modules.module_clip import count_blocks
from modules.state_dicts import read_state_dict
from modules.tensor_files import load_tensors
from modules.whole_files import atomic_write

logger = logging.getLogger(__name__)

FLAGS_FILE = "flags.json"  # the flags of a run, in the folder of its checkpoints
REPAIR = "repair it, or move it away and give the training's flags"


def model_path(output_dir: str | Path, epoch: int) -> Path:
    """Return the path of the weights after `epoch`."""
    return Path(output_dir) / f"pytorch_model.bin.{epoch}"


def checkpoint_epoch(path: str | Path | None) -> int | None:
    """Return the epoch in the name of a weights file, or None."""
    found = re.search(r"pytorch_model\.bin\.(\d+)$", str(path))
    return int(found[1]) if found else None


def locate_weights(path: str | Path, flag: str = "--init_model") -> Path:
    """Return the path of a weights file. Raises FileNotFoundError that names the flag, and the files of a folder."""
    path = Path(path)
    if path.is_dir():
        weights = [*sorted(path.glob("pytorch_model.bin.*"), key=lambda file: checkpoint_epoch(file) or 0)[-1:]]
        weights += [path / "model.bin"] if (path / "model.bin").is_file() else []
        advice = f"give a file in it, such as {weights[0]}" if weights else "give a file, such as pytorch_model.bin.4"
        raise FileNotFoundError(f"{flag}: {path} is a folder; {advice}")
    if not path.is_file():
        raise FileNotFoundError(f"{flag}: no file at {path}")
    return path


def run_folder(weights: str | Path) -> Path:
    """Return the `--output_dir` of the run that wrote a weights file, also for one of its training checkpoints."""
    folder = Path(weights).absolute().parent
    is_training_checkpoint = re.fullmatch(r"resume/step-\d+", "/".join(folder.parts[-2:])) is not None
    return folder.parent.parent if is_training_checkpoint else folder


def optimizer_path(output_dir: str | Path, epoch: int) -> Path:
    """Return the path of the optimizer file after `epoch`."""
    return Path(output_dir) / f"pytorch_opt.bin.{epoch}"


def save_checkpoint(
    output_dir: str | Path, epoch: int, model: nn.Module, optimizer: torch.optim.Optimizer, loss: float,
    scaler: torch.amp.GradScaler | None = None,
) -> Path:  # fmt: skip
    """Write both files and return the path of the weights; `model` is the bare model, not its DDP wrapper."""
    save_whole(model.state_dict(), model_path(output_dir, epoch))
    save_whole(optimizer_content(epoch, optimizer, loss, scaler), optimizer_path(output_dir, epoch))
    return model_path(output_dir, epoch)


def optimizer_content(
    epoch: int, optimizer: torch.optim.Optimizer, loss: float, scaler: torch.amp.GradScaler | None = None
) -> dict:
    """Return the content of `pytorch_opt.bin.N`; a scaler counts if it is enabled."""
    content = {"epoch": epoch, "optimizer_state_dict": optimizer.state_dict(), "loss": loss}
    if scaler is not None and scaler.is_enabled():
        content["scaler_state_dict"] = scaler.state_dict()
    return content


def load_optimizer_content(
    content: dict, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
) -> None:
    """Restore the optimizer, and an enabled scaler if the content has one: a run of another precision has none.

    Training checkpoints may name the two `optimizer` and `scaler`.
    """
    optimizer.load_state_dict(content.get("optimizer_state_dict", content.get("optimizer")))
    scaler_state = content.get("scaler_state_dict", content.get("scaler"))
    if scaler is not None and scaler.is_enabled() and scaler_state:
        scaler.load_state_dict(scaler_state)


def keep_last_checkpoints(output_dir: str | Path, number: int, epoch: int, best_epoch: int) -> None:
    """Remove both files of every epoch but the last `number` up to `epoch`, and the best; 0 removes none."""
    if not number:
        return
    for old in range(epoch + 1 - number):
        if old != best_epoch:
            model_path(output_dir, old).unlink(missing_ok=True)
            optimizer_path(output_dir, old).unlink(missing_ok=True)


def load_checkpoint(path: str | Path, model: nn.Module) -> None:
    """Load the weights in `path` into `model` on every rank; only the main process reads the file.

    Raises:
        FileNotFoundError: no file at `path`.
        ValueError: the file is damaged.
        RuntimeError: the weights do not fit the model.
    """
    if get_rank() == 0:
        model.load_state_dict(load_tensors(path))
    broadcast_weights(model)


def save_whole(content, path: Path) -> None:
    """Save under a temporary name, then rename, so that a killed run leaves no partial file under this name.

    Raises:
        OSError: the file cannot be written; the message names it, and nothing of it is left.
    """
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def load_optimizer(
    path: str | Path, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
) -> tuple[int, float]:
    """Restore the optimizer from `pytorch_opt.bin.N` and return the next epoch and the loss of the last one.

    An enabled `scaler` is restored too if the file has one; it was written with another precision otherwise.
    Raises FileNotFoundError or ValueError naming the file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"--resume_model: no optimizer file at {path}")
    try:
        content = load_tensors(path)
        epoch, loss = int(content["epoch"]), float(content["loss"])
        load_optimizer_content(content, optimizer, scaler)
        return epoch + 1, loss
    except Exception as error:  # unpickling and torch raise many kinds of errors, without the name of the file
        raise ValueError(
            f"--resume_model {path} is not an optimizer file of this model (pytorch_opt.bin.N): "
            f"{type(error).__name__}: {error}"
        ) from error


def read_flags(folder: str | Path) -> dict[str, Any]:
    """Return the flags that a run recorded in its folder, beside its checkpoints; empty without flags.json.

    Raises ValueError naming a file that is not JSON or holds something else.
    """
    path = Path(folder) / FLAGS_FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}; {REPAIR}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not the flags of a run; {REPAIR}")
    return content


def read_frame_sampling(folder: str | Path, datatype: str | None = None) -> str | None:
    """Return the rule by which a run sampled frames, "published" if it records none.

    None without flags.json, and for a run on another data set than `datatype`.
    """
    flags = read_flags(folder)
    if not flags or (datatype is not None and flags.get("datatype") != datatype):
        return None
    return flags.get("frame_sampling") or "published"


def open_model(flags, vocabulary: int, for_training: bool = False) -> CLIP4Clip:
    """Return the model of `flags` with the weights of `flags.init_model`, in float32 on the CPU.

    This is the one way from flags to a model: for training, evaluation, index, search and pictures. `flags` is any
    object with the attributes of `CLIP4ClipConfig`, `init_model` and `cache_dir`; the last two may be "" or None.
    `vocabulary` is the number of the tokenizer's tokens. With `for_training` a head may be newly initialized.

    Raises:
        FileNotFoundError: a file of weights is missing.
        ValueError: damaged weights, or flags that do not fit them; the message names those that do.
    """
    cache_dir = getattr(flags, "cache_dir", None) or None
    weights, origin = None, ""
    if flags.init_model:
        with local_main_process_first():
            path = cached_path(flags.init_model, cache_dir)
        weights, origin = read_state_dict(path), f"--init_model {flags.init_model}"
        check_origin(weights, origin, flags.pretrained_clip_name, for_training)
    model = CLIP4Clip.from_pretrained("cross-base", weights, cache_dir, task_config=flags, origin=origin)
    check_vocabulary(model.clip, vocabulary, model.config.pretrained_clip_name)
    if not for_training:
        check_evaluable(model.config, model.weight_report, weights, flags.init_model)
    return model


def check_origin(weights: Mapping[str, torch.Tensor], origin: str, clip_name: str, for_training: bool) -> None:
    """Raise ValueError if a file of weights that was named is not a checkpoint of this kind of model.

    In training it is a warning, and CLIP starts from `clip_name`. A checkpoint of a head alone is a warning in both.
    """
    if any(key.startswith("clip.") for key in weights):
        return
    known = [key for key in weights if key.startswith((*head_key_prefixes(), "frame_position_embeddings."))]
    if "visual.proj" in weights and "positional_embedding" in weights:
        advice = "they are those of a CLIP alone: give the file by --pretrained_clip_name"
    else:
        advice = f"keys of a checkpoint begin with clip., those of the file are such as {list(weights)[:3]!a}"
    used = f"{len(known)} of its {len(weights)} weights" if known else f"none of its {len(weights)} weights"
    if len(known) < len(weights) and not for_training:
        raise ValueError(f"{origin} would not be evaluated: {used} can be used; {advice}")
    logger.warning("%s: %s can be used; CLIP itself is --pretrained_clip_name %s", origin, used, clip_name)


def check_evaluable(config, report, weights: Mapping[str, torch.Tensor] | None, path: str | None) -> None:
    """Raise ValueError if an evaluation would use an untrained head, or only part of a checkpoint.

    `config` and `report` are the model's (`CLIP4ClipConfig`, `WeightReport`); `weights` those of `--init_model` `path`,
    None without one. The message names the flags that fit the file.
    """
    flags = f"--sim_header {config.sim_header} --agg_module {config.agg_module} --linear_patch {config.linear_patch}"
    untrained = report.untrained_head
    unexpected = [key for key in report.unexpected if key.startswith((*head_key_prefixes(), "clip.visual.conv2."))]
    if untrained and weights is None:
        raise ValueError(
            f"{flags} has a head that was never trained: {len(untrained)} weights that only --init_model can give, "
            f"such as {', '.join(untrained[:3])}"
        )
    if untrained or unexpected:
        reason = f"lacks {untrained[0]}: that head was never trained" if untrained else f"also holds {unexpected[0]}"
        raise ValueError(
            f"{flags} does not fit --init_model {path}, which {reason}; "
            f"what fits: {' or: '.join(fitting_flags(weights))}"
        )


def fitting_flags(weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Return, for each choice, the flags that make a whole model of a checkpoint's keys."""
    layers = max(
        count_blocks(weights, prefix) for prefix in ("transformerClip.resblocks.", "cross.transformer.resblocks.")
    )
    common = f" --cross_num_hidden_layers {layers}" if layers else ""
    if "clip.visual.conv2.weight" in weights:
        common += " --linear_patch 3d"
    return [f"--sim_header {head}{common}" for head in fitting_heads(weights)]
