"""The miniature MSR-VTT: its videos show what segments.json says, its files have MSR-VTT's form, its test is fair."""

import csv
import hashlib
import itertools
import json
import re

import cv2
import numpy as np
import pytest

from scripts.make_mini_msrvtt import get_args, main
from scripts.miniature.moving_shapes import COLOURS, SHAPES
from scripts.miniature.msrvtt import MOTIONS, write_mini_msrvtt

SMALL = {"train_videos": 30, "test_videos": 12, "captions_per_video": 3}


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    return write_mini_msrvtt(tmp_path_factory.mktemp("miniature"), **SMALL, seed=5)


@pytest.fixture(scope="module")
def default_annotations(tmp_path_factory):
    """The annotations of the default size, with videos as small as they can be."""
    return write_mini_msrvtt(tmp_path_factory.mktemp("default"), width=16, height=16, fps=1)


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def decode(path):
    """All frames, (N, H, W, 3) RGB, and the frame rate."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        decoded, frame = capture.read()
        if not decoded:
            return np.stack(frames), capture.get(cv2.CAP_PROP_FPS)
        frames.append(frame[:, :, ::-1])


def contents(paths):
    """{video_id: set of the (colour, shape) pairs that it shows}."""
    truth = json.loads(paths.segments.read_text())
    return {
        video_id: frozenset((segment["colour"], segment["shape"]) for segment in segments if segment["colour"])
        for video_id, segments in truth.items()
    }


def named_pairs(caption):
    """The (colour, shape) pairs that a caption names, read from its words."""
    pattern = rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b"
    return frozenset(re.findall(pattern, caption))


def splits(paths):
    """(ids of the training videos, {id of a test video: its caption})."""
    train = [row["video_id"] for row in read_csv(paths.train_csv)]
    return train, {row["video_id"]: row["sentence"] for row in read_csv(paths.test_csv)}


# ---- videos


def test_every_video_opens_and_has_the_frames_of_its_segments(miniature):
    truth = json.loads(miniature.segments.read_text())
    assert len(truth) == 42
    assert {path.name for path in miniature.videos.iterdir()} == {f"{video_id}.mp4" for video_id in truth}
    for video_id, segments in truth.items():
        frames, rate = decode(miniature.videos / f"{video_id}.mp4")
        assert rate == 8
        assert frames.shape == (8 * segments[-1]["end"], 64, 64, 3)


@pytest.mark.parametrize("options", [{}, {"width": 96, "height": 64, "fps": 5}, {"width": 32, "height": 48}])
def test_the_colour_of_each_second_is_the_one_in_the_truth(tmp_path, options):
    paths = write_mini_msrvtt(tmp_path, train_videos=8, test_videos=1, captions_per_video=6, **options)
    palette = np.array(list(COLOURS.values()), float)
    for video_id, segments in json.loads(paths.segments.read_text()).items():
        frames, rate = decode(paths.videos / f"{video_id}.mp4")
        for segment in segments:
            for second in range(segment["start"], segment["end"]):
                frame = frames[second * int(rate)].astype(float)
                if segment["colour"] is None:
                    # Black, grey and noise have no colour; compression leaves a little.
                    assert (frame.max(axis=2) - frame.min(axis=2)).mean() < 12
                    continue
                distance = np.linalg.norm(frame[:, :, None] - palette, axis=3)
                near = np.bincount(distance.argmin(axis=2)[distance.min(axis=2) < 60], minlength=len(palette))
                assert list(COLOURS)[near.argmax()] == segment["colour"]
                assert near.max() > 0.02 * frame[:, :, 0].size


def test_the_truth_covers_whole_seconds_without_gaps(miniature):
    for segments in json.loads(miniature.segments.read_text()).values():
        assert segments[0]["start"] == 0
        assert all(left["end"] == right["start"] for left, right in itertools.pairwise(segments))
        assert all(set(segment) == {"start", "end", "colour", "shape", "motion"} for segment in segments)
        shown = [segment for segment in segments if segment["colour"]]
        assert 2 <= len(shown) <= 3 and len(shown) < len(segments) <= 4
        assert all(segment["shape"] in SHAPES and segment["motion"] in MOTIONS for segment in shown)
        empty = [segment for segment in segments if segment["colour"] is None]
        assert all(segment["shape"] is None and segment["motion"] is None for segment in empty)


def test_longer_segments_and_more_of_them(tmp_path):
    paths = write_mini_msrvtt(tmp_path, **SMALL, seconds_per_segment=3, max_segments=4, fps=2)
    segments = [one for video in json.loads(paths.segments.read_text()).values() for one in video]
    assert {one["end"] - one["start"] for one in segments} == {1, 2, 3}
    assert max(map(len, contents(paths).values())) == 4


def test_things_move_as_their_captions_say(tmp_path):
    """The centre of the coloured pixels travels in the named direction, and their number grows or shrinks."""
    paths = write_mini_msrvtt(tmp_path, train_videos=20, test_videos=1, captions_per_video=6)
    seen = set()
    for video_id, segments in json.loads(paths.segments.read_text()).items():
        frames, _ = decode(paths.videos / f"{video_id}.mp4")
        for segment in segments:
            if segment["motion"] not in ("left", "right", "up", "down", "grows", "shrinks"):
                continue
            first, last = frames[segment["start"] * 8].astype(float), frames[segment["end"] * 8 - 1].astype(float)
            (x0, y0, size0), (x1, y1, size1) = (footprint(frame, segment["colour"]) for frame in (first, last))
            change = {"left": x0 - x1, "right": x1 - x0, "up": y0 - y1, "down": y1 - y0}
            change |= {"grows": (size1 - size0) / 50, "shrinks": (size0 - size1) / 50}
            assert change[segment["motion"]] > 3, (video_id, segment)
            seen.add(segment["motion"])
    assert len(seen) == 6


def footprint(frame, colour):
    """Mean x, mean y and number of the pixels of about this colour."""
    ys, xs = np.nonzero(np.linalg.norm(frame - np.array(COLOURS[colour]), axis=2) < 90)
    return xs.mean(), ys.mean(), len(xs)


# ---- annotations


def test_the_json_has_msrvtts_form(miniature):
    data = json.loads(miniature.data.read_text())
    assert set(data) == {"info", "videos", "sentences"}
    keys = {"video_id", "category", "url", "start time", "end time", "split", "id"}
    assert all(set(video) == keys for video in data["videos"])
    assert [video["video_id"] for video in data["videos"]] == [f"video{index}" for index in range(42)]
    assert [video["split"] for video in data["videos"]] == ["train"] * 30 + ["test"] * 12
    assert all(set(sentence) == {"caption", "video_id", "sen_id"} for sentence in data["sentences"])
    assert [sentence["sen_id"] for sentence in data["sentences"]] == list(range(42 * 3))


def test_the_csv_files_have_msrvtts_form(miniature):
    train, test = read_csv(miniature.train_csv), read_csv(miniature.test_csv)
    assert [row["video_id"] for row in train] == [f"video{index}" for index in range(30)]
    assert list(train[0]) == ["video_id"]
    assert list(test[0]) == ["key", "vid_key", "video_id", "sentence"]
    assert [row["video_id"] for row in test] == [f"video{index}" for index in range(30, 42)]
    assert (test[0]["key"], test[0]["vid_key"]) == ("ret0", "msr30")


def test_captions_name_only_what_their_video_shows(default_annotations):
    shown = contents(default_annotations)
    parts = set()
    for sentence in json.loads(default_annotations.data.read_text())["sentences"]:
        named = named_pairs(sentence["caption"])
        assert named and named <= shown[sentence["video_id"]]
        parts.add(named == shown[sentence["video_id"]])
    assert parts == {True, False}, "some captions describe all of their video and some a part"


def test_captions_differ_in_length_and_wording(default_annotations):
    captions = [one["caption"] for one in json.loads(default_annotations.data.read_text())["sentences"]]
    lengths = [len(caption.split()) for caption in captions]
    assert min(lengths) <= 5 and max(lengths) >= 25
    assert len(set(captions)) > 0.9 * len(captions)
    for filler in ("a clip where", "you can see", "after that", "on the screen"):
        assert any(filler in caption for caption in captions), filler


# ---- a fair test set


def test_no_test_caption_fits_two_test_videos(default_annotations):
    shown = contents(default_annotations)
    _, test = splits(default_annotations)
    assert len(test) == 100
    for video_id, caption in test.items():
        assert [other for other in test if named_pairs(caption) <= shown[other]] == [video_id]


def test_no_training_video_shows_what_a_test_video_shows(default_annotations):
    shown = contents(default_annotations)
    train, test = splits(default_annotations)
    assert not set(train) & set(test)
    for video_id in test:
        assert not any(shown[video_id] <= shown[other] for other in train)


def test_training_uses_every_word_for_a_colour_shape_or_motion(default_annotations):
    train, test = splits(default_annotations)
    ids = set(train)
    sentences = json.loads(default_annotations.data.read_text())["sentences"]
    text = " ".join(one["caption"] for one in sentences if one["video_id"] in ids)
    for phrase in [*COLOURS, *SHAPES, *(phrase for phrases in MOTIONS.values() for phrase in phrases)]:
        assert re.search(rf"\b{phrase}\b", text), phrase
    assert set(re.findall(r"\w+", " ".join(test.values()))) <= set(re.findall(r"\w+", text))


# ---- repeating, settings, folders


def digest(paths):
    """{relative name: sha256} of the annotations, and of the pixels of the videos."""
    root = paths.data.parent
    result = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in root.glob("*.*")}
    for path in paths.videos.iterdir():
        result[path.name] = hashlib.sha256(decode(path)[0].tobytes()).hexdigest()
    return result


def test_a_seed_repeats_everything_and_seeds_differ(tmp_path):
    options = {"train_videos": 8, "test_videos": 2, "captions_per_video": 4}
    first, again, other = (
        digest(write_mini_msrvtt(tmp_path / name, **options, seed=seed))
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert first == again
    assert all(first[name] != other[name] for name in ("MSRVTT_data.json", "segments.json", "video0.mp4"))


def test_the_same_settings_write_nothing_and_heal_what_is_missing(tmp_path):
    options = {"train_videos": 8, "test_videos": 2, "captions_per_video": 4}
    paths = write_mini_msrvtt(tmp_path / "data", **options)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    expected = digest(paths)
    assert write_mini_msrvtt(tmp_path / "data", **options) == paths
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == before
    (paths.videos / "video3.mp4").unlink()
    paths.test_csv.unlink()
    write_mini_msrvtt(tmp_path / "data", **options)
    assert digest(paths) == expected


def test_a_folder_of_other_settings_or_of_someone_else_is_refused(tmp_path):
    options = {"train_videos": 8, "test_videos": 2, "captions_per_video": 4}
    write_mini_msrvtt(tmp_path / "data", **options)
    with pytest.raises(FileExistsError, match="other settings"):
        write_mini_msrvtt(tmp_path / "data", **options, seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="was not made by this script"):
        write_mini_msrvtt(tmp_path / "mine", **options)
    with pytest.raises(FileExistsError, match="is a file"):
        write_mini_msrvtt(tmp_path / "mine" / "notes.txt", **options)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_too_many_test_videos_are_an_error_that_names_them(tmp_path):
    with pytest.raises(ValueError, match="test_videos 3000 is too many"):
        write_mini_msrvtt(tmp_path / "data", train_videos=600, test_videos=3000, max_segments=2)
    assert not (tmp_path / "data").exists()


# ---- command line


def test_the_command_line_reaches_the_settings(tmp_path):
    output, settings = get_args(
        ["--output", str(tmp_path), "--size", "96x64", "--train_videos", "7", "--fps", "4", "--seed", "9"]
    )
    assert output == tmp_path
    assert (settings.width, settings.height, settings.train_videos, settings.fps, settings.seed) == (96, 64, 7, 4, 9)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--size", "64"], ["WIDTHxHEIGHT", "'64'"]),
        (["--size", "64x"], ["WIDTHxHEIGHT", "'64x'"]),
        (["--size", "63x64"], ["width", "63"]),
        (["--size", "64x8"], ["height", "8"]),
        (["--train_videos", "0"], ["train_videos", "0"]),
        (["--test_videos", "-1"], ["test_videos", "-1"]),
        (["--captions_per_video", "0"], ["captions_per_video", "0"]),
        (["--seconds_per_segment", "0"], ["seconds_per_segment", "0"]),
        (["--max_segments", "5"], ["max_segments", "2, 3 or 4", "5"]),
        (["--fps", "0"], ["fps", "0"]),
        (["--seed", "-1"], ["seed", "-1"]),
    ],
)
def test_bad_values_are_argument_errors_that_name_them(tmp_path, capsys, arguments, named):
    with pytest.raises(SystemExit) as stopped:
        main(["--output", str(tmp_path / "data"), *arguments])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in named), message
    assert not (tmp_path / "data").exists()


def test_main_says_where_the_data_is(tmp_path, capsys):
    options = ["--train_videos", "8", "--test_videos", "2", "--size", "32x32", "--captions_per_video", "4"]
    main(["--output", str(tmp_path / "data"), *options])
    assert "8 training and 2 test videos" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="other settings"):
        main(["--output", str(tmp_path / "data"), *options, "--seed", "1"])
