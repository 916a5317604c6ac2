"""Two machines, each with its own launcher, on loopback: one run, with global ranks throughout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.run_files import read_metrics
from modules.checkpoint import model_path
from tests.helpers.launch import REPOSITORY, free_port, run_python
from tests.helpers.tiny_run import data_flags, write_tiny_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny_run(tmp_path_factory.mktemp("machines"))


def command(folder: Path, output: Path) -> list[str]:
    return [
        "main_task_retrieval.py", "--do_train", "--output_dir", str(output), "--sim_header", "wti",
        *data_flags(folder), "--epochs", "1", "--batch_size", "12", "--lr", "1e-3",
    ]  # fmt: skip


def start_machine(endpoint: str, flags: list[str]) -> subprocess.Popen:
    """The command of the README for one of two machines."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=2", "--rdzv_id=run1",
            "--rdzv_backend=c10d", f"--rdzv_endpoint={endpoint}", "--local_addr=127.0.0.1", *flags,
        ],
        cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_two_launchers_of_two_processes_are_one_run_of_four(folder, tmp_path):
    endpoint = f"127.0.0.1:{free_port()}"
    machines = [start_machine(endpoint, command(folder, tmp_path / "two")) for _ in range(2)]
    try:
        outputs = [machine.communicate(timeout=240)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(outputs)
    log = (tmp_path / "two" / "log.txt").read_text()
    assert "4 processes x 1 accumulation steps x 3 pairs), each scored against 12 candidates" in log
    assert log.count("Epoch 1/1 Finished") == 1  # the main process of the first machine alone writes

    launched = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4"]
    finished = run_python(*launched, *command(folder, tmp_path / "one"))
    assert finished.returncode == 0, finished.stderr
    weights, expected = (
        torch.load(model_path(tmp_path / name, 0), weights_only=True) for name in ("two", "one")
    )  # fmt: skip
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    for direction in ("text_to_video", "video_to_text"):
        assert read_metrics(tmp_path / "two")[direction] == read_metrics(tmp_path / "one")[direction]
