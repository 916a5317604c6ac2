"""The frame cache gives the extractor's frames and decodes once; what an entry is for; jpeg."""

import hashlib
import logging
import multiprocessing
import os
import re
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from dataloaders import frame_cache
from dataloaders.annotations import Annotations, Caption
from dataloaders.data_dataloaders import evaluation_loader
from dataloaders.frame_cache import FRAME_FORMATS, FrameCache
from dataloaders.rawvideo_util import RawVideoExtractor, VideoReadError
from dataloaders.retrieval_dataset import RetrievalDataset
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
from tests.test_dataloaders import WordTokenizer


@pytest.fixture
def extractor(tmp_path) -> FakeExtractor:
    return FakeExtractor(tmp_path / "decodings.txt")


@pytest.fixture
def video(tmp_path) -> Path:
    return write_video(tmp_path / "videos" / "video.mp4")


@pytest.fixture
def cache(tmp_path, extractor) -> FrameCache:
    return FrameCache(tmp_path / "cache", extractor)


# The same frames as the extractor's


def assert_equals_extractor(extractor: RawVideoExtractor, cache: FrameCache, path, **span) -> None:
    """All choices and orders, each read twice: decoded and from the entry."""
    for slice_framepos in (0, 1, 2):
        for frame_order in (0, 1, 2):
            for _ in range(2):
                expected, found = (
                    reader.read_frames(
                        path, 3, slice_framepos, frame_order, **span, random_generator=np.random.default_rng(5)
                    )
                    for reader in (extractor, cache)
                )
                np.testing.assert_array_equal(found, expected)
                assert found.dtype == np.uint8 and found.flags.c_contiguous and found.flags.writeable


def test_a_decoded_clip_equals_the_extractor(tmp_path):
    path = str(tmp_path / "clip.mp4")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"mp4v"), 5, (48, 32))
    for brightness in range(0, 240, 6):  # 8 seconds
        writer.write(np.full((32, 48, 3), brightness, dtype=np.uint8))
    writer.release()
    extractor = RawVideoExtractor(size=16)
    cache = FrameCache(tmp_path / "cache", extractor)
    assert_equals_extractor(extractor, cache, path)
    assert_equals_extractor(extractor, cache, path, start_time=1.5, end_time=5.2)
    assert counts(cache) == (30, 6, 0)  # one entry for each choice and span


@pytest.mark.real_clips
def test_real_clips_equal_the_extractor(tmp_path, real_clips):
    extractor = RawVideoExtractor(size=32)
    cache = FrameCache(tmp_path, extractor)
    for name in ("klteYv1Uv9A_27_33.avi", "049_quicktime_logo.3gp"):
        assert_equals_extractor(extractor, cache, real_clips / "videos" / name)


@pytest.mark.real_clips
@pytest.mark.skipif(int(cv2.__version__.split(".")[0]) < 5, reason="the reference pixels are OpenCV 5.0's")
def test_real_clips_equal_the_reference_byte_for_byte(tmp_path, real_clips, golden_frames):
    cache = FrameCache(tmp_path, RawVideoExtractor(golden_frames["framerate"], golden_frames["size"]))
    for name in list(golden_frames["clips"])[::15]:
        for _ in range(2):
            frames = cache.read_frames(real_clips / name, golden_frames["max_frames"], golden_frames["slice_framepos"])
            assert hashlib.sha256(frames.tobytes()).hexdigest() == golden_frames["clips"][name]["sha256"], name
    assert cache.hits == cache.misses > 3


@pytest.mark.real_clips
def test_a_broken_file_raises_as_without_cache_and_stores_nothing(tmp_path, real_clips):
    cache = FrameCache(tmp_path, RawVideoExtractor(size=32))
    path = real_clips / "broken" / "047_WrongFile.mp4"
    for _ in range(2):
        with pytest.raises(VideoReadError, match="047_WrongFile"):
            cache.read_frames(path, 3)
    assert files_in(tmp_path) == []


def test_offers_what_the_data_set_reads_of_an_extractor(cache, extractor):
    assert (cache.size, cache.framerate) == (extractor.size, extractor.framerate) == (4, 1)


def test_a_caller_may_write_into_its_frames(cache, extractor, video):
    for _ in range(3):
        frames = cache.read_frames(video, 2)
        np.testing.assert_array_equal(frames, extractor.frames(video, 2))
        frames[:] = 0


# One decoding


def test_one_decoding_for_all_reads_orders_and_caches(tmp_path, cache, extractor, video):
    for frame_order in (0, 1, 2) * 20:
        cache.read_frames(video, 2, frame_order=frame_order)
    assert counts(cache) == (59, 1, 0)
    another = FrameCache(tmp_path / "cache", extractor)
    another.read_frames(str(video), np.int64(2))
    assert counts(another) == (1, 0, 0)
    assert extractor.decodings() == 1


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_another_process_decodes_nothing_again(cache, extractor, video, start_method):
    cache.read_frames(video, 2)
    run_processes([multiprocessing.get_context(start_method).Process(target=read_in_process, args=(cache, [video]))])
    assert extractor.decodings() == 1


