"""ActivityNet: paragraphs, ids without captions, file names with and without the prefix."""

import json
from pathlib import Path

import pytest

from dataloaders.annotations import Caption, MissingVideosError
from dataloaders.dataloader_activitynet_retrieval import read_split
from tests.helpers.reader_cases import data_set

ENTRIES = {
    "v_QOlS": {"duration": 82.73, "timestamps": [[0.8, 19.9], [17, 60]], "sentences": ["She dances.", " She stops."]},
    "v_v_ab": {"duration": 12, "timestamps": [[0, 12]], "sentences": [" A dog."]},
}


def files(**changes) -> dict[str, str]:
    ids, entries = ["v_v_ab", "v_none", "v_QOlS", "v_v_ab"], {**ENTRIES, **changes}
    names = ("train_ids.json", "train.json"), ("val_ids.json", "val_1.json")
    return {name: json.dumps(content) for pair in names for name, content in zip(pair, (ids, entries), strict=True)}


@pytest.fixture
def args(tmp_path):
    return data_set(tmp_path, files(), ["QOlS.mp4", "validation/v_v_ab.mkv"])


@pytest.mark.parametrize("subset", ["train", "val", "test"])
def test_one_paragraph_and_span_per_video(args, subset):
    annotations = read_split(args, subset)
    assert annotations.captions == [
        Caption("v_ab", "A dog.", 0, 12),
        Caption("QOlS", "She dances. She stops.", 0, 83),
    ]
    assert annotations.count_line() == "2 videos, 2 captions, 1 ids without captions left out"


def test_an_id_may_begin_with_the_prefix_itself(args, tmp_path):
    (tmp_path / "videos" / "validation" / "v_v_ab.mkv").rename(tmp_path / "videos" / "v_ab.webm")
    assert read_split(args, "train").video_paths["v_ab"] == tmp_path / "videos" / "v_ab.webm"


def test_both_spellings_at_once_are_two_files(args, tmp_path):
    (tmp_path / "videos" / "v_QOlS.mp4").touch()
    with pytest.raises(ValueError, match=r"more than one file .*QOlS\.mp4 and .*v_QOlS\.mp4"):
        read_split(args, "train")


@pytest.mark.parametrize("subset", ["train", "test"])
def test_a_missing_file_is_an_error_in_training_too(args, tmp_path, subset):
    (tmp_path / "videos" / "QOlS.mp4").unlink()
    with pytest.raises(MissingVideosError, match="1 of 2 .*QOlS"):
        read_split(args, subset)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ([], ["duration (int or float), sentences (list)"]),
        ({"duration": "12", "sentences": []}, ["duration"]),
        ({"duration": 0, "sentences": ["a"]}, ["duration", "not 0"]),
        ({"duration": float("nan"), "sentences": ["a"]}, ["duration", "nan"]),
        ({"duration": float("inf"), "sentences": ["a"]}, ["duration", "inf"]),
        ({"duration": 1, "sentences": ["a", 1]}, ["sentences", "one is 1"]),
        ({"duration": 1, "sentences": [" "]}, ["without text"]),
        ({"duration": 1, "sentences": []}, ["without text"]),
    ],
)
def test_a_bad_entry_names_file_and_id(args, tmp_path, entry, words):
    data_set(tmp_path, files(v_QOlS=entry), [])
    with pytest.raises(ValueError) as error:
        read_split(args, "train")
    assert all(word in str(error.value) for word in [str(tmp_path / "train.json"), "QOlS", *words])


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("val_ids.json", '["v_QOlS", {}]', "one is {}"),
        ("val_ids.json", "{}", "not a dict"),
        ("val_ids.json", "[]", "empty"),
        ("val_1.json", "[]", "not a list"),
        ("val_1.json", "[" * 100_000, "not valid JSON"),
        ("val_1.json", b"\xff", "line 1: not valid UTF-8"),
    ],
)
def test_a_bad_file_names_itself(args, tmp_path, name, content, word):
    data_set(tmp_path, {name: content}, [])
    with pytest.raises(ValueError, match=word) as error:
        read_split(args, "test")
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    ("subset", "names", "captions", "silent"),
    [("train", ("train_ids.json", "train.json"), 10009, 15), ("val", ("val_ids.json", "val_1.json"), 4917, 9)],
)
def test_counts_of_the_real_files(real_annotations, tmp_path, subset, names, captions, silent):
    folder: Path = real_annotations / "activitynet"
    args = data_set(tmp_path, {}, [f"{video_id}.mp4" for video_id in json.loads((folder / names[1]).read_text())])
    args.data_path = str(folder)
    annotations = read_split(args, subset)
    assert len(annotations.video_paths) == len(annotations.captions) == captions
    assert annotations.notes == (f"{silent} ids without captions left out",)
