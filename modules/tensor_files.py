"""Read tensors from untrusted files: those of `torch.save`, and TorchScript archives such as OpenAI's CLIPs.

The pickle inside is read by an interpreter of plain values, containers and tensors, so that no code in the file runs:
`torch.jit.load` runs the `__setstate__` of an archive's modules, and newer Pythons have no torch.jit.

Files of `torch.save` are not left to `torch.load(weights_only=True, mmap=True)`, because that breaks promises of
SECURITY.md (tests/test_memory_bombs.py, with torch 2.14): it allocates the size that a file declares before it compares
it with the file (2 GB for a `bytearray`, 515 MB for a compressed pickle), returns a tensor of 10**12 elements that are
one in the file, hashes a nested key for ever, and does not verify the zip's checksums: a flipped byte of a weight is
not found. It is faster, though: 600 MB take 0.2 s mapped and 1.6 s copied, here 2.0 s.
"""

import io
import math
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

MAX_PICKLE_BYTES = 32 << 20  # all but the tensors' data; that of a state dict of 10,000 tensors has 2 MB
MAX_CODE_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20
MAX_DIMENSIONS = 64  # torch's own bound
MAX_KEY_LENGTH = 500
MAX_VALUES = 1_000_000
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first value of the form that torch.save wrote before version 1.6

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip


class Storage(NamedTuple):
    """Bytes of a file and their dtype; uint8 also for bytes whose tensors declare their own dtype."""

    dtype: torch.dtype
    content: torch.UntypedStorage


class ScriptClass(str):
    """Qualified name of a class in a TorchScript archive; it begins with `__torch__.`."""


@dataclass
class ScriptModule:
    """A module in a TorchScript archive."""

    kind: ScriptClass
    attributes: dict[str, Any] = field(default_factory=dict)