def test_a_relative_folder_stays_where_it_was(tmp_path, extractor, video, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = FrameCache("cache", extractor)
    cache.read_frames(video, 2)
    monkeypatch.chdir(video.parent)
    cache.read_frames(video, 2)
    assert counts(cache) == (1, 1, 0)


# What an entry is for


def test_every_setting_has_its_own_entry(tmp_path, extractor, video, monkeypatch):
    def read(cache=None, path=video, max_frames=3, **arguments):
        cache = cache or FrameCache(tmp_path / "cache", extractor)
        found = cache.read_frames(path, max_frames, **arguments)
        np.testing.assert_array_equal(found, cache.extractor.frames(path, max_frames, **arguments))
        return len(files_in(tmp_path / "cache"))

    log = extractor.log
    assert read() == 1
    assert read(max_frames=2) == 2
    assert read(slice_framepos=0) == 3
    assert read(slice_framepos=1) == 4
    assert read(start_time=1) == 5
    assert read(end_time=4) == 6
    assert read(start_time=1, end_time=4) == 7
    assert read(FrameCache(tmp_path / "cache", FakeExtractor(log, size=5))) == 8
    assert read(FrameCache(tmp_path / "cache", FakeExtractor(log, framerate=2))) == 9
    assert read(path=write_video(video.with_name("other.mp4"))) == 10
    FrameCache(tmp_path / "cache", extractor, "jpeg").read_frames(video, 3)
    assert read() == 11
    with monkeypatch.context() as patch:
        patch.setattr(frame_cache, "DECODING_RULE", frame_cache.DECODING_RULE + 1)
        assert read() == 12
    for library, patch_level, entries in [
        ("libavcodec", 0, 13), ("libavcodec", 1, 13), ("libswscale", 0, 14), ("libavdevice", 0, 14)
    ]:  # fmt: skip
        monkeypatch.setitem(av.library_versions, library, (999, 5, patch_level))
        assert read() == entries
    assert extractor.decodings() == 14


def test_each_rule_of_sampling_has_its_own_entry(cache, extractor, video):
    published, by_time = FakeExtractor(extractor.log), FakeExtractor(extractor.log)
    published.frame_sampling, by_time.frame_sampling = "published", "time"
    cache.read_frames(video, 3)
    FrameCache(cache.directory, published).read_frames(video, 3)  # the entry of an extractor without a rule
    assert (len(files_in(cache.directory)), extractor.decodings()) == (1, 1)
    FrameCache(cache.directory, by_time).read_frames(video, 3)
    assert (len(files_in(cache.directory)), extractor.decodings()) == (2, 2)


def test_equal_time_spans_share_an_entry(cache, video):
    for start, end in [(2, 5), (2.0, 5.0), (2.9, 4.1), (np.float32(2.5), np.float64(4.5))]:
        cache.read_frames(video, 3, start_time=start, end_time=end)
    assert counts(cache) == (3, 1, 0)
    for start, end in [(None, None), (0, None), (0.5, None), (0.0, float("inf"))]:
        cache.read_frames(video, 3, start_time=start, end_time=end)
    assert counts(cache) == (6, 2, 0)


def test_a_moved_folder_hits_and_a_changed_file_misses(cache, extractor, video):
    cache.read_frames(video, 2)
    elsewhere = video.parent.rename(video.parent.with_name("elsewhere")) / video.name
    cache.read_frames(elsewhere, 2)
    assert counts(cache) == (1, 1, 0)
    changed_ns = elsewhere.stat().st_mtime_ns
    elsewhere.write_bytes(b"another")
    os.utime(elsewhere, ns=(changed_ns, changed_ns + 1))  # as long as before, and a nanosecond younger
    np.testing.assert_array_equal(cache.read_frames(elsewhere, 2), extractor.frames(elsewhere, 2))
    elsewhere.write_bytes(b"a longer one")
    os.utime(elsewhere, ns=(changed_ns, changed_ns))  # as old as at first
    np.testing.assert_array_equal(cache.read_frames(elsewhere, 2), extractor.frames(elsewhere, 2))
    assert counts(cache) == (1, 3, 0)


def test_a_video_that_is_gone_is_a_bad_video(cache, video):
    cache.read_frames(video, 2)
    video.unlink()
    with pytest.raises(VideoReadError, match="No such file") as caught:
        cache.read_frames(video, 2)
    assert caught.value.path == video


@pytest.mark.parametrize("change", [Path.unlink, Path.touch, lambda path: path.write_bytes(b"longer than before")])
def test_a_video_that_changes_while_it_is_decoded_is_not_stored(cache, extractor, video, monkeypatch, change):
    def frames_of_a_moving_file(path, *arguments, **settings):
        time.sleep(0.01)  # the file system's clock may tick only every few milliseconds
        change(path)
        return np.zeros((2, 3, 4, 4), dtype=np.uint8)

    monkeypatch.setattr(extractor, "read_frames", frames_of_a_moving_file)
    assert cache.read_frames(video, 2).shape == (2, 3, 4, 4)
    assert files_in(cache.directory) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"frame_order": 3}, {"max_frames": 0}, {"max_frames": -3}, {"start_time": 5.5, "end_time": 5.2},
        {"start_time": -1}, {"start_time": float("nan")}, {"start_time": float("inf")}, {"end_time": float("nan")},
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_with_or_without_an_entry(cache, video, wrong):
    for span in ({"start_time": 5, "end_time": 6}, {}):
        cache.read_frames(video, 2, **span)
    entries = len(files_in(cache.directory))
    with pytest.raises(ValueError, match=r"frame_order|time span|max_frames"):
        cache.read_frames(video, **{"max_frames": 2, **wrong})
    assert len(files_in(cache.directory)) == entries


