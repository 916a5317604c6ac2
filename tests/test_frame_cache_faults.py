"""The frame cache with damaged entries, many writers at once, and writers that fail or die."""

import hashlib
import io
import json
import logging
import multiprocessing
import os
import resource
import signal
import struct
import time
import zlib
from pathlib import Path

import av
import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataloaders import frame_cache
from dataloaders.frame_cache import FRAME_FORMATS, FrameCache
from tests.helpers.frame_cache_cases import (
    FakeExtractor,
    counts,
    files_in,
    only_entry,
    read_in_process,
    run_processes,
    warnings_in,
    write_video,
)

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def extractor(tmp_path) -> FakeExtractor:
    return FakeExtractor(tmp_path / "decodings.txt")


@pytest.fixture
def video(tmp_path) -> Path:
    return write_video(tmp_path / "videos" / "video.mp4")


@pytest.fixture
def cache(tmp_path, extractor) -> FrameCache:
    return FrameCache(tmp_path / "cache", extractor)


# Entries on disk


def test_layout_of_an_entry(cache, extractor, video):
    cache.read_frames(video, 2, slice_framepos=1, start_time=1)
    entry = only_entry(cache)
    content = entry.read_bytes()
    magic, checksum, key_length, frame_count = struct.unpack("<8sIII", content[:20])
    key, rest = content[20 : 20 + key_length], content[20 + key_length :]
    assert magic == b"FRAMES\x00\x01"
    assert checksum == zlib.crc32(content[12:])
    assert frame_count == 2
    assert struct.unpack("<2I", rest[:8]) == (48, 48)
    assert rest[8:] == extractor.frames(video, 2, 1, 1).tobytes()
    assert json.loads(key) == {
        "decoding_rule": 2,
        "ffmpeg": {name: [*av.library_versions[name][:2]] for name in ("libavcodec", "libswscale")},
        "pillow": PIL.__version__.partition(".")[0], "frame_format": "exact", "framerate": 1,
        "size": 4, "max_frames": 2, "slice_framepos": 1, "start": 1, "end": None,
        "file_name": "video.mp4", "file_bytes": 7, "modified_ns": video.stat().st_mtime_ns,
    }  # fmt: skip
    name = hashlib.sha256(key).hexdigest()
    assert entry.relative_to(cache.directory) == Path(name[:2], name)


