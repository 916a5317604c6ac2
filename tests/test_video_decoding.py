"""Frames by their number: clips of many forms against OpenCV reading all of them in order."""

import multiprocessing
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloaders import video_decoding
from dataloaders.rawvideo_util import RawVideoExtractor, VideoReadError, probe
from dataloaders.video_decoding import DoubtfulPackets, VideoReader, presentation_order

WIDTH, HEIGHT, FRAMES, FPS = 96, 64, 60, 10

needs_opencv_5 = pytest.mark.skipif(
    int(cv2.__version__.split(".")[0]) < 5,
    reason=f"OpenCV {cv2.__version__} itself reads ten bits, late beginnings and some codecs otherwise than OpenCV 5",
)


def views(count: int = FRAMES):
    """Pictures `(HEIGHT, WIDTH, 3)` of a texture that moves, no two alike."""
    texture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    for number in range(count):
        yield np.ascontiguousarray(texture[number : number + HEIGHT, 2 * number : 2 * number + WIDTH])


def encode(path, codec: str, times=None, pixels: str = "yuv420p", **options) -> Path:
    """A clip of FRAMES moving pictures; `times` gives the milliseconds at which each is shown."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, view in enumerate(views()):
            frame = av.VideoFrame.from_ndarray(view, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def without_first_packets(source: Path, path: Path, dropped: int) -> Path:
    """The same stream, begun in the middle."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for place, packet in enumerate(old.demux(video=0)):
            if place >= dropped and packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return path