def test_frame_formats(tmp_path, extractor):
    assert FRAME_FORMATS == ("exact", "jpeg")
    with pytest.raises(ValueError, match="exact, jpeg; got 'png'"):
        FrameCache(tmp_path, extractor, "png")


def test_free_bytes_of_the_disk_whether_or_not_the_folder_could_be_made(tmp_path, extractor):
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "cache", tmp_path / "file", tmp_path / "file" / "below"):
        found = FrameCache(folder, extractor).free_bytes()
        assert found == pytest.approx(os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize, rel=0.1)


def test_expected_size_bounds_the_entries(tmp_path, cache):
    cache.size = 224
    assert cache.bytes_per_video(12) == 4096 + 12 * (4 + 3 * 224 * 224)
    assert cache.expected_size(1000, 12) == 1000 * cache.bytes_per_video(12)
    cache.size = 4
    cache.read_frames(write_video(tmp_path / "videos" / ("é" * 125 + ".mp4")), 2)
    assert 104 + 125 * 6 < only_entry(cache).stat().st_size <= cache.bytes_per_video(2)


# JPEG


@pytest.mark.real_clips
def test_jpeg_is_close_smaller_and_says_so(tmp_path, real_clips, caplog):
    extractor = RawVideoExtractor(size=64)
    path = real_clips / "videos" / "klteYv1Uv9A_27_33.avi"
    exact = extractor.read_frames(path, 4)
    cache = FrameCache(tmp_path, extractor, "jpeg")
    assert ["not exact" in warning for warning in warnings_in(caplog)] == [True]
    decoded = cache.read_frames(path, 4)
    error = np.abs(decoded.astype(int) - exact).mean()
    assert 0 < error < 2
    assert only_entry(cache).stat().st_size < exact.nbytes / 2
    np.testing.assert_array_equal(cache.read_frames(path, 4), decoded)  # a run does not depend on what is stored
    np.testing.assert_array_equal(cache.read_frames(path, 4, frame_order=1), decoded[::-1])
    assert counts(cache) == (2, 1, 0)


def test_jpeg_keeps_colours_and_places(tmp_path, extractor, video, monkeypatch):
    frames = np.zeros((2, 3, 8, 8), dtype=np.uint8)
    frames[0, 0, :4] = 200  # red above
    frames[1, 2, :, :4] = 100  # blue on the left
    extractor.size = 8
    monkeypatch.setattr(extractor, "read_frames", lambda *arguments, **settings: frames)
    found = FrameCache(tmp_path / "cache", extractor, "jpeg").read_frames(video, 2)
    assert np.abs(found.astype(int) - frames).max() <= 8


@pytest.mark.parametrize("size", [4, 64])
def test_jpeg_of_noise_is_kept_and_always_the_same(tmp_path, extractor, video, size):
    extractor.size = size
    cache = FrameCache(tmp_path / "cache", extractor, "jpeg")
    decoded = cache.read_frames(video, 12)
    for _ in range(2):
        np.testing.assert_array_equal(cache.read_frames(video, 12), decoded)
    assert counts(cache) == (2, 1, 0)


def test_exact_says_nothing(cache, video, caplog):
    cache.read_frames(video, 2)
    assert caplog.records == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_pass_logs_its_hits_and_misses(tmp_path, extractor, caplog, num_workers):
    """Counted in this process and in its workers; another size finds no entry."""
    paths = {f"v{number}": write_video(tmp_path / "videos" / f"v{number}.mp4") for number in range(5)}
    captions = [Caption(video_id, "1") for video_id in paths]
    for size, passes in ((extractor.size, 2), (extractor.size * 2, 1)):
        extractor.size = size
        cache = FrameCache(tmp_path / "cache", extractor)
        dataset = RetrievalDataset(Annotations(captions, paths), WordTokenizer(), cache, max_words=3, max_frames=2)
        loader = evaluation_loader(dataset, batch_size=2, num_workers=num_workers)
        with caplog.at_level(logging.INFO):
            for _ in range(passes):
                assert len(list(loader)) == 3
    lines = [record.getMessage() for record in caplog.records if "frame cache of this process" in record.getMessage()]
    assert [re.findall(r"\d+", line) for line in lines] == [
        ["0", "5", "0", "4", "4"], ["5", "0", "0", "4", "4"], ["0", "5", "0", "8", "8"],
    ]  # fmt: skip