def damage(content: bytes, data) -> bytes:
    kind = data.draw(st.sampled_from(["flip", "cut", "extend", "overwrite", "random"]))
    place = data.draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        return content[:place] + bytes([content[place] ^ 1 << data.draw(st.integers(0, 7))]) + content[place + 1 :]
    if kind == "cut":
        return content[:place]
    noise = data.draw(st.binary(min_size=1, max_size=600))
    if kind == "extend":
        return content + noise
    if kind == "overwrite":
        return (content[:place] + noise + content[place + len(noise) :])[: len(content)]
    return noise


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_damage_is_found_and_repaired(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damage")
    video, extractor = write_video(folder / "videos" / "a.mp4"), FakeExtractor(folder / "decodings.txt")
    cache = FrameCache(folder / "cache", extractor, data.draw(st.sampled_from(FRAME_FORMATS)))
    frames = cache.read_frames(video, 2)
    entry = only_entry(cache)
    content = entry.read_bytes()
    damaged = damage(content, data)
    entry.write_bytes(damaged)
    np.testing.assert_array_equal(cache.read_frames(video, 2), frames)
    assert counts(cache) == ((1, 1, 0) if damaged == content else (0, 2, 1))
    assert only_entry(cache).read_bytes() == content


def test_damage_after_an_entry_was_found_right_is_found(cache, extractor, video):
    for _ in range(3):
        cache.read_frames(video, 2)
    time.sleep(0.02)  # the file system's clock may tick only every few milliseconds
    entry = only_entry(cache)
    content = bytearray(entry.read_bytes())
    content[-1] ^= 1
    entry.write_bytes(content)
    np.testing.assert_array_equal(cache.read_frames(video, 2), extractor.frames(video, 2))
    assert counts(cache) == (2, 2, 1)


def test_the_checksum_is_computed_once_per_process_and_entry(cache, video, monkeypatch):
    cache.read_frames(video, 2)
    checks, crc32 = [], zlib.crc32
    monkeypatch.setattr(frame_cache.zlib, "crc32", lambda *arguments: checks.append(arguments) or crc32(*arguments))
    for _ in range(5):
        cache.read_frames(video, 2)
    assert len(checks) == 1


@pytest.mark.parametrize("place", [0, 2**18 - 1, 2**18, 2**18 + 11, 400_000, -1])
def test_damage_anywhere_in_a_large_entry_is_found(cache, extractor, video, place):
    cache.size = extractor.size = 128
    cache.read_frames(video, 12)
    content = bytearray(only_entry(cache).read_bytes())
    content[place] ^= 128
    only_entry(cache).write_bytes(content)
    for _ in range(2):
        np.testing.assert_array_equal(cache.read_frames(video, 12), extractor.frames(video, 12))
    assert counts(cache) == (1, 2, 1)


def test_an_entry_that_is_cut_while_it_is_read(cache, extractor, video, monkeypatch):
    for _ in range(2):  # stored, then read and its checksum found right
        cache.read_frames(video, 2)
    length = only_entry(cache).stat().st_size

    def fstat_then_cut(descriptor, fstat=os.fstat):
        status = fstat(descriptor)
        os.truncate(only_entry(cache), length // 2)
        return status

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fstat_then_cut)
        np.testing.assert_array_equal(cache.read_frames(video, 2), extractor.frames(video, 2))
    assert counts(cache) == (1, 2, 1)
    assert only_entry(cache).stat().st_size == length


@pytest.mark.parametrize("frame_count", [0, 1, 3, 2**30, 2**32 - 1])
def test_a_header_that_lies_under_a_right_checksum(cache, extractor, video, frame_count):
    cache.read_frames(video, 2)
    content = bytearray(only_entry(cache).read_bytes())
    content[16:20] = struct.pack("<I", frame_count)
    content[8:12] = struct.pack("<I", zlib.crc32(content[12:]))
    only_entry(cache).write_bytes(content)
    np.testing.assert_array_equal(cache.read_frames(video, 2), extractor.frames(video, 2))
    assert counts(cache) == (0, 2, 1)


def jpeg_of(size: int, claimed_size: int | None = None) -> bytes:
    """A JPEG file, whose header may claim that it is `claimed_size` pixels high and wide."""
    file = io.BytesIO()
    Image.new("RGB", (size, size)).save(file, "JPEG")
    sides = struct.pack(">HH", size, size)
    return file.getvalue().replace(sides, struct.pack(">HH", claimed_size or size, claimed_size or size))


@pytest.mark.parametrize(
    ("frame_format", "frames"),
    [
        ("exact", []), ("exact", [b"too short"]), ("jpeg", []), ("jpeg", [b"no picture"]), ("jpeg", [jpeg_of(2)]),
        ("jpeg", [jpeg_of(4, claimed_size=60000)]), ("jpeg", [jpeg_of(4), b""]),
    ],
)  # fmt: skip
def test_wrong_frames_under_a_right_checksum(tmp_path, extractor, video, frame_format, frames):
    cache = FrameCache(tmp_path / "cache", extractor, frame_format)
    expected = cache.read_frames(video, 1)
    content = only_entry(cache).read_bytes()
    key = content[20 : 20 + struct.unpack("<I", content[12:16])[0]]
    lengths = struct.pack(f"<{len(frames)}I", *map(len, frames))
    checked = b"".join([struct.pack("<II", len(key), len(frames)), key, lengths, *frames])
    only_entry(cache).write_bytes(content[:8] + struct.pack("<I", zlib.crc32(checked)) + checked)
    np.testing.assert_array_equal(cache.read_frames(video, 1), expected)
    assert counts(cache) == (0, 2, 1)


def test_bytes_after_the_frames_under_a_right_checksum(tmp_path, extractor, video):
    for frame_format in FRAME_FORMATS:
        cache = FrameCache(tmp_path / frame_format, extractor, frame_format)
        expected = cache.read_frames(video, 1)
        content = only_entry(cache).read_bytes() + b"more"
        only_entry(cache).write_bytes(content[:8] + struct.pack("<I", zlib.crc32(content[12:])) + content[12:])
        np.testing.assert_array_equal(cache.read_frames(video, 1), expected)
        assert counts(cache) == (0, 2, 1)


def test_a_monstrous_entry_is_not_read(cache, extractor, video):
    cache.read_frames(video, 2)
    os.truncate(only_entry(cache), 2**40)  # sparse: it takes no space
    np.testing.assert_array_equal(cache.read_frames(video, 2), extractor.frames(video, 2))
    assert counts(cache) == (0, 2, 1)
    assert only_entry(cache).stat().st_size < 1000


def test_swapped_entries_are_found(tmp_path, cache, extractor):
    paths = [write_video(tmp_path / "videos" / name, name.encode()) for name in ("a.mp4", "b.mp4")]
    for path in paths * 2:
        cache.read_frames(path, 2)
    first, second = files_in(cache.directory)
    first_content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(first_content)
    read_in_process(cache, paths)
    assert cache.rebuilt == 2


# Many writers, and writers that fail or die


def test_processes_that_write_at_once_leave_whole_entries(tmp_path, cache, extractor):
    paths = [write_video(tmp_path / "videos" / f"{n}.mp4", bytes([n])) for n in range(8)]
    barrier = FORK.Barrier(4)
    run_processes([FORK.Process(target=read_in_process, args=(cache, paths, barrier)) for _ in range(4)])
    assert 8 <= extractor.decodings() <= 32
    assert len(files_in(cache.directory)) == 8
    read_in_process(cache, paths)
    assert counts(cache) == (24, 0, 0)


def check_goes_on_without_storing(cache: FrameCache, caplog, paths: list[Path], reason: str) -> None:
    """Every path is read right; one warning names folder and reason; no partial file is left."""
    read_in_process(cache, paths)
    (warning,) = warnings_in(caplog)
    assert cache.directory in warning and reason in warning
    assert [file for file in files_in(cache.directory) if file.name.endswith("incomplete_frames")] == []


def test_a_full_disk(tmp_path, extractor, caplog, small_disk):
    folder = small_disk("64k")
    paths = [write_video(tmp_path / "videos" / f"{n}.mp4", bytes([n])) for n in range(4)]
    extractor.size = 64  # entries of 24 kB: two fit
    cache = FrameCache(folder, extractor)
    check_goes_on_without_storing(cache, caplog, paths, "No space left on device")
    assert counts(cache) == (2 * 2, 4 + 2 * 2, 0)
    assert len(files_in(folder)) == 2 and not cache.is_storing


def read_and_log(cache: FrameCache, paths: list[Path], log: Path) -> None:
    logging.getLogger().addHandler(logging.FileHandler(log))
    read_in_process(cache, paths)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_that_fail_together_and_those_after_them_warn_once(tmp_path, extractor, start_method):
    """A file is in the place of every subfolder; two passes of two workers each, as of two evaluations."""
    cache = FrameCache(tmp_path / "cache", extractor)
    for number in range(256):
        (tmp_path / "cache" / f"{number:02x}").touch()
    paths = [write_video(tmp_path / "videos" / f"{n}.mp4", bytes([n])) for n in range(4)]
    context = multiprocessing.get_context(start_method)
    for _ in range(2):
        run_processes([context.Process(target=read_and_log, args=(cache, paths, tmp_path / "log")) for _ in range(2)])
        assert not cache.is_storing
    assert (tmp_path / "log").read_text().count("no more frames are stored") == 1


def read_with_small_file_limit(cache: FrameCache, caplog, paths: list[Path]) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    check_goes_on_without_storing(cache, caplog, paths, "File too large")


def test_a_write_that_breaks_off(tmp_path, extractor, caplog):
    extractor.size = 64
    paths = [write_video(tmp_path / "videos" / f"{n}.mp4", bytes([n])) for n in range(3)]
    cache = FrameCache(tmp_path / "cache", extractor)
    run_processes([FORK.Process(target=read_with_small_file_limit, args=(cache, caplog, paths))])
    assert files_in(tmp_path / "cache") == []
    later = FrameCache(tmp_path / "cache", extractor)  # of a run without that limit
    read_in_process(later, paths)
    assert counts(later) == (6, 3, 0)


def test_a_folder_that_cannot_be_made(tmp_path, extractor, video, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    cache = FrameCache(blocked, extractor)
    check_goes_on_without_storing(cache, caplog, [video], "File exists")
    assert counts(cache) == (0, 3, 0)
    assert blocked.read_text() == "no folder"


def test_a_folder_that_cannot_be_written_still_gives_what_it_has(tmp_path, cache, extractor, video, caplog):
    cache.read_frames(video, 2)
    other = write_video(video.with_name("other.mp4"), b"b")
    for number in range(256):
        folder = Path(cache.directory, f"{number:02x}")
        if not folder.exists():
            folder.write_text("in the place of a folder")
    check_goes_on_without_storing(cache, caplog, [video, other], "")
    assert counts(cache) == (3, 4, 0)


def die_before_the_entry_is_named(cache: FrameCache, path: Path) -> None:
    def truncate_and_die(temporary, entry):
        os.truncate(temporary, temporary.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    Path.replace = truncate_and_die
    cache.read_frames(path, 2)


def test_a_killed_writer_leaves_no_entry(tmp_path, cache, extractor, video):
    process = FORK.Process(target=die_before_the_entry_is_named, args=(cache, video))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    abandoned = only_entry(cache)
    assert abandoned.name.endswith(".incomplete_frames")
    assert os.uname().nodename in abandoned.name and f".{process.pid}." in abandoned.name
    np.testing.assert_array_equal(cache.read_frames(video, 2), extractor.frames(video, 2))
    assert counts(cache) == (0, 1, 0)

    (entry,) = set(files_in(cache.directory)) - {abandoned}
    of_the_user = write_video(tmp_path / "cache" / "notes.tmp")
    two_days_ago = time.time() - 2 * 24 * 3600
    for file in (entry, of_the_user):
        os.utime(file, (two_days_ago, two_days_ago))
    FrameCache(cache.directory, extractor)
    assert set(files_in(cache.directory)) == {entry, of_the_user, abandoned}  # it may still be written to
    os.utime(abandoned, (two_days_ago, two_days_ago))
    FrameCache(cache.directory, extractor)
    assert set(files_in(cache.directory)) == {entry, of_the_user}
