"""Updates of an index: files that are read again, and refusals."""

import json
import multiprocessing
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dataloaders import video_files
from dataloaders.unreadable import write_reasons
from tests.helpers.search_cases import (
    FakeEncoder,
    check_index,
    counts,
    files_of,
    run_update,
    vectors_of,
    write_files,
)
from tests.helpers.search_cases import encoder as encoder  # a fixture
from tests.helpers.search_cases import made as made  # a fixture
from tests.helpers.search_cases import videos as videos  # a fixture
from video_search import index_writer
from video_search.index_reader import IndexReader
from video_search.index_writer import IndexWriter
from video_search.indexing import update
from video_search.local_store import LocalStore
from video_search.reading import UnreadableFile
from video_search.vectors import Query

FORK = multiprocessing.get_context("fork")


# Files that are read again


def test_only_new_and_changed_videos_are_encoded(tmp_path, videos, encoder):
    index = tmp_path / "index"
    summary = run_update(index, videos, encoder)
    assert counts(summary) == (7, 0, 0, 0, 0)
    assert summary.frames == sum(len(vectors_of(file.read_bytes()).frames) for file in videos.rglob("*.[mM]*"))
    assert encoder.calls_since() == ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4", "f.mp4", "g.MKV"]
    check_index(index, videos)

    assert counts(run_update(index, videos, encoder)) == (0, 0, 0, 7, 0)
    assert encoder.calls_since() == []

    (videos / "a.mp4").write_text("another content")
    (videos / "b.mp4").unlink()
    (videos / "h.mp4").write_text("new")
    os.utime(videos / "c.mp4", ns=(1, 1))  # as a copy has it whose content may be another one
    assert counts(run_update(index, videos, encoder)) == (1, 2, 1, 4, 0)
    assert encoder.calls_since() == ["a.mp4", "c.mp4", "h.mp4"]
    check_index(index, videos)


def test_unreadable_files_are_read_again_when_they_change(tmp_path, videos, encoder):
    index = tmp_path / "index"
    (videos / "a.mp4").write_text("bad")
    summary = run_update(index, videos, encoder)
    assert counts(summary) == (6, 0, 0, 0, 1)
    assert summary.unreadable == [UnreadableFile("a.mp4", "no video")]
    assert IndexReader.open(index).files()["a.mp4"].reason == "no video"
    encoder.calls_since()
    again = run_update(index, videos, encoder)
    assert (counts(again), encoder.calls_since()) == ((0, 0, 0, 6, 1), [])
    assert again.unreadable == summary.unreadable
    retried = run_update(index, videos, encoder, retry_bad=True)
    assert (counts(retried), encoder.calls_since()) == ((0, 0, 0, 6, 1), ["a.mp4"])
    (videos / "a.mp4").write_text("good now")
    assert counts(run_update(index, videos, encoder)) == (1, 0, 0, 6, 0)
    (videos / "a.mp4").write_text("bad again")
    assert counts(run_update(index, videos, encoder)) == (0, 0, 1, 6, 1)
    check_index(index, videos)
    (videos / "a.mp4").unlink()
    assert counts(run_update(index, videos, encoder)) == (0, 0, 0, 6, 0)
    assert "a.mp4" not in IndexReader.open(index).files()


def test_files_that_cannot_be_opened_are_read_again(tmp_path, videos, encoder):
    index = tmp_path / "index"
    write_files(videos, {"a.mp4": "shut"})
    failed = UnreadableFile("a.mp4", "Input/output error", is_transient=True)
    for _ in range(2):
        summary = run_update(index, videos, encoder)
        assert summary.unreadable == [failed]
        assert "a.mp4" in encoder.calls_since()
    assert counts(summary) == (0, 0, 0, 6, 1)
    encoder.is_disk_broken = False
    assert counts(run_update(index, videos, encoder)) == (1, 0, 0, 6, 0)
    check_index(index, videos)


