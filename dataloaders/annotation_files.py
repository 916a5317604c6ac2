"""Read annotation files (lists, JSON, csv). Every error is a ValueError that names the file, its flag and the place.

A missing file is `require_path`'s FileNotFoundError. Text is UTF-8, with or without a byte order mark.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from reprlib import repr as shorten  # safe for values that nest too deeply for Python's own
from typing import Any

from dataloaders.annotations import first_names, require_path

MAX_BYTES = 512 << 20
"""Largest annotation file that is read: MSR-VTT's JSON has 30 MB, and parsed it takes many times as much memory."""


def read_bytes(path, flag: str, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a file of at most `limit` bytes."""
    path = require_path(path, flag)
    size = path.stat().st_size
    if size > limit:
        raise ValueError(f"{path} ({flag}) has {size} bytes, more than the {limit} that are allowed")
    return path.read_bytes()


def read_text(path, flag: str) -> str:
    """Return the text of a file with its line ends as they are."""
    content = read_bytes(path, flag)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path} ({flag}), line {line}: not valid UTF-8 ({error.reason})") from error


def read_lines(path, flag: str) -> list[tuple[int, str]]:
    """Return the number, from 1, and the text of every line that is not blank."""
    # Not `str.splitlines`, which also separates at characters that captions may hold.
    lines = io.StringIO(read_text(path, flag), newline=None)
    return [(number, line.rstrip("\n")) for number, line in enumerate(lines, 1) if line.strip()]


def read_ids(path, flag: str) -> list[str]:
    """Return the distinct ids of a list with one id per line, in order."""
    return list(dict.fromkeys(line.strip() for _, line in read_lines(path, flag)))


def read_json(path, flag: str, kind: type) -> Any:
    """Return the content of a JSON file whose outermost value is of `kind`, list or dict."""
    return parse_json(read_text(path, flag), kind, f"{path} ({flag})")


def parse_json(text: str, kind: type, place: str) -> Any:
    """Return the content of JSON `text` whose outermost value is of `kind`; errors begin with `place`."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{place} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{place} is not valid JSON: it nests too deeply") from error
    if not isinstance(content, kind):
        raise ValueError(f"{place} must hold a JSON {kind.__name__}, not a {type(content).__name__}")
    return content


def read_csv(path, flag: str, columns: Iterable[str]) -> list[tuple[int, dict[str, str]]]:
    """Return the line number and the fields by column of every row of a csv whose header has at least `columns`."""
    # Not pandas: it reads captions such as "null" as missing values and has no line numbers for errors.
    reader = csv.DictReader(io.StringIO(read_text(path, flag), newline=""), strict=True)
    rows = []
    try:
        found = reader.fieldnames or []
        if not set(columns) <= set(found):
            raise ValueError(f"{path} ({flag}) needs the columns {', '.join(columns)}; it has {', '.join(found)}")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path} ({flag}), line {reader.line_num}: {'more' if None in row else 'fewer'} fields than the "
                    f"columns {', '.join(found)} (text with a comma in it must be quoted)"
                )
            rows.append((reader.line_num, row))
    except csv.Error as error:
        raise ValueError(f"{path} ({flag}), row that begins in line {reader.line_num + 1}: {error}") from error
    return rows


def check_entry(entry: Any, kinds: Mapping[str, type | tuple[type, ...]], place: str) -> None:
    """Raise ValueError, beginning with `place`, unless `entry` is a dict with these keys and types of values."""
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in kinds.items()):
        names = [
            f"{key} ({' or '.join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))})"
            for key, kind in kinds.items()
        ]
        raise ValueError(f"{place}: an entry needs the keys {', '.join(names)}; one is {shorten(entry)}")


def check_texts(values: list, place: str) -> list[str]:
    """Return `values` if all are strings; else raise ValueError, beginning with `place`."""
    for value in values:
        if not isinstance(value, str):
            raise ValueError(f"{place} must be texts; one is {shorten(value)}")
    return values


def texts_of_split(
    video_ids: Iterable[str], texts: Mapping[str, list[str]], listing: Path, source: Path, flags: str = "--data_path"
) -> dict[str, list[str]]:
    """Return the texts of each id of the file `listing`, in order; raise ValueError if `source` lacks some."""
    chosen = {video_id: texts.get(video_id, []) for video_id in video_ids}
    missing = [video_id for video_id, found in chosen.items() if not found]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(chosen)} videos of {listing} have no caption in {source} ({flags}): "
            f"{first_names(missing)}"
        )
    return chosen
