"""Copies of videos whose frames bear their number, of damaged files, and of the real clips."""

import csv
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataloaders.rawvideo_util import RawVideoExtractor, VideoReadError
from dataloaders.video_damage import promised_end
from scripts import compress_videos
from scripts.compress_videos import (
    check_copy,
    compress_video,
    copy_size,
    find_jobs,
    main,
    timed_frames,
    write_copy,
)
from tests.conftest import REPOSITORY
from tests.helpers.damaged_videos import damage, write_seconds
from tests.helpers.numbered_videos import MILLISECOND, read_numbers, steady, write_numbered
from tests.helpers.reader_cases import touch


def compressed(source: Path, fps: int = 3, size: int = 224) -> Path:
    target = source.with_name("copies") / f"{source.stem}.mp4"
    compress_video(source, target, fps, size)
    return target


def run_here(capsys, source: Path, target: Path, *flags: str) -> tuple[str | None, str, str]:
    """How the script exits in this process (None is success), and what it writes to stdout and stderr."""
    exit_message = None
    try:
        main(script(source, target, *flags)[3:])
    except SystemExit as stop:
        exit_message = stop.code
    return exit_message, *capsys.readouterr()


def script(source: Path, target: Path, *flags: str) -> list[str]:
    folders = ["--input_root", str(source), "--output_root", str(target)]
    return [sys.executable, "-m", "scripts.compress_videos", *folders, "--num_workers", "2", *flags]


@pytest.mark.parametrize(
    ("name", "count", "rate", "fps"),
    [
        ("a.mp4", 95, 30, 3), ("a.avi", 76, 25, 3), ("a.mkv", 100, 24, 3), ("a.mov", 31, 10, 3), ("a.mp4", 4, 1, 3),
        ("a.mp4", 90, Fraction(30000, 1001), 3), ("a.mkv", 90, Fraction(30000, 1001), 3), ("a.mp4", 75, 25, 5),
        ("a.mp4", 9, 30, 3), ("a.mp4", 1, 30, 3),
    ],
)  # fmt: skip
def test_each_picture_is_the_one_on_screen_at_its_time(tmp_path, name, count, rate, fps):
    """Exact arithmetic: 2 ms after n / fps seconds, frame floor(that * rate) of the original is on screen."""
    source = write_numbered(tmp_path / name, steady(count, rate), rate)
    ticks = [Fraction(number, fps) for number in range(math.ceil(count / Fraction(rate) * fps))]
    expected = [math.floor((tick + 2 * MILLISECOND) * rate) for tick in ticks]
    copy = compressed(source, fps)
    assert read_numbers(copy) == expected
    assert cv2.VideoCapture(str(copy)).get(cv2.CAP_PROP_FPS) == fps


