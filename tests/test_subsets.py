"""The held-out videos and the caption bank: which, how many, and that neither depends on the order of files."""

import dataclasses
from pathlib import Path

import pytest

from dataloaders.annotations import Annotations, Caption, find_videos
from dataloaders.data_config import DataConfig
from dataloaders.subsets import read_subset, seeded_choice, split_holdout

CAPTIONS = [Caption(f"video{number}", f"{word} {number}") for word in ("one", "two", "three") for number in range(6)]
# `printf '42\nvideo4' | sha256sum` starts with 18, video3's with 31, video1's with 3f; for 7: video0 03, video3 04
FIRST_TWO = {42: ["video4", "video3"], 7: ["video0", "video3"]}


def annotations(captions=CAPTIONS) -> Annotations:
    return Annotations(captions, {caption.video_id: Path(f"{caption.video_id}.mp4") for caption in captions})


def read_split(config, subset: str) -> Annotations:
    """As a reader: three captions for each of six training videos, one for a test video; finds the files last."""
    captions = CAPTIONS if subset == "train" else [Caption("video9", subset)]
    return Annotations(captions, find_videos([caption.video_id for caption in captions], config.features_path))


@pytest.fixture
def config(tmp_path) -> DataConfig:
    for number in (0, 1, 2, 3, 4, 5, 9):
        (tmp_path / f"video{number}.mp4").touch()
    return DataConfig(features_path=str(tmp_path), seed=42, holdout=2, qb_norm_size=5)


@pytest.mark.parametrize("seed", FIRST_TWO)
def test_the_choice_follows_sha256_whatever_the_order(seed):
    names = [f"video{number}" for number in range(6)]
    assert seeded_choice(names, 2, seed) == seeded_choice(names[::-1], 2, seed) == FIRST_TWO[seed]
    assert len(seeded_choice(names, 99, seed)) == 6


def test_videos_go_with_all_their_captions_and_files():
    training, holdout = split_holdout(annotations(), 2, 42)
    assert [caption.text for caption in holdout.captions] == ["one 3", "one 4", "two 3", "two 4", "three 3", "three 4"]
    assert set(holdout.video_paths) == {"video3", "video4"}
    assert set(training.video_paths) == {"video0", "video1", "video2", "video5"}
    assert len(training.captions) == 12
    assert [caption for caption in CAPTIONS if caption in training.captions] == training.captions
    assert split_holdout(annotations(CAPTIONS[::-1]), 2, 42)[1].video_paths == holdout.video_paths


@pytest.mark.parametrize("size", [-1, 0, 1, 6, 100])
def test_a_size_that_is_none_is_an_error(size):
    with pytest.raises(ValueError, match=rf"--holdout {size} .*6 training videos"):
        split_holdout(annotations(), size, 42)
    assert len(split_holdout(annotations(), 5, 42)[0].video_paths) == 1


def test_train_and_holdout_share_no_video_and_the_bank_none_with_the_holdout(config):
    parts = {subset: read_subset(read_split, config, subset) for subset in ("train", "holdout", "bank", "test")}
    ids = {subset: {caption.video_id for caption in part.captions} for subset, part in parts.items()}
    assert ids["holdout"] == {"video3", "video4"}
    assert ids["train"] == {"video0", "video1", "video2", "video5"}
    assert ids["bank"] <= ids["train"]
    assert parts["test"].captions == [Caption("video9", "test")]
    config = dataclasses.replace(config, holdout=0)
    assert read_subset(read_split, config, "train").captions == CAPTIONS


def test_the_bank_needs_no_videos_and_repeats(config):
    config = dataclasses.replace(config, holdout=0, features_path="/nowhere")
    bank = read_subset(read_split, config, "bank")
    assert len(set(bank.captions)) == 5 and set(bank.captions) <= set(CAPTIONS)
    assert bank.video_paths == {}
    assert read_subset(lambda *_: annotations(CAPTIONS[::-1]), config, "bank").captions == bank.captions
    config = dataclasses.replace(config, seed=43)
    assert read_subset(read_split, config, "bank").captions != bank.captions
    config = dataclasses.replace(config, qb_norm_size=1000)
    assert set(read_subset(read_split, config, "bank").captions) == set(CAPTIONS)


def test_equal_captions_of_a_video_are_one_query_of_the_bank(config):
    config = dataclasses.replace(config, holdout=0)
    doubled = annotations([Caption("a", "x"), Caption("a", "x"), Caption("b", "x")])
    assert sorted(caption.video_id for caption in read_subset(lambda *_: doubled, config, "bank").captions) == [
        "a",
        "b",
    ]


def test_a_reader_without_the_flag_has_no_holdout():
    assert read_subset(lambda *_: annotations(), DataConfig(), "train").captions == CAPTIONS


@pytest.mark.parametrize("seed", range(8))
def test_ids_that_share_a_file_are_held_out_together(seed):
    """DiDeMo's lists name some videos under two extensions; compressed, both are one file."""
    files = {"a.avi": "a", "a.mov": "a", "b": "b", "c": "c", "d": "d"}
    annotations = Annotations(
        [Caption(video_id, "text") for video_id in files],
        {name: Path(file) for name, file in files.items()},
        ("a note",),
    )
    parts = split_holdout(annotations, 2, seed)
    used = [{files[caption.video_id] for caption in part.captions} for part in parts]
    assert used[0].isdisjoint(used[1]) and len(used[1]) == 2
    assert [part.notes for part in parts] == [("a note",)] * 2
    with pytest.raises(ValueError, match="--holdout 4 .* 4 training videos"):
        split_holdout(annotations, 4, seed)
