"""The process: distributed set-up and tear-down, logging, seeding."""

import logging
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

logger = logging.getLogger(__name__)


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

    `torchrun` and `torch.distributed.launch` say rank and world size in the environment; `local_rank` is the flag of
    that name, for launchers that pass only that.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", local_rank))
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
        yield Process(device)
        return
    is_cuda = device.type == "cuda"
    # nccl is told its GPU: a barrier before any other collective would otherwise guess one from the global rank
    dist.init_process_group(backend="nccl" if is_cuda else "gloo", device_id=device if is_cuda else None)
    yield Process(device, dist.get_rank(), local_rank, dist.get_world_size())
    # only after success: leaving a group waits for ranks that an error elsewhere keeps in a collective for ever
    dist.destroy_process_group()


def is_launched() -> bool:
    """True where a launcher started this process as one of several (or one) of a group."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launched_world_size() -> int:
    """Number of processes that the launcher started, 1 without a launcher; known before the group is up."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def setup_logging(log_file: str | Path | None, is_main: bool = True) -> None:
    """Log to the terminal and to `log_file`; processes other than the main one report errors only."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.INFO if is_main else logging.ERROR)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if is_main and log_file is not None:
        handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s - %(levelname)s -   %(message)s", "%m/%d/%Y %H:%M:%S"))
        root.addHandler(handler)


def log_split(name: str, examples: int, batch_size: int, steps: int) -> None:
    """CLIP4Clip's lines; in training the batch is that of all processes, and the steps are those of the whole run."""
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
