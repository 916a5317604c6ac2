"""What the tests of all readers need: annotation files on disk, and empty files as videos."""

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path


def touch(folder: Path, *names: str) -> None:
    """Empty files, in folders of their own where the name has any."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def data_set(folder: Path, files: dict[str, str | bytes], videos: list[str]) -> Namespace:
    """Writes annotation files to `folder` and empty videos below it; returns the flags that name both."""
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    (folder / "videos").mkdir(exist_ok=True)
    touch(folder / "videos", *videos)
    return Namespace(data_path=str(folder), features_path=str(folder / "videos"))


def calls_of(function: Callable[[], object]) -> int:
    """Return how many calls the function makes in this thread, of Python's functions and of C's."""
    counted = Counter()
    sys.setprofile(lambda frame, event, argument: counted.update([event]))
    try:
        function()
    finally:
        sys.setprofile(None)
    return counted["call"] + counted["c_call"]
