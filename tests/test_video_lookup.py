"""Names in annotations that are not written as the files' names are."""

import unicodedata
from pathlib import Path

import pytest

from dataloaders.annotations import Caption, MissingVideosError, find_videos, locate_captions
from tests.helpers.reader_cases import touch

ACCENTS = "Übung café 한국어"


def form(name, text=ACCENTS):
    return unicodedata.normalize(name, text)


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize(("on_disk", "in_csv"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_may_be_written_in_either_form(tmp_path, by_name, on_disk, in_csv):
    touch(tmp_path, f"{form(on_disk, 'è')}/{form(on_disk)}.mp4", "plain.mp4")
    file = tmp_path / form(on_disk, "è") / f"{form(on_disk)}.mp4"
    ids = [form(in_csv), f"{form(in_csv)}.mp4", form(in_csv, f"è/{ACCENTS}.mp4"), "plain"]
    if by_name:
        ids.append(f"{form(in_csv)}.avi")  # a copy in another container
    found = find_videos(ids, tmp_path, by_name=by_name)
    assert found == {**dict.fromkeys(ids, file), "plain": tmp_path / "plain.mp4"}


def test_the_form_that_is_written_takes_precedence(tmp_path):
    touch(tmp_path, f"{form('NFC')}.mp4", f"{form('NFD')}.mp4")
    for name in ("NFC", "NFD"):
        assert find_videos([form(name)], tmp_path) == {form(name): tmp_path / f"{form(name)}.mp4"}
    touch(tmp_path / "two", f"{form('NFC', 'é')}à.mp4", f"é{form('NFD', 'à')}.mp4")
    with pytest.raises(ValueError, match="more than one file"):
        find_videos([form("NFD", "éà")], tmp_path / "two")


@pytest.mark.parametrize("by_name", [True, False])
def test_paths_into_the_folder(tmp_path, by_name, monkeypatch):
    touch(tmp_path, "v/2019/b.mp4", "v/a.mp4", "v/back\\slash.mp4")
    (tmp_path / "link").symlink_to("v", target_is_directory=True)
    wanted = {
        str(tmp_path / "v" / "a.mp4"): "a.mp4", str(tmp_path / "link" / "a.mp4"): "a.mp4", "2019\\b.mp4": "2019/b.mp4",
        "./2019/b.mp4": "2019/b.mp4", " a.mp4 ": "a.mp4", "a\t": "a.mp4", "back\\slash.mp4": "back\\slash.mp4",
    }  # fmt: skip
    found = find_videos(wanted, tmp_path / "link", by_name=by_name)
    assert found == {video_id: tmp_path / "link" / path for video_id, path in wanted.items()}
    monkeypatch.chdir(tmp_path)
    absolute = str(tmp_path / "v" / "a.mp4")
    assert find_videos([absolute], "v", by_name=by_name) == {absolute: Path("v/a.mp4")}
    for leaving in (f"{tmp_path}/v/../x.mp4", str(tmp_path / "v"), f"{tmp_path}/vault/a.mp4"):
        with pytest.raises(ValueError, match="names no file inside"):
            find_videos([leaving], tmp_path / "v", by_name=by_name)


def test_a_data_set_whose_csv_has_the_extensions(tmp_path):
    touch(tmp_path, "video603.mp4")
    assert find_videos(["video603.mp4"], tmp_path) == {"video603.mp4": tmp_path / "video603.mp4"}


@pytest.mark.parametrize(
    ("video_id", "found"),
    [
        ("dog.mp4", "'Dog.MP4'"), ("C:\\clips\\b.mp4", "'2019/b.mp4'"), ("2018/b.mp4", "'2019/b.mp4'"),
        ("cat", "'cat.jpg', not a video"), ("gone", "'gone.mp4', a link without its target"),
        ("film", "'film.mp4', a folder"), ("loop", "'loop.mp4', Too many levels of symbolic links"),
        ("pipe", "'x/pipe', left out by --exclude"), ("ﬁsh", "'fish.mkv'"), ("blank", "'blank .mp4'"),
    ],
)  # fmt: skip
def test_similar_names_are_in_the_error(tmp_path, video_id, found):
    touch(tmp_path, "Dog.MP4", "2019/b.mp4", "cat.jpg", "film.mp4/x.txt", "x/pipe", "fish.mkv", "blank .mp4")
    (tmp_path / "gone.mp4").symlink_to("nothing")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    with pytest.raises(MissingVideosError) as error:
        find_videos([video_id], tmp_path, by_name=True, exclude=["x/*"])
    assert f"{video_id!r} (found {found})" in str(error.value)
    assert "1 entries cannot be read, such as loop.mp4: Too many levels" in str(error.value)


def test_a_film_goes_before_its_preview(tmp_path):
    touch(tmp_path, "a.mp4", "a.lrv", "a.gif", "b.gif", "c.jpg", "c.odd")
    assert find_videos(["a", "b"], tmp_path) == {"a": tmp_path / "a.mp4", "b": tmp_path / "b.gif"}
    with pytest.raises(MissingVideosError):
        find_videos(["c"], tmp_path)
    (tmp_path / "c.odd").write_bytes(b"\x1aE\xdf\xa3" + bytes(9))
    assert find_videos(["c"], tmp_path) == {"c": tmp_path / "c.odd"}


def test_files_of_the_system_are_no_second_file(tmp_path):
    touch(tmp_path, "a.mp4", ".Trashes/501/a.mp4", "@eaDir/a.mp4/a.mp4", "old/a.mp4", "._a.mp4")
    captions = [Caption("a", "one")]
    annotations = locate_captions(captions, tmp_path, source="x", flag="y", exclude=["old"])
    assert annotations.video_paths == {"a": tmp_path / "a.mp4"}
    assert annotations.notes == (
        "passed over: 3 hidden or of the system (.Trashes, ._a.mp4, @eaDir), 1 excluded by --exclude (old)",
    )
    with pytest.raises(ValueError, match="more than one file"):
        find_videos(["a"], tmp_path)


def test_one_link_that_leads_to_itself_is_a_note(tmp_path):
    touch(tmp_path, "a.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    annotations = locate_captions([Caption("a", "one")], tmp_path, source="x", flag="y")
    assert annotations.notes == (
        "1 entries cannot be read, such as loop.mp4: Too many levels of symbolic links",
    )  # fmt: skip
