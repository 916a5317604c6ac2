"""Signals, and ranks and launchers that are lost: who stops, how soon, with which exit code, and what is said."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.signals import STOPPED_EXIT_CODE, StopRequest
from modules.resume import TrainingCheckpoints
from tests.helpers.fault_worker import Ranks
from tests.helpers.launch import REPOSITORY, launcher
from tests.test_faults import folder as folder  # a fixture
from tests.test_resume import command

pytestmark = pytest.mark.faults


def test_signals_go_back_to_who_handled_them():
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    stop = StopRequest()
    stop.listen()
    assert [signal.getsignal(number) for number in numbers] != before
    stop.forget()
    assert [signal.getsignal(number) for number in numbers] == before


def saved_step(output: Path) -> int:
    return TrainingCheckpoints(output).newest()["run.bin"]["global_step"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("world_size", [0, 2])
def test_a_signal_to_one_rank_finishes_the_step_and_stops_all(folder, tmp_path, number, world_size):
    """0: no launcher. The signal comes in the third step of the last rank."""
    fault = {"target": "engine.training.back_propagate", "call": 3, "action": number, "rank": max(world_size - 1, 0)}
    ranks = Ranks(world_size, command(folder, tmp_path, "--num_thread_reader", "2"), tmp_path / "logs", fault)
    assert ranks.wait() == [STOPPED_EXIT_CODE] * max(world_size, 1), ranks.text()
    assert saved_step(tmp_path) == 3
    assert "stopped by a signal after step 3; --resume auto" in ranks.text()


def test_the_second_interrupt_stops_at_once(folder, tmp_path):
    fault = {"target": "engine.training.back_propagate", "call": 3, "action": signal.SIGINT, "times": 2}
    ranks = Ranks(0, command(folder, tmp_path, "--num_thread_reader", "2"), tmp_path / "logs", fault)
    assert ranks.wait() == [1]
    assert ranks.text().splitlines()[-1] == "KeyboardInterrupt"
    assert TrainingCheckpoints(tmp_path).newest() is None


class Launched:
    """A long training of two ranks with two loader workers each, under torchrun, and all its processes."""

    def __init__(self, folder: Path, output: Path, fault: dict | None = None):
        self.log, self.mark = output / "log.txt", f"FAULT_TEST={output}"
        self.printed = output.parent / "printed.txt"
        flags = command(folder, output, "--epochs", "1000", "--num_thread_reader", "2", "--keep_last", "1")
        with self.printed.open("w") as printed:
            self.process = subprocess.Popen(
                [sys.executable, *launcher("torchrun", 2), "-m", "tests.helpers.fault_worker", *flags],
                cwd=REPOSITORY, stdout=printed, stderr=subprocess.STDOUT,
                env={
                    **os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "FAULT": json.dumps(fault),
                    **dict([self.mark.split("=", 1)]),
                },
            )  # fmt: skip

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Until the log holds a text."""
        limit = time.monotonic() + seconds
        while not (self.log.is_file() and text in self.log.read_text()):
            assert time.monotonic() < limit and self.process.poll() is None, self.printed.read_text()
            time.sleep(0.1)

    def alive(self) -> list[int]:
        """All processes that the launcher started, and it itself, but for those that only wait to be reaped."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                is_ours = self.mark in (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                is_dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it ended while we looked, or is another user's
            if is_ours and not is_dead:
                found.append(int(entry.name))
        return found

    def gone_within(self, seconds: float) -> bool:
        """Whether all processes end in time; kills what is left."""
        limit = time.monotonic() + seconds
        while self.alive() and time.monotonic() < limit:
            self.process.poll()
            time.sleep(0.1)
        left = self.alive()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        return not left


@pytest.fixture
def launch(folder, tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("/proc lists the processes on Linux only")
    started = []

    def start(fault: dict | None = None) -> Launched:
        started.append(Launched(folder, tmp_path / "run", fault))
        return started[-1]

    yield start
    for run in started:
        run.gone_within(0)


def test_torchrun_passes_a_sigterm_on_and_all_ranks_save(launch, tmp_path):
    run = launch()
    run.wait_for("Epoch: 1/")
    run.process.send_signal(signal.SIGTERM)
    assert run.gone_within(30)
    assert "stopped by a signal after step" in run.log.read_text()
    assert saved_step(tmp_path / "run") > 0


STICK = {"target": "dataloaders.rawvideo_util.RawVideoExtractor.read_frames", "action": "stick", "rank": None}


@pytest.mark.parametrize("moment", ["importing", "training", "waiting for stuck workers"])
def test_no_process_outlives_a_killed_launcher(launch, moment):
    run = launch(STICK if moment.startswith("waiting") else None)
    if moment == "importing":
        while len(run.alive()) < 3:
            time.sleep(0.01)
    else:
        run.wait_for("Num optimizer steps" if moment.startswith("waiting") else "Epoch: 1/")
        limit = time.monotonic() + 60
        while len(run.alive()) < 1 + 2 + 4:
            assert time.monotonic() < limit, run.printed.read_text()
            time.sleep(0.1)
    run.process.kill()
    assert run.gone_within(10)


def test_a_killed_rank_takes_the_others_down(launch):
    run = launch({"target": "engine.training.back_propagate", "call": 5, "action": signal.SIGKILL, "rank": 1})
    run.wait_for("Epoch: 1/")
    assert run.gone_within(30)
    assert run.process.returncode != 0
    last = run.printed.read_text().rpartition("Root Cause")[2]
    assert "Signal 9 (SIGKILL) received" in last and "rank      : 1 " in last


def test_a_rank_that_raises_takes_the_others_down_and_its_traceback_comes_last(launch):
    run = launch({"target": "engine.training.back_propagate", "call": 5, "action": "raise", "rank": 1})
    run.wait_for("Epoch: 1/")
    assert run.gone_within(30)
    assert run.process.returncode != 0
    last = run.printed.read_text().rpartition("Root Cause")[2]
    assert "rank      : 1 " in last and "LookupError: the first cause" in last
    assert "Traceback (most recent call last)" in last and "in train_epoch" in last


def test_a_rank_that_raises_waits_for_no_stuck_worker(folder, tmp_path):
    """Both workers of rank 1 hang in a video, and a signal that is no one's stops the waiting for them."""
    ranks = Ranks(2, command(folder, tmp_path, "--num_thread_reader", "2"), tmp_path / "logs", STICK | {"rank": 1})
    limit = time.monotonic() + 60
    while "Num optimizer steps" not in ranks.logs[0].read_text():
        assert time.monotonic() < limit
        time.sleep(0.1)
    time.sleep(1)
    started = time.monotonic()
    ranks.signal(signal.SIGINT, rank=1)
    time.sleep(0.5)
    ranks.signal(signal.SIGINT, rank=1)
    assert all(ranks.wait()), ranks.text()
    assert time.monotonic() - started < 30
