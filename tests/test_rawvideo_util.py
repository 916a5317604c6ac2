"""Frames of videos: the reference pixels of real clips, chosen positions counted by hand, and files that are broken."""

import hashlib
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataloaders import rawvideo_util, video_decoding
from dataloaders.rawvideo_util import RawVideoExtractor, SampleGrid, VideoReadError, choose_samples, order_frames

BRIGHTNESS_STEP = 7


def write_clip(path, frame_count: int, fps: float, width: int = 64, height: int = 48) -> str:
    """A clip whose frame n is grey of brightness 7 n, so that a frame's number can be read off it."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height))
    for number in range(frame_count):
        writer.write(np.full((height, width, 3), number * BRIGHTNESS_STEP, dtype=np.uint8))
    writer.release()
    return str(path)


def numbers(frames: np.ndarray) -> list[int]:
    return [round(float(frame.mean()) / BRIGHTNESS_STEP) for frame in frames]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    """35 frames at 10 per second: whole seconds are the frames 0, 10, 20 and 30."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 35, 10)


@pytest.fixture(scope="module")
def extractor() -> RawVideoExtractor:
    return RawVideoExtractor(framerate=1, size=32)


# Reference pixels


@pytest.mark.real_clips
def test_all_real_clips_equal_the_reference_byte_for_byte(golden_frames, real_clips):
    extractor = RawVideoExtractor(golden_frames["framerate"], golden_frames["size"])

    def digest(name: str) -> str:
        frames = extractor.read_frames(
            real_clips / name, golden_frames["max_frames"], golden_frames["slice_framepos"], frame_order=0
        )
        return hashlib.sha256(frames.tobytes()).hexdigest()

    expected = {name: clip["sha256"] for name, clip in golden_frames["clips"].items()}
    with ThreadPoolExecutor(max_workers=2) as pool:
        assert dict(zip(expected, pool.map(digest, expected), strict=True)) == expected
    assert len(expected) == 74


def test_choosing_12_samples_equals_the_reference(golden_frames):
    for expected in golden_frames["clips"].values():
        assert choose_samples(expected["frames"], 12, 2) == expected["selected"]


# Which frames


@pytest.mark.parametrize(
    ("slice_framepos", "max_frames", "expected"),
    [
        (2, 12, [0, 10, 20, 30]),
        (2, 3, [0, 10, 30]),  # linspace(0, 3, 3) is 0, 1.5, 3, cut to 0, 1, 3
        (2, 1, [0]),
        (0, 2, [0, 10]),
        (1, 2, [20, 30]),
        (0, 4, [0, 10, 20, 30]),
        (1, 12, [0, 10, 20, 30]),
    ],
)
def test_slice_framepos_chooses_among_whole_seconds(clip, extractor, slice_framepos, max_frames, expected):
    frames = extractor.read_frames(clip, max_frames, slice_framepos)
    assert frames.shape == (len(expected), 3, 32, 32)
    assert frames.dtype == np.uint8 and frames.flags["C_CONTIGUOUS"]
    assert numbers(frames) == expected


@pytest.mark.parametrize(
    ("framerate", "expected"),
    [
        (2, [0, 5, 10, 15, 20, 25, 30]),
        (3, [0, 3, 6, 10, 13, 16, 20, 23, 26, 30, 33]),
        (10, list(range(35))),
        (60, list(range(35))),
    ],
)
def test_framerate_takes_evenly_stepped_frames_of_each_second(clip, framerate, expected):
    assert numbers(RawVideoExtractor(framerate, 32).read_frames(clip, 100)) == expected


def test_the_frame_rate_is_cut_to_an_integer(tmp_path, extractor):
    assert numbers(extractor.read_frames(write_clip(tmp_path / "a.mp4", 22, 7.9), 12)) == [0, 7, 14, 21]
    # Below one frame per second every frame is a sample.
    assert numbers(extractor.read_frames(write_clip(tmp_path / "b.mp4", 5, 0.5), 12)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (1, 2, [10, 20]),
        (0, 0, [0]),
        (2, None, [20, 30]),
        (None, 1, [0, 10]),
        (2, 31, [20, 30]),
        (1.9, 2.1, [10, 20, 30]),
    ],
)
@pytest.mark.parametrize("slice_framepos", [0, 1, 2])
def test_time_spans_are_inclusive(clip, extractor, slice_framepos, start, end, expected):
    frames = extractor.read_frames(clip, 12, slice_framepos, start_time=start, end_time=end)
    assert numbers(frames) == expected


