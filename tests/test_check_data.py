"""Data sets with known faults, checked by the script; every data set's miniature; files that crash their process."""

import csv
import hashlib
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from dataloaders.annotations import Annotations, Caption
from dataloaders.frame_cache import FrameCache
from dataloaders.rawvideo_util import RawVideoExtractor
from scripts.check_data.__main__ import find_same_content, main, read_files
from scripts.check_data.data_files import read_through
from scripts.check_data.data_report import FileFacts, Split, draw_shares
from scripts.miniature.msrvtt import write_mini_msrvtt
from tests.conftest import REPOSITORY
from tests.helpers.damaged_videos import damage, write_seconds
from tests.helpers.miniatures import WRITERS, write_miniature
from tests.helpers.numbered_videos import steady, write_numbered

COLUMNS = ("missing", "unreadable", "ends early", "shorter than 1 s", "same content as another", "also in training",
           "caption repeated", "caption cut", "lost frames")  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How the script ended (None is success), its table by split, the rows of its csv, its stdout and stderr."""

    failure: str | None
    table: dict[str, list[int]]
    rows: list[tuple[str, ...]]
    out: str
    errors: str


def read_table(out: str) -> dict[str, list[int]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    if cells:
        assert cells[0] == ["split", "videos", "captions", *COLUMNS]
    return {name: [int(number) for number in numbers] for name, *numbers in cells[2:]}


def check(capsys, folder: Path, *flags: str) -> Outcome:
    failure = None
    try:
        main([*flags, "--output_dir", str(folder), "--num_thread_reader", "2", "--max_frames", "2"])
    except SystemExit as stop:
        failure = stop.code
    out, errors = capsys.readouterr()
    rows = []
    if (folder / "data_problems.csv").exists():
        with (folder / "data_problems.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        assert header == ["split", "video_id", "path", "problem", "detail"]
    return Outcome(failure, read_table(out), [tuple(row) for row in rows], out, errors)


def write_msrvtt(folder: Path, train: dict[str, list[str]], test: list[tuple[str, str]]) -> list[str]:
    """MSR-VTT's files for these captions; the flags that name them."""
    folder.mkdir(exist_ok=True)
    sentences = [f'{{"video_id": "{name}", "caption": "{text}"}}' for name, texts in train.items() for text in texts]
    (folder / "data.json").write_text(f'{{"videos": [], "sentences": [{", ".join(sentences)}]}}')
    (folder / "train.csv").write_text("\n".join(["video_id", *train]))
    (folder / "test.csv").write_text("\n".join(["video_id,sentence", *(f"{name},{text}" for name, text in test)]))
    return [
        "--train_csv", str(folder / "train.csv"), "--val_csv", str(folder / "test.csv"),
        "--data_path", str(folder / "data.json"), "--features_path", str(folder / "videos"),
    ]  # fmt: skip


@pytest.fixture
def faulty(tmp_path) -> tuple[list[str], Path]:
    """A data set with every fault; the flags that read it, and the folder of its videos."""
    videos = tmp_path / "videos"
    for name, count in (("good", 30), ("short", 5), ("both", 20), ("fine", 10)):
        write_numbered(videos / f"{name}.mp4", steady(count, 10), 10)
    shutil.copy(videos / "good.mp4", videos / "twin.avi")
    shutil.copy(videos / "good.mp4", videos / "leak.mp4")
    (videos / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(3000))
    (videos / "empty.mp4").touch()
    train = {
        "good": ["a dog runs", "a dog runs", "one two three four five six seven eight"],
        "gone": ["a cat"], "noise": ["a bird"], "short": ["a fish"], "twin": ["a horse"], "both": ["a cow"],
    }  # fmt: skip
    test = [("both", "a man"), ("leak", "a girl"), ("absent", "a boy"), ("empty", "a car"), ("fine", "a girl")]
    return [*write_msrvtt(tmp_path, train, test), "--max_words", "9"], videos


