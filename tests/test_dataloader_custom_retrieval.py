"""One's own data: one table of videos and captions."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataloaders.annotations import Caption, MissingVideosError
from dataloaders.dataloader_custom_retrieval import read_split
from dataloaders.rawvideo_util import RawVideoExtractor, VideoReadError
from dataloaders.retrieval_dataset import RetrievalDataset
from modules.tokenization_clip import SimpleTokenizer
from tests.helpers.reader_cases import data_set
from tests.test_rawvideo_util import write_clip

TABLE = """video,caption,start,end,split
kitchen.mp4,"a man cuts an onion, then cries",,,train
kitchen,a man cooks,0,2.5,train
day.1/street,cars,,,train
day.1/beach.mov,a castle,1,,test
beach,waves,,4,val
"""


@pytest.fixture
def args(tmp_path):
    args = data_set(tmp_path, {"clips.csv": TABLE}, ["kitchen.mp4", "day.1/street", "day.1/beach.mov"])
    args.data_path = str(tmp_path / "clips.csv")
    args.train_csv, args.val_csv = "data/.train.csv", "data/.val.csv"
    return args


def test_rows_of_the_split_with_their_spans(args, tmp_path):
    """Two ways to write a name are one video: its file's path below the folder."""
    annotations = read_split(args, "train")
    assert annotations.captions == [
        Caption("kitchen.mp4", "a man cuts an onion, then cries"), Caption("kitchen.mp4", "a man cooks", 0, 2.5),
        Caption("day.1/street", "cars"),
    ]  # fmt: skip
    assert annotations.notes == ()
    assert read_split(args, "test").captions == [Caption("day.1/beach.mov", "a castle", 1, None)]
    assert read_split(args, "val").captions == [Caption("day.1/beach.mov", "waves", None, 4)]
    assert read_split(args, "val").video_paths == {"day.1/beach.mov": tmp_path / "videos" / "day.1" / "beach.mov"}


def test_jsonl_says_the_same(args, tmp_path):
    rows = [
        {"video": "kitchen.mp4", "caption": "a man cuts an onion, then cries", "split": "train", "more": 1},
        {"video": "kitchen", "caption": "a man cooks", "start": 0, "end": 2.5, "split": "train"},
        {"video": "day.1/street", "caption": "cars", "start": None, "split": "train"},
        {"video": "beach", "caption": "waves", "split": "val"},
    ]
    expected = read_split(args, "train")
    data_set(tmp_path, {"clips.jsonl": "\n\n".join(map(json.dumps, rows))}, [])
    args.data_path = str(tmp_path / "clips.jsonl")
    annotations = read_split(args, "train")
    assert (annotations.captions, annotations.video_paths) == (expected.captions, expected.video_paths)
    assert annotations.notes == ("ignored columns: more",)


def test_times_count_whatever_the_case_of_their_column(args, tmp_path):
    """A column Start that was ignored would be the whole video without a word."""
    table = "Video;Caption;Start;END;Split\nkitchen;a man; 1 ;2,5;train\n;;;;\n".replace("2,5", "2.5")
    line = '{"Video": "kitchen", "caption": "a man", "Start": 1, "End": 2.5, "split": "train"}'
    data_set(tmp_path, {"a.csv": table, "a.jsonl": line, "b.jsonl": line.replace("End", "start")}, [])
    for name in ("a.csv", "a.jsonl"):
        args.data_path = str(tmp_path / name)
        assert read_split(args, "train").captions == [Caption("kitchen.mp4", "a man", 1, 2.5)]
    args.data_path = str(tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match="line 1: keys that differ in case only: .*Start.*start"):
        read_split(args, "train")