def test_time_span_and_slice_together(clip, extractor):
    assert numbers(extractor.read_frames(clip, 2, 0, start_time=1, end_time=3)) == [10, 20]
    assert numbers(extractor.read_frames(clip, 2, 1, start_time=1, end_time=3)) == [20, 30]
    assert numbers(extractor.read_frames(clip, 2, 2, start_time=1, end_time=3)) == [10, 30]


def test_frame_orders(clip, extractor):
    assert numbers(extractor.read_frames(clip, 3, 2, frame_order=1)) == [30, 10, 0]
    orders = set()
    for seed in range(20):
        first, again = (
            numbers(extractor.read_frames(clip, 4, frame_order=2, random_generator=np.random.default_rng(seed)))
            for _ in range(2)
        )
        assert first == again and sorted(first) == [0, 10, 20, 30]
        orders.add(tuple(first))
    assert len(orders) > 1
    assert sorted(numbers(extractor.read_frames(clip, 4, frame_order=2))) == [0, 10, 20, 30]


def test_ordering_frames_that_were_read_before():
    frames = np.arange(12).reshape(4, 3)
    assert order_frames(frames, 0).tolist() == frames.tolist()
    assert order_frames(frames, 1)[:, 0].tolist() == [9, 6, 3, 0]
    permutation = np.random.default_rng(5).permutation(4)
    shuffled = order_frames(frames, 2, np.random.default_rng(5))
    assert shuffled[:, 0].tolist() == [3 * row for row in permutation]
    assert order_frames(frames, 1).flags["C_CONTIGUOUS"]
    with pytest.raises(ValueError, match="frame_order must be one of 0, 1, 2; got 7"):
        order_frames(frames, 7)


@pytest.mark.parametrize("header_count", [0, 1, 10, 11, 34, 36, 41, 5000, 10**17])
@pytest.mark.parametrize(
    ("slice_framepos", "max_frames", "expected"),
    [(2, 3, [0, 10, 30]), (1, 2, [20, 30]), (0, 2, [0, 10]), (2, 12, [0, 10, 20, 30])],
)
def test_a_wrong_frame_count_in_the_header_changes_nothing(
    clip, extractor, monkeypatch, header_count, slice_framepos, max_frames, expected
):
    read_header = video_decoding.VideoReader._read_header
    monkeypatch.setattr(
        video_decoding.VideoReader, "_read_header", lambda video: replace(read_header(video), frames=header_count)
    )
    assert numbers(extractor.read_frames(clip, max_frames, slice_framepos)) == expected
    if slice_framepos == 2 and max_frames == 3:
        assert numbers(extractor.read_frames(clip, max_frames, start_time=1, end_time=3)) == [10, 20, 30]


def test_only_frames_that_are_kept_are_converted(clip, extractor, monkeypatch):
    converted = []
    convert = rawvideo_util.resize_and_crop
    monkeypatch.setattr(
        rawvideo_util, "resize_and_crop", lambda picture, size: converted.append(1) or convert(picture, size)
    )
    RawVideoExtractor(10, 32).read_frames(clip, 5)
    assert len(converted) == 5


@given(
    frame_count=st.integers(0, 400),
    fps=st.integers(1, 60),
    rate=st.integers(1, 60),
    first_second=st.integers(0, 8),
    limit=st.none() | st.integers(1, 50),
)
def test_the_grid_equals_a_slow_loop_over_the_seconds(frame_count, fps, rate, first_second, limit):
    rate = min(rate, fps)
    expected = []
    for second in range(first_second, math.ceil(frame_count / fps) + 1):
        for step in range(rate):
            number = second * fps + step * (fps // rate)
            if number < frame_count:
                expected.append(number)
    expected = expected[:limit]
    grid = SampleGrid(fps, rate, first_second, limit)
    assert [grid.position(sample) for sample in range(grid.count(frame_count))] == expected
    assert all(number < grid.end() for number in expected)


@given(sample_count=st.integers(0, 300), max_frames=st.integers(1, 64), slice_framepos=st.sampled_from([0, 1, 2]))
def test_chosen_samples_are_increasing_distinct_and_as_many_as_fit(sample_count, max_frames, slice_framepos):
    chosen = choose_samples(sample_count, max_frames, slice_framepos)
    assert len(chosen) == min(sample_count, max_frames)
    assert chosen == sorted(set(chosen))
    assert all(0 <= sample < sample_count for sample in chosen)


# Pixels


def test_wide_and_tall_frames_are_resized_by_the_shorter_side_and_cut_at_the_centre(tmp_path, extractor):
    for width, height in ((192, 64), (64, 192)):
        picture = np.zeros((height, width, 3), dtype=np.uint8)
        # Blue, in OpenCV's order of channels, in the middle third along the longer side.
        if width > height:
            picture[:, 64:128, 0] = 255
        else:
            picture[64:128, :, 0] = 255
        path = tmp_path / f"{width}.avi"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (width, height))
        writer.write(picture)
        writer.release()
        (frame,) = extractor.read_frames(path, 1)
        inner = frame[:, 3:-3, 3:-3]
        assert inner[0].max() < 40 and inner[1].max() < 40 and inner[2].min() > 215


