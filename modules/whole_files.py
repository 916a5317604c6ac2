"""Write files whole (temporary name, fsync, rename), and hash them. Standard library only.

A reader of a file written here finds the earlier content or the new one, never a part, also after a power cut.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHUNK_BYTES = 1 << 20


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give the block a temporary path to write to, which becomes `path` when the block ends without an error.

    Raises:
        OSError: `path` cannot be written; the message names it, and the temporary file is removed.
    """
    temporary = path.with_name(path.name + ".partial")
    with explain_write_errors(path):
        try:
            yield temporary
            sync(temporary)
            rename_synced(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, in UTF-8 with its line ends as they are; raises OSError naming it."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def rename_synced(source: Path, target: Path) -> None:
    """Rename a file or folder whose content is on the disk, and wait until the new name is there too."""
    os.replace(source, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn an error in the block into an OSError with the name of the file and the free space on its disk."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        free = shutil.disk_usage(path.parent).free
        raise OSError(f"{path} cannot be written, {free / 1e6:.0f} MB free: {error}") from error


def file_digest(name: str, path: Path) -> str:
    """Return the hexadecimal hash of a file's content; `name` is a hash that `hashlib` knows."""
    # The hashes guard against damage, not forgery: MD5 is fine here, and a FIPS machine would refuse it without this.
    digest = hashlib.new(name, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def text_sha256(text: str) -> str:
    """Return the hexadecimal SHA-256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
