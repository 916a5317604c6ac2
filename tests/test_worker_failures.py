"""Loader workers that cannot hand over a batch: the run ends with the reason, and does not wait."""

import multiprocessing
import os
import resource
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from dataloaders import worker_failures
from dataloaders.video_loader import build_loader
from dataloaders.worker_failures import LoaderWorkerError, array_bytes, explain_worker_ends

FORK = multiprocessing.get_context("fork")


class Frames(Dataset):
    """Samples of 1 MB."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[np.ndarray]:
        return (np.full(1_000_000, index, dtype=np.uint8),)


def read_all(change, outcome) -> None:
    """Read all samples with two workers, in this process of its own, and send how that ends."""
    change()
    try:
        with explain_worker_ends():
            batches = [batch[0][:, 0].tolist() for batch in build_loader(Frames(), 4, 2)]
        outcome.send(batches)
    except (RuntimeError, OSError) as error:
        outcome.send(f"{type(error).__name__}: {error}")


def ends_with(change) -> list | str:
    """How reading ends after a change of the process."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=read_all, args=(change, theirs))
    process.start()
    found = ours.recv() if ours.poll(60) else "waits"
    process.kill()
    process.join()
    return found


def test_batches_arrive():
    assert ends_with(lambda: None) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_folder_with_a_name_too_long_for_a_socket(tmp_path):
    folder = tmp_path / ("L" * 105)
    folder.mkdir()

    def change() -> None:
        multiprocessing.process.current_process()._config["tempdir"] = str(folder)
        tempfile.tempdir = str(folder)

    found = ends_with(change)
    assert found.startswith("LoaderWorkerError: a loader worker ended: OSError: AF_UNIX path too long")
    assert str(folder) in found and "TMPDIR" in found and "--num_thread_reader 0" in found


@pytest.mark.parametrize("more", [8, 14, 20])
def test_few_file_descriptors(more):
    """For the workers, for their sockets, or for the batches of this process: it ends in each case."""

    def change() -> None:
        limit = len(os.listdir("/proc/self/fd")) + more
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    found = ends_with(change)
    assert found != "waits" and ("Too many open files" in found or "[Errno 24]" in found or isinstance(found, list))


def test_a_shared_memory_too_small_for_a_batch():
    def change() -> None:
        worker_failures.shutil.disk_usage = lambda path: SimpleNamespace(total=3_000_000, free=2_500_000)

    found = ends_with(change)
    assert "/dev/shm has 3.0 MB, of which 2.5 MB are free, and a batch needs 4.0 MB there" in found
    assert "--batch_size" in found and "--num_thread_reader 0" in found


def test_a_worker_that_something_kills_is_named():
    class Killed(Frames):
        def __getitem__(self, index: int):
            os.kill(os.getpid(), 9)

    killed = r"DataLoader worker \(pid.* (is killed by signal: Killed|exited unexpectedly)"
    with pytest.raises(LoaderWorkerError, match=killed), explain_worker_ends():
        list(build_loader(Killed(), 4, 1))


def test_other_errors_stay_as_they_are():
    for error in (RuntimeError("Caught ValueError in DataLoader worker process 0."), ValueError("another")):
        with pytest.raises(type(error)) as raised, explain_worker_ends():
            raise error
        assert raised.value is error


def test_sizes_of_nested_arrays():
    assert array_bytes([((np.zeros(3), torch.zeros(2, dtype=torch.int64)), ["text"])]) == 3 * 8 + 2 * 8
