"""Read annotation files (lists, JSON, csv). Every error is a ValueError that names the file, its flag and the place.

A missing file is `require_path`'s FileNotFoundError. Text is UTF-8, or UTF-16 with a byte order mark.
"""

import codecs
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from reprlib import repr as shorten  # safe for values that nest too deeply for Python's own
from typing import Any

from dataloaders.annotations import first_names, require_path

MAX_BYTES = 512 << 20
"""Largest annotation file that is read: MSR-VTT's JSON has 30 MB, and parsed it takes many times as much memory."""

SEPARATORS = (",", ";", "\t")


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
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # spreadsheets' "Unicode text"
    try:
        return content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        encoding = "UTF-16" if is_utf16 else "UTF-8"
        raise ValueError(
            f"{path} ({flag}), line {line}: not valid {encoding} ({error.reason}); save the file as UTF-8"
        ) from error


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


def read_csv(path, flag: str, columns: Sequence[str], optional: Sequence[str] = ()) -> list[tuple[int, dict[str, str]]]:
    """Return the line number and the fields by column of every row of a csv whose header has at least `columns`.

    Fields may also be separated by semicolons or tabs, and the case of `columns` and `optional` in the header does not
    matter.
    """
    # Not pandas: it reads captions such as "null" as missing values and has no line numbers for errors.
    text = read_text(path, flag)
    rows = []
    line = 1
    try:
        names, separator = read_columns(text, columns, optional, f"{path} ({flag})")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        for number, fields in enumerate(filter(None, reader)):
            line = reader.line_num + 1
            if number == 0:
                continue
            if len(fields) != len(names):
                amount = "more" if len(fields) > len(names) else "fewer"
                raise ValueError(
                    f"{path} ({flag}), line {reader.line_num}: {amount} fields than the columns {', '.join(names)} "
                    "(text with a comma in it must be quoted)"
                )
            rows.append((reader.line_num, dict(zip(names, fields, strict=True))))
    except csv.Error as error:
        raise ValueError(f"{path} ({flag}), row that begins in line {line}: {error}") from error
    return rows


def read_columns(text: str, columns: Sequence[str], optional: Sequence[str], place: str) -> tuple[list[str], str]:
    """Return the names of the columns, with those of `rename_columns`, and the separator."""
    headers = {}
    for separator in SEPARATORS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        headers[separator] = rename_columns(next(filter(None, reader), []), (*columns, *optional))
        if set(columns) <= set(headers[separator]):
            break
    else:
        raise ValueError(f"{place} needs the columns {', '.join(columns)}; it has {', '.join(headers[SEPARATORS[0]])}")
    names = headers[separator]
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise ValueError(f"{place} has several columns {', '.join(repeated)}; keep one of each")
    return names, separator


def rename_columns(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return the names with those of `wanted` in place of names that differ from them in case or blanks only."""
    known = {name.casefold(): name for name in wanted}
    return [name if name in wanted else known.get(name.strip().casefold(), name) for name in names]


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