def test_a_folder_that_cannot_be_read_keeps_its_videos(made, videos, encoder, monkeypatch):
    scandir = os.scandir

    def scan(path, shut):
        if Path(path).name == shut:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    (videos / "a.mp4").unlink()
    encoder.calls_since()
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", partial(scan, shut="deep"))
        summary = run_update(made, videos, encoder)
    assert counts(summary) == (0, 0, 1, 6, 1)
    assert summary.unreadable == [
        UnreadableFile("deep", "this folder cannot be read: Permission denied", is_transient=True)
    ]
    assert counts(run_update(made, videos, encoder)) == (0, 0, 0, 6, 0)
    assert encoder.calls_since() == []
    check_index(made, videos)
    monkeypatch.setattr(os, "scandir", partial(scan, shut=videos.name))
    with pytest.raises(PermissionError):
        run_update(made, videos, encoder)


def test_videos_out_of_reach_are_kept(tmp_path, encoder):
    """A disk behind links, a mount point, and a folder that vanished; deleted files of other folders are removed."""
    folder, disk, index = tmp_path / "videos", tmp_path / "disk", tmp_path / "index"
    write_files(folder, {"a.mp4": "a", "b.mp4": "b", "mounted/c.mp4": "c", "mounted/d.mp4": "d", "2019/e.mp4": "e"})
    write_files(disk, {"films/f.mp4": "f", "films/deep/g.mp4": "g"})
    (folder / "nas").symlink_to(disk / "films", target_is_directory=True)
    (folder / "link.mp4").symlink_to(disk / "films" / "f.mp4")
    assert counts(run_update(index, folder, encoder)) == (8, 0, 0, 0, 0)
    encoder.calls_since()
    for name in ("disk", "videos/mounted", "videos/2019"):
        (tmp_path / name).rename(tmp_path / f"{Path(name).name}.away")
    (folder / "mounted").mkdir()
    write_files(folder / "mounted", {".DS_Store": "hidden files leave a folder empty"})
    (folder / "b.mp4").unlink()
    summary = run_update(index, folder, encoder)
    kept = ["2019/e.mp4", "link.mp4", "mounted/c.mp4", "mounted/d.mp4", "nas/deep/g.mp4", "nas/f.mp4"]
    assert (counts(summary), summary.out_of_reach) == ((0, 0, 1, 7, 0), kept)
    assert summary.passed_over == {
        "mounted/.DS_Store": video_files.HIDDEN,
        "link.mp4": video_files.BROKEN_LINK,
        "nas": video_files.BROKEN_LINK,
    }
    for file in (folder / "mounted").iterdir():
        file.unlink()
    (folder / "mounted").rmdir()
    for name in ("disk", "videos/mounted", "videos/2019"):
        (tmp_path / f"{Path(name).name}.away").rename(tmp_path / name)
    (folder / "mounted" / "c.mp4").unlink()
    assert counts(run_update(index, folder, encoder)) == (0, 0, 1, 6, 0)
    assert encoder.calls_since() == []
    check_index(index, folder)


def test_videos_out_of_reach_are_removed_by_the_flag(tmp_path, encoder):
    folder, index = tmp_path / "videos", tmp_path / "index"
    write_files(folder, {"a.mp4": "a", "2019/e.mp4": "bad", "2019/f.mp4": "f"})
    run_update(index, folder, encoder)
    shutil.rmtree(folder / "2019")
    assert counts(run_update(index, folder, encoder)) == (0, 0, 0, 2, 0)
    summary = run_update(index, folder, encoder, remove_missing=True)
    assert (counts(summary), summary.out_of_reach) == ((0, 0, 1, 1, 0), [])
    check_index(index, folder)
    assert list(IndexReader.open(index).files()) == ["a.mp4"]


