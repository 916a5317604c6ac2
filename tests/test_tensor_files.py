"""Reading tensors without running anything: the same as torch's own loaders, and errors for what is no plain file."""

import argparse
import dataclasses
import datetime
import enum
import io
import math
import os
import pickle
import struct
import sys
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from modules.tensor_files import LEGACY_MAGIC, load_tensors

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.uint16,
]  # fmt: skip
FORMS = {"zip": True, "legacy": False}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "weights.pt"


def assert_equal(actual, expected) -> None:
    if isinstance(expected, torch.Tensor):
        assert actual.dtype == expected.dtype and actual.shape == expected.shape
        assert actual.stride() == expected.stride()
        assert actual.flatten().contiguous().view(torch.uint8).equal(expected.flatten().contiguous().view(torch.uint8))
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key in expected:
            assert_equal(actual[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert type(actual) is (list if isinstance(expected, list) else tuple)
        for one, other in zip(actual, expected, strict=True):
            assert_equal(one, other)
    else:
        assert type(actual) is type(expected) and actual == expected


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_with_its_bytes(path, dtype, form):
    values = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).mul(9).abs().to(dtype)
    content = OrderedDict(whole=values, scalar=values[0, 0].clone(), turned=values.clone().t(), none=values[:0].clone())
    torch.save(content, path, _use_new_zipfile_serialization=FORMS[form])
    assert_equal(load_tensors(path), content)


@pytest.mark.parametrize("form", FORMS)
def test_plain_values_come_back(path, form):
    content = {
        "numbers": [1, -2, 70000, 2**40, -(2**70), 0.5, True, False, None], "text": ("é", "", ("a",), ()),
        "device": torch.device("cuda", 1), "dtype": torch.float16, "set": {1, "a"}, "bytes": b"\x00\xff", 3: {},
    }  # fmt: skip
    torch.save(content, path, _use_new_zipfile_serialization=FORMS[form])
    loaded = load_tensors(path)
    assert loaded == content == torch.load(path, weights_only=True)


@pytest.mark.parametrize("form", FORMS)
def test_views_of_the_same_data_stay_views(path, form):
    whole = torch.arange(12.0)
    torch.save({"whole": whole, "part": whole[3:9].view(2, 3), "tied": whole}, path,
               _use_new_zipfile_serialization=FORMS[form])  # fmt: skip
    loaded = load_tensors(path)
    loaded["whole"][4] = -1
    assert loaded["part"].tolist() == [[3, -1, 5], [6, 7, 8]]
    assert loaded["tied"][4] == -1


@pytest.mark.parametrize("form", FORMS)
def test_a_state_dict_and_an_optimizer_come_back(path, form):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.8, 0.9))
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(keep_vars=True), "optimizer": optimizer.state_dict()}
    torch.save(content, path, _use_new_zipfile_serialization=FORMS[form])
    loaded = load_tensors(path)
    assert_equal(loaded["optimizer"], content["optimizer"])
    nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).load_state_dict(loaded["model"])
    assert_equal(loaded["model"], dict(model.state_dict()))


