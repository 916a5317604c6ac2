"""Loaders whose worker processes read batches with frames and report unreadable videos beside them."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection

import torch
from torch.multiprocessing import _prctl_pr_set_pdeathsig
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from dataloaders.unreadable import DamagedVideo, UnreadableVideo, UnreadableVideos
from dataloaders.worker_failures import end_on_failure, reason_pipe, require_shared_memory

logger = logging.getLogger(__name__)


class EpochSampler(DistributedSampler):
    """A DistributedSampler whose `set_epoch` also sets the epoch of the data set, in its workers too.

    The next pass skips the `first` samples, which a resumed run has seen.
    """

    first = 0

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        first, self.first = self.first, 0
        return islice(super().__iter__(), first, None)


class VideoLoader:
    """Batches with frames, read by worker processes that persist from epoch to epoch.

    Attributes:
        dataset: the `RetrievalDataset`, or this rank's share of its videos.
        unreadable: the `UnreadableVideos` of the current pass, or of the last one.
        frame_cache: the `FrameCache` that the samples are read by, or None; its counts are logged after each pass.
        seconds_waited: total time for which this process has waited for batches.

    Raises:
        VideoReadError, TooManyUnreadableVideosError: while iterating, as `UnreadableVideos.report`.
    """

    def __init__(
        self, dataset: Dataset, samples: Dataset, new_record: Callable[[], UnreadableVideos], *, batch_size: int,
        num_workers: int, sampler=None, drop_last: bool = False, keep_workers: bool = False, frame_cache=None,
    ):  # fmt: skip
        self.dataset, self.sampler, self.frame_cache = dataset, sampler, frame_cache
        self.batch_size, self.num_workers = batch_size, num_workers
        self.new_record, self.unreadable = new_record, new_record()
        self._unreadable_before: dict | None = None
        self.seconds_waited = 0.0
        self._loader = build_loader(
            samples, batch_size, num_workers, sampler=sampler, drop_last=drop_last, collate_fn=collate_reported,
            persistent_workers=keep_workers and num_workers > 0,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        self.unreadable = self.new_record()
        if self._unreadable_before is not None:
            self.unreadable.restore(self._unreadable_before)
            self._unreadable_before = None
        counts_before = None if self.frame_cache is None else self.frame_cache.counts()
        started = time.perf_counter()
        for batch, found in self._loader:
            self.unreadable.report(found)
            self.seconds_waited += time.perf_counter() - started
            yield batch
            started = time.perf_counter()
        if counts_before is not None:
            counts = (now - before for now, before in zip(self.frame_cache.counts(), counts_before, strict=True))
            logger.info(
                "%s: frame cache of this process: %d hits, %d misses, %d damaged entries replaced; frames of %d x %d",
                self.unreadable.split, *counts, self.frame_cache.size, self.frame_cache.size,
            )  # fmt: skip

    def start_at(self, batch: int, unreadable: dict | None = None) -> None:
        """Skip batches in the next pass; `unreadable` is the `UnreadableVideos.state` after them."""
        self.sampler.first = batch * self.batch_size
        self._unreadable_before = unreadable

    def videos_of_batch(self, batch: int) -> list[str]:
        """Return the names of the items in a batch of the current epoch, before unreadable videos are replaced."""
        whole = list(DistributedSampler.__iter__(self.sampler))
        indices = whole[batch * self.batch_size : (batch + 1) * self.batch_size]
        names = self.dataset.item_names()
        return [names[self.dataset.item_of_sample(index)] for index in indices]


def collate_reported(
    samples: list[tuple[tuple, list[UnreadableVideo | DamagedVideo]]],
) -> tuple[list[torch.Tensor], list[UnreadableVideo | DamagedVideo]]:
    """Return the samples with a leading batch axis, and the unreadable videos met while they were read."""
    return default_collate([sample for sample, _ in samples]), [video for _, found in samples for video in found]


def build_loader(
    dataset: Dataset, batch_size: int, num_workers: int, collate_fn: Callable = default_collate, **settings
) -> DataLoader:
    """Return a DataLoader with this project's workers; `settings` are further arguments of DataLoader.

    The reason why a worker ended is in the error of `worker_failures.explain_worker_ends`.
    """
    _, reasons = reason_pipe()
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        collate_fn=partial(collate_within_memory, reasons, collate_fn),
        worker_init_fn=partial(prepare_worker, reasons),
        # a generator of its own: DataLoader would draw from the global one, and change the model's random numbers
        generator=torch.Generator().manual_seed(0),
        **settings,
    )


def collate_within_memory(reasons: Connection, collate_fn: Callable, samples: list):
    """Return the collated samples; a worker ends with a reason if shared memory has no room for them."""
    require_shared_memory(samples, reasons)
    return collate_fn(samples)


def prepare_worker(reasons: Connection, worker_id: int) -> None:
    """Prepare a DataLoader worker: one thread, since there is a worker for each core to be used, and its signals.

    A signal to all processes of the group is for the one that reads the batches, which ends its workers once it has
    saved. A worker ends with that process, and when that process terminates it, whatever the worker is doing.
    """
    end_on_failure(reasons)
    _prctl_pr_set_pdeathsig(signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # elsewhere the handler of torch stays: any SIGTERM ends the worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=end_if_terminated_by, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)


def end_if_terminated_by(parent: int) -> None:
    """Wait for SIGTERM, which is blocked in all threads, until it comes from the process `parent`."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        continue
    os._exit(0)  # another exit code would be an error of the worker to torch
