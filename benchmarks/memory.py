"""Memory of a process: what it holds now, and the most that it has held. On the CPU Linux alone tells the peak."""

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch


def available_bytes(device: str) -> int:
    """What could be taken without others having to give back theirs."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    (available,) = (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(available.split()[1]) * 1024


def held_bytes(device: str) -> int:
    """Memory of this process now: on the GPU what tensors hold, else the resident pages."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_bytes(device: str) -> int:
    """The most that this process has held since `forget_peak`, or since its start."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # getrusage's maximum would be no less than that of the process that started this one
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024


def forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def in_new_process(function: Callable, *arguments):
    """The function's result; its memory is that of nothing else."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
