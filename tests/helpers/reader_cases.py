"""What the tests of all readers need: annotation files on disk, and empty files as videos."""

import time
from argparse import Namespace
from pathlib import Path

from dataloaders.annotations import Annotations


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


def read_in_time(read_split, args: Namespace, subset: str, seconds: float = 3) -> Annotations:
    """The split of a full-size data set, which must load within the promised time."""
    started = time.process_time()  # what others do on the same cores does not count
    annotations = read_split(args, subset)
    assert time.process_time() - started < seconds
    return annotations