def test_every_fault_is_listed(faulty, tmp_path, capsys):
    flags, _ = faulty
    outcome = check(capsys, tmp_path / "report", *flags)
    found = [(split, name, Path(path).name, problem) for split, name, path, problem, _ in outcome.rows]
    assert found == [
        ("train", "gone", "", "missing"),
        ("train", "noise", "noise.mp4", "unreadable"),
        ("train", "short", "short.mp4", "shorter than 1 s"),
        ("train", "good", "good.mp4", "same content as another"),
        ("train", "twin", "twin.avi", "same content as another"),
        ("train", "good", "good.mp4", "caption repeated"),
        ("train", "good", "good.mp4", "caption cut"),
        ("test", "absent", "", "missing"),
        ("test", "empty", "empty.mp4", "unreadable"),
        ("test", "leak", "leak.mp4", "same content as another"),
        ("test", "both", "both.mp4", "also in training"),
        ("test", "leak", "leak.mp4", "caption repeated"),
        ("test", "fine", "fine.mp4", "caption repeated"),
    ]
    details = {row[1:2] + row[3:4]: row[4] for row in outcome.rows}
    assert details["short", "shorter than 1 s"] == "0.50 s"
    assert details["leak", "same content as another"] == "train good, train twin"
    assert details["good", "same content as another"] == "train twin, test leak"
    assert details["good", "caption cut"] == "10 tokens: one two three four five six seven eight"
    assert details["good", "caption repeated"] == "2 times, of 1 videos: a dog runs"
    assert "empty" in details["empty", "unreadable"] and details["noise", "unreadable"]
    assert outcome.table == {"train": [6, 8, 1, 1, 0, 1, 2, 0, 1, 1, 0], "test": [5, 5, 1, 1, 0, 0, 1, 1, 2, 0, 0]}
    assert outcome.failure == "check_data: 2 videos of the test split are missing or unreadable: absent, empty"


def test_faults_of_training_alone_are_no_failure(faulty, tmp_path, capsys):
    flags, videos = faulty
    shutil.copy(videos / "fine.mp4", videos / "absent.mp4")
    shutil.copy(videos / "both.mp4", videos / "empty.mp4")
    outcome = check(capsys, tmp_path / "report", *flags, "--max_words", "10")
    assert outcome.failure is None
    assert outcome.table["train"][2:4] == [1, 1] and outcome.table["test"][2:4] == [0, 0]
    assert all(problem != "caption cut" for _, _, _, problem, _ in outcome.rows)


def test_the_histograms_are_a_picture(faulty, tmp_path, capsys):
    check(capsys, tmp_path / "report", *faulty[0])
    picture = cv2.imread(str(tmp_path / "report/data_histograms.png"))
    assert picture.shape[0] > 300 and picture.shape[1] > 2 * picture.shape[0]
    left, right = np.array_split(picture, 2, axis=1)
    assert (left < 250).mean() > 0.01 and (right < 250).mean() > 0.01


