"""Checkpoints in CLIP4Clip's form: `pytorch_model.bin.{epoch}` is a state dict, `pytorch_opt.bin.{epoch}` the rest.

Epochs in file names and in the optimizer file count from 0.
"""

import os
import re
from pathlib import Path

import torch
from torch import nn

from modules.distributed import broadcast_weights, get_rank


def model_path(output_dir: str | Path, epoch: int) -> Path:
    """Where the weights after `epoch` are."""
    return Path(output_dir) / f"pytorch_model.bin.{epoch}"


def checkpoint_epoch(path: str | Path | None) -> int | None:
    """The epoch in the name of a weights file, None where the name has none."""
    found = re.search(r"pytorch_model\.bin\.(\d+)$", str(path))
    return int(found[1]) if found else None


def optimizer_path(output_dir: str | Path, epoch: int) -> Path:
    """Where the optimizer after `epoch` is."""
    return Path(output_dir) / f"pytorch_opt.bin.{epoch}"


def save_checkpoint(
    output_dir: str | Path, epoch: int, model: nn.Module, optimizer: torch.optim.Optimizer, loss: float
) -> Path:
    """Write both files and return the path of the weights; `model` is the bare model, not its DDP wrapper."""
    write_whole(model.state_dict(), model_path(output_dir, epoch))
    write_whole(
        {"epoch": epoch, "optimizer_state_dict": optimizer.state_dict(), "loss": loss},
        optimizer_path(output_dir, epoch),
    )
    return model_path(output_dir, epoch)


def load_checkpoint(path: str | Path, model: nn.Module) -> None:
    """Every rank's `model` gets the weights that the main process reads from `path`; other machines may lack the file.

    Raises FileNotFoundError, or torch's RuntimeError where the file is of another model.
    """
    if get_rank() == 0:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    broadcast_weights(model)


def write_whole(content, path: Path) -> None:
    """Save under a temporary name, then rename: a run that dies while writing leaves no half file under this name."""
    temporary = path.with_name(path.name + ".partial")
    torch.save(content, temporary)
    os.replace(temporary, path)


def load_optimizer(path: str | Path, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Restore the optimizer from `pytorch_opt.bin.N`; returns the epoch to go on with and the loss of the one before.

    Raises FileNotFoundError or ValueError naming the file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"--resume_model: no optimizer file at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        optimizer.load_state_dict(content["optimizer_state_dict"])
        return content["epoch"] + 1, content["loss"]
    except Exception as error:  # unpickling and torch raise errors of many kinds; none of them names the file
        raise ValueError(
            f"--resume_model {path} is not an optimizer file of this model (pytorch_opt.bin.N): "
            f"{type(error).__name__}: {error}"
        ) from error
