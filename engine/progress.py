"""The progress bar of a training, and CLIP4Clip's line, with the health of the run and where its time goes."""

import logging
import resource
import sys
import time
from datetime import timedelta

import torch
from tqdm.auto import tqdm

import util
from engine.run_log import RunLog

logger = logging.getLogger(__name__)


class Progress:
    """Optimizer steps and clips of this process since the last line, and the line that reports them.

    Args:
        epoch, epochs: the current epoch from 0, and their number.
        accumulate: batches in an optimizer step.
        loader: any sized iterable of batches; `seconds_waited` is read if it has it.
        curves: the `RunLog` that receives the same numbers, or None.
    """

    def __init__(
        self, epoch: int, epochs: int, accumulate: int, loader, process: util.Process, curves: RunLog | None = None
    ):
        self.epoch, self.epochs, self.accumulate = epoch, epochs, accumulate
        self.loader, self.process, self.curves = loader, process, curves
        self._restart()

    def _restart(self) -> None:
        self.clips = self.steps = 0
        self.started, self.waited_before = time.perf_counter(), self._seconds_waited()

    def _seconds_waited(self) -> float:
        return getattr(self.loader, "seconds_waited", 0.0)

    def bar(self, first: int) -> tqdm:
        """Return the loader's batches, with a progress bar on the main process that starts at the batch `first`."""
        return tqdm(
            self.loader, desc=f"epoch {self.epoch + 1}/{self.epochs}", total=len(self.loader), initial=first,
            disable=None if self.process.is_main else True,
        )  # fmt: skip

    def add(self, clips: int) -> None:
        """Count one more step, of so many clips."""
        self.steps += 1
        self.clips += clips

    def log(
        self, index: int, global_step: int, loss: float, rates: list[float], logit_scale: float, gradient_norm: float
    ) -> None:
        """Log the steps since the last line, up to the batch `index`, and add them to the curves."""
        total = time.perf_counter() - self.started
        seconds, waited = total / self.steps, (self._seconds_waited() - self.waited_before) / self.steps
        clips_per_second = self.clips * self.process.world_size / total
        rates, memory, batches = sorted(set(rates)), peak_memory(self.process.device), len(self.loader)
        batches_left = (self.epochs - self.epoch) * batches - index - 1
        seconds_left = batches_left / self.accumulate * seconds
        logger.info(
            "Epoch: %d/%s, Step: %d/%d, Lr: %s, Loss: %f, Time/step: %f (data %f, compute %f), Clips/s: %.1f, "
            "Logit scale: %.2f, Gradient norm: %.3f, Peak memory: %.2f GB, Eta: %s",
            self.epoch + 1, self.epochs, index + 1, batches, "-".join(f"{rate:.9f}" for rate in rates), loss,
            seconds, waited, seconds - waited, clips_per_second, logit_scale, gradient_norm, memory / 1e9,
            timedelta(seconds=round(seconds_left)),
        )  # fmt: skip
        if self.curves is not None:
            self.curves.add(
                "step", self.epoch, global_step, loss=loss, learning_rates=rates, logit_scale=logit_scale,
                gradient_norm=gradient_norm, seconds_per_step=seconds, data_seconds_per_step=waited,
                clips_per_second=clips_per_second, peak_memory_bytes=memory,
            )  # fmt: skip
        self._restart()


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of tensors on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