def read_with_opencv(path) -> list[np.ndarray]:
    """All frames in order, blue first."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    capture.release()
    return frames


def read_chosen(path, numbers: list[int]) -> list[np.ndarray]:
    """The frames of these numbers, blue first, by their packets alone."""
    with VideoReader(path) as video:
        video.read_packets()
        return [np.asarray(video.to_image(frame))[:, :, ::-1] for frame in video.read_chosen(numbers)]


def read_if_sure(path, number: int) -> np.ndarray | None:
    """The frame of this number; None where the packets do not tell which it is."""
    try:
        return read_chosen(path, [number])[0]
    except DoubtfulPackets:
        return None


def assert_same_frames(frames: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(frames) == len(expected) > 0
    assert all((frame == other).all() for frame, other in zip(frames, expected, strict=True))


def read_in_order(path) -> list[np.ndarray]:
    with VideoReader(path) as video:
        return [np.asarray(video.to_image(frame))[:, :, ::-1] for frame in video.read_in_order()]


H264 = {"codec": "libx264", "bf": "3", "b-pyramid": "normal", "g": "20"}
OPEN_GOP = {**H264, "x264-params": "open-gop=1"}
HEVC = {"codec": "libx265", "x265-params": "open-gop=1:keyint=20:bframes=4:log-level=none"}
UNEVEN = [100 * number + (37 * number) % 50 + (3000 if number > 30 else 0) for number in range(FRAMES)]
TOLD_BY_PACKETS = {
    "h264.mp4": H264,
    "h264.mov": H264,
    "h264.mkv": H264,
    "h264.ts": H264,
    "h264.flv": H264,
    "no_reordering.avi": {"codec": "libx264", "bf": "0", "g": "20"},
    "open_groups.mp4": OPEN_GOP,
    "open_groups.mkv": OPEN_GOP,
    "many_references.mp4": {"codec": "libx264", "bf": "5", "refs": "16", "g": "250", "weightp": "2"},
    "deep_reordering.mp4": {"codec": "libx264", "bf": "16", "b_strategy": "0", "g": "40"},
    "hevc.mp4": HEVC,
    "hevc.mkv": HEVC,
    "vp9.webm": {"codec": "libvpx-vp9", "g": "20", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"},
    "full_colour.mp4": {**H264, "pixels": "yuv444p"},
    "ten_bits.mp4": {**H264, "pixels": "yuv420p10le"},
    "uneven_times.mkv": {**H264, "times": UNEVEN},
}
READ_IN_ORDER = {
    "reordering.avi": H264,  # AVI has no presentation times
    "intra_refresh.mp4": {"codec": "libx264", "g": "15", "x264-params": "intra-refresh=1"},  # key frames are none
    "mpeg4.avi": {"codec": "mpeg4", "bf": "2", "g": "20"},  # a packet may hold two frames
    "mpeg4.mp4": {"codec": "mpeg4", "bf": "2", "g": "20"},
    "vp8.webm": {"codec": "libvpx", "g": "20", "auto-alt-ref": "1", "lag-in-frames": "16"},  # hidden frames
    "mjpeg.avi": {"codec": "mjpeg", "strict": "-1"},
    "little_colour.mkv": {"codec": "ffv1", "pixels": "yuv410p"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("clips")


def clip(folder: Path, name: str) -> Path:
    """A clip of TOLD_BY_PACKETS, encoded once."""
    path = folder / name
    return path if path.exists() else encode(path, **TOLD_BY_PACKETS[name])


@pytest.fixture(scope="module")
def h264(folder) -> Path:
    return encode(folder / "common.mp4", **H264)


# Which frame is which


def only_with_opencv_5(names, concerned) -> list:
    return [pytest.param(name, marks=needs_opencv_5) if name in concerned else name for name in names]


@pytest.mark.parametrize("name", only_with_opencv_5(TOLD_BY_PACKETS, {"ten_bits.mp4"}))
def test_reading_in_order_gives_the_frames_of_opencv(folder, name):
    path = clip(folder, name)
    assert_same_frames(read_in_order(path), read_with_opencv(path))


@pytest.mark.parametrize("held", [True, False], ids=["held in memory", "read twice"])
@pytest.mark.parametrize("name", TOLD_BY_PACKETS)
def test_chosen_frames_are_those_of_reading_in_order(folder, monkeypatch, name, held):
    path = clip(folder, name)
    expected = read_in_order(path)
    if not held:
        monkeypatch.setattr(video_decoding, "MAX_PACKET_BYTES", 2000)
    assert len(expected) == FRAMES == probe(path).frames
    for numbers in ([0], [59], [19, 20, 21], [7, 33, 58], list(range(0, FRAMES, 9)), list(range(FRAMES))):
        assert_same_frames(read_chosen(path, numbers), [expected[number] for number in numbers])


@pytest.mark.parametrize("name", READ_IN_ORDER)
def test_doubtful_packets_are_noticed_and_the_file_is_read_in_order(folder, name):
    path = encode(folder / name, **READ_IN_ORDER[name])
    expected = read_with_opencv(path)
    assert len(expected) == FRAMES
    with pytest.raises(DoubtfulPackets):
        read_chosen(path, [5, 45])
    frames = {number: read_if_sure(path, number) for number in range(0, FRAMES, 3)}
    assert all(frame is None or (frame == expected[number]).all() for number, frame in frames.items())
    assert all((frame == other).all() for frame, other in zip(read_in_order(path), expected, strict=True))
    frames = RawVideoExtractor(1, HEIGHT).read_frames(path, 12)
    left = (WIDTH - HEIGHT) // 2
    cut = [expected[number][:, left : left + HEIGHT, ::-1].transpose(2, 0, 1) for number in range(0, FRAMES, FPS)]
    assert (frames == np.stack(cut)).all()


BEGUN_IN_THE_MIDDLE = {"h264.mp4": (H264, 1), "h264.mkv": (H264, 7), "open.mkv": (OPEN_GOP, 20), "hevc.mkv": (HEVC, 23)}


def begun_in_the_middle(folder: Path, name: str) -> Path:
    form, dropped = BEGUN_IN_THE_MIDDLE[name]
    return without_first_packets(encode(folder / f"whole_{name}", **form), folder / f"cut_{name}", dropped)


@pytest.mark.parametrize("name", only_with_opencv_5(BEGUN_IN_THE_MIDDLE, {"hevc.mkv"}))
def test_a_stream_that_begins_in_the_middle_as_in_opencv(folder, name):
    path = begun_in_the_middle(folder, name)
    assert_same_frames(read_in_order(path), read_with_opencv(path))


@pytest.mark.parametrize("name", BEGUN_IN_THE_MIDDLE)
def test_a_stream_that_begins_in_the_middle(folder, name):
    path = begun_in_the_middle(folder, name)
    left = (WIDTH - HEIGHT) // 2
    cut = [frame[:, left : left + HEIGHT, ::-1].transpose(2, 0, 1) for frame in read_in_order(path)]
    assert_same_frames(list(RawVideoExtractor(FPS, HEIGHT).read_frames(path, FRAMES)), cut)


def test_frames_that_an_edit_list_hides_have_no_number(folder):
    path = encode(folder / "edited.mp4", **{**H264, "g": "60"})
    hidden = 50
    with av.open(str(path)) as container:
        ticks = round(hidden / FPS / container.streams.video[0].time_base)
    content = bytearray(path.read_bytes())
    # The box: its name, version and count (8 bytes), the length shown in milliseconds, the time at which it begins.
    length, begin = (slice(content.index(b"elst") + first, content.index(b"elst") + first + 4) for first in (12, 16))
    content[length] = ((FRAMES - hidden) * 1000 // FPS).to_bytes(4, "big")
    content[begin] = (int.from_bytes(content[begin], "big") + ticks).to_bytes(4, "big")
    path.write_bytes(content)
    expected = read_with_opencv(path)
    with VideoReader(path) as video:
        assert video.read_packets() == len(expected) == FRAMES - hidden == probe(path).frames
        assert len(video.packets) == FRAMES
    for number, frame in enumerate(read_chosen(path, list(range(len(expected))))):
        assert (frame == expected[number]).all()
    assert len(RawVideoExtractor(FPS, 16).read_frames(path, 4, slice_framepos=0)) == 4


@settings(max_examples=30, deadline=None)
@given(numbers=st.sets(st.integers(0, FRAMES - 1), min_size=1, max_size=8))
def test_any_choice_gives_the_frames_of_reading_in_order(folder, numbers):
    path = folder / "any_choice.mkv"
    if not path.exists():
        encode(path, **OPEN_GOP)
    expected = read_in_order(path)
    for number, frame in zip(sorted(numbers), read_chosen(path, sorted(numbers)), strict=True):
        assert (frame == expected[number]).all()


def packet(pts, key=False, size=9, corrupt=False, discard=False) -> SimpleNamespace:
    return SimpleNamespace(pts=pts, is_keyframe=key, size=size, is_corrupt=corrupt, is_discard=discard)


def test_the_order_of_packets_worked_by_hand():
    # I0 P3 B1 B2 | I6 B4 B5: in the order of the file; B4 and B5 are shown before the key frame that they follow.
    times = [0, 3, 1, 2, 6, 4, 5]
    packets = [packet(time, key=time in (0, 6)) for time in times]
    video = object.__new__(VideoReader)
    video.packets, video.shown = packets, presentation_order(packets, reordered=True)
    assert video.shown == [0, 2, 3, 1, 5, 6, 4]
    assert video._runs([2]) == [(0, 4, [2])]
    assert video._runs([0, 6]) == [(0, 1, [0]), (4, 5, [6])]
    assert video._runs([5]) == [(0, 7, [5])]  # it may refer to P3
    assert video._runs([1, 3, 4, 6]) == [(0, 6, [1, 3, 4, 6])]
    packets[0].is_discard = True  # an edit list hides the first frame, others still need it
    video.shown = presentation_order(packets, reordered=True)
    assert video.shown == [2, 3, 1, 5, 6, 4] and video._runs([0]) == [(0, 3, [1])]


@pytest.mark.parametrize(
    ("packets", "reordered"),
    [
        ([], False),
        ([packet(0), packet(1)], False),
        ([packet(0, key=True), packet(None)], False),
        ([packet(0, key=True), packet(1), packet(1)], False),
        ([packet(2, key=True), packet(1), packet(3)], False),
        ([packet(0, key=True), packet(1, corrupt=True)], False),
        ([packet(0, key=True), packet(1, size=0)], False),
        ([packet(0, key=True), packet(1)], True),
    ],
    ids=["none", "no key", "no time", "a time twice", "earlier than the key", "corrupt", "empty", "times of the file"],
)
def test_packets_that_do_not_tell_the_order(packets, reordered):
    with pytest.raises(DoubtfulPackets):
        presentation_order(packets, reordered)


def test_frames_that_come_in_another_order_than_their_packets_said(folder, monkeypatch):
    path = encode(folder / "unannounced.avi", **H264)
    order = video_decoding.presentation_order
    monkeypatch.setattr(video_decoding, "presentation_order", lambda packets, reordered: order(packets, False))
    with pytest.raises(DoubtfulPackets):
        read_chosen(path, [12])


def test_interlaced_frames_are_read_in_order_because_each_may_be_two_packets(folder):
    path = encode(folder / "interlaced.mp4", **{**H264, "x264-params": "tff=1"})
    with pytest.raises(DoubtfulPackets):
        read_chosen(path, [3])
    assert len(RawVideoExtractor(FPS, 16).read_frames(path, 100)) == FRAMES


# What is decoded


def test_only_the_groups_of_chosen_frames_are_decoded_without_what_nothing_refers_to(h264):
    with VideoReader(h264) as video:
        assert video.read_packets() == FRAMES
        runs = video._runs([2, 45])
        assert [start for start, _, _ in runs] == [0, 40]
        packets = video.held_packets
        decoded = [sum(1 for _ in video._decode_run(packets[start:stop], set(times))) for start, stop, times in runs]
        assert sum(decoded) < sum(stop - start for start, stop, _ in runs) < 14


def test_packets_are_read_no_further_than_needed(h264):
    with VideoReader(h264) as video:
        rule = iter([False, False, True])
        video.read_packets(lambda second: next(rule, True))
        assert len(video.packets) == 3 + 32 < FRAMES


def count_decoded(monkeypatch, path, numbers: list[int]) -> int:
    """Packets that the decoder gets for these frames."""
    decoded = []
    decode_run = VideoReader._decode_run

    def counting(video, packets, wanted):
        return decode_run(video, (decoded.append(packet) or packet for packet in packets), wanted)

    with monkeypatch.context() as patch:
        patch.setattr(VideoReader, "_decode_run", counting)
        read_chosen(path, numbers)
    return len(decoded)


def test_a_large_file_is_read_twice_instead_of_held_and_decoded_no_further(h264, monkeypatch):
    expected = count_decoded(monkeypatch, h264, [2, 45])
    assert 0 < expected < 14
    monkeypatch.setattr(video_decoding, "MAX_PACKET_BYTES", 1000)
    with VideoReader(h264) as video:
        assert video.read_packets() == FRAMES
        assert sum(packet.size for packet in video.packets) > 1000 and not video.held_packets
        for _ in range(2):  # the frames are there as often as they are asked for
            assert len(list(video.read_chosen([2, 45]))) == 2
    assert count_decoded(monkeypatch, h264, [2, 45]) == expected


@pytest.mark.real_clips
def test_large_real_clips_give_the_same_frames(real_clips, monkeypatch):
    paths = sorted((real_clips / "codec").iterdir())[::5]
    read_frames = RawVideoExtractor(1, 64).read_frames
    expected = [read_frames(path, 6) for path in paths]
    monkeypatch.setattr(video_decoding, "MAX_PACKET_BYTES", 0)
    for path, frames in zip(paths, expected, strict=True):
        assert_same_frames(list(read_frames(path, 6)), list(frames))


def test_one_thread_decodes(h264):
    with VideoReader(h264) as video:
        assert video.decoder.thread_count == 1


def test_probe(h264, tmp_path):
    info = probe(h264)
    assert (info.fps, info.frames, info.width, info.height, info.codec) == (FPS, FRAMES, WIDTH, HEIGHT, "h264")
    assert info.duration == pytest.approx(FRAMES / FPS)
    assert probe(encode(tmp_path / "a.avi", "mpeg4")).codec == "mpeg4"
    with pytest.raises(VideoReadError, match="No such file"):
        probe(tmp_path / "absent.mp4")


ROTATED = ("131_video_180.mov", "132_video_270.mov", "133_video_90.mov")


@needs_opencv_5
@pytest.mark.real_clips
@pytest.mark.parametrize("name", ROTATED)
def test_rotated_clips_stand_upright_as_in_opencv(real_clips, name):
    path = real_clips / "codec" / name
    assert_same_frames(read_in_order(path), read_with_opencv(path))


@pytest.mark.real_clips
@pytest.mark.parametrize("name", [*ROTATED, "287_av1_video.mkv"])
def test_chosen_frames_of_rotated_clips_and_of_av1(real_clips, name):
    path = real_clips / "codec" / name
    expected = read_in_order(path)
    for numbers in ([0], [1], [len(expected) // 2, len(expected) - 1]):
        assert_same_frames(read_chosen(path, numbers), [expected[number] for number in numbers])


@pytest.mark.real_clips
def test_av1_has_the_frames_that_the_manifest_counts(real_clips):
    # OpenCV's wheels have no decoder for AV1; the numbers are those of manifest.csv.
    assert probe(real_clips / "codec" / "178_av1-video.mp4").frames == 375
    assert len(read_in_order(real_clips / "codec" / "287_av1_video.mkv")) == 125


def test_forked_workers_after_reading_in_the_parent(h264):
    expected = RawVideoExtractor(1, 32).read_frames(h264, 12)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = pool.starmap_async(RawVideoExtractor(1, 32).read_frames, [(h264, 12)] * 4).get(timeout=60)
    assert all((frames == expected).all() for frames in results)