class TensorUnpickler(pickle._Unpickler):
    """Python's interpreter of pickles, reduced to the instructions for containers, numbers and tensors.

    `read_storage(key, size)` returns the `size` bytes of a storage. Classes and functions that a file names are never
    imported: a name stands for a method of this class or a dtype, and any other is an error.
    """

    dispatch = {  # noqa: RUF012 - the name and form are the base class's
        code[0]: pickle._Unpickler.dispatch[code[0]]
        for code in (
            pickle.PROTO, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT,
            pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE, pickle.SHORT_BINSTRING,
            pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST,
            pickle.EMPTY_DICT, pickle.BINGET, pickle.LONG_BINGET, pickle.BINPUT, pickle.LONG_BINPUT, pickle.GLOBAL,
            pickle.REDUCE, pickle.BINPERSID,
        )
    }  # fmt: skip

    def __init__(self, file: io.BytesIO, read_storage: Callable[[str, int], torch.UntypedStorage]):
        super().__init__(file, encoding="utf-8")
        self.read_storage = read_storage
        self.meanings = {
            "collections.OrderedDict": self.make_dict,
            "collections.Counter": self.make_dict,
            "builtins.set": self.make_set,
            "__builtin__.set": self.make_set,
            "_codecs.encode": self.make_bytes,
            "torch.Size": self.make_tuple,
            "torch.device": self.make_device,
            "torch._utils._rebuild_tensor": self.make_tensor,
            "torch._utils._rebuild_tensor_v2": self.make_tensor,
            "torch._utils._rebuild_tensor_v3": self.make_tensor_v3,
            "torch._utils._rebuild_parameter": self.make_parameter,
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return the meaning of a name in the file; raises UnpicklingError for names that are not listed above."""
        if module == "__torch__" or module.startswith("__torch__."):
            return ScriptClass(f"{module}.{name}")
        full_name = f"{module}.{name}"
        if full_name in self.meanings:
            return self.meanings[full_name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module in ("torch", "torch.storage") and name == "UntypedStorage":
            return torch.uint8
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        raise pickle.UnpicklingError(f"it refers to {full_name}")

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage of a reference ("storage", type, key, device, number of elements)."""
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str) or any(view):
            raise pickle.UnpicklingError(f"it refers to a {kind!r:.50} that is not a plain storage")
        check_counts([count])
        return Storage(dtype, self.read_storage(key, count * dtype.itemsize))

    def load_append(self) -> None:
        value = self.stack.pop()
        self.extend([value])

    def load_appends(self) -> None:
        self.extend(self.pop_mark())

    def extend(self, values: list) -> None:
        if type(self.stack[-1]) is not list:
            raise pickle.UnpicklingError(f"it appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(values)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.update([(key, value)])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self.update(zip(items[::2], items[1::2], strict=True))

    def update(self, items: Iterable[tuple]) -> None:
        if type(self.stack[-1]) is not dict:
            raise pickle.UnpicklingError(f"it sets items of a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(self.make_dict(items))

    def load_newobj(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if arguments != () or not isinstance(kind, ScriptClass):
            raise pickle.UnpicklingError("it makes an object that is not a TorchScript module")
        self.append(ScriptModule(kind))

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is dict:
            return  # attributes of an OrderedDict, such as the versions of the modules in a state dict
        if not isinstance(target, ScriptModule) or type(state) is not dict:
            raise pickle.UnpicklingError("it has an object that restores its own state (__setstate__)")
        target.attributes.update(state)

    dispatch[pickle.APPEND[0]] = load_append
    dispatch[pickle.APPENDS[0]] = load_appends
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build

    @staticmethod
    def make_dict(items: Iterable = ()) -> dict:
        items = items.items() if type(items) is dict else items
        return {check_key(key): value for key, value in items}

    @staticmethod
    def make_set(values: list) -> set:
        return set(map(check_key, values))

    @staticmethod
    def make_bytes(text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it has bytes in the encoding {encoding!r:.50}")
        return text.encode(encoding)

    @staticmethod
    def make_tuple(values: tuple) -> tuple:
        return tuple(values)

    @staticmethod
    def make_device(kind: str, index: int | None = None) -> torch.device:
        return torch.device(kind) if index is None else torch.device(kind, index)

    @staticmethod
    def make_parameter(data: torch.Tensor, *_) -> torch.Tensor:
        return data

    @staticmethod
    def make_tensor_v3(
        storage: Storage, offset: int, size: tuple, stride: tuple, _grad: bool, _hooks: dict, dtype: torch.dtype, *_
    ) -> torch.Tensor:  # fmt: skip
        return TensorUnpickler.make_tensor(Storage(dtype, storage.content), offset, size, stride)

    @staticmethod
    def make_tensor(storage: Storage, offset: int, size: tuple, stride: tuple, *_) -> torch.Tensor:
        """Return a view of a storage; raises UnpicklingError if it exceeds the storage or repeats elements."""
        if len(size) > MAX_DIMENSIONS or len(size) != len(stride):
            raise pickle.UnpicklingError(f"a tensor has {len(size)} dimensions and {len(stride)} strides")
        check_counts([offset, *size, *stride])
        elements = storage.content.nbytes() // storage.dtype.itemsize
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if math.prod(size) > elements or (0 not in size and last >= elements):
            raise pickle.UnpicklingError(
                f"a tensor of shape {tuple(size)}, stride {tuple(stride)} and offset {offset} has only {elements} "
                "elements in the file"
            )
        return torch.empty(0, dtype=storage.dtype).set_(storage.content, offset, tuple(size), tuple(stride))


def check_counts(values: list) -> None:
    """Raise UnpicklingError unless all values are integers in the range of torch's sizes."""
    for value in values:
        if type(value) is not int or not 0 <= value < 2**62:
            raise pickle.UnpicklingError(f"{value!r:.50} is not a valid size")


def check_key(key: Any) -> Any:
    """Return `key` if it is a plain value; hashing tuples nested in tuples can take for ever."""
    if not isinstance(key, str | int | float | bytes | None):
        raise pickle.UnpicklingError(f"a key is a {type(key).__name__}")
    return key


def load_tensors(path: str | Path) -> Any:
    """Return the content of a file of `torch.save`, tensors on the CPU, or the state dict of a TorchScript archive.

    Raises:
        ValueError: damaged, larger in memory than the file allows, or more than plain values and tensors; the message
            names the file.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
            content = load_archive(file) if is_zip else load_legacy(file)
            check_expanded(content, limit=4 * path.stat().st_size + (1 << 20))
        except Exception as error:  # on damaged bytes the interpreter, zipfile and torch raise nearly anything
            raise ValueError(
                f"{path} is damaged or holds more than plain values and tensors; it was not loaded "
                f"({type(error).__name__}: {' '.join(str(error).split())[:500]})"
            ) from error
    return content


def load_archive(file: io.BufferedReader) -> Any:
    """Return the content of a zip: `data.pkl` and storages in `data/`; with `constants.pkl` it is TorchScript's."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if sum(entry.compress_size for entry in archive.infolist()) > os.fstat(file.fileno()).st_size:
            raise ValueError("its entries are larger than the file: they share their bytes")
        folder = next((name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")), None)
        if folder is None:
            raise ValueError("a zip without data.pkl")
        order = f"{folder}byteorder"
        if order in entries and read_entry(archive, entries[order], 16) != sys.byteorder.encode():
            raise ValueError("it was written on a machine with another byte order")
        storages: dict[str, torch.UntypedStorage] = {}

        def read_storage(key: str, size: int) -> torch.UntypedStorage:
            if key not in storages:
                storages[key] = as_storage(read_entry(archive, entries[f"{folder}data/{key}"], limit=None))
            if storages[key].nbytes() != size:
                raise ValueError(f"storage {key!r:.50} has {storages[key].nbytes()} bytes, not {size}")
            return storages[key]

        pickled = io.BytesIO(read_entry(archive, entries[f"{folder}data.pkl"], MAX_PICKLE_BYTES))
        content = TensorUnpickler(pickled, read_storage).load()
        if f"{folder}constants.pkl" not in entries:
            return content
        return script_state_dict(content, declared_weights(archive, f"{folder}code/"))


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int | None) -> bytearray:
    """Return the bytes of an entry, its checksum verified; raises ValueError for more than `limit` bytes.

    Without a limit the entry must be uncompressed, and is then not larger than the file.
    """
    if limit is None and (entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size):
        raise ValueError(f"{entry.filename!r:.100} is compressed")
    if limit is not None and entry.file_size > limit:
        raise ValueError(f"{entry.filename!r:.100} has {entry.file_size} bytes, more than the {limit} allowed")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{entry.filename!r:.100} is compressed by a method that torch does not write")
    content = bytearray(entry.file_size)
    view, position = memoryview(content), 0
    with archive.open(entry) as file:
        while count := file.readinto(view[position : position + CHUNK_BYTES]):
            position += count
    if position != entry.file_size:
        raise ValueError(f"{entry.filename!r:.100} has {position} of {entry.file_size} bytes")
    return content


def as_storage(content: bytearray) -> torch.UntypedStorage:
    """Return the same memory as a storage."""
    return torch.frombuffer(content, dtype=torch.uint8).untyped_storage() if content else torch.UntypedStorage(0)


def load_legacy(file: io.BufferedReader) -> Any:
    """Return the content of a file in the form before torch 1.6.

    It has five pickles (magic number, version, machine, content, keys of the storages), then the storages' bytes.
    """
    file.seek(0, io.SEEK_END)
    available = file.tell()
    file.seek(0)
    pickles = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    buffers: dict[str, bytearray] = {}
    storages: dict[str, torch.UntypedStorage] = {}

    def reserve(key: str, size: int) -> torch.UntypedStorage:
        nonlocal available
        if key not in storages:
            available -= size
            if available < 0:
                raise ValueError(f"storage {key!r:.50} has {size} bytes, more than the file")
            buffers[key] = bytearray(size)
            storages[key] = as_storage(buffers[key])
        if storages[key].nbytes() != size:
            raise ValueError(f"storage {key!r:.50} has {storages[key].nbytes()} bytes, not {size}")
        return storages[key]

    if TensorUnpickler(pickles, reserve).load() != LEGACY_MAGIC:
        raise ValueError("it is not a file of torch.save")
    version, machine, content, keys = (TensorUnpickler(pickles, reserve).load() for _ in range(4))
    if machine["little_endian"] != (sys.byteorder == "little"):
        raise ValueError("it was written on a machine with another byte order")
    if sorted(keys) != sorted(buffers):
        raise ValueError(f"version {version!r:.50}: its list of storages is not that of its tensors")
    file.seek(pickles.tell())
    for key in keys:
        file.seek(8, io.SEEK_CUR)  # the number of elements, which is known
        if file.readinto(buffers[key]) != len(buffers[key]):
            raise ValueError(f"it ends before the {len(buffers[key])} bytes of storage {key!r:.50}")
    return content


def declared_weights(archive: zipfile.ZipFile, folder: str) -> dict[str, set[str]]:
    """Return the parameter and buffer names of each class, by its qualified name, from a TorchScript archive's code."""
    declared = {}
    remaining = MAX_CODE_BYTES
    for entry in archive.infolist():
        if entry.filename.startswith(folder) and entry.filename.endswith(".py"):
            code = read_entry(archive, entry, remaining)
            remaining -= len(code)
            module = entry.filename.removeprefix(folder).removesuffix(".py").replace("/", ".")
            lines = code.decode("utf-8").splitlines()
            for number, line in enumerate(lines):
                if line.startswith("class "):
                    lists = [text for text in lines[number + 1 : number + 3] if re.match("  __(param|buff)", text)]
                    names = {name for text in lists for name in re.findall('"([^"]*)"', text)}
                    declared[f"{module}.{re.split('[(:]', line[6:])[0]}"] = names
    return declared


def script_state_dict(root: Any, declared: dict[str, set[str]]) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a tree of modules, those of a module before those of its children."""
    weights: dict[str, torch.Tensor] = {}
    waiting, visited = [("", root)], 0
    while waiting:
        prefix, module = waiting.pop()
        if not isinstance(module, ScriptModule):
            raise ValueError(f"a TorchScript archive of a {type(module).__name__}, not of a module")
        visited += 1 + len(module.attributes)
        if visited > MAX_VALUES or len(prefix) > MAX_KEY_LENGTH:
            raise ValueError(f"more than {MAX_VALUES} attributes of modules, or modules that contain themselves")
        names = declared.get(module.kind, set())
        for name, value in module.attributes.items():
            if name in names and isinstance(value, torch.Tensor):
                weights[prefix + name] = value
        children = [(name, value) for name, value in module.attributes.items() if isinstance(value, ScriptModule)]
        waiting += [(f"{prefix}{name}.", child) for name, child in reversed(children)]
    return weights


def check_expanded(content: Any, limit: int) -> None:
    """Raise ValueError if a copy of every value and tensor, as often as it occurs, exceeds `limit` bytes.

    A list that contains itself, or ten times a list of ten times a list and so on, is small in a file and in memory
    until it is walked.
    """
    waiting, visited = [content], 0
    while waiting:
        value = waiting.pop()
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        visited += len(parts)
        if visited > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values, or values that contain themselves")
        waiting += parts
        limit -= value.nbytes if isinstance(value, torch.Tensor) else 0
        if limit < 0:
            raise ValueError("its tensors share their data so often that copies would be many times its size")
