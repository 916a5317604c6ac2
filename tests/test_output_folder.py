"""The folder of a run: one at a time, results that stay, and the reason of an error in its log."""

import errno
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import main_task_retrieval
import util
from engine import output_folder
from engine.arguments import get_args
from engine.output_folder import check_output_folder
from modules.standard_streams import open_standard_streams
from tests.helpers.launch import REPOSITORY
from tests.helpers.tiny_run import data_flags, write_tiny_run
from tests.test_util import no_launcher as no_launcher  # a fixture
from tests.test_util import root_logger as root_logger  # another

FORK = multiprocessing.get_context("fork")


def holder(folder: Path, signals, leave_child: bool) -> None:
    """Hold the folder until this process is killed; with `leave_child`, a forked child lives on."""
    with output_folder.output_folder(folder):
        if leave_child and os.fork() == 0:
            signal.pause()
        signals.send(os.getpid())
        signal.pause()


@pytest.fixture
def held(tmp_path):
    """A folder that a process holds, and the function that kills it."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=holder, args=(tmp_path, theirs, False))
    process.start()
    ours.recv()

    def kill() -> None:
        process.kill()
        process.join()

    yield tmp_path, kill
    kill()


@pytest.mark.parametrize("flags", [["--do_train"], ["--do_train", "--resume", "auto"], ["--do_eval"]])
def test_a_second_run_is_refused_and_leaves_the_log(root_logger, held, flags):
    folder, _ = held
    with pytest.raises(RuntimeError, match="another run is writing into --output_dir .*choose another folder"):
        main_task_retrieval.main(["--output_dir", str(folder), *flags])
    assert [(path.name, path.stat().st_size) for path in folder.iterdir()] == [("log.txt", 0)]


def test_the_lock_goes_with_its_process(root_logger, held):
    folder, kill = held
    kill()
    with output_folder.output_folder(folder):
        pass
    with output_folder.output_folder(folder):
        pass


def test_a_child_that_outlives_its_process_holds_no_lock(root_logger, tmp_path):
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=holder, args=(tmp_path, theirs, True))
    process.start()
    group = ours.recv()
    child = int(Path(f"/proc/{group}/task/{group}/children").read_text())
    process.kill()
    process.join()
    try:
        with output_folder.output_folder(tmp_path):
            os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_file_system_without_locks_is_a_warning(root_logger, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with output_folder.output_folder(tmp_path):
        logging.getLogger().info("the run goes on")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert "without locks (No locks available)" in lines[0] and lines[1].endswith("the run goes on")


# What may start where


@pytest.mark.parametrize("name", ["pytorch_model.bin.0", "resume/step-00000004", "flags.json"])
def test_an_evaluation_leaves_a_trainings_folder_alone(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"do_train": True}))
    evaluation = get_args(["--do_eval", "--output_dir", str(tmp_path)])
    with pytest.raises(FileExistsError, match=f"--output_dir {tmp_path} is the folder of a training.*{tmp_path}-eval"):
        check_output_folder(evaluation)


def test_evaluations_may_share_a_folder(tmp_path):
    (tmp_path / "flags.json").write_text(json.dumps({"do_train": False}))
    (tmp_path / "metrics.json").write_text("{}")
    check_output_folder(get_args(["--do_eval", "--output_dir", str(tmp_path)]))


# Errors in the log


def test_an_error_is_in_the_log_once_and_goes_on(root_logger, tmp_path, capsys):
    with pytest.raises(ValueError, match="the cause"), output_folder.output_folder(tmp_path):
        raise ValueError("the cause")
    log = (tmp_path / "log.txt").read_text()
    assert "ERROR -   rank 0 ends with an error\nTraceback" in log and log.endswith("ValueError: the cause\n")
    assert "the cause" not in capsys.readouterr().err  # Python prints it


def test_another_ranks_error_is_in_the_log_but_no_echo_of_it(root_logger, tmp_path, monkeypatch):
    with output_folder.output_folder(tmp_path):
        pass
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError), output_folder.output_folder(tmp_path):
        raise ValueError("the cause")
    with pytest.raises(RuntimeError), output_folder.output_folder(tmp_path):
        raise RuntimeError("gloo: connection closed by peer")
    log = (tmp_path / "log.txt").read_text()
    assert "rank 1 ends with an error" in log and "the cause" in log and "gloo" not in log


def test_a_run_that_is_stopped_logs_no_error(root_logger, tmp_path):
    with pytest.raises(SystemExit), output_folder.output_folder(tmp_path):
        sys.exit(75)
    assert (tmp_path / "log.txt").read_text() == ""


def test_the_cause_counts_if_the_log_cannot_be_written(root_logger, tmp_path):
    with pytest.raises(ValueError, match="the cause"), util.errors_in_log(tmp_path / "absent" / "log.txt"):
        raise ValueError("the cause")


@pytest.mark.slow
def test_a_training_without_standard_streams(tmp_path):
    folder = write_tiny_run(tmp_path / "mini")
    flags = ["--do_train", "--output_dir", str(tmp_path / "run"), *data_flags(folder), "--epochs", "1"]
    command = [sys.executable, "main_task_retrieval.py", *flags, "--batch_size", "12", "--num_thread_reader", "1"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", *command], cwd=REPOSITORY, env=environment, timeout=100
    )
    log = (tmp_path / "run" / "log.txt").read_text()
    assert process.returncode == 0, log
    assert "The best model is" in log and "rror" not in log


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_missing_stream_becomes_the_null_device(monkeypatch, name):
    monkeypatch.setattr(sys, name, None)
    open_standard_streams()
    stream = getattr(sys, name)
    assert stream.read() == "" if name == "stdin" else stream.write("x") == 1
    stream.close()