# Bad arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_frames": 0}, ["max_frames", "0"]),
        ({"max_frames": 4, "slice_framepos": 3}, ["slice_framepos", "0, 1, 2", "3"]),
        ({"max_frames": 4, "frame_order": -1}, ["frame_order", "0, 1, 2", "-1"]),
        ({"max_frames": 4, "start_time": 5, "end_time": 4}, ["start_time", "5", "4"]),
        ({"max_frames": 4, "start_time": -1}, ["start_time", "-1"]),
        ({"max_frames": 4, "start_time": math.nan}, ["start_time", "nan"]),
        ({"max_frames": 4, "start_time": math.inf}, ["start_time", "inf"]),
    ],
)
def test_bad_arguments_name_value_and_choices(clip, extractor, arguments, words):
    with pytest.raises(ValueError) as error:
        extractor.read_frames(clip, **arguments)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("arguments", [{"framerate": 0}, {"framerate": 1.5}, {"size": 0}])
def test_bad_extractors(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        RawVideoExtractor(**arguments)


# Bad files


def reason_of(extractor, path, **arguments) -> str:
    with pytest.raises(VideoReadError) as error:
        extractor.read_frames(path, 4, **arguments)
    assert error.value.path == path
    assert str(path) in str(error.value) and error.value.reason in str(error.value)
    return error.value.reason


def test_reasons(tmp_path, extractor):
    assert "No such file" in reason_of(extractor, tmp_path / "absent.mp4")
    (tmp_path / "empty.mp4").touch()
    assert "empty (0 bytes)" in reason_of(extractor, tmp_path / "empty.mp4")
    assert "folder" in reason_of(extractor, tmp_path)
    (tmp_path / "text.mp4").write_text("this is no video " * 100)
    assert "no video in it" in reason_of(extractor, tmp_path / "text.mp4")
    short = tmp_path / "short.mp4"
    write_clip(short, 35, 10)
    assert "at or after second 4: it ends after 35 frames" in reason_of(extractor, short, start_time=4, end_time=9)

    # One megabyte of picture would become half a gigabyte once its shorter side has 224 pixels.
    strip = tmp_path / "strip.mp4"
    write_clip(strip, 1, 10, width=4096, height=8)
    assert "4096x8 has an aspect ratio above 256" in reason_of(extractor, strip)


@pytest.mark.parametrize("time_base", [None, Fraction(0)])
def test_a_header_without_any_frame_rate(clip, extractor, monkeypatch, time_base):
    decoder = SimpleNamespace(width=64, height=48)
    stream = SimpleNamespace(codec_context=decoder, average_rate=None, guessed_rate=None, time_base=time_base)
    container = SimpleNamespace(streams=SimpleNamespace(video=[stream]), close=lambda: None)
    monkeypatch.setattr(video_decoding, "open_container", lambda path: container)
    monkeypatch.setattr(video_decoding, "find_film", lambda container: stream)
    assert "frame rate of 0.0" in reason_of(extractor, Path(clip))


def test_a_truncated_file_gives_the_frames_that_are_left(tmp_path, extractor):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for number in range(30):
        writer.write(np.full((48, 64, 3), number * BRIGHTNESS_STEP, dtype=np.uint8))
    writer.release()
    assert numbers(extractor.read_frames(path, 4, 1)) == [10, 15, 20, 25]
    # Every picture is an AVI chunk of this name: 12 are left.
    path.write_bytes(b"00dc".join(path.read_bytes().split(b"00dc")[:13]))
    assert numbers(extractor.read_frames(path, 2, 1)) == [5, 10]


def test_a_read_error_survives_pickling():
    error = pickle.loads(pickle.dumps(VideoReadError("/videos/a.mp4", "the file is empty")))
    assert (error.path, error.reason) == ("/videos/a.mp4", "the file is empty")
    assert str(error) == "/videos/a.mp4: the file is empty"


@pytest.mark.real_clips
def test_a_header_without_duration_is_read_to_the_end(real_clips):
    # 74 frames at 14.985 per second; the header's count is negative.
    frames = RawVideoExtractor(1, 32).read_frames(real_clips / "codec" / "097_no_duration.webm", 12)
    assert len(frames) == 6  # 0, 14, 28, 42, 56, 70