def test_excluded_videos_are_removed_and_not_found(tmp_path, encoder):
    folder, index = tmp_path / "videos", tmp_path / "index"
    write_files(folder, {"a.mp4": "a", "proxies/a.mp4": "b", "proxies/deep/a.mp4": "c", "a.lrv": "d"})
    assert counts(run_update(index, folder, encoder)) == (4, 0, 0, 0, 0)
    summary = run_update(index, folder, encoder, exclude=["prox*", "*.lrv"])
    assert (counts(summary), summary.out_of_reach) == ((0, 0, 3, 1, 0), [])
    assert set(summary.passed_over) == {"proxies", "a.lrv"}


def test_an_entry_that_cannot_be_looked_at_is_listed(tmp_path, encoder):
    folder, index = tmp_path / "videos", tmp_path / "index"
    write_files(folder, {"a.mp4": "a"})
    (folder / "loop.mp4").symlink_to("loop.mp4")
    summary = run_update(index, folder, encoder)
    (unread,) = summary.unreadable
    assert (unread.path, unread.is_transient, "Too many levels" in unread.reason) == ("loop.mp4", True, True)
    assert counts(summary) == (1, 0, 0, 0, 1)


def test_any_history_leaves_what_is_in_the_folder(tmp_path, encoder, monkeypatch):
    """Random changes over many updates, through dead rows and new generations."""
    monkeypatch.setattr(index_writer, "VIDEOS_AT_ONCE", 3)
    random = np.random.default_rng(0)
    folder, index = tmp_path / "videos", tmp_path / "index"
    generations = set()
    for step in range(40):
        for name in random.choice(12, size=random.integers(1, 4), replace=False):
            file = folder / f"{name}.mp4"
            if random.random() < 0.4 and len(list(folder.glob("*"))) > 1:
                file.unlink(missing_ok=True)
            else:
                write_files(folder, {file.name: f"{'bad' if random.random() < 0.2 else ''} {step} {name}"})
        run_update(index, folder, encoder)
        check_index(index, folder)
        contents = json.loads((index / "index.json").read_text())
        assert len(contents["videos"]) == contents["rows"]
        generations.add(contents["generation"])
    assert len(generations) > 3
    arrays = {f"{name}-{max(generations)}.f32" for name in ("frames", "pooled", "tokens")}
    assert set(files_of(index)) == arrays | {"index.json", "writer.lock"}


def test_dead_rows_are_left_out_and_then_dropped(tmp_path, videos, encoder):
    index = tmp_path / "index"
    run_update(index, videos, encoder)
    reader, unread = IndexReader.open(index), IndexReader.open(index)
    before = reader.vectors.frames[:].tobytes()
    (videos / "a.mp4").write_text("another content")
    (videos / "b.mp4").unlink()
    store = IndexWriter.open(index)
    update(store, videos, encoder)
    check_index(index, videos)
    assert len(json.loads((index / "index.json").read_text())["videos"]) == 6
    assert json.loads((index / "index.json").read_text())["rows"] == 8
    store.compact()
    store.close()
    assert json.loads((index / "index.json").read_text())["rows"] == 6
    assert not (index / "frames-0.f32").exists()
    check_index(index, videos)
    for opened in (reader, unread):  # whether or not they had read their vectors
        assert opened.vectors.frames[:].tobytes() == before
    assert counts(run_update(index, videos, encoder)) == (0, 0, 0, 6, 0)
    assert (index / "frames-1.f32").exists()


def test_vectors_are_read_when_they_are_needed(made, monkeypatch):
    reads = []
    preadv = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda file, buffers, offset: reads.append(offset) or preadv(file, buffers, offset)
    )
    store = IndexReader.open(made)
    assert len(reads) == 1  # weights and seconds
    found = store.example("c.mp4")
    assert len(reads) == 3  # of one video
    for array in (store.vectors.frames[:], store.vectors.pooled[:]):
        assert not array.flags.writeable
    total = len(reads)
    np.testing.assert_array_equal(store.example("c.mp4").frames, found.frames)
    assert len(reads) == total  # they stay in memory