@pytest.mark.parametrize("rate", [12, 25, 30])
def test_the_reader_samples_the_same_pictures_from_the_copy(tmp_path, rate):
    source = write_numbered(tmp_path / "a.mp4", steady(7 * rate // 2, rate), rate, width=320, height=240)
    reader = RawVideoExtractor(framerate=1)
    from_source, from_copy = (reader.read_frames(path, 100) for path in (source, compressed(source)))
    assert len(from_source) == len(from_copy) == 4
    assert np.abs(from_source.astype(int) - from_copy).mean() < 2


def test_uneven_times_are_followed(tmp_path):
    times = [0, 0.1, 0.2, 1.5, 1.6, 4.0, 4.02, 4.04, 4.06, 4.5]
    source = write_numbered(tmp_path / "a.mkv", times, clock=MILLISECOND)
    shown = read_numbers(compressed(source))
    assert shown[: 3 * 4 + 2] == [max(i for i, start in enumerate(times) if start <= n / 3) for n in range(14)]


def test_a_film_that_begins_late_begins_with_its_first_picture(tmp_path):
    source = write_numbered(tmp_path / "a.mkv", [5 + second for second in steady(60, 30)], clock=MILLISECOND)
    assert read_numbers(compressed(source)) == [0, 10, 20, 30, 40, 50]


def test_times_that_jump_are_a_damaged_file(tmp_path):
    source = write_numbered(tmp_path / "a.mkv", [0, 0.5, 2000.5, 2001], codec="libx264", clock=MILLISECOND)
    with pytest.raises(VideoReadError, match=r"jump by 2000\.0 after 0\.5 seconds"):
        compressed(source)


@given(st.permutations(range(12)), st.integers(0, 4))
def test_swapped_times_are_put_in_order(order, untimed):
    frames = [SimpleNamespace(time=float(number), position=place) for place, number in enumerate(order)]
    frames += [SimpleNamespace(time=None, position=12 + place) for place in range(untimed)]
    timed = list(timed_frames(frames, interval=0.5))
    assert [frame.position for _, frame in timed] == list(range(12 + untimed))
    last = order[-1]
    assert [at for at, _ in timed] == sorted([*range(12), *(last + 0.5 * (place + 1) for place in range(untimed))])


@pytest.mark.parametrize(
    ("size", "copied"),
    [
        ((1280, 720), (398, 224)), ((720, 1280), (224, 398)), ((320, 240), (298, 224)), ((352, 288), (274, 224)),
        ((100, 100), (224, 224)), ((64, 48), (298, 224)), ((3, 1000), (224, 74666)),
    ],
)  # fmt: skip
def test_size_of_the_copy(size, copied):
    assert copy_size(*size, 224) == copied


def test_the_copy_is_h264_without_sound(tmp_path):
    source = write_numbered(tmp_path / "a.mov", steady(45, 15), 15, sound=True)
    with av.open(str(source)) as container:
        assert len(container.streams.audio) == 1
    with av.open(str(compressed(source, size=64))) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.average_rate) == (86, 64, 3)
        assert stream.duration * stream.time_base == 3


@pytest.mark.parametrize(("degrees", "matrix", "turns"), [(90, (0, 1, -1, 0), -1), (180, (-1, 0, 0, -1), 2)])
def test_rotation_is_applied(tmp_path, degrees, matrix, turns):
    """The matrix of the mp4's track header turns the picture clockwise; OpenCV, which applies it, is asked too."""
    source = write_numbered(tmp_path / "a.mp4", steady(15, 15), 15, width=320, height=160)
    _, first = cv2.VideoCapture(str(source)).read()
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (factor << 16 for factor in matrix)
    head, tail = source.read_bytes().split(b"tkhd")
    assert identity in tail
    source.write_bytes(head + b"tkhd" + tail.replace(identity, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30), 1))
    _, upright = cv2.VideoCapture(str(compressed(source, size=160))).read()
    expected = np.rot90(first, turns)
    assert upright.shape == expected.shape
    assert np.abs(upright.astype(int) - expected).mean() < 3
    _, shown = cv2.VideoCapture(str(source)).read()
    assert np.abs(upright.astype(int) - shown).mean() < 3


def test_folders_names_and_what_is_no_video(tmp_path):
    names = ["a.mp4", "film/b.AVI", "film/deep/c.d.mkv", "e@N01_f."]
    touch(tmp_path / "in", *names, "notes.txt", "film/cover.jpg", ".a.mp4.unfinished")
    copies = ["a.mp4", "film/b.mp4", "film/deep/c.d.mp4", "e@N01_f.mp4"]
    jobs = [(tmp_path / "in" / name, tmp_path / "out" / copy) for name, copy in zip(names, copies, strict=True)]
    assert find_jobs(tmp_path / "in", tmp_path / "out") == sorted(jobs)


def test_previews_beside_a_film_and_what_is_left_out_have_no_copy(tmp_path, capsys):
    touch(tmp_path / "in", "a.mp4", "a.lrv", "a.gif", "b.gif", "._a.mp4", "@eaDir/a.mp4", "x/old.mp4")
    (tmp_path / "in" / "loop.mp4").symlink_to("loop.mp4")
    message, out, _ = run_here(capsys, tmp_path / "in", tmp_path / "out", "--exclude", "x/*")
    assert "2 hidden or of the system (._a.mp4, @eaDir)" in out
    assert "1 excluded by --exclude (x/old.mp4), 2 beside a film of the same name (a.gif, a.lrv)" in out
    rows = (tmp_path / "out" / "compress_failures.csv").read_text().splitlines()
    names = [Path(row.split(",")[0]).name for row in rows[1:]]
    assert (names, "Too many levels" in rows[-1]) == (["a.mp4", "b.gif", "loop.mp4"], True)
    assert "3 failed" in message


