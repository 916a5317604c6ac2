"""The flags of a training, read from flags.json beside its checkpoint by an evaluation without them."""

import json
import logging
import re
from pathlib import Path

import pytest

from engine.arguments import get_args, log_recorded_flags
from engine.provenance import configuration_hash
from engine.recorded_flags import RECORDED_FLAGS

TRAINING = {
    "sim_header": "wti", "agg_module": "seqTransf", "wti_arch": 3, "wti_padding": "exclude", "linear_patch": "3d",
    "cross_num_hidden_layers": 2, "max_words": 32, "max_frames": 12, "feature_framerate": 2, "slice_framepos": 2,
    "pretrained_clip_name": "ViT-B/16",
}  # fmt: skip
OTHERS = {"precision": "clip_fp16", "batch_size_val": 7, "val_csv": "a.csv", "seed": 3, "epochs": 9, "lr": 0.5}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "flags.json").write_text(json.dumps({**TRAINING, **OTHERS, "init_model": "x", "a_flag_of_later": 1}))
    (folder / "pytorch_model.bin.4").touch()
    return folder / "pytorch_model.bin.4"


def evaluation(checkpoint, *flags: str):
    return get_args(["--do_eval", "--output_dir", "out", "--init_model", str(checkpoint), *flags])


def flags_of(args) -> dict:
    return {name: getattr(args, name) for name in TRAINING}


def test_a_silent_command_line_has_the_flags_of_the_training(checkpoint):
    args = evaluation(checkpoint)
    assert flags_of(args) == TRAINING
    assert (args.precision, args.batch_size_val, args.val_csv, args.seed) == (None, 3500, "data/.val.csv", 42)
    assert set(TRAINING) <= set(RECORDED_FLAGS)


def test_the_command_line_wins_also_with_a_default_or_an_abbreviation(checkpoint):
    args = evaluation(checkpoint, "--max_words", "20", "--max_fr=100", "--slice", "0")
    assert flags_of(args) == {**TRAINING, "max_words": 20, "max_frames": 100, "slice_framepos": 0}


def test_the_log_names_file_and_differences(checkpoint, caplog):
    with caplog.at_level(logging.INFO):
        log_recorded_flags(evaluation(checkpoint, "--max_words", "20", "--wti_arch", "3"))
    file = checkpoint.parent / "flags.json"
    taken, differs = caplog.records
    assert taken.getMessage().startswith(f"flags of the training, from {file}: ")
    assert "--wti_arch 3" in taken.getMessage() and "max_words" not in taken.getMessage()
    assert (differs.levelname, differs.getMessage()) == (
        "WARNING", f"--max_words 20 differs from the training's 32 in {file}",
    )  # fmt: skip


def test_the_hash_of_the_configuration_is_that_of_the_flags_in_force(checkpoint, tmp_path):
    moved = tmp_path / "pytorch_model.bin.4"
    moved.touch()
    explicit = [text for name, value in TRAINING.items() for text in (f"--{name}", str(value))]
    hashes = [
        configuration_hash(args, 1, without=("init_model",))
        for args in (evaluation(checkpoint), evaluation(moved, *explicit), evaluation(moved))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_only_an_evaluation_of_a_checkpoint_with_flags_json(checkpoint, tmp_path, caplog):
    foreign = tmp_path / "clip4clip.bin"
    foreign.touch()
    defaults = flags_of(get_args(["--do_eval", "--output_dir", "out"]))
    assert flags_of(evaluation(foreign)) == defaults
    assert flags_of(evaluation("https://example.com/run/pytorch_model.bin.4")) == defaults
    assert flags_of(evaluation(checkpoint, "--do_train")) == defaults
    for args in (evaluation(foreign), evaluation(checkpoint, "--do_train")):
        log_recorded_flags(args)
    assert caplog.messages == []


def test_the_flags_of_a_training_checkpoint_are_its_runs(checkpoint):
    step = checkpoint.parent / "resume" / "step-00000012"
    step.mkdir(parents=True)
    (step / "model.bin").touch()
    assert flags_of(evaluation(step / "model.bin")) == TRAINING


@pytest.mark.parametrize("name", ["/gone/clip.pt", "gone/clip", "ViT-B-32:/gone/clip.pt"])
def test_starting_weights_that_are_elsewhere(checkpoint, name):
    (checkpoint.parent / "flags.json").write_text(json.dumps({**TRAINING, "pretrained_clip_name": name}))
    assert evaluation(checkpoint).pretrained_clip_name.endswith(name)
    assert evaluation(checkpoint, "--pretrained_clip_name", "/away/clip.pt").max_words == 32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "flags.json is not valid JSON: .*; repair it, or move it away"),
        ("[]", "flags.json holds a list, not the flags of a run; repair it, or move it away"),
        ('{"max_frames": "4"}', "flags.json: max_frames is '4', not of type int"),
        ('{"sim_header": "best"}', "flags.json: sim_header is 'best'; choose from meanP"),
        ('{"max_words": 0}', "--max_words 0 must be at least 1"),
    ],
)
def test_a_damaged_file_is_named(checkpoint, capsys, content, message):
    (checkpoint.parent / "flags.json").write_text(content)
    with pytest.raises(SystemExit, match="2"):
        evaluation(checkpoint)
    error = " ".join(capsys.readouterr().err.split())
    assert re.search(message, error), error
