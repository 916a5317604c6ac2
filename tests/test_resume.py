"""A run that was interrupted goes on as if it had not been: bit for bit, from whole points, and only with its flags."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

import main_task_retrieval
from engine import training
from engine.run_files import read_metrics, read_ranks
from engine.signals import StoppedBySignal
from modules import checkpoint, resume
from modules.checkpoint import model_path, optimizer_path
from modules.resume import FILES, TrainingCheckpoints
from tests.helpers.tiny_run import data_flags, write_tiny_run

CONTENTS = {
    "model.bin": {"weight": torch.arange(5.0)},
    "optimizer.bin": {"state": [torch.ones(3), 2]},
    "run.bin": {"epoch": 1, "name": "a"},
}


# Points on the disk


def step_of(points: TrainingCheckpoints) -> int | None:
    found = points.newest()
    return None if found is None else found["run.bin"]["step"]


def save(points: TrainingCheckpoints, *steps: int) -> None:
    for step in steps:
        points.save(step, {**CONTENTS, "run.bin": {"step": step}}, wait=True)


def test_a_point_comes_back_as_it_was_saved(tmp_path):
    weight = torch.arange(5.0)
    points = TrainingCheckpoints(tmp_path)
    points.save(7, {**CONTENTS, "model.bin": {"weight": weight}})
    weight.zero_()  # the training goes on while the point is written
    points.finish()
    found = TrainingCheckpoints(tmp_path).newest()
    assert found["model.bin"]["weight"].tolist() == [0, 1, 2, 3, 4]
    assert found["optimizer.bin"]["state"][0].tolist() == [1, 1, 1] and found["optimizer.bin"]["state"][1] == 2
    assert found["run.bin"] == {"epoch": 1, "name": "a"}
    assert sorted(path.name for path in (tmp_path / "resume").iterdir()) == ["step-00000007"]


def test_a_file_of_the_epoch_is_shared_and_may_be_replaced_or_removed(tmp_path):
    weights, optimizer = tmp_path / "pytorch_model.bin.0", tmp_path / "pytorch_opt.bin.0"
    checkpoint.save_whole(CONTENTS["model.bin"], weights)
    checkpoint.save_whole(CONTENTS["optimizer.bin"], optimizer)
    points = TrainingCheckpoints(tmp_path)
    points.save(3, {"model.bin": weights, "optimizer.bin": optimizer, "run.bin": {"step": 3}}, wait=True)
    assert weights.samefile(tmp_path / "resume" / "step-00000003" / "model.bin")
    checkpoint.save_whole({"weight": torch.zeros(1)}, weights)  # as a run does that passes this epoch again
    optimizer.unlink()
    found = TrainingCheckpoints(tmp_path).newest()
    assert found["model.bin"]["weight"].tolist() == [0, 1, 2, 3, 4]
    assert found["optimizer.bin"]["state"][1] == 2


def test_a_missing_file_of_the_epoch_is_a_warning_that_names_it(tmp_path, caplog):
    points = TrainingCheckpoints(tmp_path)
    assert not points.save(3, {**CONTENTS, "model.bin": tmp_path / "pytorch_model.bin.0"}, wait=True)
    assert "no training checkpoint could be written" in caplog.text and "pytorch_model.bin.0" in caplog.text
    assert list((tmp_path / "resume").iterdir()) == []


def test_no_points_are_no_error(tmp_path):
    assert TrainingCheckpoints(tmp_path / "absent").newest() is None


def test_the_last_two_points_are_kept(tmp_path):
    save(TrainingCheckpoints(tmp_path), 1, 9, 10)
    assert sorted(path.name for path in (tmp_path / "resume").iterdir()) == ["step-00000009", "step-00000010"]


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "gone", "empty"])
def test_a_damaged_point_is_passed_over_with_its_name(tmp_path, caplog, name, damage):
    points = TrainingCheckpoints(tmp_path)
    save(points, 1, 2)
    file = tmp_path / "resume" / "step-00000002" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    damaged = {"flip": content, "cut": content[:-1], "longer": content + b"x", "empty": b""}
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(damaged[damage])
    with caplog.at_level(logging.WARNING):
        assert step_of(points) == 1
    assert "step-00000002" in caplog.text and "damaged" in caplog.text


def test_what_a_kill_leaves_half_written_is_no_point_and_goes_away(tmp_path):
    points = TrainingCheckpoints(tmp_path)
    save(points, 1)
    half = tmp_path / "resume" / ".incomplete-step-00000002"
    half.mkdir()
    (half / "model.bin").write_bytes(b"half")
    assert step_of(points) == 1
    save(points, 3)
    assert not half.exists() and step_of(points) == 3


def test_a_disk_without_room_is_a_warning_and_leaves_the_last_point(tmp_path, caplog, monkeypatch):
    points = TrainingCheckpoints(tmp_path)
    save(points, 1)

    def full(content, path):
        Path(path).write_bytes(b"a part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resume.torch, "save", full)
    with caplog.at_level(logging.WARNING):
        save(points, 2)
    assert "No space left" in caplog.text and "goes on" in caplog.text
    assert sorted(path.name for path in (tmp_path / "resume").iterdir()) == ["step-00000001"]
    assert step_of(points) == 1


# Whole runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny_run(tmp_path_factory.mktemp("mini"))


def command(folder: Path, output: Path, *more: str) -> list[str]:
    return [
        "--do_train", "--output_dir", str(output), *data_flags(folder), "--epochs", "2", "--batch_size", "6",
        "--lr", "1e-3", "--freeze_layer_num", "-1", *more,
    ]  # fmt: skip


def stop_after(monkeypatch, step: int) -> None:
    """Ask the run to stop in the middle of an optimizer step, as a signal does."""
    back_propagate, calls = training.back_propagate, []

    class Stop:
        def listen(self):
            calls.append("started")

        def forget(self):
            calls.clear()

        @property
        def is_set(self):
            return len(calls) > step

    def counted(*arguments):
        calls.append("step")
        return back_propagate(*arguments)

    monkeypatch.setattr(training, "back_propagate", counted)
    monkeypatch.setattr("engine.run.StopRequest", Stop)


def outcome(output: Path) -> tuple[dict, dict, dict]:
    """Weights of every epoch, the metrics without what names the run, and the ranks."""
    weights = {}
    for epoch in range(2):
        weights[epoch] = torch.load(model_path(output, epoch), weights_only=True)
        weights["optimizer", epoch] = torch.load(optimizer_path(output, epoch), weights_only=True)
    content = read_metrics(output)
    text = json.dumps({key: content[key] for key in ("text_to_video", "video_to_text", "history", "best", "protocol")})
    ranks = {direction: read_ranks(output, direction) for direction in ("text-to-video", "video-to-text")}
    return weights, json.loads(text.replace(str(output), "")), ranks


def assert_equal(found, expected) -> None:
    """Equal to the last bit, tensors included."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


