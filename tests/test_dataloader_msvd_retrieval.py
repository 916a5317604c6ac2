"""MSVD: many captions per video, and a pickle that can run no code."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataloaders.annotations import Caption, MissingVideosError
from dataloaders.dataloader_msvd_retrieval import read_captions, read_split
from tests.helpers.reader_cases import data_set

CAPTIONS = {
    "-4wsu_5_15": [["a", "squirrel", "eats"], ["an", "animal"]],
    "eyhz_15_27": [["a", "boy", "plays"]],
    "unused_1_2": [["nobody", "asks"]],
}


@pytest.fixture
def args(tmp_path):
    files = {
        "train_list.txt": "eyhz_15_27\n-4wsu_5_15\n",
        "val_list.txt": "eyhz_15_27",
        "test_list.txt": "-4wsu_5_15\r\n\r\n",
        "raw-captions.pkl": pickle.dumps(CAPTIONS),
    }
    return data_set(tmp_path, files, ["-4wsu_5_15.avi", "YouTubeClips/eyhz_15_27.mp4"])


def test_every_caption_of_every_video_in_the_order_of_the_list(args):
    annotations = read_split(args, "train")
    assert annotations.captions == [
        Caption("eyhz_15_27", "a boy plays"), Caption("-4wsu_5_15", "a squirrel eats"),
        Caption("-4wsu_5_15", "an animal"),
    ]  # fmt: skip
    assert len(read_split(args, "val").captions) == 1
    assert [caption.text for caption in read_split(args, "test").captions] == ["a squirrel eats", "an animal"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol(tmp_path, protocol):
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps({"é": [["ä", "b"], ("c",)]}, protocol))
    assert read_captions(tmp_path / "raw-captions.pkl") == {"é": ["ä b", "c"]}


class RunsACommand:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_that_would_run_code_is_an_error_and_does_not_run_it(args, tmp_path):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        trap = pickle.dumps({"-4wsu_5_15": RunsACommand(f"touch {tmp_path}/ran")}, protocol)
        (tmp_path / "raw-captions.pkl").write_bytes(trap)
        with pytest.raises(ValueError, match=r"raw-captions\.pkl \(--data_path\).* would import (posix|nt)\.system"):
            read_split(args, "train")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (OrderedDict(a=[["b"]]), "collections.OrderedDict"),
        ({"a": np.array([1])}, "numpy"),
        ({"a": {("b",)}}, r"'a' has \{\('b',\)\}|builtins.set"),
        ([["a"]], "not a list"),
        ({1: [["a"]]}, "1 has"),
        ({"a": "a man"}, "'a' has 'a man'"),
        ({"a": ["a man"]}, "'a' has"),
        ({"a": [["b", None]]}, "'a' has"),
        ({"a": None}, "'a' has None"),
    ],
)
def test_another_form_names_the_file_and_what_it_found(tmp_path, content, named):
    path = tmp_path / "raw-captions.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=named) as error:
        read_captions(path)
    assert f"{path} (--data_path)" in str(error.value)


# Without p and r, which read a place in pickle's memory: a large one makes the C code ask for many gigabytes.
@given(
    junk=st.lists(st.sampled_from(sorted({*range(256)} - {*b"pr"})), max_size=60),
    cut=st.integers(0, 80),
    place=st.integers(0, 80),
)
def test_damaged_bytes_are_a_value_error(tmp_path_factory, junk, cut, place):
    whole = pickle.dumps({"a_1": [["b", "cd"], ["e"]]})
    assert not {*b"pr"} & {*whole}
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(whole[:place] + bytes(junk) + whole[place + cut :])
    try:
        read_captions(path)
    except ValueError as error:
        assert str(path) in str(error)


def test_missing_parts(args, tmp_path):
    (tmp_path / "videos" / "-4wsu_5_15.avi").unlink()
    for subset in ("train", "test"):
        with pytest.raises(MissingVideosError, match="-4wsu_5_15"):
            read_split(args, subset)
    (tmp_path / "val_list.txt").write_text("eyhz_15_27\nunheard_1_2")
    with pytest.raises(ValueError, match=r"1 of 2 videos of .*val_list\.txt have no caption .*unheard_1_2"):
        read_split(args, "val")
    (tmp_path / "val_list.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"val_list\.txt \(--data_path\)"):
        read_split(args, "val")
    args.data_path = str(tmp_path / "raw-captions.pkl")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_split(args, "train")


def test_a_caption_without_words_is_an_error(args, tmp_path):
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps({**CAPTIONS, "eyhz_15_27": [["a"], []]}))
    with pytest.raises(ValueError, match=r"raw-captions\.pkl \(--data_path\): captions without text.*eyhz_15_27"):
        read_split(args, "val")


@pytest.mark.parametrize(
    ("subset", "videos", "captions"), [("train", 1200, 48774), ("val", 100, 4290), ("test", 670, 27763)]
)
def test_counts_of_the_real_files(real_annotations, tmp_path, subset, videos, captions):
    folder = real_annotations / "msvd"
    names = [f"{name}.avi" for name in (folder / f"{subset}_list.txt").read_text().split()]
    args = data_set(tmp_path, {}, names)
    args.data_path = str(folder)
    annotations = read_split(args, subset)
    assert (len(annotations.video_paths), len(annotations.captions)) == (videos, captions)