def test_shares_of_a_histogram():
    (axes,) = Figure().subplots(1, squeeze=False)[0]
    draw_shares(axes, {"train": [3, 3, 4, 9], "test": [4.5], "val": []}, 6, "here")
    outlines = [outline.get_xy() for outline in axes.patches]
    height = [{x: max(xy[xy[:, 0] == x + 0.0][:, 1]) for x in set(xy[:, 0])} for xy in outlines]
    assert [height[0][edge] for edge in (3, 4, 5, 9, 10)] == [0.5, 0.5, 0.25, 0.25, 0.25]
    assert [height[1][edge] for edge in (3, 4, 5, 6)] == [0, 1, 1, 0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train (4)", "test (1)", "val (0)", "here"]


def test_a_split_that_cannot_be_read_is_told(faulty, tmp_path, capsys):
    flags, _ = faulty
    (tmp_path / "train.csv").unlink()
    outcome = check(capsys, tmp_path / "a", *flags)
    assert f"train: not read: no such file: {tmp_path}/train.csv (--train_csv)" in outcome.out
    assert list(outcome.table) == ["test"]
    (tmp_path / "test.csv").write_text("video_id\n")
    nothing = check(capsys, tmp_path / "b", *flags)
    assert nothing.failure.startswith("check_data: train: no such file") and "needs the columns" in nothing.failure
    assert nothing.table == {} and not (tmp_path / "b").exists()
    write_msrvtt(tmp_path, {"good": ["a dog"]}, [("good", "a dog")])
    (tmp_path / "test.csv").unlink()
    assert "the test split cannot be read" in check(capsys, tmp_path / "c", *flags).failure


def test_same_content_is_told_from_same_size(tmp_path):
    contents = {"a": b"1" * 9, "b": b"2" * 9, "c": b"1" * 9, "d": b"22", "e": b"22", "f": b"4444"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    found = find_same_content([tmp_path / name for name in (*contents, "gone")], processes=2)
    assert {path.name: digest for path, digest in found.items()} == {
        name: hashlib.sha256(contents[name]).hexdigest() for name in "abcde"
    }


class VanishingPath(type(Path())):
    """A file that is removed after one has seen that it is there."""

    def is_file(self, **_) -> bool:
        return True


def test_a_file_that_vanishes_has_no_twin(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"1")
    found = find_same_content([tmp_path / "a", VanishingPath(tmp_path / "gone"), tmp_path / "b"], processes=1)
    assert {path.name for path in found} == {"a", "b"}


def test_time_spans_beyond_the_end_are_unreadable(tmp_path, capsys):
    write_numbered(tmp_path / "videos/a.mp4", steady(30, 10), 10)
    rows = ["a,begins,0,1,test", "a,ends,2,9,test", "a,is over,7,9,test", "a,again,7,9,train"]
    (tmp_path / "clips.csv").write_text("\n".join(["video,caption,start,end,split", *rows]))
    flags = ["--datatype", "custom", "--data_path", str(tmp_path / "clips.csv"), "--features_path", str(tmp_path)]
    outcome = check(capsys, tmp_path / "report", *flags)
    assert outcome.table == {"train": [1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0], "test": [1, 3, 0, 1, 0, 0, 0, 1, 0, 0, 0]}
    assert all("second 7" in row[4] for row in outcome.rows if row[3] == "unreadable")
    assert "val: not read" in outcome.out


def test_the_cache_holds_what_training_reads(faulty, tmp_path, capsys):
    flags, videos = faulty
    flags += ["--slice_framepos", "2", "--frame_cache", str(tmp_path / "cache"), "--image_size", "32"]
    outcome = check(capsys, tmp_path / "report", *flags)
    assert re.search(r"at most 0\.0 GB of frames, of 8 videos; \d+\.\d GB are free", outcome.out)
    assert "NOT complete" not in outcome.errors
    readable = ["good.mp4", "short.mp4", "both.mp4", "fine.mp4", "twin.avi", "leak.mp4"]
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == len(readable)
    cache = FrameCache(tmp_path / "cache", RawVideoExtractor(framerate=1, size=32))
    for name in readable:
        cache.read_frames(videos / name, 2, slice_framepos=2, frame_order=1)
    assert (cache.hits, cache.misses) == (6, 0)


def test_a_cache_that_cannot_be_filled_is_told(faulty, tmp_path, capsys):
    (tmp_path / "cache").mkdir()
    for number in range(256):
        (tmp_path / f"cache/{number:02x}").touch()  # where the folders of the entries belong
    flags = ["--frame_cache", str(tmp_path / "cache"), "--image_size", "32"]
    assert f"{tmp_path}/cache is NOT complete" in check(capsys, tmp_path / "report", *faulty[0], *flags).errors


@pytest.mark.parametrize(
    ("extension", "codec"), [("avi", "mpeg4"), ("avi", "libx264"), ("mkv", "libx264"), ("webm", "libvpx")]
)
def test_files_that_are_cut_end_early(tmp_path, capsys, extension, codec):
    whole = tmp_path / f"videos/whole.{extension}"
    write_numbered(whole, steady(200, 10), 10, codec=codec)
    content = whole.read_bytes()
    (tmp_path / f"videos/part.{extension}").write_bytes(content[: len(content) * 3 // 10])
    outcome = check(capsys, tmp_path / "report", *write_msrvtt(tmp_path, {"whole": ["a dog"]}, [("part", "a cat")]))
    assert outcome.failure is None
    (split, name, _, problem, detail), *others = outcome.rows
    assert (split, name, problem) == ("test", "part", "ends early")
    assert {(row[1], row[3]) for row in others} <= {("part", "lost frames")}  # the cut may go through a frame
    end, promised = map(float, re.fullmatch(r"it ends at second (.+), not (.+) as its header says", detail).groups())
    assert 1 < end < 10 and promised == pytest.approx(20, abs=0.15)


def test_a_damaged_frame_between_the_sampled_ones_is_listed(tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    for name in ("whole", "part"):
        write_seconds(tmp_path / f"videos/{name}.mp4", "libx264")
    damage(tmp_path / "videos/part.mp4", frame=9 * 10)
    flags = write_msrvtt(tmp_path, {"whole": ["a dog"]}, [("part", "a cat")])
    outcome = check(capsys, tmp_path / "report", *flags, "--max_frames", "2", "--slice_framepos", "2")
    ((split, name, _, problem, detail),) = outcome.rows
    assert (split, name, problem) == ("test", "part", "lost frames")
    assert re.search("frames? (could not be decoded|decoded with errors)", detail)
    assert (outcome.failure, outcome.table["test"][-1]) == (None, 1)


def test_files_whose_header_states_more_than_the_film_do_not_end_early(tmp_path):
    trimmed = write_numbered(tmp_path / "a.mp4", steady(200, 10), 10)
    head, tail = trimmed.read_bytes().split(b"elst")
    edit = struct.pack(">I", 20_000)  # its length in milliseconds, after version, flags and the number of edits
    assert tail[8:12] == edit
    trimmed.write_bytes(head + b"elst" + tail[:8] + struct.pack(">I", 8_000) + tail[12:])
    assert read_through(trimmed) == (8.0, "", "")
    late = write_numbered(tmp_path / "late.mkv", [5 + second for second in steady(100, 10)], 10)
    assert read_through(late)[1] == ""
    with av.open(str(late)) as film, av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream_from_template(film.streams.video[0])
        sound = container.add_stream("pcm_s16le", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 20 * 8000), np.int16), layout="mono")
        silence.sample_rate, silence.pts = 8000, 0
        container.mux(sound.encode(silence))
        for packet in film.demux(video=0):
            packet.stream = stream
            container.mux(packet)
    with av.open(str(tmp_path / "sound.mkv")) as container:
        assert container.duration >= 20 * av.time_base
    assert read_through(tmp_path / "sound.mkv")[1] == ""


@pytest.mark.parametrize(("name", "codec", "seconds"), [("a.m2v", "mpeg2video", 0.8), ("a.h264", "libx264", 0.8)])
def test_raw_streams_have_the_length_of_their_frames(tmp_path, name, codec, seconds):
    assert read_through(write_numbered(tmp_path / name, steady(20, 25), 25, codec=codec)) == (seconds, "", "")


@pytest.mark.real_clips
def test_no_real_clip_is_damaged(real_clips):
    clips = sorted((real_clips / "videos").iterdir())
    assert len(clips) > 50
    assert {path.name: damage for path in clips if any(damage := read_through(path)[1:])} == {}


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    return write_mini_msrvtt(
        folder, train_videos=6, test_videos=3, captions_per_video=2, width=32, height=32, fps=5, max_segments=2
    )


@pytest.mark.parametrize("data_type", WRITERS)
def test_every_data_set_is_checked_in_its_own_form(mini, tmp_path, capsys, data_type):
    flags = write_miniature(data_type, mini, tmp_path)
    lost = sorted((path for path in (tmp_path / "videos").rglob("*") if path.is_file()), key=lambda path: path.stem)[:2]
    one_text = data_type in ("activity", "didemo", "lsmdc")
    clean = check(capsys, tmp_path / "clean", *flags, "--max_words", "70")
    assert clean.failure is None
    assert clean.table["train"][:4] == [6, 6 if one_text else 12, 0, 0]
    assert clean.table["test"][:4] == [3, 3 if one_text else 6, 0, 0]
    assert list(clean.table) == ["train", "test"] if data_type in ("activity", "custom") else ["train", "val", "test"]
    for path in lost:
        path.unlink()
    faulty = check(capsys, tmp_path / "faulty", *flags)
    assert faulty.table["train"][2] + faulty.table["test"][2] == 2
    assert [faulty.table[name][:2] for name in clean.table] == [clean.table[name][:2] for name in clean.table]


class LoggingExtractor:
    """Notes every call in a file; `crash.mp4` ends the process as a faulty decoder does."""

    def __init__(self, log: Path):
        self.log = log

    def read_frames(self, path, max_frames, slice_framepos, start_time, end_time):
        if path.name == "crash.mp4":
            os.kill(os.getpid(), signal.SIGSEGV)
        with self.log.open("a") as file:
            file.write(f"{path.name} {max_frames} {slice_framepos} {start_time} {end_time}\n")


def test_a_file_is_read_once_and_a_crash_is_its_own_problem(tmp_path):
    files = {name: write_numbered(tmp_path / f"{name}.mp4", steady(10, 10), 10) for name in ("a", "b", "crash")}
    captions = [Caption("a", "1"), Caption("a", "2"), Caption("b", "3", 0, 1), Caption("b", "4", 1, 2)]
    splits = [
        Split("train", Annotations([*captions, Caption("crash", "5")], files)),
        Split(
            "test", Annotations([*captions[:3], Caption("lost", "6")], {name: files[name] for name in "ab"}), ("lost",)
        ),
    ]
    args = Namespace(max_frames=7, slice_framepos=1, num_thread_reader=2)
    facts = read_files(splits, LoggingExtractor(tmp_path / "log"), args)
    calls = (tmp_path / "log").read_text().splitlines()
    # A file that was read beside the crashing one may be read again.
    assert set(calls) == {"a.mp4 7 1 None None", "b.mp4 7 1 0 1", "b.mp4 7 1 1 2"}
    died = "the process that read it was killed by SIGSEGV"
    assert facts == {
        files["a"]: FileFacts(1.0), files["b"]: FileFacts(1.0), files["crash"]: FileFacts(0.0, {(None, None): died}),
    }  # fmt: skip
    (tmp_path / "log").unlink()
    del splits[0].annotations.video_paths["crash"]
    read_files(splits, LoggingExtractor(tmp_path / "log"), args)
    assert sorted((tmp_path / "log").read_text().splitlines()) == sorted(set(calls))


@pytest.mark.parametrize(
    "flag", ["--max_words", "--num_thread_reader", "--max_frames", "--feature_framerate", "--image_size"]
)
def test_arguments_that_make_no_sense(faulty, tmp_path, flag):
    with pytest.raises(SystemExit, match=f"{flag} 0 must be at least 1"):
        main([*faulty[0], "--output_dir", str(tmp_path / "report"), flag, "0"])


def test_a_file_in_the_place_of_the_report_is_told(faulty, tmp_path, capsys):
    (tmp_path / "report").touch()
    for folder in (tmp_path / "report", tmp_path / "report/deep"):
        assert f"--output_dir {folder} cannot be created" in check(capsys, folder, *faulty[0]).failure


@pytest.mark.real_clips
def test_the_command_reports_the_broken_real_clips(real_clips, tmp_path):
    """That FFmpeg is silent about them is left to the reader's tests."""
    names = sorted(path.stem for path in (real_clips / "broken").iterdir())
    flags = write_msrvtt(tmp_path, {"video7500": ["a goal"]}, [(name, f"clip {name}") for name in names])
    (tmp_path / "videos").symlink_to(real_clips, target_is_directory=True)
    command = [sys.executable, "-m", "scripts.check_data", *flags, "--max_words", "30", "--output_dir", str(tmp_path)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    table = read_table(result.stdout)
    assert table["train"] == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    videos, captions, missing, unreadable, *_ = table["test"]
    assert (videos, captions, missing) == (27, 27, 0) and unreadable >= 20
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"check_data: {unreadable} videos of the test split are missing or unreadable: ")
