"""--frame_sampling: its default, where else its value comes from, and what it leaves as it is."""

import csv
import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from dataloaders.data_dataloaders import DATALOADER_DICT
from engine.provenance import configuration_hash, decisive_flags
from main_task_retrieval import get_args
from modules.tokenization_clip import SimpleTokenizer
from scripts import embed as embed_script
from scripts import index as index_script
from scripts.check_data.data_files import read_through
from scripts.report.data import Frames
from tests.helpers.numbered_videos import write_numbered
from tests.helpers.search_cases import write_checkpoint
from video_search.encoder import Encoder
from video_search.encoder_flags import resolve_flags
from video_search.index_files import read_contents, write_contents
from video_search.index_reader import IndexReader

PUBLISHED_SETS = ["activity", "didemo", "lsmdc", "msrvtt", "msvd", "vatex"]
# Ten seconds of slides at one frame per second, then ten of motion at 30 frames per second.
SLIDES = [*map(float, range(10)), *(10 + number / 30 for number in range(300))]


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    return write_numbered(tmp_path_factory.mktemp("videos") / "slides.mp4", SLIDES, width=64, height=64)


def parse(folder: Path, *flags: str) -> Namespace:
    return get_args(["--output_dir", str(folder), "--do_train" if "--do_eval" not in flags else "--do_eval", *flags])


def record(folder: Path, **flags) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "flags.json").write_text(json.dumps(flags))
    return folder


def test_the_default_is_the_data_sets(tmp_path):
    assert [parse(tmp_path, "--datatype", name).frame_sampling for name in PUBLISHED_SETS] == ["published"] * 6
    assert parse(tmp_path, "--datatype", "custom").frame_sampling == "time"
    assert parse(tmp_path, "--datatype", "custom", "--frame_sampling", "published").frame_sampling == "published"
    assert parse(tmp_path, "--datatype", "msrvtt", "--frame_sampling", "time").frame_sampling == "time"


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        ({"datatype": "custom"}, "published"),  # by a version without the flag
        ({"datatype": "custom", "frame_sampling": "time"}, "time"),
        ({"datatype": "msrvtt", "frame_sampling": "published"}, "time"),  # another data set's
        ({}, "time"),
    ],
)
@pytest.mark.parametrize("source", ["--resume", "--init_model", "--resume_model"])
def test_a_run_that_goes_on_or_is_evaluated_keeps_its_rule(tmp_path, caplog, source, recorded, expected):
    run = record(tmp_path / "run", **recorded)
    checkpoint = str(run / "pytorch_model.bin.0")
    flags = {
        "--resume": ["--resume", "auto"],
        "--init_model": ["--do_eval", "--init_model", checkpoint],
        "--resume_model": ["--init_model", checkpoint, "--resume_model", str(run / "pytorch_opt.bin.0")],
    }[source]
    folder = run if source == "--resume" else tmp_path / "other"
    assert parse(folder, "--datatype", "custom", *flags).frame_sampling == expected
    assert ("frames are sampled as by the run in" in caplog.text) == (expected == "published")
    assert parse(folder, "--datatype", "custom", *flags, "--frame_sampling", "time").frame_sampling == "time"
    assert ("--frame_sampling time differs from the run's in" in caplog.text) == (expected == "published")


def test_a_new_training_from_a_checkpoint_has_the_default(tmp_path):
    run = record(tmp_path / "run", datatype="custom")
    flags = ["--datatype", "custom", "--init_model", str(run / "pytorch_model.bin.0")]
    assert parse(tmp_path / "other", *flags).frame_sampling == "time"


def test_published_runs_keep_their_configuration_hash(tmp_path):
    args = parse(tmp_path, "--datatype", "msrvtt")
    older = Namespace(**{name: value for name, value in vars(args).items() if name != "frame_sampling"})
    assert configuration_hash(args, 1) == configuration_hash(older, 1)
    assert decisive_flags(args, 1) == decisive_flags(older, 1)
    by_time = parse(tmp_path, "--datatype", "msrvtt", "--frame_sampling", "time")
    assert decisive_flags(by_time, 1)["frame_sampling"] == "time"
    assert configuration_hash(by_time, 1) != configuration_hash(args, 1)


