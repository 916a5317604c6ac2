"""Damaged and hostile files: every reader and loader gives a ValueError or OSError that names the file, or a result.

The inputs are valid files after some edits, and random bytes; they are the same in every run.
"""

import contextlib
import io
import json
import pickle
import socket
import sys
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from dataloaders import (
    dataloader_activitynet_retrieval,
    dataloader_custom_retrieval,
    dataloader_didemo_retrieval,
    dataloader_lsmdc_retrieval,
    dataloader_msrvtt_retrieval,
    dataloader_msvd_retrieval,
    dataloader_vatex_retrieval,
)
from dataloaders.annotations import Annotations
from engine.run_files import read_metrics, read_ranks
from metrics import TEXT_TO_VIDEO
from modules.checkpoint import load_optimizer
from modules.file_utils import cached_path
from modules.optimization import BertAdam
from modules.state_dicts import read_state_dict
from tests.helpers.reader_cases import data_set

pytestmark = pytest.mark.slow

INPUTS = 500
SOAK_INPUTS = 2000
PIECES = [
    b"", b"\x00", b"\xff", b"\n", b"\r", b"\t", b",", b'"', b"\\", b"[", b"]", b"{", b"}", b":", b"null", b"true",
    b"-1", b"1e999", b"NaN", b"9" * 400, b"[" * 2000, b'{"a":' * 2000, b"\\ud800", b"../", b"/etc/passwd",
    b"\xef\xbb\xbf",
    b"(", b")", b".", b"l", b"t", b"d", b"s", b"q\x00", b"h\x00", b"\x94", b"r\xff\xff\xff\x7f", b"p999999999999\n",
    b"cos\nsystem\n", b"R", b"b", b"\x81", b"\x85", b"\x86", b"K\xff", b"J\xff\xff\xff\x7f",
    b"X\xff\xff\xff\x7f", b"\x8e",
    b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x8a\xff", b"ctorch\nFloatTensor\n", b"}", b"u", b"e", b"a",
]  # fmt: skip
EDIT = st.tuples(st.integers(0, 1000), st.integers(0, 12), st.sampled_from(PIECES) | st.binary(max_size=8))


@pytest.fixture(autouse=True)
def soak_inputs(request, monkeypatch) -> None:
    if request.config.getoption("--soak"):
        monkeypatch.setattr(sys.modules[__name__], "INPUTS", SOAK_INPUTS)


