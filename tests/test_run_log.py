"""metrics.jsonl and its copy for TensorBoard: lines, resumed runs, full disks; and flags.json beside them."""

import json
import logging
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main_task_retrieval
from engine.arguments import get_args
from engine.run_files import read_metrics, write_flags
from engine.run_log import EventFile, RunLog, append_lines, read_lines
from engine.signals import StoppedBySignal
from modules.checkpoint import model_path, optimizer_path
from tests.helpers.tiny_run import data_flags, write_tiny_run
from tests.test_resume import assert_equal, command, outcome, stop_after

REPOSITORY = Path(__file__).resolve().parent.parent
TIMES = ("time", "seconds_per_step", "data_seconds_per_step", "clips_per_second", "peak_memory_bytes")


def line(kind: str, epoch: int | None, step: int | None, **values) -> dict:
    return {"kind": kind, "epoch": epoch, "step": step, "time": 5.5, **values}


# Two epochs of three steps, killed in the third; an evaluation of another checkpoint came between
LINES = [
    line("step", 0, 2, loss=0.5),
    line("epoch", 0, 3, loss=0.25),
    line("evaluation", 0, 3, split="test"),
    line("evaluation", 0, None, split="test"),
    line("step", 1, 4, loss=0.5),
    line("step", 1, 6, loss=0.5),
    line("epoch", 1, 6, loss=0.25),
    line("evaluation", 1, 6, split="test"),
    line("step", 2, 8, loss=0.5),
]


def write_lines(folder: Path, lines: list[dict], torn: str = "") -> None:
    text = "".join(json.dumps(one) + "\n" for one in lines)
    (folder / "metrics.jsonl").write_text(text + torn)


def text_of(folder: Path) -> str:
    return (folder / "metrics.jsonl").read_text()


