"""What may change between an interrupted run and its resumption: places and faults, not data and settings."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

import main_task_retrieval
from engine.resumption import check_flags
from engine.run_files import read_metrics
from modules.checkpoint import model_path, optimizer_path
from modules.resume import TrainingCheckpoints
from tests.helpers.tiny_run import data_flags, write_tiny_run
from tests.test_resume import command

# Flags


def check(saved: dict, given: dict, **more) -> dict:
    return check_flags(saved, given, Path("run"), **more)


def test_flags_that_survive_faults_and_more_epochs_may_change():
    saved = {"lr": 1.0, "bad_videos": "fail", "skip_nonfinite": 0, "epochs": 2}
    assert check(saved, saved) == {}
    assert check(saved, {"lr": 1.0, "bad_videos": "skip", "skip_nonfinite": 3, "epochs": 4}) == {
        "bad_videos": ["fail", "skip"], "epochs": [2, 4], "skip_nonfinite": [0, 3],
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"\(epochs was 2, is 1\)"):
        check(saved, saved | {"epochs": 1})


def test_a_flag_that_the_checkpoint_lacks_had_its_default():
    assert check({"lr": 1.0}, {"lr": 1.0, "gather": "published"}) == {}
    with pytest.raises(ValueError, match=r"\(gather was published, is exact\)"):
        check({"lr": 1.0}, {"lr": 1.0, "gather": "exact"})


def test_names_of_data_count_only_without_its_content():
    saved, given = {"train_csv": "a.csv"}, {"train_csv": "b.csv"}
    assert check(saved, given, has_content=True) == {}
    with pytest.raises(ValueError, match=r"train_csv was a\.csv, is b\.csv"):
        check(saved, given)


def test_a_file_of_weights_counts_by_its_content():
    saved, given = {"init_model": "/a/m.bin", "resume_model": "/a/o.bin"}, {"init_model": "/b", "resume_model": None}
    assert check(saved, given, same_files=frozenset({"init_model"})) == {}
    with pytest.raises(ValueError, match=r"\(init_model was /a/m\.bin, is /b\)"):
        check(saved, given)


# Whole runs


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """The data, and in `run` a training of one epoch."""
    folder = write_tiny_run(tmp_path_factory.mktemp("base"))
    main_task_retrieval.main(command(folder, folder / "run", "--epochs", "1"))
    return folder


@pytest.fixture
def folder(base, tmp_path) -> Path:
    """A copy of the data and the run, which is another place too."""
    shutil.copytree(base, tmp_path / "copy")
    return tmp_path / "copy"


def resume(folder: Path, *more: str) -> dict:
    """metrics.json of the run after another epoch."""
    main_task_retrieval.main(command(folder, folder / "run", "--resume", "auto", *more))
    return read_metrics(folder / "run")


def edit_captions(folder: Path) -> None:
    content = json.loads((folder / "data" / "MSRVTT_data.json").read_text())
    for sentence in content["sentences"]:
        sentence["caption"] = "nonsense"
    (folder / "data" / "MSRVTT_data.json").write_text(json.dumps(content))


def shorten_test_split(folder: Path, rows: int = 4) -> None:
    path = folder / "data" / "MSRVTT_test.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[: rows + 1]))


def replace_videos(folder: Path) -> None:
    first, *others = sorted((folder / "data" / "videos").glob("*.mp4"))
    for other in others:
        shutil.copy(first, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit_captions, "the train split: 72 captions became 72: 72 removed, 72 added, the first for '.*': 'nonsense'"),
        (shorten_test_split, "the test split: 9 captions became 4: 5 removed, 0 added; .*9 videos became 4"),
        (replace_videos, "the train split: 2[34] video files have another content, the first is '.*mp4'"),
    ],
)
def test_changed_data_is_refused_and_accepted_by_a_flag(folder, change, words):
    change(folder)
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*.bin*")}
    with pytest.raises(ValueError, match=f"--resume auto: the data of the run in .*{words}.*--accept_changed_data"):
        resume(folder)
    assert {path: path.read_bytes() for path in before} == before
    content = resume(folder, "--accept_changed_data")
    (entry,) = content["changed_when_resumed"]
    assert (entry["epoch"], entry["step"], entry["flags"]) == (0, 4, {"epochs": [1, 2]})
    assert len(content["history"]) == 2 and any("split: " in line for line in entry["data"])


@pytest.mark.slow
def test_epochs_on_another_test_split_are_not_compared(folder):
    """The first epoch of nine videos is best by far; the second, of four, is picked."""
    resume(folder)  # whose checkpoint has the first evaluation in its record
    points = TrainingCheckpoints(folder / "run")
    contents = points.newest()
    contents["run.bin"]["record"]["history"][0]["text_to_video"]["R1"] = 100.0
    points.save(8, contents, wait=True)
    shorten_test_split(folder)
    content = resume(folder, "--accept_changed_data", "--epochs", "3")
    assert [entry["text_to_video"]["queries"] for entry in content["history"]] == [9, 4, 4]
    assert content["best"]["epoch"] in (1, 2)


@pytest.mark.slow
def test_renamed_files_are_the_same_run(folder):
    """Another folder, and other names of csv, json, videos' folder and CLIP."""
    names = {"MSRVTT_train.csv": "a.csv", "MSRVTT_test.csv": "b.csv", "MSRVTT_data.json": "c.json", "videos": "d"}
    for name, other in names.items():
        (folder / "data" / name).rename(folder / "data" / other)
    (folder / "clip.pt").rename(folder / "other.pt")
    names["clip.pt"] = "../other.pt"
    flags = data_flags(folder)
    paths = [str(folder / "data" / names[Path(path).name]) for path in flags[1:10:2]]
    content = resume(folder, *(part for pair in zip(flags[:10:2], paths, strict=True) for part in pair))
    assert "flags" in content["changed_when_resumed"][0] and not content["changed_when_resumed"][0]["data"]
    assert len(content["history"]) == 2


