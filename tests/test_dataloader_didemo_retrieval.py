"""DiDeMo: videos by file name with the extension, and compressed copies with another."""

import json

import pytest

from dataloaders.annotations import Caption, MissingVideosError
from dataloaders.dataloader_didemo_retrieval import read_split
from tests.helpers.reader_cases import data_set

ENTRIES = [
    {"video": "35@N01_60_dc.mov", "description": "the man bends ", "times": [[1, 1]]},
    {"video": "39@N00_36_45.3gp", "description": "the baby is shown.", "times": [[0, 1]]},
    {"video": "35@N01_60_dc.mov", "description": "a hat", "times": [[2, 2]]},
    {"video": "unlisted.avi", "description": "nobody asks", "times": []},
]
LISTING = "39@N00_36_45.3gp\n35@N01_60_dc.mov\n"


@pytest.fixture
def args(tmp_path):
    files = {f"{subset}_data.json": json.dumps(ENTRIES) for subset in ("train", "val", "test")}
    files |= {f"{subset}_list.txt": LISTING for subset in ("train", "val", "test")}
    return data_set(tmp_path, files, ["a/35@N01_60_dc.mov", "39@N00_36_45.3gp"])


@pytest.mark.parametrize("subset", ["train", "val", "test"])
def test_one_paragraph_per_video_of_the_first_half_minute(args, subset):
    assert read_split(args, subset).captions == [
        Caption("39@N00_36_45.3gp", "the baby is shown.", 0, 31),
        Caption("35@N01_60_dc.mov", "the man bends a hat", 0, 31),
    ]


def test_the_file_of_that_name_goes_before_a_compressed_copy(args, tmp_path):
    (tmp_path / "videos" / "35@N01_60_dc.mp4").touch()
    assert read_split(args, "test").video_paths["35@N01_60_dc.mov"].name == "35@N01_60_dc.mov"
    (tmp_path / "videos" / "a" / "35@N01_60_dc.mov").unlink()
    assert read_split(args, "test").video_paths["35@N01_60_dc.mov"].name == "35@N01_60_dc.mp4"
    (tmp_path / "videos" / "35@N01_60_dc.avi").touch()
    with pytest.raises(ValueError, match="more than one file"):
        read_split(args, "test")


def test_names_that_end_in_a_dot_and_names_that_share_a_copy(args, tmp_path):
    names = ["35@N01_60_dc.", "35@N01_60_dc.mov"]
    entries = [{"video": name, "description": "a hat"} for name in names]
    data_set(tmp_path, {"test_data.json": json.dumps(entries), "test_list.txt": "\n".join(names)}, [])
    annotations = read_split(args, "test")
    assert set(annotations.video_paths.values()) == {tmp_path / "videos" / "a" / "35@N01_60_dc.mov"}
    assert annotations.count_line() == "2 videos, 2 captions, 1 share the file of another video"
    (tmp_path / "videos" / "35@N01_60_dc.").touch()
    assert [path.name for path in read_split(args, "test").video_paths.values()] == names


@pytest.mark.parametrize("subset", ["train", "test"])
def test_missing_videos(args, tmp_path, subset):
    (tmp_path / "videos" / "39@N00_36_45.3gp").unlink()
    with pytest.raises(MissingVideosError, match="1 of 2 .*39@N00_36_45.3gp"):
        read_split(args, subset)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("test_data.json", json.dumps(ENTRIES[:1]), "1 of 2 videos of .*test_list.txt have no caption"),
        ("test_data.json", "{}", "not a dict"),
        ("test_data.json", '[{"video": "a.mov"}]', r"video \(str\), description \(str\)"),
        ("test_data.json", "[1]", "one is 1"),
        ("test_data.json", json.dumps([*ENTRIES[:1], {**ENTRIES[1], "description": " "}]), "without text.*39@N00"),
        ("test_list.txt", "", "empty"),
    ],
)
def test_bad_files(args, tmp_path, name, content, word):
    data_set(tmp_path, {name: content}, [])
    with pytest.raises(ValueError, match=word) as error:
        read_split(args, "test")
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(("subset", "videos", "shared"), [("val", 1094, 29), ("test", 1037, 33)])
def test_counts_of_the_real_files(real_annotations, tmp_path, subset, videos, shared):
    folder = real_annotations / "didemo"
    names = (folder / f"{subset}_list.txt").read_text().split()
    for place, files, notes in (
        ("original", names, ()),
        (
            "compressed",
            {f"{name.rpartition('.')[0]}.mp4" for name in names},
            (f"{shared} share the file of another video",),
        ),
    ):
        (tmp_path / place).mkdir()
        args = data_set(tmp_path / place, {}, sorted(files))
        args.data_path = str(folder)
        annotations = read_split(args, subset)
        assert len(annotations.video_paths) == len(annotations.captions) == videos
        assert annotations.notes == notes
