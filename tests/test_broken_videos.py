"""Files that are damaged, cut off, random, or change while they are read: frames or a VideoReadError, nothing else."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloaders.rawvideo_util import RawVideoExtractor, VideoReadError
from dataloaders.video_decoding import VideoReader
from tests.conftest import REPOSITORY
from tests.test_video_decoding import FRAMES, H264, HEIGHT, OPEN_GOP, WIDTH, encode


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("broken")


READ_ALL = """
import json, sys
from dataloaders.rawvideo_util import RawVideoExtractor, VideoReadError
for path in sys.argv[1:]:
    try:
        frames = len(RawVideoExtractor().read_frames(path, 12))
    except VideoReadError as error:
        frames = str(error)
    print(json.dumps(frames))
"""


@pytest.mark.real_clips
def test_broken_files_give_frames_or_an_error_in_silence(real_clips):
    # The frames that manifest.csv counts, at whole seconds of the frame rate; OpenCV has no decoder for AV1. The counts
    # of the manifest end at the first damage, behind which reading goes on: of 50 and 182 frames, 1 and 12 are lost.
    readable = {
        "085_-video-with-dash-.mp4": 5,  # 5 frames at 1 per second
        "128_corrupted.mp4": 5,  # 49 of 50 at 10
        "179_bad_video_sample.mp4": 1,  # 15 at 15
        "263_av1-clearkey-cbcs-video.mp4": 1,  # 24 at 24, AV1
        "267_no_timescale.mp4": 6,  # 170 of 182 at 30
    }
    paths = sorted((real_clips / "broken").iterdir())
    assert len(paths) == 27
    run = subprocess.run(
        [sys.executable, "-c", READ_ALL, *map(str, paths)], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert (run.returncode, run.stderr) == (0, "")
    for path, line in zip(paths, run.stdout.splitlines(), strict=True):
        frames = json.loads(line)
        if path.name in readable:
            assert frames == readable[path.name], path.name
        else:
            assert frames.startswith(f"{path}: ") and len(frames) > len(f"{path}: "), path.name


@pytest.mark.real_clips
def test_a_file_that_ends_in_its_header_says_so(real_clips):
    path = real_clips / "broken" / "298_sample.mkv"
    with pytest.raises(VideoReadError, match="no video file, or one that is cut off"):
        RawVideoExtractor().read_frames(path, 12)


def test_text_that_is_no_utf_8_beside_the_video_is_no_error(tmp_path):
    path = encode(tmp_path / "a.mp4", **H264)
    content = path.read_bytes()
    assert content.count(b"Lavf") == 1  # the name of the program that wrote the file
    path.write_bytes(content.replace(b"Lavf", b"\xff\xfe\xff\xfe"))
    assert frames_or_error(path) == 4


def frames_or_error(path) -> int:
    """Number of frames; 0 is an error that names the file."""
    try:
        frames = RawVideoExtractor(2, 16).read_frames(path, 4)
    except VideoReadError as error:
        assert error.path == path and error.reason
        return 0
    assert frames.dtype == np.uint8 and frames.shape[1:] == (3, 16, 16)
    return len(frames)


@pytest.fixture(scope="module")
def good_files(folder) -> dict[str, bytes]:
    forms = {"good.mp4": H264, "good.mkv": OPEN_GOP, "good.avi": {"codec": "mpeg4", "g": "20"}}
    return {name: encode(folder / name, **form).read_bytes() for name, form in forms.items()}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(["good.mp4", "good.mkv", "good.avi"]))
def test_a_file_cut_at_any_byte_or_with_wrong_bytes(folder, good_files, data, name):
    content = bytearray(good_files[name])
    if data.draw(st.booleans(), "cut"):
        del content[data.draw(st.integers(0, len(content)), "length") :]
    else:
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=20), "places"):
            content[place] = data.draw(st.integers(0, 255), "byte")
    path = folder / f"damaged_{name}"
    path.write_bytes(content)
    assert 0 <= frames_or_error(path) <= 4


@settings(max_examples=40, deadline=None)
@given(content=st.binary(max_size=4096), start=st.sampled_from([b"", b"RIFF", b"\x1aE\xdf\xa3", b"\0\0\0\x18ftypmp42"]))
def test_files_of_random_bytes(folder, content, start):
    path = folder / "random.mp4"
    path.write_bytes(start + content)
    assert 0 <= frames_or_error(path) <= 4


def test_an_absurd_size_is_refused_before_memory_is_taken(tmp_path):
    path = encode(tmp_path / "small.avi", "mjpeg", strict="-1")
    size = HEIGHT.to_bytes(2, "big") + WIDTH.to_bytes(2, "big")
    absurd = (60000).to_bytes(2, "big") * 2
    content = path.read_bytes()
    assert content.count(size) >= FRAMES  # the size of each picture, in its JPEG header
    path.write_bytes(content.replace(size, absurd))
    assert frames_or_error(path) == 0


def test_a_playlist_reaches_no_host(tmp_path):
    path = tmp_path / "list.m3u8"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}\n#EXT-X-ENDLIST\n")
        assert frames_or_error(path) == 0
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("name", ["changing.mp4", "changing.avi"])
@pytest.mark.parametrize("left", [None, 0, 9, 3000])
def test_a_file_that_vanishes_or_shrinks_while_it_is_read(folder, monkeypatch, name, left):
    path = encode(folder / name, **{"changing.mp4": H264, "changing.avi": {"codec": "mpeg4", "g": "20"}}[name])
    content = path.read_bytes()
    read_packets = VideoReader.read_packets

    def read_after_the_change(video, end):
        if left is None:
            path.unlink()
        else:
            path.write_bytes(content[:left])
        return read_packets(video, end)

    monkeypatch.setattr(VideoReader, "read_packets", read_after_the_change)
    assert 0 <= frames_or_error(path) <= 4
    monkeypatch.undo()
    assert left == 3000 or frames_or_error(path) == 0