def test_two_originals_of_one_copy_are_an_error_before_anything_starts(tmp_path, capsys):
    touch(tmp_path / "in", "x/a.mp4", "x/a.MOV", "x/b.mp4")
    message, _, _ = run_here(capsys, tmp_path / "in", tmp_path / "out")
    assert "1 copies" in message and f"{tmp_path}/in/x/a.MOV and {tmp_path}/in/x/a.mp4" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folders", [("in", "in"), ("in", "in/copies"), ("in/deep", "in"), ("in", "link")])
def test_originals_and_copies_lie_apart(tmp_path, folders):
    touch(tmp_path, "in/deep/a.mp4")
    (tmp_path / "link").symlink_to(tmp_path / "in", target_is_directory=True)
    with pytest.raises(ValueError, match="must lie apart"):
        find_jobs(*(tmp_path / folder for folder in folders))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "223"], "--size 223 must be even"), (["--size", "0"], "--size 0"), (["--fps", "0"], "--fps 0"),
        (["--num_workers", "0"], "--num_workers 0"), ([], "no video below"), (["--input_root", "gone"], "gone"),
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense(tmp_path, capsys, flags, message):
    (tmp_path / "in").mkdir()
    assert message in run_here(capsys, tmp_path / "in", tmp_path / "out", *flags)[0]


