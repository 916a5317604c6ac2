"""Losses and gradients that are not finite: found on any rank before the optimizer moves, described, saved, bounded."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import torch

import util
from modules.distributed import all_gather_objects
from modules.whole_files import explain_write_errors

logger = logging.getLogger(__name__)


class NonFiniteError(FloatingPointError):
    """A loss or a gradient is not finite."""


class StepGroup:
    """The batches of one optimizer step, and their losses on the device."""

    def __init__(self):
        self.batches: list = []
        self.losses: list[torch.Tensor] = []

    def add(self, batch, loss: torch.Tensor) -> None:
        """Add a batch whose gradients have been accumulated."""
        self.batches.append(batch)
        self.losses.append(loss)

    def clips(self) -> int:
        """Return the number of clips of this process in the step."""
        return sum(len(batch[0]) for batch in self.batches)

    def read(self, gradient_norm: torch.Tensor) -> tuple[list[float], float]:
        """Return the losses and the norm; the one moment of a step in which the host waits for the device."""
        *losses, norm = torch.stack([value.float() for value in (*self.losses, gradient_norm)]).tolist()
        return losses, norm


def is_finite_step(losses: list[float], norm: float, scaler: torch.amp.GradScaler) -> bool:
    """Return True if the losses and the gradient norm of this process let the optimizer move."""
    # a scaler expects infinite gradients, and leaves those steps out, as long as it can lower its scale
    expects_overflow = scaler.is_enabled() and scaler.get_scale() > 1
    return all(map(math.isfinite, losses if expects_overflow else [*losses, norm]))


class NonFiniteSteps:
    """The steps of an epoch that are left out because a loss or a gradient is not finite.

    Args:
        allowed: consecutive steps that may be left out (`--skip_nonfinite`).
        folder: receives the batches of such a step (`--output_dir`), or None.
        loader: any sized iterable of batches; the videos are named if it has `videos_of_batch`.
        epoch: from 0, for the message.
        save: saves the run on all ranks before the error.
    """

    def __init__(
        self, allowed: int, folder: str | Path | None, loader, process: util.Process, epoch: int,
        save: Callable[[], None],
    ):  # fmt: skip
        self.allowed, self.folder, self.loader, self.process = allowed, folder, loader, process
        self.epoch, self.save = epoch, save
        self.consecutive = 0

    def end_series(self) -> None:
        """Note a finite step: those left out before it no longer count."""
        self.consecutive = 0

    def add(self, group: StepGroup, index: int, losses: list[float], norm: float) -> None:
        """Leave a step out and log why, on all ranks; `index` is its last batch in the epoch, from 0.

        Raises:
            NonFiniteError: on every rank, if more consecutive steps are left out than allowed.
        """
        self.consecutive += 1
        message = self._describe_on_all_ranks(group, index, losses, norm)
        if self.consecutive > self.allowed:
            self.save()
            raise NonFiniteError(message)
        logger.warning("%s; the step is left out (--skip_nonfinite)", message)

    def _describe_on_all_ranks(self, group: StepGroup, index: int, losses: list[float], norm: float) -> str:
        """Return the cause on the ranks that have it; these write their batches.

        Gradients are means over the ranks: if any loss is not finite, no rank's gradient is, and names no cause.
        """
        causes = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
        is_loss = any(all_gather_objects(bool(causes)))
        message = self._describe(group, index, losses, norm, causes) if causes or not is_loss else None
        return "; ".join(filter(None, all_gather_objects(message)))

    def _describe(self, group: StepGroup, index: int, losses: list[float], norm: float, causes: list[int]) -> str:
        first = index + 1 - len(losses)
        what, batch = f"the loss is {losses[-1]}, and the gradient's norm {norm}", index
        if causes:
            what, batch = f"the loss is {losses[causes[0]]}", first + causes[0]
        message = f"{what} in epoch {self.epoch + 1}, batch {batch + 1} of {len(self.loader)}, "
        message += f"on rank {self.process.rank}"
        if self.folder is not None and hasattr(self.loader, "videos_of_batch"):
            videos = [name for number in range(first, index + 1) for name in self.loader.videos_of_batch(number)]
            try:
                path = save_batches(Path(self.folder), index + 1, self.process.rank, group.batches, videos, losses)
            except OSError as error:
                path = f"no file ({error})"
            message += f"; its batches are in {path}, of the videos {', '.join(videos)}"
        return message


def save_batches(folder: Path, batch: int, rank: int, batches: list, videos: list[str], losses: list[float]) -> Path:
    """Write the batches of a step whose loss or gradient is not finite, for inspection by `torch.load`."""
    path = folder / f"nonfinite_batch{batch}_rank{rank}.pt"
    names = ("input_ids", "input_mask", "segment_ids", "video", "video_mask")
    named = [dict(zip(names, batch, strict=True)) for batch in batches]
    path.parent.mkdir(parents=True, exist_ok=True)  # machines other than the main one may lack --output_dir
    with explain_write_errors(path):
        torch.save({"batches": named, "videos": videos, "losses": losses}, path)
    return path