SETTINGS = {
    "dropout": ("--sim_header", "tightTransf"),
    "wti": ("--sim_header", "wti", "--agg_module", "seqTransf", "--train_frame_order", "2"),
    "gradient cache": ("--sim_header", "tightTransf", "--grad_cache_chunk", "4"),
    "accumulation": ("--sim_header", "meanP", "--gradient_accumulation_steps", "2", "--expand_msrvtt_sentences"),
    "fp16": ("--sim_header", "meanP", "--precision", "fp16"),
    "clip_fp16": ("--sim_header", "wti", "--precision", "clip_fp16", "--cdcr", "1"),
}


@pytest.fixture(scope="module")
def whole(folder):
    """By flags: the output folder of a run that nothing happened to."""
    runs = {}

    def run(*flags: str) -> Path:
        if flags not in runs:
            runs[flags] = folder / f"whole {len(runs)}"
            main_task_retrieval.main(command(folder, runs[flags], *flags))
        return runs[flags]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("step", [2, 5])
def test_a_stopped_and_resumed_run_ends_with_the_same_bits(folder, tmp_path, monkeypatch, whole, name, step):
    """Four steps an epoch: stopped in the first and in the second; resumed with workers and a frame cache."""
    flags = SETTINGS[name]
    expected = outcome(whole(*flags))
    with monkeypatch.context() as patch:
        calls = step * (2 if name == "accumulation" else 1)
        stop_after(patch, calls)
        with pytest.raises(StoppedBySignal) as stopped:
            main_task_retrieval.main(command(folder, tmp_path / "parts", *flags))
    assert stopped.value.code == 75
    more = ["--resume", "auto", "--num_thread_reader", "2", "--frame_cache", str(tmp_path / "cache")]
    main_task_retrieval.main(command(folder, tmp_path / "parts", *flags, *more))
    assert f"Resumed after step {step}, " in (tmp_path / "parts" / "log.txt").read_text()
    assert_equal(outcome(tmp_path / "parts"), expected)