@pytest.mark.parametrize(
    ("flags", "seconds"),
    [({}, [2, 3, 4, 5, 6, 7, 8]), ({"frame_sampling": "time"}, [2, 3, 4, 5, 6, 7, 8]), ({"datatype": "msrvtt"}, [])],
)
def test_spans_of_custom_data_are_seconds(slides, tmp_path, flags, seconds):
    table = "video,caption,start,end\nslides.mp4,slides,2,8\n"
    (tmp_path / "clips.csv").write_text(table)
    args = Namespace(
        **{"datatype": "custom", **flags}, val_csv=str(tmp_path / "clips.csv"), features_path=str(slides.parent),
        max_words=8, max_frames=12, slice_framepos=2, num_thread_reader=0, batch_size_val=1,
    )  # fmt: skip
    loader, _ = DATALOADER_DICT["custom"]["test"](args, SimpleTokenizer(), image_resolution=64)
    [(_, _, _, video, mask)] = loader
    frames = video[0, 0, : int(mask.sum()), 0].numpy()
    rows = frames.mean(axis=1)[:, 32, 3::6][:, :10] > 128
    numbers = [sum(1 << bit for bit in range(10) if row[bit]) for row in rows]
    if seconds:
        assert numbers == seconds
    else:  # by frame numbers at 15 per second: frames of the seconds after the tenth
        assert min(numbers) > 10


def test_an_encoder_samples_by_time_whatever_its_training_did(tmp_path):
    flags = write_checkpoint(tmp_path, "meanP")
    checkpoint = flags["init_model"]
    record(tmp_path, datatype="msrvtt", frame_sampling="published", **flags)
    assert resolve_flags(checkpoint, None, {})["frame_sampling"] == "time"
    assert resolve_flags(checkpoint, {}, {})["frame_sampling"] == "time"
    assert resolve_flags(checkpoint, {"max_frames": 12}, {})["frame_sampling"] == "published"
    assert resolve_flags(checkpoint, {"frame_sampling": "time"}, {})["frame_sampling"] == "time"
    assert resolve_flags(checkpoint, None, {"frame_sampling": "published"})["frame_sampling"] == "published"
    assert Encoder.load(checkpoint).extractor.frame_sampling == "time"


def test_an_index_of_an_older_version_is_updated_with_its_rule(slides, tmp_path, capsys):
    flags = write_checkpoint(tmp_path, "meanP", max_frames=24)
    index = tmp_path / "index"
    model = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    command = [str(slides.parent), "--index", str(index), "--num_workers", "0"]
    index_script.main([*command, *model, "--frame_sampling", "published"])
    contents = read_contents(index)
    assert contents.settings.pop("frame_sampling") == "published"
    write_contents(index, contents)

    (slides.parent / "second.mp4").write_bytes(slides.read_bytes())
    index_script.main(command)
    out = capsys.readouterr().out
    assert "1 new, 0 changed, 0 removed, 1 unchanged" in out
    assert "this index was made with --frame_sampling published and is updated with it" in out
    vectors = IndexReader.open(index).vectors
    assert vectors.counts.tolist() == [21, 21]  # frames 0, 15 ... 300
    expected = [SLIDES[number] for number in range(0, 310, 15)]
    np.testing.assert_allclose(vectors.seconds, expected * 2, atol=2e-3)
    with pytest.raises(SystemExit, match="index: .*frame_sampling 'published' of the index, 'time' here"):
        index_script.main([*command, "--frame_sampling", "time"])
    (slides.parent / "second.mp4").unlink()


def test_seconds_of_embed_are_those_of_the_film(slides, tmp_path):
    flags = write_checkpoint(tmp_path, "meanP", max_frames=24)
    model = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    output = tmp_path / "embedded.npz"
    embed_script.main([*model, "--videos", str(slides), "--output", str(output), "--num_workers", "0"])
    assert np.load(output)["seconds"].tolist() == list(range(20))


def test_the_length_in_check_data_is_that_of_the_timestamps(slides):
    assert read_through(slides)[0] == pytest.approx(20, abs=0.01)


@pytest.mark.parametrize(("rule", "first"), [("time", 2), ("published", 20)])
def test_a_report_shows_the_frames_of_the_run(slides, tmp_path, monkeypatch, rule, first):
    with (tmp_path / "gallery.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["video", "path", "start", "end"], ["slides", str(slides), 2, 8]])
    record(tmp_path, frame_sampling=rule)
    rules = []
    from scripts.report import data

    monkeypatch.setattr(
        data, "RawVideoExtractor",
        lambda rate, size, rule: rules.append(rule) or Namespace(read_frames=lambda *args, **span: []),
    )  # fmt: skip
    assert Frames(tmp_path).of("slides") == []
    assert rules == [rule]
