"""Read tensors from untrusted files: those of `torch.save`, and TorchScript archives such as OpenAI's CLIPs.

The pickle inside is read by the interpreter of modules/tensor_pickle.py, so that no code in the file runs:
`torch.jit.load` runs the `__setstate__` of an archive's modules, and newer Pythons have no torch.jit.

Files of `torch.save` are not left to `torch.load(weights_only=True, mmap=True)`, because that breaks promises of
SECURITY.md (tests/test_memory_bombs.py, with torch 2.14): it allocates the size that a file declares before it compares
it with the file (2 GB for a `bytearray`, 515 MB for a compressed pickle), returns a tensor of 10**12 elements that are
one in the file, hashes a nested key for ever, and does not verify the zip's checksums: a flipped byte of a weight is
not found. It is faster, though: 600 MB take 0.2 s mapped and 1.6 s copied, here 2.0 s.
"""

import io
import os
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from modules.tensor_pickle import Placeholder, ScriptModule, TensorUnpickler, UnsupportedContentError

MAX_PICKLE_BYTES = 32 << 20  # all but the tensors' data; that of a state dict of 10,000 tensors has 2 MB
MAX_CODE_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20
MAX_KEY_LENGTH = 500
MAX_VALUES = 1_000_000
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first value of the form that torch.save wrote before version 1.6


def load_tensors(path: str | Path) -> Any:
    """Return the content of a file of `torch.save`, tensors on the CPU, or the state dict of a TorchScript archive.

    An object of another class inside is a `Placeholder`.

    Raises:
        ValueError: damaged, larger in memory than the file allows, or beyond this reader; the message names the file.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
            content = load_archive(file) if is_zip else load_legacy(file)
            check_root(content)
            check_expanded(content, limit=4 * path.stat().st_size + (1 << 20))
        except UnsupportedContentError as error:
            raise ValueError(f"{path} was not loaded: {single_line(error)}") from error
        except Exception as error:  # on damaged bytes the interpreter, zipfile and torch raise nearly anything
            raise ValueError(
                f"{path} is damaged; it was not loaded ({type(error).__name__}: {single_line(error)})"
            ) from error
    return content


def check_root(content: Any) -> None:
    """Raise UnsupportedContentError if the whole content is an object, or a dict with keys that are not plain."""
    if isinstance(content, Placeholder):
        raise UnsupportedContentError(
            f"its content refers to {content.kind:.100}, which is not a state dict: save that, model.state_dict()"
        )
    kinds = [key.kind for key in content if isinstance(key, Placeholder)] if isinstance(content, dict) else []
    if kinds:
        raise UnsupportedContentError(f"a key is a {kinds[0]:.100}, not a text")


def single_line(error: Exception) -> str:
    """Return the message of an error in one line of at most 500 characters."""
    return " ".join(str(error).split())[:500]


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
            raise UnsupportedContentError("it was written on a machine with another byte order")
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
        raise UnsupportedContentError(f"{entry.filename!r:.100} is compressed")
    if limit is not None and entry.file_size > limit:
        raise UnsupportedContentError(
            f"{entry.filename!r:.100} has {entry.file_size} bytes, more than the {limit} allowed for all but the data "
            "of tensors; numpy arrays count too"
        )
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnsupportedContentError(f"{entry.filename!r:.100} is compressed by a method that torch does not write")
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
        raise UnsupportedContentError("it was written on a machine with another byte order")
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
            raise UnsupportedContentError(f"a TorchScript archive of a {type(module).__name__}, not of a module")
        visited += 1 + len(module.attributes)
        if visited > MAX_VALUES or len(prefix) > MAX_KEY_LENGTH:
            raise UnsupportedContentError(
                f"more than {MAX_VALUES} attributes of modules, or modules that contain themselves"
            )
        names = declared.get(module.kind, set())
        for name, value in module.attributes.items():
            if name in names and isinstance(value, torch.Tensor):
                weights[prefix + name] = value
        children = [(name, value) for name, value in module.attributes.items() if isinstance(value, ScriptModule)]
        waiting += [(f"{prefix}{name}.", child) for name, child in reversed(children)]
    return weights


def check_expanded(content: Any, limit: int) -> None:
    """Raise UnsupportedContentError if a copy of every value and tensor, as often as it occurs, exceeds `limit` bytes.

    A list that contains itself, or ten times a list of ten times a list and so on, is small in a file and in memory
    until it is walked.
    """
    waiting, visited = [content], 0
    while waiting:
        value = waiting.pop()
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        visited += len(parts)
        if visited > MAX_VALUES:
            raise UnsupportedContentError(f"more than {MAX_VALUES} values, or values that contain themselves")
        waiting += parts
        limit -= value.nbytes if isinstance(value, torch.Tensor) else 0
        if limit < 0:
            raise UnsupportedContentError(
                "its tensors share their data so often that copies would be many times its size"
            )