def test_one_file_per_split_needs_no_column_split(args, tmp_path):
    args.data_path, args.train_csv, args.val_csv = (
        "data/caption.pickle",
        *(str(tmp_path / name) for name in ("mine.csv", "yours.jsonl")),
    )
    yours = '{"video": "beach", "caption": "a castle"}\n{"video": "beach", "caption": "no", "split": "train"}'
    data_set(tmp_path, {"mine.csv": "caption,video\ncars,kitchen\n", "yours.jsonl": yours}, [])
    assert read_split(args, "train").captions == [Caption("kitchen.mp4", "cars")]
    assert read_split(args, "test").captions == [Caption("day.1/beach.mov", "a castle")]
    args.val_csv = "gone.csv"
    with pytest.raises(FileNotFoundError, match=r"caption.pickle \(--data_path\), nor gone.csv \(--val_csv\)"):
        read_split(args, "test")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "video,text\n", ["needs the columns video, caption", "video, text"]),
        ("a.csv", "", ["needs the columns"]),
        ("a.csv", "video,caption,split\nkitchen,a man\n", ["line 2", "fewer"]),
        ("a.csv", "video,caption,split\nkitchen,a man, a plan,test\n", ["line 2", "more", "quoted"]),
        ("a.csv", 'video,caption,split\nkitchen,"a man,test\n', ["line 2"]),
        ("a.csv", "video,caption,split\nkitchen,,test\n", ["without text", "kitchen"]),
        ("a.csv", "video,caption,split\n,a man,test\n", ["''"]),
        ("a.csv", "video,caption,split\nkitchen,a man,testing\n", ["line 2", "train, val, test", "'testing'"]),
        ("a.csv", "video,caption\nkitchen,a man\n", ["line 2", "split", "--val_csv"]),
        ("a.csv", "video,caption,split\nkitchen,a man,train\nkitchen,a,val\n", ["no row of", "test", "train, val"]),
        ("a.csv", "video,caption,split\n", ["empty"]),
        ("a.csv", "video,caption,start,end,split\nkitchen,a man,5,3,test\n", ["kitchen", "5.0 to 3.0"]),
        ("a.csv", "video,caption,start,end,split\nkitchen,a man,-1,3,test\n", ["kitchen", "-1.0 to 3.0"]),
        ("a.csv", "video,caption,start,end,split\nkitchen,a man,nan,,test\n", ["kitchen", "nan to None"]),
        ("a.csv", "video,caption,start,split\nkitchen,a man,0:05,test\n", ["line 2, start", "'0:05'"]),
        ("a.csv", "video,caption,split\n../kitchen,a man,test\n", ["no file inside", "../kitchen"]),
        ("a.csv", "video,caption,split\n/kitchen.mp4,a man,test\n", ["no file inside", "/kitchen.mp4"]),
        ("a.csv", b"video,caption,split\nkitchen,\xff,test\n", ["line 2", "UTF-8"]),
        ("a.jsonl", '{"video": "kitchen", "caption": "a", "split": "test"}\n{', ["line 2", "json"]),
        ("a.jsonl", '["kitchen"]', ["line 1", "list"]),
        ("a.jsonl", '{"video": "kitchen", "split": "test"}', ["line 1", "caption (str)"]),
        ("a.jsonl", '{"video": 7, "caption": "a", "split": "test"}', ["line 1", "video (str)"]),
        ("a.jsonl", '{"video": "b", "caption": "a", "split": ["test"]}', ["line 1", "['test']"]),
        ("a.jsonl", '{"video": "b", "caption": "a", "split": "test", "end": []}', ["line 1, end", "[]"]),
        ("a.txt", "", [".csv or a .jsonl"]),
    ],
)
def test_bad_rows_name_file_and_line_or_video(args, tmp_path, name, content, words):
    data_set(tmp_path, {name: content}, [])
    args.data_path = str(tmp_path / name)
    with pytest.raises(ValueError) as error:
        read_split(args, "test")
    assert all(word in str(error.value) for word in words), error.value
    assert args.data_path in str(error.value) or "no file inside" in str(error.value) or "''" in str(error.value)


def test_a_missing_video_is_an_error(args, tmp_path):
    (tmp_path / "videos" / "day.1" / "street").unlink()
    with pytest.raises(MissingVideosError, match="1 of 3 .*day.1/street"):
        read_split(args, "train")


def test_spans_behind_the_end_of_the_video(tmp_path):
    """Two seconds of video: an end behind it is the end, a start behind it is an error that names the file."""
    args = data_set(tmp_path, {"a.csv": "video,caption,start,end\nclip,7,1,900\nclip,8,3,900\n"}, [])
    write_clip(tmp_path / "videos" / "clip.mp4", 10, 5)
    args.data_path, args.val_csv = None, str(tmp_path / "a.csv")
    dataset = RetrievalDataset(read_split(args, "test"), SimpleTokenizer(), RawVideoExtractor(1, 16), 4, max_frames=3)
    assert dataset[0][-1].sum() == 1
    with pytest.raises(VideoReadError, match=r"clip\.mp4: no frame at or after second 3"):
        dataset[1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=80), suffix=st.sampled_from([".csv", ".jsonl"]))
def test_any_bytes_give_captions_or_a_clear_error(args, tmp_path, content, suffix):
    path = Path(tmp_path / f"any{suffix}")
    path.write_bytes(content if suffix == ".jsonl" else b"video,caption,start,split\n" + content)
    args.data_path = str(path)
    with pytest.raises((ValueError, MissingVideosError)) as error:
        read_split(args, "train")
    assert type(error.value) in (ValueError, MissingVideosError)
