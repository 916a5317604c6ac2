"""Start processes from the command line, as a user does."""

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def run_python(*arguments, timeout: float = 300, **environment) -> subprocess.CompletedProcess:
    """Run `python ARGUMENTS` in the repository's root without a GPU; the result holds stdout and stderr as text."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        env={
            **inherited,
            "PYTHONPATH": str(REPOSITORY),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def launcher(name: str, processes: int) -> list[str]:
    """Return the arguments of `python` for `torchrun` or `torch.distributed.launch` with this many processes."""
    if name == "torchrun":
        return ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return ["-m", "torch.distributed.launch", f"--nproc_per_node={processes}", f"--master_port={free_port()}"]


def free_port() -> int:
    """Return a free port outside the range from which the system takes those of outgoing connections.

    On Linux that range begins at 32768. The port is drawn without a seed, so that concurrent tests draw different ones.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("none of 100 random ports from 20000 to 31999 is free")


def is_running(process: int) -> bool:
    """Return whether a process of this id exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(is_so: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until a condition is True; an AssertionError after `seconds` guards against waiting for ever."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"not within {seconds:g} seconds"
        time.sleep(0.01)
