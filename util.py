"""The process: distributed set-up and tear-down, logging, random states."""

import logging
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing import _prctl_pr_set_pdeathsig

from modules.standard_streams import escape_controls

logger = logging.getLogger(__name__)

ECHO_SECONDS = 2


@dataclass(frozen=True)
class Process:
    """This process among all: its device, its global and local rank, and their number R."""

    device: torch.device
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@contextmanager
def distributed_process(local_rank: int = 0) -> Iterator[Process]:
    """Join the launcher's process group (nccl on CUDA, gloo on CPU), leave it after success; one process needs none.

    `torchrun` and `torch.distributed.launch` give rank and world size in the environment; `local_rank` is the flag of
    that name, for launchers that pass it alone.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", local_rank))
    if is_launched():
        die_with_launcher()
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"local rank {local_rank} has no GPU of its own: {torch.cuda.device_count()} visible; "
                f"start at most that many processes on this machine (--nproc_per_node)"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if not is_launched():
        with exit_promptly_on_error():
            yield Process(device)
        return
    is_cuda = device.type == "cuda"
    # with its GPU given: a barrier before any other collective would otherwise guess one from the global rank
    dist.init_process_group(backend="nccl" if is_cuda else "gloo", device_id=device if is_cuda else None)
    with exit_promptly_on_error():
        yield Process(device, dist.get_rank(), local_rank, dist.get_world_size())
    # only after success: leaving a group waits for ranks that an error elsewhere keeps in a collective for ever
    dist.destroy_process_group()


@contextmanager
def exit_promptly_on_error() -> Iterator[None]:
    """Exit promptly on an exception in the block so that the root cause is reported first.

    Python waits for its child processes before it exits, and loader workers ignore every signal but SIGKILL: it would
    wait for ever, and the other ranks in a collective with it. torchrun shows the earliest error of all ranks as the
    root cause, in whole seconds: the echo of a lost rank is raised later.
    """
    try:
        yield
    except BaseException as error:
        if is_echo(error):
            time.sleep(ECHO_SECONDS)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # DataLoader's handler would raise an error of its own
        for child in multiprocessing.active_children():
            child.kill()
        raise


def is_echo(error: BaseException) -> bool:
    """Return True for the error of a collective: another rank has ended, for a reason of its own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def is_launched() -> bool:
    """Return True if a launcher started this process as part of a group, of one or more."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launched_world_size() -> int:
    """Return the number of processes R that the launcher started, 1 without one; known before the group is up."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def launched_rank() -> int:
    """Return the global rank of this process, 0 without a launcher; known before the group is up."""
    return int(os.environ["RANK"]) if is_launched() else 0


def setup_logging(log_file: str | Path | None, is_main: bool = True) -> None:
    """Log to the terminal and to `log_file`; processes other than the main one report errors only."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.INFO if is_main else logging.ERROR)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if is_main and log_file is not None:
        handlers.append(logging.FileHandler(log_file, encoding="utf-8", errors="backslashreplace"))
    for handler in handlers:
        handler.setFormatter(log_formatter())
        root.addHandler(handler)


class LogFormatter(logging.Formatter):
    """A formatter whose every record is one line, with its traceback behind it, whatever names the message holds."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = escape_controls(record.message).replace("\n", "\\n")
        return super().formatMessage(record)

    def formatException(self, ei) -> str:
        text, message = super().formatException(ei), str(ei[1])
        # Indented, a line of the message cannot be taken for a record.
        return escape_controls(text.replace(message, message.replace("\n", "\n    ")) if message else text)


def log_formatter() -> logging.Formatter:
    """Return CLIP4Clip's form of a log line."""
    return LogFormatter("%(asctime)s - %(levelname)s -   %(message)s", "%m/%d/%Y %H:%M:%S")


@contextmanager
def errors_in_log(log_file: Path, rank: int = 0) -> Iterator[None]:
    """Add the traceback of an error in the block to the log file, which the terminal shows without that.

    Ranks other than 0 may lack the file, and do not repeat that another rank has ended.
    """
    try:
        yield
    except SystemExit:  # its reason is logged
        raise
    except BaseException as error:
        if rank == 0 or (log_file.exists() and not is_echo(error)):
            # the error that ends the run counts, not one of writing it down, such as on a full disk
            with suppress(OSError):
                handler = logging.FileHandler(log_file, encoding="utf-8", errors="backslashreplace")
                handler.setFormatter(log_formatter())
                handler.handle(
                    logger.makeRecord(
                        logger.name, logging.ERROR, __file__, 0, "rank %d ends with an error", (rank,), sys.exc_info()
                    )
                )
                handler.close()
        raise


def log_split(name: str, examples: int, batch_size: int, steps: int) -> None:
    """Log CLIP4Clip's lines; in training the batch is that of all processes, and the steps are the whole run's."""
    logger.info("***** Running %s *****", name)
    logger.info("  Num examples = %d", examples)
    logger.info("  Batch size = %d", batch_size)
    logger.info("  Num steps = %d", steps)


def set_seed(seed: int) -> None:
    """Seed every random generator of this process."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # seeds CUDA too
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def random_state(device: torch.device) -> dict:
    """Return the states of this process's random generators, as plain values and tensors."""
    name, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict, device: torch.device) -> None:
    """Continue the random generators from a `random_state`."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def die_with_launcher() -> None:
    """End this process when its parent ends, for whatever reason (Linux), so that no orphan holds a GPU's memory.

    Raises:
        ConnectionError: torchrun has ended already; the ranks would wait half an hour for the store that it held.
    """
    _prctl_pr_set_pdeathsig(signal.SIGKILL)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True):
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        try:
            socket.create_connection(address).close()
        except ConnectionRefusedError as error:
            raise ConnectionError(f"the launcher of this process has ended: nothing listens at {address}") from error
