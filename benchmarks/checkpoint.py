"""How long a training checkpoint stalls the training, beside the time of a step and a plain `torch.save`.

    python -m benchmarks.checkpoint [--repeats 5] [--batch_size 4] [--folder DISK] [--output FILE.md]

The model has the sizes of ViT-B/32 and random weights, on the CPU; the optimizer has both moments of every weight.  All
contestants take turns in one run; a figure is the median of its repeats.

    step            forward, backward and BertAdam on BATCH_SIZE pairs of 12 frames, while nothing is written
    stall           `TrainingCheckpoints.save` until the training goes on: everything copied, the writing in a thread
    step, writing   the step right after the stall, while the point is written
    until whole     from the call until the point is on the disk: written, summed, flushed, renamed
    torch.save      the same content by `torch.save`, not flushed: the stall of a run that writes it in its own thread
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.reporting import header, publish
from benchmarks.step import CLIPS, Batch, Contestant, build_contestants, random_batch
from modules.resume import FILES, TrainingCheckpoints


def take_step(contestant: Contestant, batch: Batch) -> None:
    contestant.loss(batch).backward()
    contestant.optimizer.step()
    contestant.optimizer.zero_grad()


def point_of(contestant: Contestant) -> dict[str, dict]:
    """What a run saves, but for its few kilobytes of positions and random states."""
    return dict(zip(FILES, (contestant.model.state_dict(), contestant.optimizer.state_dict(), {}), strict=True))


def seconds_of(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def measure(contestant: Contestant, batch: Batch, folder: Path, repeats: int) -> tuple[dict[str, list[float]], int]:
    """Seconds of every repeat by contestant, and the bytes of a point; the first round allocates and does not count."""
    points = TrainingCheckpoints(folder)
    seconds: dict[str, list[float]] = {}
    for repeat in tqdm(range(repeats + 1), leave=False):
        step = seconds_of(lambda: take_step(contestant, batch))
        started = time.perf_counter()
        stall = seconds_of(lambda repeat=repeat: points.save(repeat, point_of(contestant)))
        step_writing = seconds_of(lambda: take_step(contestant, batch))
        points.finish()
        whole = time.perf_counter() - started
        plain = seconds_of(lambda: torch.save(point_of(contestant), folder / "plain.bin"))
        if repeat:
            found = {
                "step": step, "stall": stall, "step, writing": step_writing, "until whole": whole, "torch.save": plain
            }  # fmt: skip
            for name, value in found.items():
                seconds.setdefault(name, []).append(value)
    return seconds, (folder / "plain.bin").stat().st_size


def report(seconds: dict[str, list[float]]) -> str:
    """A row for each contestant: its median, its range, and how many steps it is."""
    step = statistics.median(seconds["step"])
    lines = ["| what | median ms | least to most | steps |", "|---|---:|---:|---:|"]
    for name, values in seconds.items():
        median, low, high = (1e3 * value for value in (statistics.median(values), min(values), max(values)))
        lines.append(f"| {name} | {median:.0f} | {low:.0f} to {high:.0f} | {median / 1e3 / step:.2f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--clip", choices=tuple(CLIPS), default="ViT-B/32")
    parser.add_argument("--folder", type=Path, default=None, help="where points are written; default: a temporary one")
    parser.add_argument("--output", type=Path, default=None, help="write the report to this file too")
    options = parser.parse_args(arguments)
    contestant = build_contestants(options.clip, "meanP", "fp32", compiled=False, device=torch.device("cpu"))[1]
    batch = random_batch(options.batch_size, contestant.model, torch.device("cpu"))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        seconds, size = measure(contestant, batch, Path(folder), options.repeats)
    remarks = f"{options.clip}, {options.batch_size} pairs a step", f"a point takes {size / 1e6:.0f} MB"
    publish(header("checkpoint", arguments, *remarks) + "\n" + report(seconds), options.output)


if __name__ == "__main__":
    main()
