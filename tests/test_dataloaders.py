"""The MSR-VTT reader and the loaders, from files on disk to batches, with and without workers and processes."""

import json
import logging
import re
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataloaders import data_dataloaders
from dataloaders.annotations import Caption, MissingVideosError
from dataloaders.data_dataloaders import DATALOADER_DICT, evaluation_loaders, shard_bounds
from dataloaders.dataloader_msrvtt_retrieval import read_split
from dataloaders.rawvideo_util import VideoReadError
from tests.test_rawvideo_util import write_clip

TRAIN_IDS = [f"video{number}" for number in range(6)]
TEST_ROWS = [("video7", "1 2 3"), ("video8", "4"), ("video7", "5 6"), ("video9", "7"), ("video6", "8")]


class WordTokenizer:
    """A word is a token, and its id is its number."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        special = {"<|startoftext|>": 900, "<|endoftext|>": 901}
        return [special[token] if token in special else int(token) for token in tokens]


@pytest.fixture
def args(tmp_path) -> Namespace:
    """Ten videos of two seconds; the first six are for training, with the captions 10 n + 0, 1 and 2 of video n."""
    (tmp_path / "videos").mkdir()
    for number in range(10):
        write_clip(tmp_path / "videos" / f"video{number}.mp4", 4 + number, 5)
    sentences = [
        {"video_id": f"video{number}", "caption": str(10 * number + which)} for which in range(3) for number in range(6)
    ]
    (tmp_path / "data.json").write_text(json.dumps({"videos": [], "sentences": sentences}))
    (tmp_path / "train.csv").write_text("video_id\n" + "".join(f"{name}\n" for name in TRAIN_IDS))
    rows = [f"ret{line},msr{line},{name},{text}\n" for line, (name, text) in enumerate(TEST_ROWS)]
    (tmp_path / "test.csv").write_text("key,vid_key,video_id,sentence\n" + "".join(rows))
    return Namespace(
        train_csv=str(tmp_path / "train.csv"),
        val_csv=str(tmp_path / "test.csv"),
        data_path=str(tmp_path / "data.json"),
        features_path=str(tmp_path / "videos"),
        exclude=None,
        expand_msrvtt_sentences=False,
        batch_size=4,
        batch_size_val=2,
        gradient_accumulation_steps=1,
        num_thread_reader=0,
        seed=42,
        max_words=6,
        max_frames=3,
        feature_framerate=1,
        train_frame_order=0,
        eval_frame_order=0,
        slice_framepos=2,
    )


def build(args, split: str):
    return DATALOADER_DICT["msrvtt"][split](args, WordTokenizer(), image_resolution=16)


def first_words(batches) -> list[int]:
    """The first word of every text, through all batches."""
    return [word for input_ids, *_ in batches for word in input_ids[:, 0, 1].tolist()]


# Reader


def test_train_captions_by_video_in_the_order_of_the_csv(args):
    annotations = read_split(args, "train")
    assert annotations.captions[:4] == [
        Caption("video0", "0"), Caption("video0", "1"), Caption("video0", "2"), Caption("video1", "10"),
    ]  # fmt: skip
    assert len(annotations.captions) == 18
    assert annotations.video_paths["video5"] == Path(args.features_path) / "video5.mp4"


def test_test_captions_as_they_stand(args):
    for subset in ("val", "test"):
        assert read_split(args, subset).captions == [Caption(*row) for row in TEST_ROWS]


def test_csv_text_is_taken_literally(args):
    Path(args.val_csv).write_bytes('\ufeffvideo_id,sentence\r\nvideo1,"a, ""b"" \r\nc"\r\nvideo2,null\r\n'.encode())
    assert [caption.text for caption in read_split(args, "test").captions] == ['a, "b" \r\nc', "null"]


@pytest.mark.parametrize("image_id", [lambda n: f"video{n}", str, int])
def test_the_annotations_form_with_and_without_prefix(args, image_id):
    expected = read_split(args, "train")
    entries = [
        {"image_id": image_id(int(caption.video_id.removeprefix("video"))), "caption": caption.text}
        for caption in expected.captions
    ]
    Path(args.data_path).write_text(json.dumps({"images": [], "annotations": entries}))
    assert read_split(args, "train") == expected


@pytest.mark.parametrize("flag", ["train_csv", "val_csv", "data_path", "features_path"])
@pytest.mark.parametrize("value", [None, "absent"])
def test_missing_files_name_path_and_flag(args, tmp_path, flag, value):
    setattr(args, flag, value and str(tmp_path / value))
    with pytest.raises(FileNotFoundError, match=f"--{flag}") as error:
        read_split(args, "test" if flag == "val_csv" else "train")
    assert value is None or str(tmp_path / value) in str(error.value)


@pytest.mark.parametrize(
    ("file", "subset", "content", "words"),
    [
        ("train_csv", "train", "id\nvideo1\n", ["--train_csv", "video_id", "id"]),
        ("train_csv", "train", "video_id\n", ["--train_csv", "empty"]),
        ("train_csv", "train", "", ["--train_csv", "video_id"]),
        ("train_csv", "train", "video_id\nvideo0\nvideo77\n", ["--train_csv", "--data_path", "1 of 2", "video77"]),
        ("val_csv", "test", "key,video_id\nret0,video1\n", ["--val_csv", "video_id, sentence", "key, video_id"]),
        ("val_csv", "test", "video_id,sentence\nvideo1,a\nvideo2\n", ["--val_csv", "line 3"]),
        ("val_csv", "test", "video_id,sentence\n", ["--val_csv", "empty"]),
        ("data_path", "train", '{"clips": [], "texts": []}', ["--data_path", "sentences", "clips, texts"]),
        ("data_path", "train", "[]", ["--data_path", "dict", "list"]),
        ("data_path", "train", '{"sentences": {}}', ["--data_path", "sentences", "annotations"]),
        ("val_csv", "test", "video_id,sentence\nvideo1, \n", ["--val_csv", "without text", "video1"]),
        ("data_path", "train", "{", ["--data_path", "json"]),
        ("data_path", "train", '{"sentences": [{"id": 1}]}', ["--data_path", "video_id", "caption", "'id': 1"]),
        ("data_path", "train", '{"sentences": [{"video_id": "video1", "caption": null}]}', ["--data_path", "None"]),
    ],
)
def test_bad_files_name_themselves_their_flag_and_what_is_wrong(args, file, subset, content, words):
    path = Path(getattr(args, file))
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        read_split(args, subset)
    assert all(word in str(error.value) for word in [str(path), *words])


def test_missing_videos(args):
    (Path(args.features_path) / "video3.mp4").unlink()
    with pytest.raises(MissingVideosError, match=r"1 of 6 videos .*video3"):
        build(args, "train")


def test_annotations_of_full_size(args, real_annotations, tmp_path):
    parts = []
    for archive in ("train_val_annotation.zip", "test_videodatainfo.json.zip"):
        with zipfile.ZipFile(real_annotations / "msrvtt" / archive) as opened:
            (name,) = (name for name in opened.namelist() if name.endswith(".json"))
            parts.append(json.loads(opened.read(name)))
    joined = {key: [entry for part in parts for entry in part[key]] for key in ("videos", "sentences")}
    Path(args.data_path).write_text(json.dumps(joined))
    folder = tmp_path / "all_videos"
    folder.mkdir()
    for video in joined["videos"]:
        (folder / f"{video['video_id']}.mp4").touch()
    args.features_path = str(folder)
    args.expand_msrvtt_sentences = True
    args.val_csv = str(real_annotations / "msrvtt" / "MSRVTT_JSFUSION_test.csv")
    for name, videos in (("MSRVTT_train.9k.csv", 9000), ("MSRVTT_train.7k.csv", 7010)):
        args.train_csv = str(real_annotations / "msrvtt" / name)
        _, length, _ = build(args, "train")
        assert length == 20 * videos
    loader, length = build(args, "val")
    assert length == len(loader.dataset.video_ids) == 1000
    assert read_split(args, "test").captions[0] == Caption("video9770", "a person is connecting something to system")


# Training


def test_train_batches(args):
    loader, length, _ = build(args, "train")
    assert (length, len(loader)) == (6, 1)
    (batch,) = loader
    shapes = [tuple(part.shape) for part in batch]
    assert shapes == [(4, 1, 6), (4, 1, 6), (4, 1, 6), (4, 1, 3, 1, 3, 16, 16), (4, 1, 3)]
    assert [part.dtype for part in batch] == [torch.int64] * 3 + [torch.uint8, torch.int64]

    args.expand_msrvtt_sentences = True
    loader, length, _ = build(args, "train")
    assert (length, len(loader)) == (18, 4)
    words = first_words(loader)
    assert len(set(words)) == 16 and set(words) <= {10 * video + which for video in range(6) for which in range(3)}


@pytest.mark.parametrize("num_thread_reader", [0, 2])
def test_the_epoch_reaches_the_caption_choice_and_the_order(args, num_thread_reader):
    args.num_thread_reader = num_thread_reader
    args.batch_size = 6
    loader, _, sampler = build(args, "train")
    epochs = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        epochs.append(first_words(loader))
    assert all(sorted(word // 10 for word in words) == list(range(6)) for words in epochs)
    assert len({tuple(word // 10 for word in words) for words in epochs}) > 1
    assert len({tuple(sorted(words)) for words in epochs}) > 1
    sampler.set_epoch(1)
    assert first_words(loader) == epochs[1]


def test_two_processes_share_the_batches_of_one(args, monkeypatch):
    args.expand_msrvtt_sentences = True
    args.batch_size = 8

    def epoch_of(rank: int, world_size: int) -> list[list[int]]:
        monkeypatch.setattr(data_dataloaders, "rank_and_world_size", lambda: (rank, world_size))
        loader, length, sampler = build(args, "train")
        assert length == 18
        sampler.set_epoch(5)
        return [first_words([batch]) for batch in loader]

    (alone,) = [epoch_of(0, 1)]
    shares = [epoch_of(rank, 2) for rank in range(2)]
    assert [len(batch) for batch in alone] == [8, 8]
    for step in range(2):
        assert [len(share[step]) for share in shares] == [4, 4]
        assert sorted(shares[0][step] + shares[1][step]) == sorted(alone[step])


def test_accumulation_divides_the_batch(args):
    args.gradient_accumulation_steps = 2
    loader, _, _ = build(args, "train")
    assert loader.batch_size == 2
    args.gradient_accumulation_steps = 3
    with pytest.raises(ValueError, match=r"--batch_size 4 .*\(1 \* 3\)"):
        build(args, "train")


def test_a_split_smaller_than_a_batch_is_an_error(args):
    args.batch_size = 7
    with pytest.raises(ValueError, match=r"6 samples.*--batch_size 7"):
        build(args, "train")


@pytest.mark.parametrize("num_thread_reader", [0, 1])
def test_an_unreadable_video_is_a_readable_error(args, num_thread_reader):
    args.num_thread_reader = num_thread_reader
    args.batch_size = 6
    path = Path(args.features_path) / "video3.mp4"
    path.write_bytes(b"")
    loader, _, _ = build(args, "train")
    with pytest.raises(VideoReadError, match=re.escape(f"{path}: the file is empty (0 bytes)")):
        list(loader)


def test_counts_are_logged_once_per_split(args, caplog):
    caplog.set_level(logging.INFO)
    build(args, "train")
    build(args, "val")
    assert [record.getMessage() for record in caplog.records] == [
        "train: 6 videos, 18 captions, 6 samples",
        "test: 4 videos, 5 captions, 5 samples",
    ]


# Evaluation


def test_msrvtt_validates_on_its_test_split():
    assert DATALOADER_DICT["msrvtt"]["test"] is None


@pytest.mark.parametrize("num_thread_reader", [0, 2])
def test_pairs_in_order(args, num_thread_reader):
    args.num_thread_reader = num_thread_reader
    loader, length = build(args, "val")
    assert length == 5
    assert first_words(loader) == [1, 4, 5, 7, 8]
    assert loader.dataset.video_ids == ["video7", "video8", "video9", "video6"]
    assert loader.dataset.video_index.tolist() == [0, 1, 0, 2, 3]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_reads_each_text_and_each_video_once_over_all_ranks(args, world_size):
    loader, _ = build(args, "val")
    whole = list(loader)
    texts, videos, masks = [], [], []
    for rank in range(world_size):
        text_loader, video_loader = evaluation_loaders(loader, rank, world_size)
        assert text_loader.batch_size == 2 and text_loader.num_workers == 0
        texts += [ids for input_ids, _, _ in text_loader for ids in input_ids]
        for video, video_mask in video_loader:
            videos += list(video)
            masks += list(video_mask)
    assert (len(texts), len(videos)) == (5, 4)
    index = loader.dataset.video_index
    torch.testing.assert_close(torch.stack(texts), torch.cat([batch[0] for batch in whole]))
    torch.testing.assert_close(torch.stack(videos)[index], torch.cat([batch[3] for batch in whole]))
    torch.testing.assert_close(torch.stack(masks)[index], torch.cat([batch[4] for batch in whole]))
    # Clips of n + 4 frames at 5 per second: 11, 12, 13 and 10 frames start 3, 3, 3 and 2 seconds.
    assert [int(mask.sum()) for mask in masks] == [3, 3, 3, 2]


def test_shards_by_hand():
    assert [shard_bounds(8, rank, 3) for rank in range(3)] == [(0, 3), (3, 6), (6, 8)]
    assert [shard_bounds(2, rank, 3) for rank in range(3)] == [(0, 1), (1, 2), (2, 2)]
    assert shard_bounds(0, 0, 1) == (0, 0)


@given(length=st.integers(0, 1000), world_size=st.integers(1, 20))
def test_shards_cover_everything_once_in_order_and_evenly(length, world_size):
    shards = [range(*shard_bounds(length, rank, world_size)) for rank in range(world_size)]
    assert [item for shard in shards for item in shard] == list(range(length))
    sizes = np.array([len(shard) for shard in shards])
    assert sizes.max() - sizes.min() <= 1
