"""Loader workers that cannot hand over a batch: they end with a reason, which torch would lose or wait for ever.

A batch travels in shared memory (/dev/shm), and its file descriptor through a socket, in threads of the worker whose
errors multiprocessing prints and forgets.
"""

import errno
import multiprocessing
import multiprocessing.queues
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

from torch.utils.data import get_worker_info

SHARED_MEMORY = Path("/dev/shm")
EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h
LONGEST_REASON = 2000  # bytes, so that a reason is written to the pipe at once


class LoaderWorkerError(RuntimeError):
    """A loader worker ended, so that its batches are lost."""


@cache
def reason_pipe() -> tuple[Connection, Connection]:
    """Return the ends, to read and to write, of the pipe on which the workers of this process give their reasons."""
    return multiprocessing.Pipe(duplex=False)


def end_on_failure(reasons: Connection) -> None:
    """End this worker, with the reason in the pipe, when one of its threads cannot hand over a batch."""

    def end(error: BaseException) -> None:
        end_worker(reasons, f"{type(error).__name__}: {error}{advice(error)}")

    sys.excepthook = lambda kind, error, trace: end(error)  # called by the thread that serves file descriptors
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(lambda error, batch: end(error))


def end_worker(reasons: Connection, reason: str) -> None:
    """Write the reason to the pipe and end this process."""
    reasons.send_bytes(reason.encode(errors="backslashreplace")[:LONGEST_REASON])
    os._exit(EXIT_CODE)


def advice(error: BaseException) -> str:
    """Return what to do about an error of handing over a batch."""
    if "AF_UNIX path too long" in str(error):
        return f" (sockets are made in {tempfile.gettempdir()}: set TMPDIR to a folder with a shorter name)"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return " (raise the limit of open files, ulimit -n)"
    return ""


def require_shared_memory(samples: list, reasons: Connection) -> None:
    """End this process with a reason if it is a worker and the batch of these samples does not fit into /dev/shm.

    Writing it would end the worker by SIGBUS.
    """
    if get_worker_info() is None or not SHARED_MEMORY.is_dir():
        return
    needed = array_bytes(samples)
    if needed > shutil.disk_usage(SHARED_MEMORY).free:
        end_worker(
            reasons,
            f"{shared_memory_line()}, and a batch needs {needed / 1e6:.1f} MB there: give a smaller --batch_size or "
            "--batch_size_val, or a larger /dev/shm (docker run --shm-size 8g)",
        )


def array_bytes(value) -> int:
    """Return the size of all arrays in nested lists and tuples."""
    if isinstance(value, list | tuple):
        return sum(map(array_bytes, value))
    return getattr(value, "nbytes", 0)


def shared_memory_line() -> str:
    """Return the size of /dev/shm and its free space in words."""
    usage = shutil.disk_usage(SHARED_MEMORY)
    return f"{SHARED_MEMORY} has {usage.total / 1e6:.1f} MB, of which {usage.free / 1e6:.1f} MB are free"


def given_reasons() -> list[str]:
    """Return the reasons in the pipe, and leave it empty."""
    reasons, found = reason_pipe()[0], []
    while reasons.poll():
        found.append(reasons.recv_bytes().decode())
    return found


@contextmanager
def explain_worker_ends() -> Iterator[None]:
    """Turn torch's error of a worker that ended in the block into one with the worker's reason and the way out.

    Raises:
        LoaderWorkerError: a worker ended.
    """
    given_reasons()  # those of an earlier block, whose workers may have ended one after the other
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        reason = (given_reasons() or str(error).splitlines())[0]
        if "Bus error" in reason and SHARED_MEMORY.is_dir():
            reason += f" {shared_memory_line()}; a smaller --batch_size needs less."
        raise LoaderWorkerError(
            f"a loader worker ended: {reason}; --num_thread_reader 0 reads the videos without workers"
        ) from None