def edited(content: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """At each place, in thousandths of the length, so many bytes are replaced by others."""
    for place, cut, piece in edits:
        start = place * len(content) // 1000
        content = content[:start] + piece + content[start + cut :]
    return content


def damaged(*valid: bytes):
    """One of the contents after some edits, or random bytes."""
    return st.builds(edited, st.sampled_from(valid), st.lists(EDIT, min_size=1, max_size=3)) | st.binary(max_size=200)


def fuzz(inputs, check: Callable) -> None:
    """Calls `check` with INPUTS different inputs."""
    tried = 0

    @settings(
        max_examples=INPUTS, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(inputs)
    def run(value):
        nonlocal tried
        tried += 1
        check(value)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()
    assert tried >= INPUTS


def named_error(read: Callable, *arguments, name: str):
    """What `read` returns, or None where it raises an error of the right family that has the name."""
    try:
        return read(*arguments)
    except (ValueError, OSError) as error:
        assert name in str(error)
        assert "MemoryError" not in str(error)
        return None


# ---- annotation files ------------------------------------------------------------------------------------------------

SENTENCES = [{"video_id": "video0", "caption": "a man"}, {"video_id": "video1", "caption": "a \u00e9 dog"}]
BARE = [{"image_id": "0", "caption": "a man"}, {"image_id": 1, "caption": "a dog"}]
TRAIN_CSV, TEST_CSV = "video_id\nvideo0\nvideo1\n", 'key,video_id,sentence\nr0,video0,a man\nr1,video1,"a, b"\n'
TABLE = 'video,caption,start,end,split\nvideo0.mp4,a man,,,train\nvideo1,"a, dog",0,2.5,train\n'
ROWS = [{"video": "video0", "caption": "a man", "split": "train"}, {"video": "video1.mp4", "caption": "b", "start": 1}]
LISTING = "video0\nvideo1\n"
SPANS = {f"v_video{n}": {"duration": 8.5, "timestamps": [[0, 8]], "sentences": ["She dances.", "x"]} for n in (0, 1)}
MOMENTS = [{"video": f"video{n}.mp4", "description": "a hat", "times": [[1, 2]]} for n in (0, 1)]
VATEX = [{"videoID": f"video{n}", "enCap": ["a cat", "an animal"], "chCap": []} for n in (0, 1)]
WORDS = {"video0": [["a", "man"], ["a"]], "video1": [["a", "dog"]]}
LSMDC = "video0\t1\t2\t3\t4\tSOMEONE sits.\nvideo1\t1\t2\t3\t4\tHe goes.\n"
MSRVTT = {"train.csv": TRAIN_CSV, "test.csv": TEST_CSV}

# reader, its files, and what names them beside the folder
READERS = {
    "msrvtt sentences": (dataloader_msrvtt_retrieval, {**MSRVTT, "data.json": json.dumps({"sentences": SENTENCES})},
                         {"train_csv": "train.csv", "val_csv": "test.csv", "data_path": "data.json"}),
    "msrvtt annotations": (dataloader_msrvtt_retrieval, {**MSRVTT, "data.json": json.dumps({"annotations": BARE})},
                           {"train_csv": "train.csv", "val_csv": "test.csv", "data_path": "data.json"}),
    "msvd": (dataloader_msvd_retrieval, {"train_list.txt": LISTING, "raw-captions.pkl": pickle.dumps(WORDS)}, {}),
    "msvd old pickle": (dataloader_msvd_retrieval,
                        {"train_list.txt": LISTING, "raw-captions.pkl": pickle.dumps(WORDS, protocol=0)}, {}),
    "lsmdc": (dataloader_lsmdc_retrieval, {"LSMDC16_annos_training.csv": LSMDC}, {}),
    "activity": (dataloader_activitynet_retrieval,
                 {"train_ids.json": json.dumps([*SPANS, "v_none"]), "train.json": json.dumps(SPANS)}, {}),
    "didemo": (dataloader_didemo_retrieval, {"train_list.txt": "video0.mp4\nvideo1.mp4\n",
                                             "train_data.json": json.dumps(MOMENTS)}, {}),
    "vatex": (dataloader_vatex_retrieval, {"train_list.txt": LISTING, "vatex_v1.0.json": json.dumps(VATEX)}, {}),
    "custom csv": (dataloader_custom_retrieval, {"clips.csv": TABLE}, {"data_path": "clips.csv"}),
    "custom jsonl": (dataloader_custom_retrieval, {"clips.jsonl": "\n".join(map(json.dumps, ROWS))},
                     {"data_path": None, "train_csv": "clips.jsonl"}),
}  # fmt: skip


@pytest.mark.parametrize(("reader", "files", "flags"), READERS.values(), ids=READERS)
def test_readers(tmp_path, reader, files, flags):
    args = data_set(tmp_path, files, ["video0.mp4", "deep/video1.mp4"])
    vars(args).update({"train_csv": None, "val_csv": None})
    vars(args).update({flag: str(tmp_path / name) if name else None for flag, name in flags.items()})
    whole = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
    assert len(reader.read_split(args, "train").captions) in (2, 3, 4)
    subsets = ("train", "test") if "test.csv" in files else ("train",)
    outcomes = []

    def check(case: tuple[str, bytes]) -> None:
        name, content = case
        (tmp_path / name).write_bytes(content)
        for subset in subsets:
            outcomes.append(read_or_none(reader, args, subset, str(tmp_path)))
        (tmp_path / name).write_bytes(whole[name])

    fuzz(st.one_of([st.tuples(st.just(name), damaged(content)) for name, content in whole.items()]), check)
    assert {type(outcome) for outcome in outcomes} == {Annotations, type(None)}, "some pass, some are refused"


def read_or_none(reader, args: Namespace, subset: str, folder: str) -> Annotations | None:
    """The split, whose videos lie inside the folder, or None for an error that names a path of the folder."""
    annotations = named_error(reader.read_split, args, subset, name=folder)
    for path in annotations.video_paths.values() if annotations else ():
        assert path.resolve().is_relative_to(folder)
    return annotations


# ---- weights ---------------------------------------------------------------------------------------------------------


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def repacked(archive: bytes, entry: str, change: Callable[[bytes], bytes]) -> bytes:
    """The same zip, with one entry changed and all checksums right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, change(content) if name.endswith(entry) else content)
    return buffer.getvalue()


def damaged_zip(archive: bytes, *entries: str):
    """The archive damaged from outside, or one of its entries from inside: past the checksums."""
    edits = st.lists(EDIT, min_size=1, max_size=3)
    inside = st.builds(
        lambda entry, changes: repacked(archive, entry, lambda content: edited(content, changes)),
        st.sampled_from(entries), edits,
    )  # fmt: skip
    return damaged(archive) | inside


WEIGHTS = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.ones(2).half(), "count": torch.tensor(3)}


class Network(nn.Module):
    """A module in a module, with a parameter and a buffer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def torchscript() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Network()), buffer)
    return buffer.getvalue()


