"""Ranks of a training, forked from one process that has imported everything, so that a restart imports nothing.

A fault is a dict. On `rank` (None: on every rank), the `call`-th call of the function named by `target`
("os.replace") with an argument that contains `match` triggers `action`: "stick" sleeps, "raise" raises, "poison"
multiplies the result by infinity, and a number is a signal that the rank sends itself.
"""

import json
import multiprocessing
import os
import pkgutil
import signal
import time
from pathlib import Path
from unittest import mock

import torch

import main_task_retrieval
import util
from modules.tokenization_clip import SimpleTokenizer
from tests.helpers.launch import free_port

SimpleTokenizer()  # the merges are read before a rank is forked

ROLE = "main_task_retrieval.main"
TIME_LIMIT = 120
# Imported once, before a rank is forked: torch's compiler (every torch optimizer imports it) takes longest.
PRELOADED = ["pytest", "torch._dynamo", "torch.utils.tensorboard", "tests.helpers.fault_worker"]
LAUNCHER_GRACE = 30  # torchrun's, between its SIGTERM and its SIGKILL


def install(fault: dict, rank: int) -> None:
    """Replace the fault's target in this process by a function that counts its calls."""
    if fault.get("rank", 0) not in (None, rank):
        return
    original = pkgutil.resolve_name(fault["target"])
    calls = []

    def faulty(*arguments, **settings):
        if fault.get("match", "") not in " ".join(map(str, arguments[:2])):
            return original(*arguments, **settings)
        calls.append(1)
        is_now = len(calls) == fault.get("call", 1)
        if is_now and fault.get("when") != "after":
            act(fault)
        result = original(*arguments, **settings)
        if is_now and fault.get("when") == "after":
            act(fault)
        return result * torch.inf if is_now and fault["action"] == "poison" else result

    mock.patch(fault["target"], faulty).start()


def act(fault: dict) -> None:
    """Do the fault's action."""
    if fault["action"] == "stick":
        time.sleep(10 * TIME_LIMIT)
    if fault["action"] == "raise":
        raise LookupError("the first cause")
    if isinstance(fault["action"], int):
        for _ in range(fault.get("times", 1)):
            os.kill(os.getpid(), fault["action"])


def run_rank(rank: int, world_size: int, port: int, flags: list[str], log: str, fault: dict | None) -> None:
    """Run one rank as a launcher starts it; `world_size` 0 is a process without a launcher."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    multiprocessing.set_start_method("fork", force=True)  # of loader workers, as without this harness
    if world_size:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    util.ECHO_SECONDS = 0.1  # no launcher is there to find out which rank failed first
    if fault is not None:
        install(fault, rank)
    main_task_retrieval.main(flags)


def main() -> None:
    """Run a rank with the fault in the environment variable FAULT: `torchrun -m tests.helpers.fault_worker FLAGS`."""
    fault = json.loads(os.environ.get("FAULT", "null"))
    if fault is not None:
        install(fault, int(os.environ.get("RANK", 0)))
    main_task_retrieval.main()


class Ranks:
    """The processes of one training; `wait` acts as a launcher does when a rank is lost."""

    def __init__(self, world_size: int, flags: list[str], logs: Path, fault: dict | None = None):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = [logs / f"rank{rank}.txt" for rank in range(max(world_size, 1))]
        for log in self.logs:
            log.touch()  # so that it can be read before its rank has started
        port = free_port()
        self.processes = [
            context.Process(target=run_rank, args=(rank, world_size, port, flags, str(log), fault))
            for rank, log in enumerate(self.logs)
        ]
        for process in self.processes:
            process.start()

    def signal(self, number: int, rank: int | None = None) -> None:
        """Send a signal to one rank, or to all that are running."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            if process.is_alive():
                os.kill(process.pid, number)

    def wait(self) -> list[int]:
        """Return the exit codes; after the first failure the others get SIGTERM, then SIGKILL if they do not end."""
        limit = time.monotonic() + TIME_LIMIT
        while any(process.is_alive() for process in self.processes):
            if any(process.exitcode for process in self.processes):
                self.signal(signal.SIGTERM)
                limit = min(limit, time.monotonic() + LAUNCHER_GRACE)
                break
            if time.monotonic() > limit:
                break
            time.sleep(0.02)
        for process in self.processes:
            process.join(max(0, limit - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        self.signal(signal.SIGKILL)
        for process in self.processes:
            process.join()
        return codes

    def text(self) -> str:
        """Return what all ranks have printed."""
        return "\n".join(log.read_text() for log in self.logs)


if __name__ == "__main__":
    main()
