"""Two machines, each with its own launcher, on loopback: one run, with global ranks throughout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modules.checkpoint import model_path
from results import read_metrics
from scripts.make_mini_msrvtt import write_mini_msrvtt
from scripts.make_tiny_clip import tiny_clip_state_dict
from tests.launch import REPOSITORY, free_port, run_python

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """24 training and 9 test videos of the miniature, and a CLIP of width 32."""
    folder = tmp_path_factory.mktemp("machines")
    write_mini_msrvtt(folder / "data", train_videos=24, test_videos=9, captions_per_video=2)
    weights = tiny_clip_state_dict(
        embed_dim=32, vision_width=32, vision_layers=1, patch_size=16, image_size=32, text_width=32, text_layers=1
    )
    torch.save(weights, folder / "clip.pt")
    return folder


def command(folder: Path, output: Path) -> list[str]:
    data = folder / "data"
    return [
        "main_task_retrieval.py", "--do_train", "--output_dir", str(output), "--sim_header", "wti",
        "--train_csv", str(data / "MSRVTT_train.csv"), "--val_csv", str(data / "MSRVTT_test.csv"),
        "--data_path", str(data / "MSRVTT_data.json"), "--features_path", str(data / "videos"),
        "--pretrained_clip_name", str(folder / "clip.pt"), "--max_words", "16", "--max_frames", "2",
        "--num_thread_reader", "0", "--batch_size_val", "4", "--epochs", "1", "--batch_size", "12", "--lr", "1e-3",
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
