"""Annotation files on disk and empty files as videos, for the tests of the readers."""

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path


def touch(folder: Path, *names: str) -> None:
    """Create empty files, and the folders that their names contain."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def data_set(folder: Path, files: dict[str, str | bytes], videos: list[str]) -> Namespace:
    """Write annotation files to `folder` and empty videos below it; return the flags that name both."""
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    (folder / "videos").mkdir(exist_ok=True)
    touch(folder / "videos", *videos)
    return Namespace(data_path=str(folder), features_path=str(folder / "videos"), exclude=None)


def calls_of(function: Callable[[], object]) -> int:
    """Return the number of calls, of Python and of C functions, that `function` makes in this thread."""
    counted = Counter()
    sys.setprofile(lambda frame, event, argument: counted.update([event]))
    try:
        function()
    finally:
        sys.setprofile(None)
    return counted["call"] + counted["c_call"]
