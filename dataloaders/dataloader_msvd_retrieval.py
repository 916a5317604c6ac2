"""MSVD: a list of videos for each split, and a pickle with the captions of all videos as lists of words."""

import io
import pickle
from pathlib import Path
from reprlib import repr as shorten  # safe for values that nest too deeply for Python's own

from dataloaders.annotation_files import read_bytes, read_ids, texts_of_split
from dataloaders.annotations import Annotations, Caption, locate_captions, require_path
from dataloaders.data_config import DataConfig

MAX_PICKLE_BYTES = 64 << 20  # the published file has 8 MB
MAX_TEXT = 1 << 26  # words and characters of all captions; the published file has 4 million


def read_split(config: DataConfig, subset: str) -> Annotations:
    """Read `{train,val,test}_list.txt` and `raw-captions.pkl` in the folder `--data_path`; every caption is used.

    Raises:
        FileNotFoundError: a file, video or folder is missing.
        ValueError: a file does not have the published form.
    """
    folder = require_path(config.data_path, "--data_path", folder=True)
    listing, source = folder / f"{subset}_list.txt", folder / "raw-captions.pkl"
    video_ids = read_ids(listing, "--data_path")
    texts = texts_of_split(video_ids, read_captions(source), listing, source)
    captions = [Caption(video_id, text) for video_id, found in texts.items() for text in found]
    return locate_captions(
        captions, config.features_path, source=f"{listing} with {source}", flag="--data_path", exclude=config.exclude
    )


def read_captions(path: Path) -> dict[str, list[str]]:
    """Return the captions by video id from a pickle of `{id: [[word, ...], ...]}`, without running its code.

    Raises:
        ValueError: the pickle has other values than dicts, lists and strings (names the class that it would import),
            or expands to more than `MAX_TEXT` words and characters.
    """
    place = f"{path} (--data_path)"
    pickled = read_bytes(path, "--data_path", MAX_PICKLE_BYTES)
    try:
        content = PlainUnpickler(io.BytesIO(pickled), encoding="utf-8").load()
    except Exception as error:  # damaged bytes make pickle raise nearly any exception
        raise ValueError(
            f"{place} is not a pickle of plain dicts, lists and strings: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{place} must hold a dict of captions by video id, not a {type(content).__name__}")
    texts, remaining = {}, MAX_TEXT
    for video_id, captions in content.items():
        # A pickle can refer to the same list again and again, and expand to far more than its own size.
        remaining -= expanded_length(captions, remaining)
        if remaining < 0:
            raise ValueError(f"{place} expands to more than {MAX_TEXT} words and characters")
        if not (isinstance(video_id, str) and isinstance(captions, list) and all(map(is_word_list, captions))):
            raise ValueError(
                f"{place}: a video id (str) needs a list of lists of words; {shorten(video_id)} has {shorten(captions)}"
            )
        texts[video_id] = [" ".join(words) for words in captions]
    return texts


class PlainUnpickler(pickle._Unpickler):
    """Python's own interpreter of pickles, reduced to the instructions for dicts, lists, strings and numbers.

    A name to import, which is the way to run code, is an error. Not the faster `pickle.Unpickler`, which allocates
    gigabytes for a few bytes with a large memo index.
    """

    dispatch = {  # noqa: RUF012 - the name and form are the base class's
        code[0]: pickle._Unpickler.dispatch[code[0]]
        for code in (
            pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE,
            pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.UNICODE, pickle.BINUNICODE,
            pickle.SHORT_BINUNICODE, pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.LIST,
            pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.TUPLE, pickle.EMPTY_TUPLE, pickle.TUPLE1, pickle.TUPLE2,
            pickle.TUPLE3, pickle.APPEND, pickle.APPENDS, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT,
            pickle.MEMOIZE, pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.GLOBAL, pickle.STACK_GLOBAL,
        )
    }  # fmt: skip

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"it would import {module}.{name}")

    def load_empty_set(self):
        self.find_class("builtins", "set")

    def load_dict(self):
        items = self.pop_mark()
        self.append({})
        self.set_items(items)

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def load_setitems(self):
        self.set_items(self.pop_mark())

    def set_items(self, items: list):
        for key in items[::2]:
            # The hash of deeply nested tuples can take for ever.
            if not isinstance(key, str | int):
                raise pickle.UnpicklingError(f"a key is a {type(key).__name__}")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    dispatch[pickle.EMPTY_SET[0]] = load_empty_set
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems


def expanded_length(captions, limit: int) -> int:
    """Return the number of words and characters in lists of words, counted only as far as `limit`."""
    length = 0
    for words in captions if isinstance(captions, list) else ():
        length += 1
        if isinstance(words, list | tuple):
            length += len(words)
            if length <= limit:
                length += sum(len(word) for word in words if isinstance(word, str))
        if length > limit:
            break
    return length


def is_word_list(words) -> bool:
    return isinstance(words, list | tuple) and all(isinstance(word, str) for word in words)