def test_finished_copies_are_kept_and_others_are_made_again(tmp_path, capsys):
    folders = tmp_path / "in", tmp_path / "out"
    for name in ("a", "b", "cut", "other"):
        write_numbered(tmp_path / f"in/{name}.avi", steady(30, 10), 10)
    assert run_here(capsys, *folders)[:2] == (None, "4 compressed, 0 kept, 0 failed\n")
    copies = {name: tmp_path / f"out/{name}.mp4" for name in ("a", "b", "cut", "other")}
    complete = copies["cut"].read_bytes()
    copies["cut"].write_bytes(complete[: len(complete) // 2])
    write_numbered(tmp_path / "in/other.avi", steady(40, 10), 10)
    for name, hours in ((".b.host.7.unfinished", 25), (".b.host.8.unfinished", 23)):
        (tmp_path / f"out/{name}").write_bytes(complete[:100])
        os.utime(tmp_path / f"out/{name}", 2 * (time.time() - 3600 * hours,))
    copies["b"].unlink()
    written = copies["a"].stat().st_mtime_ns
    assert run_here(capsys, *folders)[:2] == (None, "3 compressed, 1 kept, 0 failed\n")
    assert copies["a"].stat().st_mtime_ns == written
    assert copies["cut"].read_bytes() == complete
    assert len(read_numbers(copies["other"])) == 12
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        ".b.host.8.unfinished", "a.mp4", "b.mp4", "compress_failures.csv", "cut.mp4", "other.mp4",
    }  # fmt: skip


def test_a_copy_of_another_original_of_the_same_size_is_made_again(tmp_path, capsys):
    folders = tmp_path / "in", tmp_path / "out"
    source = write_numbered(tmp_path / "in/a.mp4", steady(30, 10), 10)
    run_here(capsys, *folders)
    os.utime(source, ns=(0, source.stat().st_mtime_ns + 1))
    assert run_here(capsys, *folders)[1] == "1 compressed, 0 kept, 0 failed\n"


def test_a_failure_tells_of_the_copy_that_it_leaves(tmp_path, capsys):
    folders = tmp_path / "in", tmp_path / "out"
    source = write_numbered(tmp_path / "in/a.mp4", steady(30, 10), 10)
    run_here(capsys, *folders)
    copy = tmp_path / "out/a.mp4"
    content = copy.read_bytes()
    source.write_bytes(b"damaged")
    (tmp_path / "in/new.mp4").write_bytes(b"damaged")
    _, _, errors = run_here(capsys, *folders)
    left = f"; {copy} is left as it is, a copy with other settings or of another original"
    reasons = [line for line in errors.splitlines() if line.startswith(str(tmp_path))]
    assert [reason.endswith(left) for reason in reasons] == [True, False]
    assert copy.read_bytes() == content


def test_two_runs_at_once_do_not_touch_each_others_files(tmp_path, monkeypatch):
    """The other run makes the same copy between this one's writing and checking."""
    source = write_numbered(tmp_path / "in/a.mp4", steady(20, 10), 10)

    def check_after_the_other_run(*arguments) -> None:
        subprocess.run(script(tmp_path / "in", tmp_path / "out"), cwd=REPOSITORY, check=True, timeout=60)
        check_copy(*arguments)

    monkeypatch.setattr(compress_videos, "check_copy", check_after_the_other_run)
    compress_video(source, tmp_path / "out/a.mp4", 3, 224)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.mp4", "compress_failures.csv"}


def test_long_names_are_compressed(tmp_path):
    names = [240 * "a", 80 * "語"]  # 240 bytes each
    copies = [compressed(write_numbered(tmp_path / f"{name}.mp4", steady(10, 10), 10)) for name in names]
    assert all(copy.is_file() for copy in copies)


@pytest.mark.parametrize("flags", [["--fps", "2"], ["--size", "64"]])
def test_copies_of_other_settings_are_made_again(tmp_path, capsys, flags):
    folders = tmp_path / "in", tmp_path / "out"
    write_numbered(tmp_path / "in/a.mp4", steady(30, 10), 10)
    run_here(capsys, *folders)
    assert run_here(capsys, *folders, *flags)[1] == "1 compressed, 0 kept, 0 failed\n"
    assert run_here(capsys, *folders, *flags)[1] == "0 compressed, 1 kept, 0 failed\n"


def test_damaged_videos_are_listed_and_have_no_copy(tmp_path, capsys):
    good = write_numbered(tmp_path / "in/good.mp4", steady(400, 10), 10, options={"movflags": "faststart"})
    content = good.read_bytes()
    for percent in (0, 10, 40, 95):  # the header, at the start, promises all
        (tmp_path / f"in/cut{percent:02}.mp4").write_bytes(content[: len(content) * percent // 100])
    film = write_numbered(tmp_path / "film.avi", steady(200, 10), 10).read_bytes()
    (tmp_path / "in/cut80.avi").write_bytes(film[: len(film) * 8 // 10])
    (tmp_path / "in/random.avi").write_bytes(np.random.default_rng(0).bytes(5000))
    message, out, errors = run_here(capsys, tmp_path / "in", tmp_path / "out")
    assert message.startswith("compress_videos: 6 failed")
    assert out == "1 compressed, 0 kept, 6 failed\n"
    with (tmp_path / "out/compress_failures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    damaged = ["cut00.mp4", "cut10.mp4", "cut40.mp4", "cut80.avi", "cut95.mp4", "random.avi"]
    assert [Path(row["path"]).name for row in rows] == damaged
    assert all(row["reason"] and f"{row['path']}: {row['reason']}" in errors for row in rows)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"good.mp4", "compress_failures.csv"}


@pytest.mark.parametrize(("frames", "fps"), [(5, 3), (7, 3), (4, 2), (6, 4)])
def test_a_copy_that_reads_back_otherwise_is_refused(tmp_path, frames, fps):
    copy = compressed(write_numbered(tmp_path / "a.mp4", steady(20, 10), 10))
    check_copy(copy, 6, 3)
    with pytest.raises(VideoReadError, match=f"frames at 3 per second, not {frames} at {fps}"):
        check_copy(copy, frames, fps)


def test_an_interrupted_run_leaves_whole_copies_and_goes_on(tmp_path, capsys):
    first = write_numbered(tmp_path / "in/00.mp4", steady(600, 30), 30)
    for number in range(1, 12):
        shutil.copy(first, tmp_path / f"in/{number:02}.mp4")
    process = subprocess.Popen(
        script(tmp_path / "in", tmp_path / "out"), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    while not list((tmp_path / "out").glob("*.mp4")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does, to all processes of the terminal
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "interrupted" in errors and "Traceback" not in errors
    finished = list((tmp_path / "out").glob("*.mp4"))
    assert 0 < len(finished) < 12
    assert all(len(read_numbers(path)) == 60 for path in finished)
    _, out, _ = run_here(capsys, tmp_path / "in", tmp_path / "out")
    assert out == f"{12 - len(finished)} compressed, {len(finished)} kept, 0 failed\n"


def test_a_copy_appears_only_when_it_was_read_back(tmp_path, monkeypatch):
    source = write_numbered(tmp_path / "a.mp4", steady(20, 10), 10)
    monkeypatch.setattr(compress_videos, "write_copy", lambda *arguments: write_copy(*arguments) + 1)
    with pytest.raises(VideoReadError, match="6 frames at 3 per second, not 7 at 3"):
        compressed(source)
    assert list((tmp_path / "copies").iterdir()) == []


@pytest.mark.parametrize(
    ("file_format", "ticks", "frames", "end"),
    [
        ("mov,mp4", 90, 0, 8.0), ("mov,mp4", 90, 300, 8.0), ("matroska,webm", None, 0, 7.0),
        ("avi", 90, 300, 15.0), ("avi", 90, 60, 8.0),
    ],
)  # fmt: skip
def test_where_the_header_says_that_a_video_ends(file_format, ticks, frames, end):
    container = SimpleNamespace(duration=7_000_000, format=SimpleNamespace(name=file_format))  # microseconds
    stream = SimpleNamespace(duration=ticks, time_base=Fraction(1, 30), frames=frames)
    header = SimpleNamespace(fps=30)
    assert promised_end(SimpleNamespace(container=container, stream=stream, header=header), 5.0) == end


@pytest.mark.real_clips
@pytest.mark.parametrize("name", ["video7500.mp4", "152_eye_makeup.avi", "206_asl_walk.mkv", "049_quicktime_logo.3gp"])
def test_copies_of_real_clips_show_the_same_seconds(real_clips, tmp_path, name):
    """152_eye_makeup.avi is one whose frames bear their neighbours' times."""
    compress_video(real_clips / "videos" / name, tmp_path / "copy.mp4", 3, 224)
    reader = RawVideoExtractor(framerate=1)
    original, copy = (
        reader.read_frames(path, 100) for path in (real_clips / "videos" / name, tmp_path / "copy.mp4")
    )  # fmt: skip
    assert len(original) == len(copy)
    assert np.abs(original.astype(int) - copy).mean(axis=(1, 2, 3)).max() < 6


@pytest.mark.real_clips
def test_broken_real_clips_fail_or_have_a_copy_that_reads(real_clips, tmp_path):
    command = script(real_clips / "broken", tmp_path)
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    with (tmp_path / "compress_failures.csv").open(newline="") as file:
        failed = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    copies = {path.stem for path in tmp_path.glob("*.mp4")}
    assert len(failed) >= 20 and copies
    damaged_file = tmp_path / "compress_damaged.csv"
    with damaged_file.open(newline="") as file:
        damaged = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    corrupted = real_clips / "broken/128_corrupted.mp4"
    assert damaged[str(corrupted)].startswith("1 frame could not be decoded")
    assert {Path(path).stem for path in failed} == {path.stem for path in (real_clips / "broken").iterdir()} - copies
    assert all(read_numbers(tmp_path / f"{name}.mp4") for name in copies)
    # FFmpeg's own messages would be lines more
    lines = [line for line in result.stderr.splitlines() if line and not line.startswith("compress: ")]
    listed = [f"{path}: {reason}" for path, reason in [*damaged.items(), *failed.items()]]
    assert lines[:-1] == [*listed, f"compress_videos: {len(damaged)} originals are damaged; see {damaged_file}"]


def test_damaged_originals_are_copied_and_listed_in_every_run(tmp_path, capsys):
    folders = tmp_path / "in", tmp_path / "out"
    (tmp_path / "in").mkdir()
    whole = write_seconds(tmp_path / "in/whole.mp4", "libx264")
    shutil.copy(whole, tmp_path / "in/damaged.mp4")
    damage(tmp_path / "in/damaged.mp4", frame=9 * 10)
    for outcome in ("2 compressed, 0 kept, 0 failed\n", "0 compressed, 2 kept, 0 failed\n"):
        message, out, errors = run_here(capsys, *folders)
        assert (message, out) == (None, outcome)
        assert "1 originals are damaged" in errors and "whole.mp4" not in errors
        with (tmp_path / "out/compress_damaged.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert row["path"] == str(tmp_path / "in/damaged.mp4")
        assert re.search("frames? (could not be decoded|decoded with errors)", row["reason"])
    reader = RawVideoExtractor(1, 32)
    copies = [reader.read_frames(tmp_path / f"out/{name}.mp4", 100) for name in ("damaged", "whole")]
    assert len(copies[0]) == len(copies[1]) == 20
    assert np.abs(copies[0][11:].astype(int) - copies[1][11:]).mean() < 2
