"""Frames chosen by presentation timestamps: against the published rule, against hand-computed choices, and in files."""

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataloaders.frame_sampling import FrameClock, FrameTimes, PublishedSampling, TimeSampling, frame_times
from dataloaders.rawvideo_util import RawVideoExtractor, VideoReadError, probe
from dataloaders.video_decoding import VideoReader
from tests.helpers.numbered_videos import BITS, MILLISECOND, numbered_picture, steady, write_numbered

SIDE = 64
NTSC = Fraction(30000, 1001)
UNKNOWN = np.empty(0)


def read(path: Path, max_frames: int = 100, framerate: int = 1, **choice) -> tuple[list[int], list[float]]:
    """Return the numbers and the seconds, to the millisecond, of the frames that are read by time."""
    extractor = RawVideoExtractor(framerate, SIDE, frame_sampling="time")
    frames, seconds = extractor.read_frames_with_times(path, max_frames, **choice)
    centres = [int((bit + 0.5) * SIDE / BITS) for bit in range(BITS)]
    rows = frames[:, :, SIDE // 2, centres].mean(axis=1) > 128
    numbers = [sum(1 << bit for bit in range(BITS) if row[bit]) for row in rows]
    return numbers, [round(second, 3) for second in seconds.tolist()]


def square(path: Path, times: list[float], **settings) -> Path:
    return write_numbered(path, times, width=SIDE, height=SIDE, **settings)


# The rule

WHOLE_RATES = st.integers(1, 60).flatmap(
    lambda fps: st.tuples(
        st.just(fps),
        st.sampled_from([rate for rate in range(1, 121) if fps % rate == 0 or rate % fps == 0]),
    )
)


@given(
    rates=WHOLE_RATES,
    frame_count=st.integers(1, 400),
    start=st.integers(0, 8),
    length=st.none() | st.integers(0, 8),
    max_frames=st.integers(1, 20),
    slice_framepos=st.sampled_from([0, 1, 2]),
    first=st.integers(-2000, 2000),
    is_rounded=st.booleans(),
)
def test_both_rules_agree_at_constant_whole_rates(
    rates, frame_count, start, length, max_frames, slice_framepos, first, is_rounded
):
    fps, framerate = rates
    choice = framerate, max_frames, slice_framepos, start, None if length is None else start + length
    times = [Fraction(first, 1000) + Fraction(number, fps) for number in range(frame_count)]
    duration = Fraction(1, fps)
    if is_rounded:  # to whole milliseconds, as WebM does
        times, duration = [round(time * 1000) / 1000 for time in times], round(duration * 1000) / 1000
    by_time = TimeSampling(*choice).choose(frame_times(np.array(times, dtype=float), float(duration)))
    assert by_time == PublishedSampling(fps, *choice).choose(FrameTimes(frame_count, UNKNOWN))


TIMES = st.lists(st.integers(0, 20_000), min_size=1, max_size=60, unique=True).map(
    lambda milliseconds: [time / 1000 for time in sorted(milliseconds)]
)


@given(times=TIMES, framerate=st.integers(1, 4), start=st.integers(0, 10), length=st.none() | st.integers(0, 6))
def test_the_choice_equals_a_slow_loop_over_the_points(times, framerate, start, length):
    seconds = [time - times[0] for time in times]
    end = seconds[-1] + 0.5
    expected = []
    for point in range(start * framerate, framerate * (31 if length is None else start + length + 1)):
        moment = point / framerate
        if moment < end - 0.0018 or moment <= seconds[-1] + 0.0009:
            expected.append(max(number for number, second in enumerate(seconds) if second <= moment + 0.0009))
    sampling = TimeSampling(framerate, 1000, 2, start, None if length is None else start + length)
    assert sampling.choose(frame_times(np.array(times), 0.5)) == sorted(set(expected))


@given(
    times=TIMES, start=st.integers(0, 10), length=st.none() | st.integers(0, 6), max_frames=st.integers(1, 8),
    slice_framepos=st.sampled_from([0, 1, 2]),
)  # fmt: skip
def test_reading_may_stop_where_the_rule_says_so(times, start, length, max_frames, slice_framepos):
    sampling = TimeSampling(1, max_frames, slice_framepos, start, None if length is None else start + length)
    is_enough = sampling.stop_rule()
    read_times = []
    for time in times:
        read_times.append(time)
        if is_enough(time - times[0]):
            break
    assert sampling.choose(frame_times(np.array(read_times), 0.5)) == sampling.choose(frame_times(np.array(times), 0.5))


@pytest.mark.parametrize(
    ("timestamps", "expected"),
    [
        ([0, 0.5, 1.0], [0, 0.5, 1.0]),
        ([-0.5, 0, 0.5], [0, 0.5, 1.0]),
        ([7, 8.5, 8, 7.5, 9], [0, 0.5, 1.0, 1.5, 2.0]),  # reordered frames that have each other's timestamps
        ([None, None, None], [0, 0.5, 1.0]),
        ([3, None, 4], [0, 0.5, 1.0]),
        ([0, 0.5, 3600.5, 3601], [0, 0.5, 3600.5, 3601]),  # a hole
        ([30, 40, 50, 0, 10, 20], [0, 10, 20, 20.5, 30.5, 40.5]),  # joined recordings
        ([0, 0.5, 9000, 1.5, 2.0], [0, 0.5, 0.5, 1.5, 2.0]),  # a damaged timestamp
    ],
)
def test_timestamps_worked_by_hand(timestamps, expected):
    clock = FrameClock(interval=0.5)
    for timestamp in timestamps:
        clock.add(timestamp, 0.25)
    times = clock.times()
    assert (times.count, times.seconds.tolist(), times.end) == (len(expected), expected, expected[-1] + 0.25)


def test_a_last_frame_without_duration_lasts_the_mean():
    assert frame_times(np.array([1.0, 2.0, 5.0]), 0).end == 6.0
    assert frame_times(np.array([1.0]), 0).end == 0.0
    assert frame_times(UNKNOWN, 0) == FrameTimes(0, UNKNOWN)


# Files

CODECS = pytest.mark.parametrize("codec", ["libx264", "mpeg4"])  # one is read by its packets, one in order


@CODECS
def test_variable_frame_rate(tmp_path, codec):
    # ten seconds of slides at one frame per second, then ten of motion at 30: second s > 9 begins with 10 + 30 (s - 10)
    times = [*map(float, range(10)), *(10 + number / 30 for number in range(300))]
    path = square(tmp_path / "slides.mp4", times, codec=codec)
    whole = [*range(10), *range(10, 310, 30)]
    assert read(path) == (whole, [float(second) for second in range(20)])
    chosen = [0, 1, 3, 5, 6, 8, 10, 12, 13, 15, 17, 19]  # linspace(0, 19, 12), cut to integers
    assert read(path, 12) == ([whole[second] for second in chosen], chosen)
    assert read(path, start_time=2, end_time=8) == ([2, 3, 4, 5, 6, 7, 8], [2, 3, 4, 5, 6, 7, 8])
    assert read(path, start_time=9, end_time=11) == ([9, 10, 40], [9, 10, 11])
    assert read(path, 3, slice_framepos=0) == ([0, 1, 2], [0, 1, 2])
    assert read(path, 2, slice_framepos=1) == ([250, 280], [18, 19])
    # Frame 0 is shown at 0 and 0.5, and chosen once.
    assert read(path, framerate=2, start_time=9, end_time=10) == ([9, 10, 25], [9, 10, 10.5])
    info = probe(path)
    assert (info.frames, round(info.duration, 2), round(info.fps, 2)) == (310, 20, 15.5)


@CODECS
def test_a_long_video_at_29_97_frames_per_second(tmp_path, codec):
    path = square(tmp_path / "ntsc.mp4", steady(900, NTSC), rate=NTSC, codec=codec)
    # Second s shows the last frame n with n * 1001 / 30000 <= s: floor(s * 30000 / 1001).
    shown = {second: second * 30000 // 1001 for second in range(31)}
    assert read(path)[0] == list(shown.values())
    numbers, seconds = read(path, start_time=27, end_time=29)
    assert numbers == [shown[27], shown[28], shown[29]] == [809, 839, 869]
    assert seconds == [round(number * 1001 / 30000, 3) for number in numbers]
    assert probe(path).fps == float(NTSC)
    with pytest.raises(VideoReadError, match="no frame at or after second 31: it ends at second 30.0"):
        read(path, start_time=31)


@pytest.mark.parametrize("rate", [Fraction(1, 2), Fraction(15, 2)])
def test_rates_below_one_and_between_whole_numbers(tmp_path, rate):
    path = square(tmp_path / "slow.mp4", steady(int(20 * rate), rate), rate=rate, codec="libx264")
    numbers, seconds = read(path, start_time=7, end_time=10)
    assert numbers == sorted({math.floor(second * rate) for second in range(7, 11)})
    assert seconds == [round(number / float(rate), 3) for number in numbers]


def write_recording(path: Path, times: list[float]) -> Path:
    """Write what a browser's recorder does: WebM without duration and frame rate."""
    with av.open(str(path), "w", options={"live": "1"}) as container:
        stream = container.add_stream("libvpx", rate=30, options={"deadline": "realtime", "cpu-used": "8"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = SIDE, SIDE, "yuv420p", 1_000_000
        stream.codec_context.time_base = stream.time_base = MILLISECOND
        for number, second in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, SIDE, SIDE), format="rgb24")
            frame.pts, frame.time_base = round(second * 1000), MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    place = content.index(bytes.fromhex("23e383"))  # DefaultDuration, which becomes Void
    length = 4 + (content[place + 3] & 0x7F)
    content[place : place + length] = bytes([0xEC, 0x80 | (length - 2)]) + bytes(length - 2)
    path.write_bytes(content)
    return path


def test_a_recording_without_duration_and_frame_rate(tmp_path):
    times = np.cumsum(np.r_[0, np.random.default_rng(0).uniform(0.02, 0.046, 300)]).round(3).tolist()
    path = write_recording(tmp_path / "recording.webm", times)
    with VideoReader(path) as video:
        assert video.header.fps == 1000 and not video.header.duration
    expected = [
        max(number for number, time in enumerate(times) if time <= second) for second in range(int(times[-1]) + 1)
    ]
    assert read(path) == (expected, [round(times[number], 3) for number in expected])
    assert read(path, start_time=5, end_time=7)[0] == expected[5:8]
    info = probe(path)
    assert (info.frames, round(info.duration, 1)) == (301, round(times[-1], 1))
    assert info.fps == pytest.approx(300 / times[-1], rel=0.01)


@pytest.mark.parametrize(("name", "first"), [("late.mkv", 7.4), ("late.ts", 3.0)])
def test_seconds_count_from_the_first_frame(tmp_path, name, first):
    path = square(tmp_path / name, [first + second for second in steady(30, 10)], codec="libx264", clock=MILLISECOND)
    assert read(path) == ([0, 10, 20], [0, 1, 2])
    assert read(path, start_time=1, end_time=1) == ([10], [1])


@CODECS
def test_a_hole_of_an_hour_is_one_sample(tmp_path, codec):
    times = [*steady(30, 10), *(3603 + second for second in steady(30, 10))]
    path = square(tmp_path / "hole.mkv", times, codec=codec, clock=MILLISECOND)
    # Second 3 and all that follow show frame 29, which is chosen once.
    assert read(path) == ([0, 10, 20, 29, 30, 40, 50], [0, 1, 2, 2.9, 3603, 3604, 3605])
    assert read(path, start_time=1000, end_time=1200) == ([29], [2.9])
    assert read(path, start_time=3604, end_time=9000) == ([40, 50], [3604, 3605])


def test_joined_recordings_go_on_after_the_jump_backwards(tmp_path):
    parts = [square(tmp_path / f"{part}.ts", steady(30, 10), rate=10, codec="libx264") for part in range(2)]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert read(path) == ([0, 10, 20, 0, 10, 20], [0, 1, 2, 3, 4, 5])
    assert read(path, start_time=3, end_time=4) == ([0, 10], [3, 4])


def test_frames_that_an_edit_list_hides_are_before_the_first_second(tmp_path):
    path = square(tmp_path / "edited.mp4", steady(60, 10), rate=10, codec="libx264", options={"movflags": "faststart"})
    with av.open(str(path)) as container:
        ticks = round(1.5 / container.streams.video[0].time_base)
    content = bytearray(path.read_bytes())
    begin = slice(content.index(b"elst") + 16, content.index(b"elst") + 20)
    content[begin] = (int.from_bytes(content[begin], "big") + ticks).to_bytes(4, "big")
    path.write_bytes(content)
    assert read(path) == ([15, 25, 35, 45, 55], [0, 1, 2, 3, 4])


def test_missing_timestamps_follow_the_declared_rate(tmp_path):
    path = square(tmp_path / "clip.mp4", steady(60, 10), rate=10, codec="libx264")
    bare = tmp_path / "bare.h264"
    with av.open(str(path)) as source, av.open(str(bare), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    with VideoReader(bare) as video:
        rate = video.header.fps
        packets = [packet for packet in video.container.demux(video.stream) if packet.size]
        assert any(packet.pts is None for packet in packets)
    numbers, seconds = read(bare)
    assert numbers == [math.floor(second * rate) for second in range(len(numbers))]
    assert seconds == [round(number / rate, 3) for number in numbers]


@CODECS
def test_the_published_rule_gives_true_seconds(tmp_path, codec):
    times = [*map(float, range(10)), *(10 + number / 30 for number in range(300))]
    path = square(tmp_path / "slides.mp4", times, codec=codec)
    with VideoReader(path) as video:
        fps = int(video.header.fps)
    _, seconds = RawVideoExtractor(1, SIDE).read_frames_with_times(path, 100)
    np.testing.assert_allclose(seconds, [times[number] for number in range(0, 310, fps)], atol=1e-3)


def test_only_the_groups_of_chosen_frames_are_decoded(tmp_path, monkeypatch):
    path = square(tmp_path / "groups.mp4", steady(100, 10), rate=10, codec="libx264", options={})
    decoded = []
    decode_run = VideoReader._decode_run

    def counting(video, packets, wanted):
        return decode_run(video, (decoded.append(packet) or packet for packet in packets), wanted)

    monkeypatch.setattr(VideoReader, "_decode_run", counting)
    assert read(path, start_time=1, end_time=2) == ([10, 20], [1, 2])
    assert 0 < len(decoded) <= 25


def test_an_unknown_rule_is_an_error():
    with pytest.raises(ValueError, match="frame_sampling must be one of published, time; got 'frames'"):
        RawVideoExtractor(1, 32, frame_sampling="frames")