def events_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by tag, as TensorBoard reads them."""
    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


@pytest.mark.parametrize(
    ("epoch", "step", "kept"),
    [
        (0, 0, []),  # anew
        (0, 2, [0]),
        (0, 3, [0]),  # the first epoch's point was written before its evaluation: both come again
        (1, 3, [0, 1, 2]),  # a checkpoint, or a point before the second epoch's first step
        (1, 4, [0, 1, 2, 4]),
        (1, 6, [0, 1, 2, 4, 5]),
        (2, 6, [0, 1, 2, 4, 5, 6, 7]),
        (2, 8, [0, 1, 2, 4, 5, 6, 7, 8]),
    ],
)
def test_what_a_run_that_goes_on_keeps(tmp_path, epoch, step, kept):
    write_lines(tmp_path, LINES)
    RunLog(tmp_path).begin(epoch, step, tmp_path)
    assert read_lines(tmp_path) == [LINES[index] for index in kept]
    losses = [(LINES[index]["step"], 0.5) for index in kept if LINES[index]["kind"] == "step"]
    assert events_of(tmp_path).get("train/loss", []) == losses


def test_a_run_that_goes_on_in_another_folder_takes_the_lines_along(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    write_lines(tmp_path / "first", LINES)
    write_lines(tmp_path / "second", [line("step", 0, 1, loss=9.0)])
    RunLog(tmp_path / "second").begin(1, 3, tmp_path / "first")
    assert read_lines(tmp_path / "second") == LINES[:3]
    assert read_lines(tmp_path / "first") == LINES


@pytest.mark.parametrize("torn", ['{"kind": "st', "\0\0\0", '{"kind": "step", "epoch": 0, "step": "2"}\n', "[" * 9999])
def test_a_damaged_line_is_left_out_and_said(tmp_path, caplog, torn):
    write_lines(tmp_path, LINES[:2], torn)
    assert read_lines(tmp_path) == LINES[:2]
    assert "metrics.jsonl: 1 of its lines cannot be read and are left out, the first is line 3" in caplog.text
    log = RunLog(tmp_path)
    log.begin(0, 2, tmp_path)
    log.add("step", 0, 3, loss=0.75)
    assert [one["step"] for one in map(json.loads, text_of(tmp_path).splitlines())] == [2, 3]


def test_no_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path) == []


def test_an_added_line_takes_the_place_of_a_torn_one(tmp_path):
    path = tmp_path / "file"
    for before, after in (("", "c\n"), ("a\nb\n", "a\nb\nc\n"), ("a\nb", "a\nc\n"), ("b", "c\n")):
        path.write_text(before)
        append_lines(path, "c\n")
        assert path.read_text() == after


def test_numbers_that_are_not_finite_are_null(tmp_path):
    log = RunLog(tmp_path)
    log.begin(0, 0, tmp_path)
    log.add("step", 0, 1, loss=float("nan"), learning_rates=[0.5, float("inf")], inner={"norm": -float("inf"), "n": 2})

    def refuse(constant):
        raise ValueError(constant)

    found = json.loads(text_of(tmp_path), parse_constant=refuse)
    assert (found["loss"], found["learning_rates"], found["inner"]) == (None, [0.5, None], {"norm": None, "n": 2})
    assert events_of(tmp_path) == {"train/learning_rates/0": [(1, 0.5)], "train/inner/n": [(1, 2.0)]}


def test_a_new_run_leaves_other_files_of_the_folder(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    for name in ("events.out.tfevents.1.host.2", "notes.txt"):
        (tmp_path / "tensorboard" / name).write_text("x")
    RunLog(tmp_path).begin(0, 0, tmp_path)
    names = [path.name for path in (tmp_path / "tensorboard").iterdir()]
    assert len(names) == 2 and "notes.txt" in names and "events.out.tfevents.1.host.2" not in names
    assert text_of(tmp_path) == ""


def test_a_server_that_shows_a_run_forgets_what_is_dropped(tmp_path):
    """Its accumulator has read the first file, and goes on with the second."""
    events = EventFile(tmp_path / "tensorboard")
    write_lines(tmp_path, [line("step", 0, step, loss=float(step)) for step in (1, 2, 3)])
    events.add([], tmp_path / "metrics.jsonl")
    accumulator = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in accumulator.Scalars("train/loss")] == [1, 2, 3]
    second = tmp_path / "second"
    second.mkdir()
    write_lines(second, [line("step", 0, step, loss=float(step)) for step in (1, 2)])
    resumed = EventFile(second / "tensorboard")
    resumed.add([], second / "metrics.jsonl")
    resumed.file.rename(tmp_path / "tensorboard" / "events.out.tfevents.9999999999.later")
    accumulator.Reload()
    assert [event.step for event in accumulator.Scalars("train/loss")] == [1, 2]


def test_a_disk_without_room_is_one_warning_and_loses_no_line(tmp_path, caplog):
    """A limit on the size of files stands for the disk: it, too, lets the first part of a line through."""
    log = RunLog(tmp_path)
    log.begin(0, 0, tmp_path)
    log.add("step", 0, 1, loss=1.0)
    before, hard = text_of(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    with caplog.at_level(logging.WARNING):
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard[1]))
        try:
            log.add("step", 0, 2, loss=2.0)
            torn = text_of(tmp_path)
            log.add("step", 0, 3, loss=3.0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, hard)
    assert len(torn) == len(before) + 20
    assert (
        caplog.text.count("metrics.jsonl cannot be written; the run goes on") == 1 and "File too large" in caplog.text
    )
    log.add("step", 0, 4, loss=4.0)
    assert [one["loss"] for one in read_lines(tmp_path)] == [1, 2, 3, 4]
    assert events_of(tmp_path)["train/loss"] == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_a_folder_that_cannot_be_made_is_a_warning_and_is_tried_again(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("a file is here")
    (tmp_path / "metrics.jsonl").mkdir()
    log = RunLog(tmp_path)
    with caplog.at_level(logging.WARNING):
        log.begin(0, 0, tmp_path)
        log.add("step", 0, 1, loss=1.0)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        (tmp_path / "metrics.jsonl").rmdir()
        log.add("step", 0, 2, loss=2.0)
        log.add("step", 0, 3, loss=3.0)
        assert [f"{tmp_path / name}" in caplog.text for name in ("metrics.jsonl", "tensorboard")] == [True, True]
        assert len(caplog.records) == 2
    (tmp_path / "tensorboard").unlink()
    log.add("step", 0, 4, loss=4.0)
    assert [one["loss"] for one in read_lines(tmp_path)] == [1, 2, 3, 4]
    assert events_of(tmp_path)["train/loss"] == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_event_files_that_go_away_are_written_anew(tmp_path, caplog):
    log = RunLog(tmp_path)
    log.begin(0, 0, tmp_path)
    log.add("step", 0, 1, loss=1.0)
    shutil.rmtree(tmp_path / "tensorboard")
    log.add("step", 0, 2, loss=2.0)
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "No such file" in caplog.text
    log.add("step", 0, 3, loss=3.0)
    assert events_of(tmp_path)["train/loss"] == [(1, 1), (2, 2), (3, 3)]


def test_tensorflow_is_never_imported_and_nothing_before_it_is_needed(tmp_path):
    """Where it is installed, tensorboard imports it for its own writers: seconds, and pages of its messages."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('tensorflow is imported')")
    code = (
        "import sys; from engine import evaluation, run_log; assert 'tensorboard' not in sys.modules;"
        "log = run_log.RunLog('.'); log.begin(0, 0, '.'); log.add('step', 0, 1, loss=2.0)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert events_of(tmp_path) == {"train/loss": [(1, 2.0)]}


def test_flags_file(tmp_path):
    args = get_args(["--do_eval", "--output_dir", str(tmp_path), "--max_words", "24", "--lr_decay", "0.5"])
    write_flags(tmp_path, args)
    flags = json.loads((tmp_path / "flags.json").read_text())
    assert (flags["max_words"], flags["sim_header"], flags["do_train"]) == (24, "meanP", False)
    assert list(flags) == sorted(vars(args).keys() - {"unread_flags", "local_rank"})


# Whole runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny_run(tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    """A run of two epochs of four steps, two learning rates, and two log lines an epoch."""
    main_task_retrieval.main(command(folder, folder / "whole", *TWO_RATES))
    return folder / "whole"


TWO_RATES = ("--coef_lr", "0.1", "--agg_module", "seqTransf", "--sim_header", "wti", "--n_display", "2")


def lines_without_times(output: Path) -> list[dict]:
    return [{key: value for key, value in one.items() if key not in TIMES} for one in read_lines(output)]


def test_the_lines_of_a_run(whole):
    lines = read_lines(whole)
    assert [(one["kind"], one["epoch"], one["step"]) for one in lines] == [
        ("step", 0, 2), ("step", 0, 4), ("epoch", 0, 4), ("evaluation", 0, 4),
        ("step", 1, 6), ("step", 1, 8), ("epoch", 1, 8), ("evaluation", 1, 8),
    ]  # fmt: skip
    log = (whole / "log.txt").read_text()
    steps = [one for one in lines if one["kind"] == "step"]
    for one in steps:
        rates = "-".join(f"{rate:.9f}" for rate in one["learning_rates"])
        times = f"{one['seconds_per_step']:f} (data {one['data_seconds_per_step']:f}, "
        assert f"Lr: {rates}, Loss: {one['loss']:f}, Time/step: {times}" in log
        assert f"Clips/s: {one['clips_per_second']:.1f}, Logit scale: {one['logit_scale']:.2f}, " in log
        memory = f"{one['peak_memory_bytes'] / 1e9:.2f} GB"
        assert f"Gradient norm: {one['gradient_norm']:.3f}, Peak memory: {memory}" in log
    assert steps[1]["learning_rates"][1] == pytest.approx(10 * steps[1]["learning_rates"][0])
    for one in (one for one in lines if one["kind"] == "epoch"):
        assert f"Epoch {one['epoch'] + 1}/2 Finished, Train Loss: {one['loss']:f}" in log
    history = read_metrics(whole)["history"]
    assert [(one["split"], one["text_to_video"]["R1"], one["video_to_text"]["MnR"]) for one in lines[3::4]] == [
        ("test", entry["text_to_video"]["R1"], entry["video_to_text"]["MnR"]) for entry in history
    ]
    assert json.loads((whole / "flags.json").read_text())["precision"] == "fp32"


def test_tensorboard_shows_the_same_numbers(whole):
    events, lines = events_of(whole), read_lines(whole)
    steps = [one for one in lines if one["kind"] == "step"]
    for key in ("loss", "logit_scale", "gradient_norm", "clips_per_second", "seconds_per_step"):
        assert events[f"train/{key}"] == [(one["step"], np.float32(one[key])) for one in steps]
    assert events["train/learning_rates/1"] == [
        (one["step"], np.float32(one["learning_rates"][1])) for one in steps if len(one["learning_rates"]) == 2
    ]
    assert events["epoch/loss"] == [(one["step"], np.float32(one["loss"])) for one in lines if one["kind"] == "epoch"]
    assert events["test/text_to_video/R1"] == [
        (4 * (entry["epoch"] + 1), np.float32(entry["text_to_video"]["R1"])) for entry in read_metrics(whole)["history"]
    ]


def test_lines_change_no_bit_of_a_training(folder, whole, tmp_path):
    main_task_retrieval.main([*command(folder, tmp_path, *TWO_RATES), "--n_display", "99"])
    assert [one["kind"] for one in read_lines(tmp_path)] == ["epoch", "evaluation"] * 2
    assert_equal(outcome(tmp_path), outcome(whole))


def test_a_resumed_run_has_the_lines_of_one_that_was_not_stopped(folder, whole, tmp_path, monkeypatch):
    """Stopped after step 7, whose point is lost: it goes on from step 6, and is stopped in the first epoch before."""
    flags = command(folder, tmp_path, *TWO_RATES)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(StoppedBySignal):
            main_task_retrieval.main(flags)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(StoppedBySignal):
            main_task_retrieval.main([*flags, "--resume", "auto", "--save_steps", "6"])
    assert [one["step"] for one in read_lines(tmp_path)][-1] == 6
    point = tmp_path / "resume" / "step-00000007" / "run.bin"
    point.write_bytes(point.read_bytes()[:-1])
    with (tmp_path / "metrics.jsonl").open("a") as file:  # step 8 was reached, and the process killed as it wrote
        file.write(json.dumps(line("step", 1, 8, loss=9.0)) + '\n{"kind": "epo')
    main_task_retrieval.main([*flags, "--resume", "auto"])
    assert "Resumed after step 6, " in (tmp_path / "log.txt").read_text()
    assert lines_without_times(tmp_path) == lines_without_times(whole)
    found, expected = events_of(tmp_path), events_of(whole)
    assert found.keys() == expected.keys()
    for tag in ("train/loss", "train/learning_rates/0", "epoch/loss", "test/video_to_text/R5"):
        assert found[tag] == expected[tag]


def test_resume_model_takes_the_first_epoch_along(folder, whole, tmp_path):
    resuming = ["--init_model", str(model_path(whole, 0)), "--resume_model", str(optimizer_path(whole, 0))]
    main_task_retrieval.main([*command(folder, tmp_path, *TWO_RATES), *resuming])
    expected, found = read_lines(whole), read_lines(tmp_path)
    assert found[:4] == expected[:4]
    assert [one["step"] for one in found] == [one["step"] for one in expected]


def test_an_evaluation_adds_its_line_and_no_curve(folder, whole, tmp_path):
    evaluation = ["--do_eval", "--init_model", str(model_path(whole, 1)), *data_flags(folder), *TWO_RATES]
    for _ in range(2):
        main_task_retrieval.main([*evaluation, "--output_dir", str(tmp_path)])
    kinds = [(one["kind"], one["epoch"], one["step"], one["split"]) for one in read_lines(tmp_path)]
    assert kinds == [("evaluation", 1, None, "test")] * 2
    assert not (tmp_path / "tensorboard").exists()
    flags = json.loads((tmp_path / "flags.json").read_text())
    assert (flags["do_train"], flags["agg_module"], flags["max_words"]) == (False, "seqTransf", 16)
    assert not {"local_rank", "unread_flags"} & flags.keys()