class Inner(nn.Module):
    """Parameters, buffers, and tensors that are neither."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2).half().t())
        self.plain = torch.arange(2)
        self.bias = None
        self.register_buffer("size", torch.tensor(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight.float().sum() + self.plain.sum()


class Outer(nn.Module):
    """Modules in modules and in lists, and a weight that two share."""

    def __init__(self):
        super().__init__()
        self.inner = Inner()
        self.several = nn.ModuleList([Inner(), Inner()])
        self.tied = self.inner.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + self.several[0](x) + self.several[1](x)


class RunsCode(nn.Module):
    """Its `__setstate__`, code of the archive, prints: `torch.jit.load` runs it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    @torch.jit.export
    def __getstate__(self):
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        print("the archive runs")
        self.weight = state[0]
        self.training = state[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def archive(module: nn.Module, path: Path, traced: bool = False) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (torch.jit.trace(module, torch.zeros(1)) if traced else torch.jit.script(module)).save(str(path))


@pytest.mark.parametrize("traced", [True, False])
def test_an_archive_has_the_state_dict_that_torch_reads(path, traced):
    archive(Outer(), path, traced)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = dict(torch.jit.load(path).state_dict())
    assert "inner.size" in expected and "several.1.weight" in expected and "inner.plain" not in expected
    loaded = load_tensors(path)
    assert_equal(loaded, expected)
    assert loaded["tied"].data_ptr() == loaded["inner.weight"].data_ptr()


def test_code_of_an_archive_does_not_run(path, capfd):
    archive(RunsCode(), path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.load(path)
    assert "the archive runs" in capfd.readouterr().out, "what this test is about"
    with pytest.raises(ValueError, match=r"weights\.pt .*__setstate__"):
        load_tensors(path)
    assert "the archive runs" not in capfd.readouterr().out


# ---- hostile content -------------------------------------------------------------------------------------------------

STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu%btQ"


def write_zip(path: Path, pickled: bytes, compression=zipfile.ZIP_STORED, **entries: bytes) -> None:
    """An archive as torch writes it, with the four bytes of one float as storage 0, unless `entries` say otherwise."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in {"data.pkl": pickled, "data/0": bytes(4), **entries}.items():
            file.writestr(f"a/{name}", content)


def tensor(offset: int, size: tuple, stride: tuple, count: bytes = b"K\x01") -> bytes:
    """The pickle of {"w": tensor} over storage 0; `count` is the instruction with its number of elements."""
    parts = b"".join(pickle.dumps(part, protocol=2)[2:-1] for part in (offset, size, stride))
    return b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE % count + parts + b"\x89}tRs."


@pytest.mark.parametrize(
    ("offset", "size", "stride", "reason"),
    [
        (0, (1,), (1,), None),
        (0, (), (), None),
        (1, (0,), (1,), None),
        (0, (2,), (1,), "only 1 elements"),
        (1, (1,), (1,), "only 1 elements"),
        (0, (10**12,), (0,), "only 1 elements"),
        (0, (2**40, 2**40), (0, 0), "only 1 elements"),
        (0, (1,), (-1,), "-1 is not a valid size"),
        (-1, (1,), (1,), "-1 is not a valid size"),
        (0, (2**62,), (1,), "is not a valid size"),
        (0, (1.5,), (1,), "1.5 is not a valid size"),
        (0, (1,) * 65, (1,) * 65, "65 dimensions"),
        (0, (1, 1), (1,), "2 dimensions and 1 strides"),
    ],
)
def test_tensors_must_fit_their_storage(path, offset, size, stride, reason):
    write_zip(path, tensor(offset, size, stride))
    if reason is None:
        assert load_tensors(path)["w"].shape == size
        return
    with pytest.raises(ValueError, match=reason) as error:
        load_tensors(path)
    assert str(path) in str(error.value) and "MemoryError" not in str(error.value)


def call(name: bytes, argument: bytes) -> bytes:
    return b"\x80\x02c" + name + b"\n(" + argument + b"tR."


HOSTILE_PICKLES = {
    "runs a command": (call(b"os\nsystem", b"X\x04\x00\x00\x00true"), "refers to os.system"),
    "asks for a megabyte": (call(b"builtins\nbytearray", b"J\x00\x00\x10\x00"), "refers to builtins.bytearray"),
    "asks for a tensor": (call(b"torch\nFloatTensor", b"J\x00\x00\x10\x00"), "refers to torch.FloatTensor"),
    "asks by an attribute": (call(b"torch\nload", b"X\x01\x00\x00\x00a"), "refers to torch.load"),
    "changes a function": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.", "__setstate__"),
    "makes a set": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "not a TorchScript module"),
    "other storage": (tensor(0, (1,), (1,), b"K\x02"), "has 4 bytes, not 8"),
    "storage of negative size": (tensor(0, (1,), (1,), b"J\xff\xff\xff\xff"), "-1 is not a valid size"),
    "a key that is a tuple": (b"\x80\x02})K\x01s.", "a key is a tuple"),
    "an odd number of items": (b"\x80\x02}(K\x01u.", "shorter"),
    "appends to a dict": (b"\x80\x02}K\x01a.", "appends to a dict"),
    "a place far away": (b"\x80\x02}r\xff\xff\xff\x7f.", None),
    "a pickle of protocol 4": (pickle.dumps({"a": 1}, protocol=4), "protocol 4; save it again"),
    "an instruction of protocol 4": (b"\x80\x02\x8f.", "instruction 0x8f"),
    "nothing": (b".", "IndexError"),
    "contains itself": (b"\x80\x02]q\x00h\x00a.", "contain themselves"),
    "doubles forty times": (b"\x80\x02K\x00" + b"q\x00h\x00\x86" * 40 + b".", "contain themselves"),
}


@pytest.mark.parametrize(("pickled", "reason"), HOSTILE_PICKLES.values(), ids=HOSTILE_PICKLES)
@pytest.mark.parametrize("form", FORMS)
def test_hostile_pickles(path, pickled, reason, form):
    if form == "zip":
        write_zip(path, pickled)
    else:
        machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
        head = b"".join(pickle.dumps(value, protocol=2) for value in (LEGACY_MAGIC, 1001, machine))
        keys = pickle.dumps(["0"] if b"storage" in pickled else [], protocol=2)
        path.write_bytes(head + pickled + keys + struct.pack("<q", 1) + bytes(4))
        if reason == "has 4 bytes, not 8":
            reason = "ends before the 8 bytes of storage '0'"
    if reason is None:
        assert load_tensors(path) == {}
        return
    with pytest.raises(ValueError, match=reason) as error:
        load_tensors(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


# ---- objects of other classes -------------------------------------------------------------------------------------


@dataclasses.dataclass
class Settings:
    rate: float = 0.5


class Split(enum.Enum):
    TRAIN = "train"


class Recorder(dict):
    """A dict with attributes, as configuration libraries have them."""


FOREIGN = {
    "numpy number": np.float64(43.1), "numpy array": np.arange(3.0), "Namespace": argparse.Namespace(lr=1e-4),
    "defaultdict": defaultdict(list, a=[1.5]), "Counter": Counter("aab"), "dataclass": Settings(), "enum": Split.TRAIN,
    "dict with attributes": Recorder(a=1), "path": Path("a/b"), "date": datetime.date(2024, 5, 17),
    "range": range(3), "frozenset": frozenset("ab"), "deque": deque([1, 2]), "complex": 1j, "no bytes": b"",
    "tuple as a key": {("t2v", "R1"): 43.1}, "enum as a key": {Split.TRAIN: 1}, "function": math.sqrt,
    "large number": 3**3000,
}  # fmt: skip


@pytest.mark.parametrize("value", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("form", FORMS)
def test_a_foreign_value_leaves_the_rest_whole(path, value, form):
    content = {"state_dict": OrderedDict(w=torch.arange(3.0)), "foreign": [value, value], "epoch": 5}
    torch.save(content, path, _use_new_zipfile_serialization=FORMS[form])
    loaded = load_tensors(path)
    assert list(loaded) == list(content) and len(loaded["foreign"]) == 2
    assert_equal(loaded["state_dict"], content["state_dict"])
    assert loaded["epoch"] == 5


def test_containers_that_are_dicts_keep_their_values(path):
    torch.save({"history": defaultdict(list, a=[1.5]), "words": Counter("aab")}, path)
    assert load_tensors(path) == {"history": {"a": [1.5]}, "words": {"a": 2, "b": 1}}


def test_a_foreign_object_is_inert(path):
    """It has its class's name; `os.mkdir` and the like are never called, nor is anything imported."""
    torch.save({"args": argparse.Namespace(lr=1e-4), "run": RunsWhenRead("not/made")}, path)
    assert {key: value.kind for key, value in load_tensors(path).items()} == {
        "args": "argparse.Namespace", "run": "posix.mkdir",
    }  # fmt: skip
    write_zip(path, b"\x80\x02}X\x01\x00\x00\x00acnot_a_module\nname\n)\x81s.")
    assert load_tensors(path)["a"].kind == "not_a_module.name" and "not_a_module" not in sys.modules


def test_parameters_with_attributes_are_tensors(path):
    weight = nn.Parameter(torch.arange(3.0))
    weight.is_norm = True
    tensor = torch.arange(4.0)
    tensor.note = "kept nowhere"
    torch.save({"weight": weight, "tensor": tensor}, path)
    assert_equal(load_tensors(path), {"weight": weight.data, "tensor": torch.arange(4.0)})


class RunsWhenRead:
    """Unpickling it makes a folder."""

    def __init__(self, folder: str):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("pickled", [call(b"os\nsystem", b"X\x04\x00\x00\x00true"), pickle.dumps({}, protocol=4)])
def test_the_readers_own_limit_is_not_called_damage(path, pickled):
    write_zip(path, pickled)
    with pytest.raises(ValueError, match=r"weights\.pt was not loaded: it"):
        load_tensors(path)


# ---- archives ----------------------------------------------------------------------------------------------------


def test_compressed_or_overlapping_entries(path):
    million = tensor(0, (1 << 20,), (1,), b"J\x00\x00\x10\x00")
    write_zip(path, million, zipfile.ZIP_DEFLATED, **{"data/0": bytes(4 << 20)})
    with pytest.raises(ValueError, match=r"'a/data/0' is compressed"):
        load_tensors(path)
    write_zip(path, b"a" * (33 << 20), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"'a/data\.pkl' has \d+ bytes, more than"):
        load_tensors(path)
    write_zip(path, pickle.dumps({}, protocol=2), zipfile.ZIP_LZMA)
    with pytest.raises(ValueError, match="method that torch does not write"):
        load_tensors(path)
    write_zip(path, pickle.dumps({}, protocol=2), **{"data/0": bytes(1000)})
    with zipfile.ZipFile(path, "a") as file:
        for number in range(1, 5):  # all at the place of data/0
            entry = zipfile.ZipInfo(f"a/data/{number}")
            entry.header_offset, entry.file_size, entry.compress_size, entry.CRC = 0, 1000, 1000, 0
            file.filelist.append(entry)
        file._didModify = True
    with pytest.raises(ValueError, match="share their bytes"):
        load_tensors(path)


@pytest.mark.parametrize("form", FORMS)
def test_every_flipped_bit_of_a_zip_is_found_or_harmless(path, form):
    content = {"w": torch.arange(6.0), "n": 3}
    torch.save(content, path, _use_new_zipfile_serialization=FORMS[form])
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        try:
            loaded = load_tensors(path)
        except ValueError as error:
            assert str(path) in str(error)
        else:
            assert form == "legacy" or assert_equal(loaded, content) is None  # only zip has checksums


@pytest.mark.parametrize("form", FORMS)
def test_truncated_anywhere(path, form):
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(6.0)}, buffer, _use_new_zipfile_serialization=FORMS[form])
    for length in range(0, len(buffer.getvalue()), 5):
        path.write_bytes(buffer.getvalue()[:length])
        with pytest.raises(ValueError, match=r"weights\.pt is damaged"):
            load_tensors(path)


def test_other_byte_order(path):
    write_zip(path, pickle.dumps({}, protocol=2), byteorder=b"big")
    with pytest.raises(ValueError, match="another byte order"):
        load_tensors(path)


def test_an_archive_whose_modules_contain_themselves(path):
    module = b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00mh\x00sb."
    write_zip(path, module, **{"constants.pkl": b".", "code/__torch__.py": b"class M(Module):\n"})
    with pytest.raises(ValueError, match="contain themselves"):
        load_tensors(path)
    write_zip(path, pickle.dumps([1], protocol=2), **{"constants.pkl": b"."})
    with pytest.raises(ValueError, match="archive of a list, not of a module"):
        load_tensors(path)
