"""Worker processes end with the program that started them, however it ends."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.launch import REPOSITORY

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc lists the processes on Linux only")


def start(*arguments) -> subprocess.Popen:
    """Start Python in a session of its own, as a terminal does."""
    environment = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], start_new_session=True, env={**os.environ, **environment}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def members(session: int) -> list[int]:
    """Return the processes of a session that have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            state, _, _, of_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(of_session) == session and state != "Z":
                found.append(int(entry.name))
    return found


def all_gone(session: int, seconds: float = 15) -> bool:
    """Return whether all processes of a session end in time; kill those that do not."""
    limit = time.monotonic() + seconds
    while members(session) and time.monotonic() < limit:
        time.sleep(0.05)
    left = members(session)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return not left


HOLDING_A_LOADER = """
import os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from dataloaders.data_dataloaders import DATALOADER_DICT
from dataloaders.rawvideo_util import RawVideoExtractor

folder, ending, busy = Path(sys.argv[1]), *sys.argv[2:]
reads = []

class Tokenizer:
    def tokenize(self, text):
        return [text]

    def convert_tokens_to_ids(self, tokens):
        return [0] * len(tokens)

def read_frames(self, path, *_, **__):
    reads.append(path)
    if busy == "stuck" and len(reads) > 2:
        Path(folder, f"stuck.{os.getpid()}").touch()
        time.sleep(1000)
    return np.zeros((1, 3, 8, 8), np.uint8)

RawVideoExtractor.read_frames = read_frames
flags = SimpleNamespace(train_csv=folder / "train.csv", features_path=folder, batch_size=2, num_thread_reader=2)
loader, _, sampler = DATALOADER_DICT["custom"]["train"](flags, Tokenizer(), image_resolution=8)
batches = iter(loader)
next(batches)
while busy == "stuck" and len(list(folder.glob("stuck.*"))) < 2:
    time.sleep(0.05)
print("holding", flush=True)
if ending == "is signalled":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: print("signal", flush=True))
    next(batches)  # of the second worker, which is then prepared as well
    print("listening", flush=True)
    sys.stdin.readline()
    print(len(list(batches)), flush=True)
if ending == "raises":
    raise LookupError("the end")
if ending == "exits":
    sys.exit(3)
if ending == "is killed":
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """The files of 40 training samples, whose videos are empty."""
    for number in range(40):
        (tmp_path / f"{number}.mp4").touch()
    (tmp_path / "train.csv").write_text("video,caption\n" + "".join(f"{number},text\n" for number in range(40)))
    return tmp_path


@pytest.mark.parametrize(
    ("ending", "busy", "code"),
    [
        ("returns", "idle", 0),
        ("returns", "stuck", 0),
        ("raises", "stuck", 1),
        ("exits", "stuck", 3),
        ("is killed", "stuck", -signal.SIGKILL),
    ],
)
def test_a_program_that_holds_a_training_loader_ends(folder, ending, busy, code):
    process = start("-c", HOLDING_A_LOADER, folder, ending, busy)
    try:
        output, errors = process.communicate(timeout=60)
    finally:
        is_gone = all_gone(process.pid)
    assert (output, process.returncode) == ("holding\n", code), errors
    assert is_gone
    assert ("LookupError: the end" in errors) == (ending == "raises")
    assert "DataLoader worker" not in errors and "atexit" not in errors


def test_signals_to_the_process_group_leave_the_workers_to_the_main_process(folder):
    process = start("-c", HOLDING_A_LOADER, folder, "is signalled", "idle")
    try:
        assert [process.stdout.readline() for _ in range(2)] == ["holding\n", "listening\n"]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.killpg(process.pid, number)
            assert process.stdout.readline() == "signal\n"
        output, errors = process.communicate("go on\n", timeout=60)
    finally:
        is_gone = all_gone(process.pid)
    assert (output, process.returncode) == ("18\n", 0), errors  # 20 batches without the first two
    assert is_gone


RUNNING_TASKS = """
import sys, time
from dataloaders.worker_pool import run_tasks

def run(seconds):
    time.sleep(seconds)

if __name__ == "__main__":
    try:
        print("started", flush=True)
        for seconds, _ in run_tasks(run, map(float, sys.argv[1:]), 3, ("dataloaders.frame_cache",)):
            print(seconds, flush=True)
    except KeyboardInterrupt:
        sys.exit("interrupted")
"""


@pytest.fixture
def running_tasks(tmp_path) -> Path:
    """A file, since worker processes import the main module."""
    (tmp_path / "running_tasks.py").write_text(RUNNING_TASKS)
    return tmp_path / "running_tasks.py"


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["main process", "all processes"])
def test_an_interrupt_ends_a_pool_at_any_moment(running_tasks, send):
    """While the first process imports what all share, while processes start, run, end and start again."""
    for moment in range(10):
        process = start(running_tasks, *[0.01] * 20, *[1000.0] * 3)
        assert process.stdout.readline() == "started\n"
        time.sleep(0.08 * moment)
        send(process.pid, signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=30)
        finally:
            is_gone = all_gone(process.pid)
        assert (errors, process.returncode) == ("interrupted\n", 1), moment
        assert is_gone, moment


def test_processes_of_a_pool_end_in_the_middle_of_a_task_with_the_main_process(running_tasks):
    process = start(running_tasks, 0.01, *[1000.0] * 3)
    assert [process.stdout.readline() for _ in range(2)] == ["started\n", "0.01\n"]
    process.kill()
    process.communicate()
    assert all_gone(process.pid)