def test_names_of_all_kinds_and_links(tmp_path, encoder):
    folder, index = tmp_path / "videos", tmp_path / "index"
    names = ['a "b", c.mp4', "line\nbreak.mp4", "红色 🎈.mp4", " .mp4", "-f.mp4", "deep/a.mp4", "deep/A.mp4"]
    write_files(folder, dict.fromkeys(names, "x"))
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.mp4")).write_text("latin-1")
    outside = write_files(tmp_path / "outside", {"far.mp4": "far"})
    (folder / "link.mp4").symlink_to(outside / "far.mp4")
    (folder / "linked").symlink_to(outside, target_is_directory=True)
    (folder / "deep" / "circle").symlink_to(folder, target_is_directory=True)
    (folder / "broken.mp4").symlink_to(folder / "nothing.mp4")
    summary = run_update(index, folder, encoder)
    (bad,) = summary.unreadable
    assert (bad.path, "UTF-8" in bad.reason) == ("caf\udce9.mp4", True)
    assert set(IndexReader.open(index).paths) == {*names, "link.mp4", "linked/far.mp4"}
    check_index(index, folder)
    write_reasons(tmp_path / "bad.csv", [(bad.path, bad.reason)])
    assert b"caf\xe9.mp4," in (tmp_path / "bad.csv").read_bytes()


def test_candidates_are_the_nearest(tmp_path, videos, encoder):
    run_update(tmp_path / "index", videos, encoder)
    store = IndexReader.open(tmp_path / "index")
    wanted = vectors_of((videos / "d.mp4").read_bytes()).pooled[0]
    query = Query(wanted[None], np.ones(1), wanted, 0.0, ("d",))
    paths, found = store.candidates(query, 3)
    distance = {path: -float(store.example(path).pooled[0] @ wanted) for path in store.paths}
    assert paths == sorted(distance, key=distance.get)[:3]
    np.testing.assert_array_equal(found.frames, np.concatenate([store.example(path).frames for path in paths]))
    with pytest.raises(ValueError, match="no video 'nothing.mp4'"):
        store.example("nothing.mp4")


# Refusals, each of which leaves the index as it is


def check_refused(index: Path, message: str, folder: Path, encoder: FakeEncoder, **options) -> None:
    before = files_of(index)
    with pytest.raises((OSError, ValueError), match=message) as error:
        run_update(index, folder, encoder, **options)
    assert "\n" not in str(error.value)
    assert files_of(index) == before


def test_another_encoder(made, videos):
    message = "sim_header 'wti' of the index, 'meanP' here"
    check_refused(made, message, videos, FakeEncoder({"sim_header": "meanP"}, "e" * 64))
    check_refused(made, "the settings are the same, but the weights differ", videos, FakeEncoder(fingerprint="e" * 64))


def test_a_moved_folder(made, videos, tmp_path, encoder):
    elsewhere = videos.rename(tmp_path / "elsewhere")
    check_refused(made, "no such folder", videos, encoder)
    check_refused(made, "--moved", elsewhere, encoder)
    (elsewhere / "a.mp4").write_text("another content")
    encoder.calls_since()
    assert counts(run_update(made, elsewhere, encoder, moved=True)) == (0, 1, 0, 6, 0)
    assert encoder.calls_since() == ["a.mp4"]
    assert IndexReader.open(made).folder == elsewhere
    check_index(made, elsewhere)
    assert counts(run_update(made, elsewhere, encoder)) == (0, 0, 0, 7, 0)


def test_a_folder_without_videos_forgets_none(made, videos, encoder):
    shutil.rmtree(videos)
    videos.mkdir()
    check_refused(made, "no video below", videos, encoder)


