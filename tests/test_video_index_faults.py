"""An index after kills and on a full disk."""

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.helpers.search_cases import (
    FakeEncoder,
    check_index,
    counts,
    run_update,
    write_files,
)
from tests.helpers.search_cases import encoder as encoder  # a fixture
from tests.helpers.search_cases import made as made  # a fixture
from tests.helpers.search_cases import videos as videos  # a fixture
from video_search import index_files, index_reader, indexing
from video_search.index_reader import IndexReader

FORK = multiprocessing.get_context("fork")


# Updates that do not end


class DyingEncoder(FakeEncoder):
    """Kills its process when so many videos are put."""

    def __init__(self, videos_put: int):
        super().__init__()
        self.videos_put = videos_put

    def videos(self, *arguments):
        for number, result in enumerate(super().videos(*arguments)):
            if number == self.videos_put:
                os.kill(os.getpid(), signal.SIGKILL)
            yield result


def killed(target, *arguments) -> None:
    process = FORK.Process(target=target, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(("commit_seconds", "done"), [(0, 3), (60, 0)])
def test_a_killed_first_update_continues(tmp_path, videos, encoder, monkeypatch, commit_seconds, done):
    index = tmp_path / "index"
    monkeypatch.setattr(indexing, "COMMIT_SECONDS", commit_seconds)
    killed(run_update, index, videos, DyingEncoder(3))
    assert (index / "index.json").exists() == bool(done)
    assert counts(run_update(index, videos, encoder)) == (7 - done, 0, 0, done, 0)
    assert len(encoder.calls_since()) == 7 - done
    check_index(index, videos)


@pytest.mark.parametrize(("commit_seconds", "done"), [(0, 3), (60, 0)])
def test_a_killed_later_update_continues(made, videos, encoder, monkeypatch, commit_seconds, done):
    encoder.calls_since()
    write_files(videos, {f"new{number}.mp4": str(number) for number in range(5)})
    monkeypatch.setattr(indexing, "COMMIT_SECONDS", commit_seconds)
    killed(run_update, made, videos, DyingEncoder(3))
    with (made / "frames-0.f32").open("ab") as file:
        file.write(b"what a killed update left behind")
    shutil.copyfile(made / "frames-0.f32", made / "frames-7.f32")
    assert len(IndexReader.open(made)) == 7 + done
    assert counts(run_update(made, videos, encoder)) == (5 - done, 0, 0, 7 + done, 0)
    check_index(made, videos)
    assert len(list(made.glob("*.f32"))) == 3


class InterruptedEncoder(FakeEncoder):
    """The user interrupts when two videos are put."""

    def videos(self, *arguments):
        for number, result in enumerate(super().videos(*arguments)):
            if number == 2:
                raise KeyboardInterrupt
            yield result


def test_an_interrupted_update_loses_nothing(tmp_path, videos, encoder):
    index = tmp_path / "index"
    with pytest.raises(KeyboardInterrupt):
        run_update(index, videos, InterruptedEncoder())
    assert len(IndexReader.open(index)) == 2
    assert counts(run_update(index, videos, encoder)) == (5, 0, 0, 2, 0)
    check_index(index, videos)


def die_before_the_new_generation_counts(index: Path, folder: Path) -> None:
    replacements, replace = [], os.replace

    def replace_or_die(*names):
        replacements.append(names)
        if len(replacements) == 3:  # of index.json: by the update, before the copy and after it
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*names)

    os.replace = replace_or_die
    run_update(index, folder, FakeEncoder())


def test_killed_between_two_generations(made, videos, encoder):
    for name in "abcd":
        (videos / f"{name}.mp4").unlink()
    killed(die_before_the_new_generation_counts, made, videos)
    assert (made / "frames-0.f32").exists()
    assert (made / "frames-1.f32").exists()
    check_index(made, videos)
    write_files(videos, {"new.mp4": "new"})
    run_update(made, videos, encoder)
    check_index(made, videos)
    assert len(list(made.glob("*.f32"))) == 3


def test_a_generation_that_ends_while_it_is_opened(made, videos, encoder, monkeypatch):
    """The reader knows the table of a generation whose arrays an update has just removed."""
    before = index_files.read_contents(made)
    for name in "abcd":
        (videos / f"{name}.mp4").unlink()
    run_update(made, videos, encoder)
    answers = [before]
    read = index_files.read_contents
    monkeypatch.setattr(index_reader, "read_contents", lambda index: answers.pop() if answers else read(index))
    assert set(IndexReader.open(made).paths) == {"e.mp4", "f.mp4", "deep/er/g.MKV"}


@pytest.mark.parametrize("room", ["arrays", "table"])
def test_a_full_disk_leaves_the_index(tmp_path, encoder, small_disk, room):
    disk = small_disk("256k")
    folder, index = write_files(tmp_path / "videos", {f"{n}.mp4": str(n) for n in range(20)}), disk / "index"
    run_update(index, folder, encoder)
    if room == "arrays":
        write_files(folder, {f"more{n}.mp4": str(n) for n in range(3000)})
    else:  # filled by the names of unreadable files
        write_files(folder, {f"more{n}{'n' * 200}.mp4": "bad" for n in range(1500)})
    table = (index / "index.json").read_bytes()
    with pytest.raises(OSError, match="cannot be written.*No space left"):
        run_update(index, folder, encoder)
    assert (index / "index.json").read_bytes() == table
    assert len(IndexReader.open(index)) == 20
    shutil.rmtree(folder)
    write_files(folder, {f"{n}.mp4": str(n) for n in range(25)})
    run_update(index, folder, encoder)
    check_index(index, folder)