LOADERS = {
    "zip": ("weights.pt", lambda: damaged_zip(saved(WEIGHTS), "data.pkl", "data/0", "byteorder")),
    "training checkpoint": (
        "weights.pt",
        lambda: damaged_zip(saved({"state_dict": WEIGHTS, "epoch": 3, "name": "a"}), "data.pkl"),
    ),
    "legacy": ("weights.pt", lambda: damaged(saved(WEIGHTS, _use_new_zipfile_serialization=False))),
    "TorchScript": ("weights.pt", lambda: damaged_zip(torchscript(), "data.pkl", ".py", "constants.pkl")),
    "safetensors": ("weights.safetensors", lambda: damaged(save(WEIGHTS))),
}


@pytest.mark.parametrize(("name", "inputs"), LOADERS.values(), ids=LOADERS)
def test_weights(tmp_path, name, inputs):
    path = tmp_path / name
    outcomes = []

    def check(content: bytes) -> None:
        path.write_bytes(content)
        weights = named_error(read_state_dict, path, name=str(path))
        outcomes.append(weights is not None)
        # Small enough to copy, whatever the file says of them.
        assert sum(value.clone().nbytes for value in (weights or {}).values()) <= 4 * len(content) + (1 << 20)

    fuzz(inputs(), check)
    assert set(outcomes) == {True, False}


def test_optimizer(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = BertAdam(model.parameters(), lr=0.1, t_total=10, schedule="warmup_constant", weight_decay=0.0)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {"epoch": 4, "optimizer_state_dict": optimizer.state_dict(), "loss": 0.5}
    path = tmp_path / "pytorch_opt.bin.4"
    outcomes = []

    def check(content: bytes) -> None:
        path.write_bytes(content)
        outcomes.append(named_error(load_optimizer, path, optimizer, name=str(path)) is not None)

    fuzz(damaged_zip(saved(content), "data.pkl", "data/0"), check)
    assert set(outcomes) == {True, False}


# ---- results and addresses -------------------------------------------------------------------------------------------

DIRECTION = {**dict.fromkeys(("R1", "R5", "R10", "R50", "MdR", "MnR"), 2.5), "intervals_95": {"R1": [1.0, 3.5]}}
METRICS = {
    "text_to_video": DIRECTION, "video_to_text": DIRECTION, "split": "test", "epoch": 4, "seed": 1, "holdout": None,
    "configuration_sha256_without_seed": "c", "history": [{"split": "test", "epoch": 4}],
    "protocol": {"epoch_picked_on": "test"}, "best": {"epoch": 3},
}  # fmt: skip
RANKS = "direction,query,true_video,rank\n" + "".join(f"{TEXT_TO_VIDEO},q{n},v{n},{n + 1}\n" for n in range(3))


def test_metrics_of_a_run(tmp_path):
    path = tmp_path / "metrics.json"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        named_error(read_metrics, tmp_path, name=str(path))

    fuzz(damaged(json.dumps(METRICS).encode()), check)
    assert read_metrics_of(path, json.dumps(METRICS).encode()) == METRICS


def read_metrics_of(path: Path, content: bytes) -> dict:
    path.write_bytes(content)
    return read_metrics(path.parent)


def test_ranks_of_a_run(tmp_path):
    path = tmp_path / "ranks.csv"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        named_error(read_ranks, tmp_path, TEXT_TO_VIDEO, name=str(path))

    fuzz(damaged(RANKS.encode()), check)
    check(RANKS.encode())
    assert len(read_ranks(tmp_path, TEXT_TO_VIDEO)) == 3


ADDRESSES = st.builds(
    lambda scheme, rest: f"{scheme}{rest}",
    st.sampled_from(["http://", "https://", "HTTP://", "s3://", "s3://bucket/", "ftp://", "file://", "", "http:/", "://"]),
    st.text(max_size=30) | st.text("ab@:/?#[]%.\\ -0", max_size=20),
)  # fmt: skip


def test_addresses(tmp_path, monkeypatch):
    """Without a network: no name is looked up, and no connection made."""

    def refuse(*_):
        raise OSError("there is no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "cache"

    def check(address: str) -> None:
        try:
            path = cached_path(address, cache, retry_seconds=())
        except (ValueError, OSError) as error:
            assert "hunter2" not in str(error)
        else:
            assert Path(path).exists(), "a path that exists, such as ."
        with contextlib.suppress(FileNotFoundError):
            assert list(cache.iterdir()) == []

    fuzz(ADDRESSES, check)
