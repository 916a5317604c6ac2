"""An index whose files change or decay: what is read is what was written, or an error that names it and the way out."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from modules.heads import HEADS
from tests.helpers.search_cases import FakeEncoder, check_index, counts, run_update, vectors_of, write_files
from tests.helpers.search_cases import encoder as encoder  # a fixture
from tests.helpers.search_cases import made as made  # a fixture
from tests.helpers.search_cases import videos as videos  # a fixture
from video_search.index_files import DamagedIndexError, index_stamp
from video_search.index_reader import IndexReader
from video_search.index_writer import IndexWriter
from video_search.search import VideoSearch
from video_search.vectors import Query


def everything(index: Path) -> tuple:
    """Return the content of an index, bit for bit."""
    store = IndexReader.open(index)
    arrays = [np.asarray(getattr(store.vectors, name)).tobytes() for name in store.vectors.__dataclass_fields__]
    return store.paths, store.files(), store.settings, store.fingerprint, store.folder, arrays


@pytest.mark.parametrize("name", ["index.json", "frames-0.f32", "pooled-0.f32", "tokens-0.f32"])
def test_flipped_bits_are_found(made, name):
    before, content = everything(made), (made / name).read_bytes()
    random = np.random.default_rng(0)
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 1 << random.integers(8)
        (made / name).write_bytes(damaged)
        with pytest.raises((OSError, ValueError), match="the index .*damaged|its format|UTF-8"):
            everything(made)
    (made / name).write_bytes(content)
    assert everything(made) == before


@pytest.mark.parametrize("name", ["frames", "pooled", "tokens"])
def test_an_update_encodes_only_what_is_damaged(made, videos, encoder, name):
    with (made / f"{name}-0.f32").open("r+b") as file:
        file.seek(4)
        file.write(b"\xff")
    with pytest.raises(
        DamagedIndexError, match=f"{name}-0.f32.*'a.mp4'.*scripts.index {videos} --index {made} encodes"
    ):
        everything(made)
    encoder.calls_since()
    summary = run_update(made, videos, encoder)
    assert (counts(summary), summary.damaged) == ((0, 1, 0, 6, 0), ["a.mp4"])
    assert encoder.calls_since() == ["a.mp4"]
    check_index(made, videos)


def test_damaged_videos_are_forgotten_before_they_are_encoded(made, videos, encoder):
    """An update that ends early must not leave them in the index: without checksums nothing would show the damage."""

    class Interrupted(FakeEncoder):
        def videos(self, *_):
            raise KeyboardInterrupt
            yield

    os.truncate(made / "frames-0.f32", 40)
    with pytest.raises(KeyboardInterrupt):
        run_update(made, videos, Interrupted())
    kept = len(IndexReader.open(made))
    assert kept < 7
    assert counts(run_update(made, videos, encoder)) == (7 - kept, 0, 0, kept, 0)
    check_index(made, videos)


def remove_checksums(index: Path) -> None:
    """Make an index of format 1."""
    document = json.loads((index / "index.json").read_text())
    del document["sha256"]
    document["format"], document["videos"] = 1, [row[:7] for row in document["videos"]]
    (index / "index.json").write_text(json.dumps(document))


def test_an_index_without_checksums_gets_them_with_the_next_update(made, videos, encoder):
    before = everything(made)
    remove_checksums(made)
    assert everything(made) == before
    encoder.calls_since()
    summary = run_update(made, videos, encoder)
    assert (counts(summary), summary.unchecked, encoder.calls_since()) == ((0, 0, 0, 7, 0), 7, [])
    assert everything(made) == before
    assert run_update(made, videos, encoder).unchecked == 0
    (made / "pooled-0.f32").write_bytes(bytes((made / "pooled-0.f32").stat().st_size))
    with pytest.raises(DamagedIndexError):
        everything(made)


def test_vectors_that_are_not_finite_are_not_stored(tmp_path, videos):
    class Broken(FakeEncoder):
        def videos(self, paths, *_):
            for number, path in enumerate(paths):
                video = vectors_of(Path(path).read_bytes())
                video.frames[0, 0] = np.nan if number == 2 else 0
                yield path, video

    index = tmp_path / "index"
    with pytest.raises(ValueError, match="the vectors of 'c.mp4' are not finite"):
        run_update(index, videos, Broken())
    assert IndexReader.open(index).paths == ["a.mp4", "b.mp4"]  # what was encoded before is kept


def test_arrays_of_two_generations(made, videos, encoder, tmp_path):
    other = write_files(tmp_path / "others", {f"{name}.mp4": f"other {name}" for name in "abcdefghij"})
    run_update(tmp_path / "other", other, encoder)
    for name in ("frames-0.f32", "tokens-0.f32"):
        shutil.copyfile(tmp_path / "other" / name, made / name)
    with pytest.raises(DamagedIndexError, match="the vectors of 'a.mp4' do not match"):
        IndexReader.open(made)
    run_update(made, videos, encoder)
    check_index(made, videos)


# Readers of an index that changes


def search_of(index: Path) -> VideoSearch:
    encoder = SimpleNamespace(head=HEADS["wti"], settings=FakeEncoder().settings, fingerprint=FakeEncoder().fingerprint)
    return VideoSearch(IndexReader.open(index), encoder)


QUERY = Query(
    np.eye(2, 8, dtype=np.float32), np.full(2, 0.5, np.float32), np.eye(8, dtype=np.float32)[0], 0.0, ("a", "b")
)


def test_a_search_sees_the_next_update(made, videos, encoder):
    search = search_of(made)
    before = search.store
    search.refresh()
    assert search.store is before
    write_files(videos, {"h.mp4": "new"})
    (videos / "a.mp4").unlink()
    run_update(made, videos, encoder)
    assert {*search.rank(QUERY, 10).paths} == {*before.paths}  # a search that had begun
    search.refresh()
    ranking = search.rank(QUERY, 10)
    assert {*ranking.paths} == {*before.paths, "h.mp4"} - {"a.mp4"}
    assert len(before.example("a.mp4").frames)  # of the previous generation, whose files are gone
    assert search.notice == ""


def test_a_search_continues_with_the_index_that_it_has(made, videos, encoder):
    search = search_of(made)
    expected = search.rank(QUERY, 10)

    def check(notice: str) -> None:
        search.refresh()
        assert notice in search.notice
        found = search.rank(QUERY, 10)
        assert found.paths == expected.paths
        np.testing.assert_array_equal(found.scores, expected.scores)

    content = (made / "index.json").read_bytes()
    (made / "index.json").write_bytes(content[:-9])
    check("the index has changed and cannot be used")
    (made / "index.json").unlink()
    check("no index in")
    run_update(made, write_files(videos.parent / "one", {"one.mp4": "one"}), FakeEncoder(fingerprint="e" * 64))
    check("made with another model")
    shutil.rmtree(made)
    check("no index in")
    run_update(made, videos, encoder)
    search.refresh()
    assert search.notice == ""


def test_an_index_that_is_made_again_has_files_of_its_own(made, videos, encoder):
    """Readers may have the arrays open that an index.json which was removed named."""
    reader = IndexReader.open(made)
    expected = {path: vectors_of((videos / path).read_bytes()) for path in reader.paths}
    (made / "index.json").unlink()
    run_update(made, write_files(videos.parent / "one", {"one.mp4": "one"}), encoder)
    assert {file.name for file in made.glob("*.f32")} == {"frames-1.f32", "pooled-1.f32", "tokens-1.f32"}
    for path, video in expected.items():
        np.testing.assert_array_equal(reader.example(path).frames, video.frames)


def test_an_older_index_file(made, videos, encoder):
    older = (made / "index.json").read_bytes()
    write_files(videos, {"h.mp4": "new"})
    run_update(made, videos, encoder)
    newer = IndexReader.open(made)
    stamp = index_stamp(made)
    (made / "index.json").write_bytes(older)
    assert index_stamp(made) != stamp
    assert len(newer.reopened()) == 7
    write_files(videos, {"i.mp4": "another"})
    assert counts(run_update(made, videos, encoder)) == (2, 0, 0, 7, 0)
    check_index(made, videos)
    (videos / "a.mp4").unlink()
    run_update(made, videos, encoder)
    (made / "index.json").write_bytes(older)
    with pytest.raises(ValueError, match="frames-0.f32 has 0 bytes"):
        IndexReader.open(made)
    run_update(made, videos, encoder)
    check_index(made, videos)


def test_a_read_only_index_is_searched(made, monkeypatch):
    opened = os.open

    def open_to_read(path, flags, *more, **options):
        assert not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT), path
        return opened(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", open_to_read)
    for file in made.iterdir():
        file.chmod(0o444)
    assert len(search_of(made).rank(QUERY, 10).paths) == 7


def test_a_full_disk_keeps_the_index_without_checksums(tmp_path, encoder, small_disk):
    disk = small_disk("256k")
    folder = write_files(tmp_path / "videos", {f"{n}{'n' * 100}.mp4": str(n) for n in range(300)})
    run_update(disk / "index", folder, encoder)
    remove_checksums(disk / "index")
    (disk / "filler").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
    before = everything(disk / "index")
    with pytest.raises(OSError, match="index.json cannot be written.*No space left"):
        run_update(disk / "index", folder, encoder)
    assert everything(disk / "index") == before
    (disk / "filler").unlink()
    assert run_update(disk / "index", folder, encoder).unchecked == 300


def test_a_score_that_is_not_finite_is_an_error(made):
    search = search_of(made)
    with pytest.raises(OSError, match="the score of 'a.mp4' is not finite"):
        search.rank(Query(QUERY.vectors * np.nan, QUERY.weights, QUERY.pooled, 0.0, ("a", "b")))


def test_a_whole_index_has_no_damage(made):
    store = IndexWriter.open(made)
    assert store.check() == (set(), 0)
    store.close()
