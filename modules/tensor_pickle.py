"""The interpreter of the pickles in weights files: plain values, containers and tensors; no code in a file runs.

An object of any other class becomes a `Placeholder`, which holds its class's name alone: training checkpoints often
have a numpy number or an argparse.Namespace beside the state dict.
"""

import io
import math
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

NEWEST_PROTOCOL = 3  # of pickle; torch.save writes 2
MAX_DIMENSIONS = 64  # torch's own bound

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip


class UnsupportedContentError(ValueError):
    """The file may be whole, but its content is beyond what this reader reads."""


@dataclass(frozen=True, eq=False)
class Placeholder:
    """A class that a file names, or an object of it; the class is not imported, and nothing of the object is kept.

    As a key it stands for a value that is not plain, such as a tuple.
    """

    kind: str

    def __call__(self, *_) -> "Placeholder":
        return Placeholder(self.kind)

    def __repr__(self) -> str:
        return f"<object of {self.kind!r:.100}>"


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


class Instructions(dict):
    """The methods of the interpreter by instruction; any other instruction is beyond this reader."""

    def __missing__(self, code: int):
        raise UnsupportedContentError(f"its pickle has the instruction {code:#04x}, which torch.save does not write")


class TensorUnpickler(pickle._Unpickler):
    """Python's interpreter of pickles, reduced to the instructions for containers, numbers and tensors.

    `read_storage(key, size)` returns the `size` bytes of a storage. Classes and functions that a file names are never
    imported: a name stands for a method of this class, a dtype or a `Placeholder`.
    """

    dispatch = Instructions(
        {
            code[0]: pickle._Unpickler.dispatch[code[0]]
            for code in (
                pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1,
                pickle.BININT2, pickle.LONG1, pickle.LONG4, pickle.BINFLOAT, pickle.BINUNICODE, pickle.SHORT_BINSTRING,
                pickle.BINSTRING, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
                pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.BINGET, pickle.LONG_BINGET, pickle.BINPUT,
                pickle.LONG_BINPUT, pickle.GLOBAL, pickle.REDUCE, pickle.BINPERSID, pickle.POP, pickle.POP_MARK,
            )
        }
    )  # fmt: skip

    def __init__(self, file: io.BytesIO, read_storage: Callable[[str, int], torch.UntypedStorage]):
        super().__init__(file, encoding="utf-8")
        self.read_storage = read_storage
        self.meanings = {
            "collections.OrderedDict": self.make_dict,
            "collections.Counter": self.make_dict,
            "collections.defaultdict": self.make_default_dict,
            "builtins.set": self.make_set,
            "__builtin__.set": self.make_set,
            "_codecs.encode": self.make_bytes,
            "torch.Size": self.make_tuple,
            "torch.device": self.make_device,
            "torch._utils._rebuild_tensor": self.make_tensor,
            "torch._utils._rebuild_tensor_v2": self.make_tensor,
            "torch._utils._rebuild_tensor_v3": self.make_tensor_v3,
            "torch._utils._rebuild_parameter": self.make_parameter,
            "torch._utils._rebuild_parameter_with_state": self.make_parameter,
            "torch._tensor._rebuild_from_type_v2": self.make_typed_tensor,
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return the meaning of a name in the file, a `Placeholder` for names that are not listed above."""
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
        return Placeholder(full_name)

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage of a reference ("storage", type, key, device, number of elements)."""
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str) or any(view):
            raise UnsupportedContentError(f"it refers to a {kind!r:.50} that is not a plain storage")
        check_counts([count])
        return Storage(dtype, self.read_storage(key, count * dtype.itemsize))

    def load_proto(self) -> None:
        protocol = self.read(1)[0]
        if protocol > NEWEST_PROTOCOL:
            raise UnsupportedContentError(
                f"it is a pickle of protocol {protocol}; save it again by torch.save, whose own protocol is 2"
            )

    def load_append(self) -> None:
        value = self.stack.pop()
        self.extend([value])

    def load_appends(self) -> None:
        self.extend(self.pop_mark())

    def extend(self, values: list) -> None:
        if isinstance(self.stack[-1], Placeholder):
            return
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
        if isinstance(self.stack[-1], Placeholder):
            return
        if type(self.stack[-1]) is not dict:
            raise pickle.UnpicklingError(f"it sets items of a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(self.make_dict(items))

    def load_newobj(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if isinstance(kind, Placeholder):
            self.append(kind())
            return
        if arguments != () or not isinstance(kind, ScriptClass):
            raise UnsupportedContentError("it makes an object that is not a TorchScript module")
        self.append(ScriptModule(kind))

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is dict or isinstance(target, Placeholder):
            return  # attributes of an OrderedDict, such as the versions of the modules in a state dict
        if not isinstance(target, ScriptModule) or type(state) is not dict:
            raise UnsupportedContentError("it has an object that restores its own state (__setstate__)")
        target.attributes.update(state)

    dispatch[pickle.PROTO[0]] = load_proto
    dispatch[pickle.APPEND[0]] = load_append
    dispatch[pickle.APPENDS[0]] = load_appends
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build

    @staticmethod
    def make_dict(items: Iterable = ()) -> dict:
        items = items.items() if type(items) is dict else items
        return {plain_key(key): value for key, value in items}

    @staticmethod
    def make_default_dict(_factory: Any = None, items: Iterable = ()) -> dict:
        return TensorUnpickler.make_dict(items)

    @staticmethod
    def make_set(values: list) -> set:
        return set(map(plain_key, values))

    @staticmethod
    def make_bytes(text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise UnsupportedContentError(f"it has bytes in the encoding {encoding!r:.50}")
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
    def make_typed_tensor(rebuild: Callable, _kind: Any, arguments: tuple, _attributes: Any) -> Any:
        return rebuild(*arguments)

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


def plain_key(key: Any) -> Any:
    """Return `key`, a `Placeholder` unless it is a plain value: hashing tuples nested in tuples can take for ever."""
    return key if isinstance(key, str | int | float | bytes | None) else Placeholder(type(key).__name__)
