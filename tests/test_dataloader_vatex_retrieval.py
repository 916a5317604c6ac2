"""VATEX: id lists over one or several json files of English captions."""

import json
from functools import partial

import pytest

from dataloaders.annotations import Caption, MissingVideosError
from dataloaders.dataloader_vatex_retrieval import read_split
from tests.helpers.reader_cases import calls_of, data_set

TRAINING = [
    {"videoID": "Ptf_000001_000011", "enCap": ["a man cooks", "food"], "chCap": ["一个男人"]},
    {"videoID": "Qrs_000002_000012", "enCap": ["a dog"], "chCap": []},
]
VALIDATION = [{"videoID": "Tuv_000003_000013", "enCap": ["a cat", "an animal"]}]


@pytest.fixture
def args(tmp_path):
    files = {
        "vatex_training_v1.0.json": json.dumps(TRAINING),
        "vatex_validation_v1.0.json": json.dumps(VALIDATION),
        "train_list.txt": "Qrs_000002_000012\nPtf_000001_000011\n",
        "val_list.txt": "Tuv_000003_000013\n",
        "test_list.txt": "Tuv_000003_000013\n",
    }
    return data_set(tmp_path, files, [f"{entry['videoID']}.mp4" for entry in TRAINING + VALIDATION])


def test_every_caption_in_the_order_of_the_list(args):
    assert read_split(args, "train").captions == [
        Caption("Qrs_000002_000012", "a dog"), Caption("Ptf_000001_000011", "a man cooks"),
        Caption("Ptf_000001_000011", "food"),
    ]  # fmt: skip
    for subset in ("val", "test"):
        assert [caption.text for caption in read_split(args, subset).captions] == ["a cat", "an animal"]


def test_one_json_for_all(args, tmp_path):
    expected = read_split(args, "train")
    for path in tmp_path.glob("vatex*.json"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"vatex\*\.json \(--data_path\)"):
        read_split(args, "train")
    data_set(tmp_path, {"vatex_data.json": json.dumps(TRAINING + VALIDATION)}, [])
    assert read_split(args, "train") == expected


def test_missing_videos(args, tmp_path):
    (tmp_path / "videos" / "Tuv_000003_000013.mp4").unlink()
    with pytest.raises(MissingVideosError, match="Tuv_000003_000013"):
        read_split(args, "test")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("{", "not valid JSON"),
        ('{"videoID": []}', "not a dict"),
        ('[{"videoID": "a"}]', r"videoID \(str\), enCap \(list\)"),
        ('[{"videoID": "a", "enCap": ["b", null]}]', "a, enCap must be texts; one is None"),
        ('[{"videoID": "Tuv_000003_000013", "enCap": ["b"]}]', "Tuv_000003_000013 occurs twice"),
    ],
)
def test_bad_files(args, tmp_path, content, word):
    data_set(tmp_path, {"vatex_validation_v2.json": content}, [])
    with pytest.raises(ValueError, match=word) as error:
        read_split(args, "test")
    assert str(tmp_path / "vatex_validation_v2.json") in str(error.value)


def test_the_work_of_a_training_split_grows_with_its_videos(args, tmp_path):
    """The published one has 25,991 videos with ten captions in each language."""
    english, chinese = ["a person does something for a while in a place"] * 10, ["一个人在一个地方做某事一段时间"] * 10
    calls = []
    for count in (500, 2000):
        entries = [{"videoID": f"id_{number}", "enCap": english, "chCap": chinese} for number in range(count)]
        names = [entry["videoID"] for entry in entries]
        files = {"vatex_training_v1.0.json": json.dumps(entries), "train_list.txt": "\n".join(names)}
        data_set(tmp_path, files, [f"{name}.mp4" for name in names])
        calls.append(calls_of(partial(read_split, args, "train")))
        assert len(read_split(args, "train").captions) == 10 * count
    assert calls[1] < 4.1 * calls[0]