@pytest.mark.slow
def test_a_run_killed_in_the_evaluation_is_evaluated_again(folder, tmp_path, monkeypatch, whole):
    expected = outcome(whole())
    with monkeypatch.context() as patch:
        patch.setattr("engine.training.evaluate_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main_task_retrieval.main(command(folder, tmp_path / "parts"))
    main_task_retrieval.main(command(folder, tmp_path / "parts", "--resume", "auto"))
    assert_equal(outcome(tmp_path / "parts"), expected)
    assert len(read_metrics(tmp_path / "parts")["history"]) == 2


@pytest.mark.slow
def test_save_steps_and_a_damaged_newest_point(folder, tmp_path, monkeypatch, whole):
    """Points after steps 3 and 6; stopped after 7; both newest are damaged but that of step 6."""
    expected = outcome(whole())
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(StoppedBySignal):
            main_task_retrieval.main(command(folder, tmp_path / "parts", "--save_steps", "3"))
    newest = tmp_path / "parts" / "resume" / "step-00000007" / "optimizer.bin"
    newest.write_bytes(newest.read_bytes()[:-10])
    main_task_retrieval.main(command(folder, tmp_path / "parts", "--resume", "auto"))
    log = (tmp_path / "parts" / "log.txt").read_text()
    assert "step-00000007 is damaged" in log and "Resumed after step 6, in epoch 2" in log
    assert_equal(outcome(tmp_path / "parts"), expected)


@pytest.mark.slow
def test_resume_checks_the_flags_and_keeps_everything_where_they_differ(folder, tmp_path):
    output = tmp_path / "run"
    main_task_retrieval.main(command(folder, output, "--resume", "auto", "--epochs", "1"))  # nothing there: it starts
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file() and path.name != "log.txt"}
    with pytest.raises(ValueError, match=r"--resume auto.*lr was 0\.001, is 0\.002"):
        main_task_retrieval.main(command(folder, output, "--resume", "auto", "--lr", "2e-3", "--epochs", "1"))
    with pytest.raises(ValueError, match="holdout was 0, is 4; training samples was 24, is 20"):
        main_task_retrieval.main(command(folder, output, "--resume", "auto", "--holdout", "4", "--epochs", "1"))
    assert {path: path.read_bytes() for path in before} == before
    main_task_retrieval.main(command(folder, output, "--resume", "auto", "--epochs", "2"))  # longer is allowed
    assert len(read_metrics(output)["history"]) == 2
    first, second = (torch.load(model_path(output, epoch), weights_only=True) for epoch in range(2))
    assert any(not torch.equal(first[key], second[key]) for key in first)  # the rates follow the longer schedule
    with pytest.raises(FileExistsError, match=r"pytorch_model\.bin\.0.*--resume auto"):
        main_task_retrieval.main(command(folder, output))


def step_folder(output: Path, step: int) -> Path:
    return output / "resume" / f"step-{step:08d}"