@pytest.mark.parametrize("name", ["frames-0.f32", "pooled-0.f32", "tokens-0.f32"])
def test_an_index_cut_short(made, videos, encoder, name):
    length = (made / name).stat().st_size
    os.truncate(made / name, length - 1)
    message = f"cut short: {name} has {length - 1} bytes, {length} are expected.*scripts.index {videos} --index {made}"
    with pytest.raises(ValueError, match=message):
        IndexReader.open(made)
    encoder.calls_since()
    assert counts(run_update(made, videos, encoder)) == (0, 1, 0, 6, 0)
    assert encoder.calls_since() == ["f.mp4"]  # the last one, after deep/er/g.MKV
    check_index(made, videos)
    name = name.replace("-0", "-1")
    (made / name).unlink()
    with pytest.raises(ValueError, match=f"cut short: {name} has 0 bytes"):
        IndexReader.open(made)
    assert counts(run_update(made, videos, encoder)) == (0, 7, 0, 0, 0)
    check_index(made, videos)


def damaged(content: str, kind: str) -> str:
    document = json.loads(content)
    if kind == "cut":
        return content[:-20]
    if kind == "garbage":
        return content[:50] + "\x00\x01" + content[52:]
    if kind in ("[]", "{}"):
        return kind
    if kind == "no rows":
        del document["rows"]
        return json.dumps(document)
    if kind == "row":
        document["videos"][2][3] = 99
    elif kind == "frame":
        document["videos"][2][5] += 1000
    elif kind == "twice":
        document["videos"][2][3] = document["videos"][1][3]
    elif kind == "floor":
        document["videos"][2][6] = "high"
    else:
        document[kind] = -1 if isinstance(document[kind], int) else 7
    return json.dumps(document)


KINDS = ["cut", "garbage", "[]", "row", "frame", "twice", "floor", "format", "rows", "settings", "videos", "folder"]


@pytest.mark.parametrize(
    ("kind", "reason"), [*((kind, "") for kind in KINDS), ("{}", "its format is not 1"), ("no rows", "missing: rows")]
)
def test_a_damaged_index(made, videos, encoder, kind, reason):
    content = (made / "index.json").read_text()
    (made / "index.json").write_text(damaged(content, kind))
    check_refused(made, f"is damaged: index.json: {reason}", videos, encoder)
    with pytest.raises(ValueError, match=f"is damaged: index.json: {reason}"):
        IndexReader.open(made)
    (made / "index.json").write_text(content)
    check_index(made, videos)


def test_no_index_and_a_folder_of_other_files(tmp_path, videos, encoder):
    with pytest.raises(FileNotFoundError, match=f"no index in {tmp_path}/nothing"):
        IndexReader.open(tmp_path / "nothing")
    shutil.rmtree(videos / "deep")
    check_refused(videos, "this folder has other files", videos, encoder)


def write_and_wait(index: Path, started, done) -> None:
    store = IndexWriter.open(index)
    started.set()
    done.wait(60)
    store.close()


def test_two_writers_at_once(made, videos, encoder):
    started, done = FORK.Event(), FORK.Event()
    process = FORK.Process(target=write_and_wait, args=(made, started, done))
    process.start()
    started.wait(60)
    check_refused(made, "another process is writing", videos, encoder)
    check_index(made, videos)  # which only reads
    done.set()
    process.join(60)
    assert counts(run_update(made, videos, encoder)) == (0, 0, 0, 7, 0)


def test_a_reader_is_not_written(made, videos, encoder):
    before = files_of(made)
    with pytest.raises(AttributeError, match="begin"):
        update(IndexReader.open(made), videos, encoder)
    assert files_of(made) == before


def test_one_name_for_the_reader_and_the_writer(made, videos, encoder):
    """Scripts of other people open an index by `LocalStore`."""
    assert set(LocalStore.open(made).paths) == set(IndexReader.open(made).paths)
    (videos / "a.mp4").unlink()
    store = LocalStore.open_for_writing(made)
    assert counts(update(store, videos, encoder)) == (0, 0, 1, 6, 0)
    store.close()
    check_index(made, videos)
