"""Every data set in its own form, from its files to R@1: trained for an epoch and evaluated by the command."""

import re
import shlex
from pathlib import Path

import pytest
import torch

import main_task_retrieval
from dataloaders.data_dataloaders import DATALOADER_DICT
from modules.checkpoint import model_path
from scripts.miniature.msrvtt import MiniMsrvtt, write_mini_msrvtt
from scripts.miniature.tiny_clip import tiny_clip_state_dict
from tests.helpers.launch import REPOSITORY
from tests.helpers.miniatures import WRITERS, read_clips, write_miniature
from tests.helpers.results import results_of
from tests.test_recipes import run_script

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> MiniMsrvtt:
    return write_mini_msrvtt(tmp_path_factory.mktemp("mini"), train_videos=12, test_videos=6, captions_per_video=2)


@pytest.fixture(scope="module")
def model_flags(tmp_path_factory) -> list[str]:
    clip = tmp_path_factory.mktemp("clip") / "clip.pt"
    weights = tiny_clip_state_dict(
        embed_dim=32, vision_width=32, vision_layers=1, patch_size=16, image_size=32, text_width=32, text_layers=1
    )
    torch.save(weights, clip)
    return [
        "--pretrained_clip_name", str(clip), "--sim_header", "wti", "--max_words", "16", "--max_frames", "2",
        "--slice_framepos", "2", "--num_thread_reader", "0", "--batch_size_val", "4", "--n_display", "1",
    ]  # fmt: skip


TRAIN_FLAGS = ["--do_train", "--epochs", "1", "--batch_size", "6", "--lr", "1e-3", "--freeze_layer_num", "-1"]
# videos, captions and optimizer steps of the training split, videos and captions of the test split
ONE_TEXT_PER_VIDEO, EVERY_CAPTION = (12, 12, 2, 6, 6), (12, 24, 4, 6, 12)
COUNTS = {
    "activity": ONE_TEXT_PER_VIDEO,
    "custom": EVERY_CAPTION,
    "didemo": ONE_TEXT_PER_VIDEO,
    "lsmdc": ONE_TEXT_PER_VIDEO,
    "msvd": EVERY_CAPTION,
    "vatex": EVERY_CAPTION,
}


def test_every_data_set_has_a_miniature():
    assert {*COUNTS, "msrvtt"} == {*WRITERS, "msrvtt"} == set(DATALOADER_DICT)


@pytest.mark.parametrize("data_type", COUNTS)
def test_a_miniature_trains_and_its_checkpoint_repeats_the_numbers(mini, model_flags, tmp_path, data_type):
    flags = [*write_miniature(data_type, mini, tmp_path / "data"), *model_flags]
    main_task_retrieval.main([*TRAIN_FLAGS, "--output_dir", str(tmp_path / "train"), *flags])
    evaluation = ["--do_eval", "--output_dir", str(tmp_path / "eval"), *flags]
    main_task_retrieval.main([*evaluation, "--init_model", str(model_path(tmp_path / "train", 0))])
    assert results_of(tmp_path / "eval") == results_of(tmp_path / "train")

    log = (tmp_path / "train" / "log.txt").read_text()
    videos, captions, steps, test_videos, test_captions = COUNTS[data_type]
    assert f"train: {videos} videos, {captions} captions" in log
    assert f"test: {test_videos} videos, {test_captions} captions" in log
    assert f"Num optimizer steps = {steps}" in log
    assert f"sim matrix size: {test_captions}, {test_videos}" in log
    assert log.count("1 ids without captions left out") == (2 if data_type == "activity" else 0)


@pytest.mark.parametrize("data_type", ["activity", "didemo", "lsmdc", "msvd"])
def test_a_data_sets_own_scripts(mini, model_flags, tmp_path, data_type):
    """The recipe trains and its checkpoint is evaluated by `eval_*.sh`, both as processes; MSR-VTT's: test_recipes."""
    flags = write_miniature(data_type, mini, tmp_path / "data")
    settings = {
        "DATA_PATH": flags[flags.index("--data_path") + 1], "FEATURES_PATH": tmp_path / "data" / "videos",
        "CLIP": model_flags[1], "NPROC": 1, "cwd": tmp_path, "timeout": 120,
    }  # fmt: skip
    small = ["--max_words", "16", "--max_frames", "2", "--num_thread_reader", "0"]
    trained = run_script(
        f"clip4clip_{data_type}_meanP", *small, "--epochs", "1", "--batch_size", "6", OUTPUT="train", **settings
    )
    assert trained.returncode == 0, trained.stderr
    checkpoint = {"CHECKPOINT": "train/pytorch_model.bin.0", "SIM_HEADER": "meanP"}
    evaluated = run_script(f"eval_{data_type}", *small, OUTPUT="eval", **checkpoint, **settings)
    assert evaluated.returncode == 0, evaluated.stderr
    results = results_of(tmp_path / "eval")
    assert results == results_of(tmp_path / "train")
    for run in (trained, evaluated):
        row = next(line for line in run.stdout.splitlines() if line.startswith("| this run"))
        assert all(f" {numbers[name]:.1f} " in row for numbers in results for name in ("R1", "R5", "R10", "MdR", "MnR"))


def test_the_example_of_the_documentation(mini, model_flags, tmp_path, monkeypatch):
    """The table and the command for your own videos, with clips of the miniature under the names used there."""
    section = (REPOSITORY / "docs" / "data.md").read_text().split("## Your own videos")[1].split("\n## ")[0]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL).group(1)
    name, table = re.search(r"cat > (\S+) <<'END'\n(.*?)END\n", block, re.DOTALL).groups()
    command = shlex.split(
        re.search(r"python main_task_retrieval\.py (.*)", block, re.DOTALL).group(1).replace("\\\n", "")
    )
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(table)
    files = {line.split(",")[0] for line in table.splitlines()[1:]}
    videos = Path(command[command.index("--features_path") + 1])
    for file, clip in zip(sorted(files), read_clips(mini)["train"], strict=False):
        target = videos / (file if Path(file).suffix else f"{file}.mp4")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(clip.file.read_bytes())
    main_task_retrieval.main([*command, *model_flags, "--epochs", "1"])
    log = (Path(command[command.index("--output_dir") + 1]) / "log.txt").read_text()
    assert "train: 4 videos, 5 captions" in log
    assert "test: 2 videos, 3 captions" in log