@pytest.mark.slow
def test_keep_last_keeps_the_best_and_takes_nothing_from_a_training_checkpoint(folder, tmp_path):
    """Those of epochs 2 and 3 are kept; the files of an epoch and its checkpoint are the same on the disk."""
    output = tmp_path / "run"
    main_task_retrieval.main(command(folder, output, "--keep_last", "1", "--epochs", "4"))
    best = read_metrics(output)["best"]["epoch"]
    kept = {int(path.suffix[1:]) for path in output.glob("pytorch_model.bin.*")}
    assert kept == {3, best} == {int(path.suffix[1:]) for path in output.glob("pytorch_opt.bin.*")}
    assert [path.name for path in sorted((output / "resume").iterdir())] == ["step-00000012", "step-00000016"]
    assert model_path(output, 3).samefile(step_folder(output, 16) / "model.bin")
    assert optimizer_path(output, 3).samefile(step_folder(output, 16) / "optimizer.bin")
    model_path(output, 3).unlink()
    output.rename(tmp_path / "moved")
    found = TrainingCheckpoints(tmp_path / "moved").newest()
    assert (found["run.bin"]["global_step"], found["optimizer.bin"]["epoch"]) == (16, 3)
    (step_folder(tmp_path / "moved", 16) / "run.bin").unlink()
    assert TrainingCheckpoints(tmp_path / "moved").newest()["run.bin"]["global_step"] == 12


@pytest.mark.slow
@pytest.mark.parametrize("form", ["linked", "without hard links", "keys of old"])
def test_a_run_moved_at_the_end_of_an_epoch_ends_with_the_same_bits(folder, tmp_path, monkeypatch, form):
    """Killed in the evaluation; two epochs of four steps, saved after every step."""
    flags = ("--save_steps", "1", "--precision", "fp16")
    main_task_retrieval.main(command(folder, tmp_path / "whole", *flags))
    with monkeypatch.context() as patch:
        if form == "without hard links":
            patch.setattr("os.link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted")))
        patch.setattr("engine.training.evaluate_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main_task_retrieval.main(command(folder, tmp_path / "parts", *flags))
    shared = model_path(tmp_path / "parts", 0).samefile(step_folder(tmp_path / "parts", 4) / "model.bin")
    assert shared == (form != "without hard links")
    if form == "keys of old":
        contents = TrainingCheckpoints(tmp_path / "parts").newest()
        optimizer = contents["optimizer.bin"]
        contents["optimizer.bin"] = {
            "optimizer": optimizer["optimizer_state_dict"], "scaler": optimizer["scaler_state_dict"]
        }  # fmt: skip
        TrainingCheckpoints(tmp_path / "parts").save(4, contents, wait=True)
    shutil.copytree(tmp_path / "parts", tmp_path / "moved")
    shutil.rmtree(tmp_path / "parts")
    main_task_retrieval.main(command(folder, tmp_path / "moved", *flags, "--resume", "auto"))
    assert "Resumed after step 4, in epoch 1" in (tmp_path / "moved" / "log.txt").read_text()
    assert_equal(outcome(tmp_path / "moved"), outcome(tmp_path / "whole"))


# Numbers that are not finite


@pytest.mark.slow
@pytest.mark.parametrize("tolerated", [0, 1])
def test_a_loss_that_is_not_finite_leaves_batch_and_point(folder, tmp_path, monkeypatch, whole, tolerated):
    """In step 3: the run stops, or leaves that step out and ends."""
    undisturbed = whole()
    back_propagate, calls = training.back_propagate, []

    def poisoned(*arguments):
        calls.append(1)
        loss = back_propagate(*arguments)
        return loss * torch.nan if len(calls) == 3 else loss

    monkeypatch.setattr(training, "back_propagate", poisoned)
    flags = command(folder, tmp_path, "--skip_nonfinite", str(tolerated))
    if tolerated:
        main_task_retrieval.main(flags)
        assert "the step is left out" in (tmp_path / "log.txt").read_text()
    else:
        with pytest.raises(FloatingPointError, match=r"the loss is nan in epoch 1, batch 3 of 4, on rank 0; .*video"):
            main_task_retrieval.main(flags)
        assert TrainingCheckpoints(tmp_path).newest()["run.bin"]["global_step"] == 2
        monkeypatch.undo()
        main_task_retrieval.main([*flags, "--resume", "auto"])
        assert read_metrics(tmp_path)["text_to_video"] == read_metrics(undisturbed)["text_to_video"]
    content = torch.load(tmp_path / "nonfinite_batch3_rank0.pt", weights_only=True)
    assert len(content["videos"]) == 6 and content["batches"][0]["video"].shape == (6, 1, 3, 1, 3, 32, 32)
    train = (folder / "data" / "MSRVTT_train.csv").read_text().split()
    assert set(content["videos"]) <= set(train)
    shutil.rmtree(tmp_path)
