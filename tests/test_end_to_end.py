"""The commands that users type, on real mp4 files: train, save, evaluate, resume, fail."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import main_task_retrieval
from dataloaders.rawvideo_util import RawVideoExtractor
from engine.record import RunRecord
from engine.run_files import read_metrics, read_ranks
from modules.checkpoint import model_path, optimizer_path
from scripts.miniature.tiny_clip import tiny_clip_state_dict
from tests.helpers.fault_worker import Ranks
from tests.helpers.launch import REPOSITORY, launcher, run_python
from tests.helpers.results import results_of
from tests.helpers.tiny_run import data_flags, write_tiny_run
from tests.test_modeling import HEADS

pytestmark = pytest.mark.slow

WTI = ("--sim_header", "wti", "--agg_module", "seqTransf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny_run(tmp_path_factory.mktemp("mini"))


def train_flags(folder: Path, output: Path, *extra: str) -> list[str]:
    return [
        "--do_train", "--output_dir", str(output), *data_flags(folder), "--epochs", "2", "--batch_size", "12",
        "--lr", "1e-3", "--freeze_layer_num", "-1", *extra,
    ]  # fmt: skip


def eval_flags(folder: Path, output: Path, checkpoint: Path, *extra: str) -> list[str]:
    return ["--do_eval", "--output_dir", str(output), "--init_model", str(checkpoint), *data_flags(folder), *extra]


def log_of(output: Path) -> str:
    return (output / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(("head", "agg_module"), HEADS)
@pytest.mark.parametrize("linear_patch", ["2d", "3d"])
def test_every_head_trains_and_its_checkpoint_repeats_the_numbers(folder, tmp_path, head, agg_module, linear_patch):
    flags = ["--sim_header", head, "--agg_module", agg_module, "--linear_patch", linear_patch]
    main_task_retrieval.main(train_flags(folder, tmp_path / "train", *flags))
    main_task_retrieval.main(eval_flags(folder, tmp_path / "eval", model_path(tmp_path / "train", 1), *flags))
    assert results_of(tmp_path / "eval") == results_of(tmp_path / "train")


def test_files_and_log_lines_are_clip4clips(folder, tmp_path):
    main_task_retrieval.main(train_flags(folder, tmp_path, "--sim_header", "wti"))
    expected = [f"pytorch_{kind}.bin.{epoch}" for kind in ("model", "opt") for epoch in (0, 1)]
    expected += ["flags.json", "gallery.csv", "log.txt", "metrics.json", "metrics.jsonl", "ranks.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*expected, "resume", "tensorboard"])
    log = log_of(tmp_path)
    for line in (
        r"Epoch: 1/2, Step: 1/2, Lr: [\d.-]+, Loss: \d+\.\d+, Time/step: \d+\.\d+",
        r"Epoch 2/2 Finished, Train Loss: \d+\.\d{6}",
        r"sim matrix size: 9, 9",
        r"\t Length-T: 9, Length-V:9",
        r"Text-to-Video:",
        r"\t>>>  R@1: \d+\.\d - R@5: \d+\.\d - R@10: \d+\.\d - Median R: \d+\.\d - Mean R: \d+\.\d",
        r"\t>>>  V2T\$R@1: \d+\.\d - V2T\$R@5: \d+\.\d - V2T\$R@10: \d+\.\d - V2T\$Median R: \d+\.\d - V2T\$Mean R: ",
        r"The best model is: .*pytorch_model\.bin\.[01], the R1 is: \d+\.\d{4} \(epoch picked on the test split",
        r"global batch: 12 pairs per optimizer step .* each scored against 12 candidates",
        r"24 videos, 72 captions, ",
        r"8 parameters newly initialized \(random\): text_weight_fc\.\* \(4\), video_weight_fc\.\* \(4\)",
        r"activation quick_gelu, frames normalised by mean \(0\.48145466, 0\.4578275, 0\.40821073\)",
    ):
        assert re.search(line, log), line


def test_unread_flags_are_on_record(folder, tmp_path):
    main_task_retrieval.main(train_flags(folder, tmp_path, "--epochs", "1", "--fp16", "--lr_decay", "0.9"))
    assert "<<< unread_flags: ['--fp16', '--lr_decay']" in log_of(tmp_path)


@pytest.mark.parametrize(
    ("launch", "evaluations"), [("torchrun", ((1, 9), (1, 2), (3, 1))), ("torch.distributed.launch", ((2, 4),))]
)
def test_two_processes_and_numbers_that_depend_on_neither_processes_nor_batch(folder, tmp_path, launch, evaluations):
    """Trained by two processes; evaluated by one, two and three with several batch sizes: always the same result."""
    output = tmp_path / "train"
    flags = train_flags(folder, output, "--sim_header", "wti", "--agg_module", "seqTransf", "--expand_msrvtt_sentences")
    finished = run_python(*launcher(launch, 2), "main_task_retrieval.py", *flags)
    assert finished.returncode == 0, finished.stderr
    results = results_of(output)
    assert "(2 processes x 1 accumulation steps x 6 pairs), each scored against 12 candidates" in log_of(output)
    assert log_of(output).count("Epoch 2/2 Finished") == 1  # one process writes
    for processes, batch_size in evaluations:
        evaluated = tmp_path / f"eval-{processes}-{batch_size}"
        flags = [*eval_flags(folder, evaluated, model_path(output, 1), *WTI), "--batch_size_val", str(batch_size)]
        if processes > 1:
            finished = run_python(*launcher(launch, processes), "main_task_retrieval.py", *flags)
            assert finished.returncode == 0, finished.stderr
        else:
            main_task_retrieval.main(flags)
        assert results_of(evaluated) == results


def test_resume_goes_on_with_the_next_epoch(folder, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    main_task_retrieval.main(train_flags(folder, whole, "--sim_header", "meanP"))
    main_task_retrieval.main(
        train_flags(
            folder, resumed, "--sim_header", "meanP", "--init_model", str(model_path(whole, 0)),
            "--resume_model", str(optimizer_path(whole, 0)),
        )
    )  # fmt: skip
    assert not model_path(resumed, 0).exists()
    assert "Epoch: 1/2" not in log_of(resumed)
    first, second = (torch.load(model_path(run, 1), weights_only=True) for run in (whole, resumed))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_accumulation_counts_its_steps(folder, tmp_path):
    """18 pairs a step in 3 parts of 6: 72 captions give 4 steps; warm-up and display follow the steps."""
    flags = ["--batch_size", "18", "--gradient_accumulation_steps", "3", "--expand_msrvtt_sentences", "--epochs", "1"]
    main_task_retrieval.main(train_flags(folder, tmp_path, *flags))
    log = log_of(tmp_path)
    assert "Num optimizer steps = 4" in log
    assert re.findall(r"Step: (\d+)/12", log) == ["3", "6", "9", "12"]
    assert "each scored against 6 candidates" in log


def test_half_precision_recipe_keeps_weights_and_moments_in_half(folder, tmp_path):
    main_task_retrieval.main(train_flags(folder, tmp_path / "train", "--sim_header", "wti", "--precision", "clip_fp16"))
    weights = torch.load(model_path(tmp_path / "train", 1), weights_only=True)
    halves = {key for key, value in weights.items() if value.dtype == torch.float16}
    assert "clip.visual.conv1.weight" in halves
    assert "clip.text_projection" in halves
    assert not any("ln_" in key or "embedding" in key or "weight_fc" in key for key in halves)
    assert all(value.isfinite().all() for value in weights.values())
    state = torch.load(optimizer_path(tmp_path / "train", 1), weights_only=True)["optimizer_state_dict"]["state"]
    moments = [moment.dtype for entry in state.values() for moment in (entry["next_m"], entry["next_v"])]
    assert moments.count(torch.float16) == 2 * len(halves)
    flags = ["--sim_header", "wti", "--precision", "clip_fp16"]
    main_task_retrieval.main(eval_flags(folder, tmp_path / "eval", model_path(tmp_path / "train", 1), *flags))
    assert results_of(tmp_path / "eval") == results_of(tmp_path / "train")


def losses_of(output: Path) -> list[float]:
    return [float(loss) for loss in re.findall(r", Loss: ([\d.]+), ", log_of(output))]


@pytest.fixture(scope="module")
def plain_float32(folder) -> Path:
    """The output folder of a training in float32 without gradient cache or checkpointing."""
    main_task_retrieval.main(train_flags(folder, folder / "plain", *WTI))
    return folder / "plain"


@pytest.mark.parametrize(
    ("flags", "tolerance"),
    [
        (("--precision", "bf16"), 0.02),
        (("--precision", "fp16"), 0.02),
        (("--grad_cache_chunk", "5"), 1e-5),
        (("--grad_checkpointing",), 1e-5),
        (("--precision", "bf16", "--grad_cache_chunk", "5", "--grad_checkpointing"), 0.02),
    ],
)
def test_other_ways_to_the_same_training(folder, tmp_path, plain_float32, flags, tolerance):
    """The losses of the steps are those of plain float32, as far as the numbers reach; the checkpoint evaluates."""
    main_task_retrieval.main(train_flags(folder, tmp_path / "other", *WTI, *flags))
    assert losses_of(tmp_path / "other") == pytest.approx(losses_of(plain_float32), rel=tolerance)
    precision = [] if "--precision" not in flags else flags[:2]
    checkpoint = model_path(tmp_path / "other", 1)
    main_task_retrieval.main(eval_flags(folder, tmp_path / "eval", checkpoint, *WTI, *precision))
    assert results_of(tmp_path / "eval") == results_of(tmp_path / "other")
    if precision:
        activations = {"bf16": "bfloat16", "fp16": "float16"}[precision[1]]
        assert f"moments in float32, the encoders' activations in {activations}, " in log_of(tmp_path / "other")
    scaler = "scaler_state_dict" in torch.load(optimizer_path(tmp_path / "other", 1), weights_only=True)
    assert scaler == ("fp16" in flags)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_model_trains_alike_and_its_checkpoint_has_the_same_keys(folder, tmp_path):
    main_task_retrieval.main(train_flags(folder, tmp_path / "plain", "--epochs", "1"))
    # in a process of its own: the compiler imports setuptools, which fails where other tests have imported distutils
    compiled = run_python(
        "main_task_retrieval.py", *train_flags(folder, tmp_path / "compiled", "--epochs", "1", "--compile")
    )
    assert compiled.returncode == 0, compiled.stderr
    assert losses_of(tmp_path / "compiled") == pytest.approx(losses_of(tmp_path / "plain"), rel=1e-4)
    keys = [torch.load(model_path(tmp_path / name, 0), weights_only=True).keys() for name in ("plain", "compiled")]
    assert keys[0] == keys[1]


@pytest.mark.parametrize("chunk", ["0", "2"])
def test_the_exact_gather_trains_as_one_process_does(folder, tmp_path, chunk):
    flags = ["--sim_header", "wti", "--gather", "exact", "--lr", "1e-4"]
    main_task_retrieval.main(train_flags(folder, tmp_path / "one", *flags))
    ranks = Ranks(2, train_flags(folder, tmp_path / "two", *flags, "--grad_cache_chunk", chunk), tmp_path / "logs")
    assert ranks.wait() == [0, 0], ranks.text()
    epochs = [re.findall(r"Train Loss: ([\d.]+)", log_of(tmp_path / name)) for name in ("one", "two")]
    assert [float(loss) for loss in epochs[1]] == pytest.approx([float(loss) for loss in epochs[0]], abs=2e-5)
    weights = [torch.load(model_path(tmp_path / name, 1), weights_only=True) for name in ("one", "two")]
    # the first steps divide by moments near 0, so that rounding shows; a wrong scale shows a thousandfold
    assert all((weights[0][key] - weights[1][key]).abs().max() < 2e-5 for key in weights[0])


def test_permuted_test_rows_give_the_same_metrics(folder, tmp_path):
    """With a second caption for three videos, so that the numbers of texts and videos differ."""
    flags = ["--sim_header", "wti", "--post_process", "dsl"]
    main_task_retrieval.main(train_flags(folder, tmp_path / "train", *flags))
    with (folder / "data" / "MSRVTT_test.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    rows += [[*row[:-1], f"{row[-1]} again"] for row in rows[:3]]
    contents = []
    for name, order in (("given", range(12)), ("permuted", (7, 11, 2, 0, 9, 4, 10, 6, 1, 8, 3, 5))):
        pairs = tmp_path / f"{name}.csv"
        with pairs.open("w", newline="") as file:
            csv.writer(file).writerows([header, *(rows[row] for row in order)])
        checkpoint = model_path(tmp_path / "train", 1)
        main_task_retrieval.main(
            eval_flags(folder, tmp_path / name, checkpoint, *flags, "--val_csv", str(pairs), "--batch_size_val", "5")
        )
        contents.append(read_metrics(tmp_path / name))
    for key in ("text_to_video", "video_to_text", "post_processed", "protocol", "epoch"):
        assert contents[0][key] == contents[1][key], key
    assert (contents[0]["text_to_video"]["queries"], contents[0]["text_to_video"]["gallery"]) == (12, 9)
    assert contents[0]["protocol"] == {"captions_per_video": "several", "epoch_picked_on": None}
    assert contents[0]["epoch"] == 1
    for direction in ("text-to-video", "video-to-text"):
        assert read_ranks(tmp_path / "given", direction) == read_ranks(tmp_path / "permuted", direction)


def test_holdout_picks_the_epoch_and_the_test_split_is_seen_once(folder, tmp_path):
    """Two processes, QB-Norm; the picked checkpoint alone gives the same numbers on one process."""
    output = tmp_path / "train"
    flags = ["--sim_header", "wti", "--post_process", "qb_norm", "--qb_norm_size", "10"]
    more = ["--holdout", "6", "--epochs", "3"]
    ranks = Ranks(2, train_flags(folder, output, *flags, *more), tmp_path / "logs")
    assert ranks.wait() == [0, 0], ranks.text()
    content = read_metrics(output)
    assert [(entry["split"], entry["epoch"]) for entry in content["history"][:3]] == [("holdout", n) for n in range(3)]
    assert len(content["history"]) == 4
    best = max(content["history"][:3], key=lambda entry: (entry["text_to_video"]["R1"], entry["epoch"]))
    assert (content["split"], content["epoch"], content["checkpoint"]) == ("test", best["epoch"], best["checkpoint"])
    assert (content["holdout"]["videos"], content["holdout"]["captions"]) == (6, 18)
    assert content["protocol"] == {"captions_per_video": "one", "epoch_picked_on": "holdout"}
    assert best["text_to_video"]["queries"] == 18 and best["text_to_video"]["gallery"] == 6
    held_out = (output / "holdout.txt").read_text().split()
    with (folder / "data" / "MSRVTT_train.csv").open(newline="") as file:
        assert set(held_out) < {row["video_id"] for row in csv.DictReader(file)} and len(set(held_out)) == 6
    log = log_of(output)
    assert log.count("sim matrix size: 18, 6") == 3
    assert log.count("sim matrix size: 9, 9") == 1
    assert "train: 18 videos, 54 captions, 18 samples" in log
    assert "epoch picked on the holdout of 6 training videos" in log

    main_task_retrieval.main(eval_flags(folder, tmp_path / "eval", Path(content["checkpoint"]), *flags))
    alone = read_metrics(tmp_path / "eval")
    assert (alone["text_to_video"], alone["video_to_text"]) == (content["text_to_video"], content["video_to_text"])
    assert alone["post_processed"]["bank_captions"] == content["post_processed"]["bank_captions"] == 10

    resumed = [
        *train_flags(folder, tmp_path / "on", *flags), "--epochs", "3", "--init_model", str(model_path(output, 1)),
        "--resume_model", str(optimizer_path(output, 1)),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="held out .* give the same --holdout"):
        main_task_retrieval.main(resumed)
    main_task_retrieval.main([*resumed, "--holdout", "6"])
    assert [entry["epoch"] for entry in read_metrics(tmp_path / "on")["history"][:3]] == [0, 1, 2]


def test_the_picked_checkpoint_is_what_the_test_split_sees(folder, tmp_path, monkeypatch):
    """The first of two epochs is picked: the last evaluation repeats its checkpoint's, not the last epoch's."""
    monkeypatch.setattr(RunRecord, "best", lambda self: self.history[0])
    main_task_retrieval.main(train_flags(folder, tmp_path / "train", "--holdout", "6"))
    contents = [read_metrics(tmp_path / "train")]
    ranks = [(tmp_path / "train" / "ranks.csv").read_text()]
    for epoch in (0, 1):
        main_task_retrieval.main(eval_flags(folder, tmp_path / f"eval{epoch}", model_path(tmp_path / "train", epoch)))
        contents.append(read_metrics(tmp_path / f"eval{epoch}"))
        ranks.append((tmp_path / f"eval{epoch}" / "ranks.csv").read_text())
    assert contents[0]["epoch"] == 0 and contents[0]["checkpoint"] == str(model_path(tmp_path / "train", 0))
    assert contents[0]["text_to_video"] == contents[1]["text_to_video"]
    assert ranks[0] == ranks[1] != ranks[2]


def test_a_holdout_that_leaves_nothing(folder, tmp_path):
    with pytest.raises(ValueError, match=r"--holdout 24 .*24 training videos"):
        main_task_retrieval.main(train_flags(folder, tmp_path, "--holdout", "24"))
    with pytest.raises(ValueError, match="1 samples, fewer than one batch"):
        main_task_retrieval.main(train_flags(folder, tmp_path, "--holdout", "23"))


def copy_of_the_data(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_missing_and_broken_videos_are_named(folder, tmp_path):
    copy = copy_of_the_data(folder, tmp_path)
    video = next((copy / "data" / "videos").glob("video0.*"))
    video.write_bytes(b"no video at all")
    finished = run_python("main_task_retrieval.py", *train_flags(copy, tmp_path / "out"), "--num_thread_reader", 1)
    assert finished.returncode != 0
    assert "VideoReadError" in finished.stderr
    assert str(video) in finished.stderr
    video.unlink()
    finished = run_python("main_task_retrieval.py", *train_flags(copy, tmp_path / "out"))
    assert finished.returncode != 0
    assert "1 of 24 videos have no file" in finished.stderr
    assert "video0" in finished.stderr


def test_one_failing_rank_ends_all_with_its_message(folder, tmp_path):
    """A video that only one rank reads is broken: the launcher ends within the time limit and shows the cause."""
    copy = copy_of_the_data(folder, tmp_path)
    video = next((copy / "data" / "videos").glob("video3.*"))
    video.write_bytes(b"no video at all")
    finished = run_python(
        *launcher("torchrun", 2), "main_task_retrieval.py", *train_flags(copy, tmp_path / "out"), timeout=120
    )
    assert finished.returncode != 0
    assert f"{video}: " in finished.stderr


def test_quickstart(tmp_path):
    """The whole script at a small size, in the environment that runs the tests."""
    environment = {
        **os.environ, "VENV": sys.prefix, "OUTPUT": str(tmp_path / "out"), "EPOCHS": "1", "TRAIN_VIDEOS": "60",
        "TEST_VIDEOS": "12",
    }  # fmt: skip
    finished = subprocess.run(
        ["bash", REPOSITORY / "scripts" / "quickstart.sh"], capture_output=True, text=True, env=environment, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    rows = [line for line in finished.stdout.splitlines() if line.startswith(("| wti", "| meanP"))]
    assert len(rows) == 2
    assert "repeat the numbers of the last training epoch" in finished.stdout


@pytest.mark.real_clips
def test_real_clips_are_learned(real_clips, tmp_path, monkeypatch):
    """A tiny random CLIP memorises the 56 real clips; its checkpoint repeats the numbers on files read anew."""
    captions: dict[str, str] = {}
    for sentence in json.loads((real_clips / "MSRVTT_data.json").read_text())["sentences"]:
        captions.setdefault(sentence["video_id"], sentence["caption"])
    with (real_clips / "MSRVTT_train.csv").open() as file:
        video_ids = [row["video_id"] for row in csv.DictReader(file)]
    assert len(video_ids) == 56
    pairs = tmp_path / "train_pairs.csv"
    with pairs.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "vid_key", "video_id", "sentence"])
        rows.writerows([f"ret{i}", name, name, captions[name]] for i, name in enumerate(video_ids))
    torch.save(
        tiny_clip_state_dict(embed_dim=64, vision_width=64, vision_layers=2, text_width=64, text_layers=2),
        tmp_path / "clip.pt",
    )
    flags = [
        "--train_csv", str(real_clips / "MSRVTT_train.csv"), "--val_csv", str(pairs),
        "--data_path", str(real_clips / "MSRVTT_data.json"), "--features_path", str(real_clips / "videos"),
        "--pretrained_clip_name", str(tmp_path / "clip.pt"), "--sim_header", "wti", "--max_words", "32",
        "--max_frames", "6", "--slice_framepos", "2", "--batch_size_val", "56", "--wti_padding", "exclude",
    ]  # fmt: skip

    # in training each clip is decoded once and kept: 30 epochs of decoding would take minutes
    read_frames, kept = RawVideoExtractor.read_frames, {}

    def read_once(self, path, *arguments, **keywords):
        if path not in kept:
            kept[path] = read_frames(self, path, *arguments, **keywords)
        return kept[path]

    with monkeypatch.context() as patch:
        patch.setattr(RawVideoExtractor, "read_frames", read_once)
        main_task_retrieval.main(
            ["--do_train", "--output_dir", str(tmp_path / "train"), *flags, "--epochs", "30", "--batch_size", "56",
             "--lr", "1e-3", "--freeze_layer_num", "-1", "--num_thread_reader", "0", "--expand_msrvtt_sentences"]
        )  # fmt: skip
    finished = run_python(
        "main_task_retrieval.py", "--do_eval", "--output_dir", tmp_path / "eval", *flags,
        "--init_model", model_path(tmp_path / "train", 29), "--num_thread_reader", 2,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    print(log_of(tmp_path / "train")[-1500:])
    results = results_of(tmp_path / "eval")
    assert results == results_of(tmp_path / "train")
    assert results[0]["R1"] >= 95
    assert results[1]["R1"] >= 95
