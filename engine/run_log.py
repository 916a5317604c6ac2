"""The curves of a run: `metrics.jsonl`, with a line for each progress line, epoch and evaluation.

    {"kind": "step", "epoch": 0, "step": 100, "time": 1763888400.5, "loss": 2.1, "learning_rates": [1e-07, 0.0001], ...}
    {"kind": "epoch", "epoch": 0, "step": 150, "time": 1763888470.1, "loss": 2.4}
    {"kind": "evaluation", "epoch": 0, "step": 150, "time": 1763888490.0, "split": "test", "text_to_video": {...}, ...}

Epochs count from 0, and steps are optimizer steps of the whole run, null for an evaluation outside a training's epochs.
The time is in seconds since 1970, and a number that is not finite is null. The event files in `tensorboard/` are a copy
of the lines that have a step.
"""

import json
import logging
import math
import os
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from modules.whole_files import write_text

logger = logging.getLogger(__name__)

FILE = "metrics.jsonl"
EVENTS_FOLDER = "tensorboard"
LONGEST_LINE = 1 << 16  # bytes; a torn line is shorter


class RunLog:
    """Writes `metrics.jsonl` and its copy for TensorBoard; for the main process.

    If a file cannot be written (disk full, folder read-only), a warning is logged and the training goes on: the lines
    wait in memory and are written with a later one.
    """

    def __init__(self, output_dir: str | Path):
        self.path = Path(output_dir) / FILE
        self._waiting: list[dict] = []
        self._replaces_file = False
        self._events: EventFile | None = None
        self._unwritable: set[Path] = set()

    def begin(self, epoch: int, step: int, earlier_run: str | Path) -> None:
        """Start the curves of a training with `epoch` epochs and `step` optimizer steps done.

        The lines of `earlier_run`, an output folder, up to there are kept; a run at 0 and 0 starts without a line.
        """
        self._waiting = [line for line in read_lines(earlier_run) if is_kept(line, epoch, step)]
        self._replaces_file = True
        self._events = EventFile(self.path.parent / EVENTS_FOLDER)
        self._write()

    def add(self, kind: str, epoch: int | None, step: int | None, **values) -> None:
        """Write a line; `values` are numbers, texts, and lists and dicts of them."""
        self._waiting.append({"kind": kind, "epoch": epoch, "step": step, "time": time.time(), **finite(values)})
        self._write()

    def _write(self) -> None:
        lines = self._waiting
        if not self._try(self.path, self._write_lines, lines):
            return
        self._waiting = []
        if self._events is not None and not self._try(self._events.folder, self._events.add, lines, self.path):
            self._events.file = None

    def _write_lines(self, lines: list[dict]) -> None:
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        if self._replaces_file:
            write_text(self.path, text)
            self._replaces_file = False
        else:
            append_lines(self.path, text)

    def _try(self, target: Path, write, *arguments) -> bool:
        """Call `write`; return False if `target` cannot be written, with a warning for the first time in a row."""
        try:
            write(*arguments)
        except OSError as error:
            if target not in self._unwritable:
                logger.warning("%s cannot be written; the run goes on, and it is tried again: %s", target, error)
            self._unwritable.add(target)
            return False
        self._unwritable.discard(target)
        return True


class EventFile:
    """The lines of `metrics.jsonl` in a file for TensorBoard.

    torch's SummaryWriter is not used: it imports tensorflow if that is installed, and writes in a thread, whose errors
    surface late or never.

    Attributes:
        file: the file that lines are added to; None if all are to be written anew.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.file: Path | None = None

    def add(self, lines: list[dict], path: Path) -> None:
        """Write the lines, which are the last of those in `path`; the first call writes all lines of `path`."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        events = []
        if self.file is None:
            self._remove_files()
            name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
            self.file, lines = self.folder / name, read_lines(path.parent)
            # a running server then drops the steps of the earlier files, as with SummaryWriter's purge_step
            start = SessionLog(status=SessionLog.START)
            now = time.time()
            events = [Event(wall_time=now, file_version="brain.Event:2"), Event(wall_time=now, session_log=start)]
        for line in lines:
            if line["step"] is not None:
                values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(line)]
                events.append(Event(wall_time=line["time"], step=line["step"], summary=Summary(value=values)))
        with self.file.open("ab") as file:
            for event in events:
                RecordWriter(file).write(event.SerializeToString())

    def _remove_files(self) -> None:
        self.folder.mkdir(exist_ok=True)
        for file in self.folder.glob("events.out.tfevents.*"):
            file.unlink()


def read_lines(folder: str | Path) -> list[dict]:
    """Return the lines of a run's `metrics.jsonl`; an empty list without the file.

    Damaged lines, such as the last of a run that was killed while it wrote, are left out with a warning.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return []
    lines, damaged = [], []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, start=1):
            try:
                lines.append(parse_line(text))
            except (ValueError, RecursionError):
                damaged.append(number)
    if damaged:
        logger.warning(
            "%s: %d of its lines cannot be read and are left out, the first is line %d", path, len(damaged), damaged[0]
        )
    return lines


def parse_line(text: str) -> dict:
    """Parse a line of `metrics.jsonl`; raise ValueError if it is not valid."""
    line = json.loads(text)
    is_whole = (
        isinstance(line, dict)
        and line.get("kind") in ("step", "epoch", "evaluation")
        and all(isinstance(line.get(key, ""), int | None) for key in ("epoch", "step"))
        and isinstance(line.get("time"), float)
    )
    if not is_whole:
        raise ValueError(f"not a line of {FILE}: {text[:100]}")
    return line


def append_lines(path: Path, text: str) -> None:
    """Add whole lines to a file; a torn last line, left by a kill or a full disk, is removed first."""
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - LONGEST_LINE))
        tail = file.read()
        file.truncate(end - len(tail) + tail.rfind(b"\n") + 1)
        file.write(text.encode())


def is_kept(line: dict, epoch: int, step: int) -> bool:
    """Return True if a run with `epoch` epochs and `step` steps done does not write this line again."""
    if line["epoch"] is None or line["step"] is None or line["step"] > step:
        return False
    return line["kind"] == "step" or line["epoch"] < epoch


def finite(value):
    """Return the value with None in place of every float that is not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def scalars(line: dict) -> Iterator[tuple[str, float]]:
    """Yield TensorBoard's tags and values of a line, such as `train/loss` and `test/text_to_video/R1`.

    >>> list(scalars({"kind": "step", "epoch": 0, "step": 3, "time": 9.5, "loss": 2.5, "learning_rates": [0.5, None]}))
    [('train/loss', 2.5), ('train/learning_rates/0', 0.5)]
    """
    group = {"step": "train", "epoch": "epoch", "evaluation": line.get("split")}[line["kind"]]
    values = {key: value for key, value in line.items() if key not in ("kind", "epoch", "step", "time", "split")}
    yield from numbers(group, values)


def numbers(tag: str, value) -> Iterator[tuple[str, float]]:
    """Yield the numbers in a value, with the path to each appended to `tag`."""
    inner: Iterable[tuple] = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    elif isinstance(value, int | float):
        yield tag, value
    for key, one in inner:
        yield from numbers(f"{tag}/{key}", one)