@pytest.mark.slow
def test_the_way_past_a_video_that_went_bad(folder):
    with (folder / "data" / "MSRVTT_train.csv").open(newline="") as file:
        video_id = list(csv.DictReader(file))[3]["video_id"]
    path = folder / "data" / "videos" / f"{video_id}.mp4"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{video_id}.mp4.*unreadable: {video_id}.*--bad_videos skip"):
        resume(folder)
    content = resume(folder, "--bad_videos", "skip")
    assert content["changed_when_resumed"][0]["flags"]["bad_videos"] == ["fail", "skip"]
    assert str(path) in (folder / "run" / "bad_videos.csv").read_text()


# Checkpoints that cannot be restored


def spoil_torch(position: dict) -> None:
    position["ranks"][0]["random"]["torch"] = position["ranks"][0]["random"]["torch"][:100]


def spoil_python(position: dict) -> None:
    position["ranks"][0]["random"]["python"] = (4, *position["ranks"][0]["random"]["python"][1:])


def spoil_ranks(position: dict) -> None:
    position["ranks"] = []


def spoil_flags(position: dict) -> None:
    del position["flags"]


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [spoil_torch, spoil_python, spoil_ranks, spoil_flags])
def test_what_cannot_be_restored_names_checkpoint_versions_and_way_out(folder, spoil):
    points = TrainingCheckpoints(folder / "run")
    contents = points.newest()
    assert contents["run.bin"]["versions"]["torch"] == torch.__version__
    spoil(contents["run.bin"])
    contents["run.bin"]["versions"]["torch"] = "1.2.3"
    points.save(4, contents, wait=True)
    run = folder / "run"
    with pytest.raises(ValueError) as refused:
        resume(folder)
    message = str(refused.value)
    for word in (f"{run}/resume/step-00000004 cannot", "torch 1.2.3", torch.__version__, "--init_model", "\n"):
        assert (word in message) == (word != "\n")
    way_out = ["--init_model", str(model_path(run, 0)), "--resume_model", str(optimizer_path(run, 0))]
    assert " ".join(way_out) in message
    main_task_retrieval.main(command(folder, run, *way_out))
    assert [entry["epoch"] for entry in read_metrics(run)["history"]] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_a_run_without_a_whole_checkpoint_is_not_begun_again(folder, damage):
    if damage == "gone":
        shutil.rmtree(folder / "run" / "resume")
        for path in (folder / "run").glob("pytorch_*.bin.0"):
            path.rename(path.with_suffix(".7"))
    else:
        next((folder / "run" / "resume").glob("step-*/run.bin")).write_bytes(b"")
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*.bin*")}
    with pytest.raises(FileExistsError, match=r"no training checkpoint that is whole.*--init_model .*--resume_model"):
        resume(folder)
    assert {path: path.read_bytes() for path in before} == before
