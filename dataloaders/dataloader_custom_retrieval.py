"""Your own data: a csv or JSONL file with `video, caption` and optionally `start, end, split`, a row per caption."""

import os
from pathlib import Path

from dataloaders.annotation_files import check_entry, parse_json, read_csv, read_lines, rename_columns
from dataloaders.annotations import Annotations, Caption, locate_captions, require_path
from dataloaders.data_config import DataConfig

SPLITS = ("train", "val", "test")
KEYS = ("video", "caption", "start", "end", "split")  # the first two are needed


def read_split(config: DataConfig, subset: str) -> Annotations:
    """Read the subset's rows of `--data_path` if it is a file, else of `--train_csv` (training) or `--val_csv`.

    `--data_path` needs `split` in every row; in the other files a row without `split` belongs to the flag's own split.
    `video` is a file's name, its name without the extension, or its path below `--features_path`. `start` and `end`
    are seconds; an end after the video's end is the video's end. Other columns are ignored and named in the log.

    Raises:
        FileNotFoundError: a file, video or folder is missing.
        ValueError: a file does not have this form.
    """
    flag = "--train_csv" if subset == "train" else "--val_csv"
    path = config.train_csv if subset == "train" else config.val_csv
    if config.data_path and os.path.isfile(config.data_path):
        flag, path = "--data_path", config.data_path
    elif not path or not os.path.isfile(path):
        raise FileNotFoundError(f"no such file: {config.data_path} (--data_path), nor {path} ({flag})")
    captions, splits, ignored = [], set(), set()
    for number, row in read_rows(Path(path), flag):
        place = f"{path} ({flag}), line {number}"
        check_entry(row, {"video": str, "caption": str}, place)
        ignored |= set(row) - {*KEYS, ""}
        split = without_blanks(row.get("split")) or (None if flag == "--data_path" else subset)
        if split not in SPLITS:
            raise ValueError(
                f"{place}: split must be one of {', '.join(SPLITS)}, not {split!r}; name a file without the column "
                "split by --train_csv or --val_csv"
            )
        splits.add(split)
        if split == subset:
            start, end = (parse_seconds(row.get(key), f"{place}, {key}") for key in ("start", "end"))
            captions.append(Caption(row["video"].strip(), row["caption"].strip(), start, end))
    if splits and subset not in splits:
        raise ValueError(f"{path} ({flag}) has no row of the split {subset}, only of {', '.join(sorted(splits))}")
    notes = (f"ignored columns: {', '.join(sorted(ignored))}",) if ignored else ()
    return locate_captions(
        captions,
        config.features_path,
        source=path,
        flag=flag,
        by_name=True,
        named_by_file=True,
        notes=notes,
        exclude=config.exclude,
    )


def read_rows(path: Path, flag: str) -> list[tuple[int, dict]]:
    if path.suffix.lower() == ".csv":
        rows = read_csv(path, flag, KEYS[:2], KEYS[2:])
        # Spreadsheets end a table with rows of empty fields.
        return [(number, row) for number, row in rows if any(map(str.strip, row.values()))]
    if path.suffix.lower() == ".jsonl":
        lines = read_lines(require_path(path, flag), flag)
        return [(number, read_object(line, f"{path} ({flag}), line {number}")) for number, line in lines]
    raise ValueError(f"{path} ({flag}) must be a .csv or a .jsonl file")


def read_object(line: str, place: str) -> dict:
    """Return the object in a line, with its keys in the case of `KEYS`."""
    row = parse_json(line, dict, place)
    names = rename_columns(list(row), KEYS)
    if len(set(names)) < len(names):
        raise ValueError(f"{place}: keys that differ in case only: {', '.join(row)}; keep one of each")
    return dict(zip(names, row.values(), strict=True))


def without_blanks(value):
    return value.strip() if isinstance(value, str) else value


def parse_seconds(value, place: str) -> float | None:
    """Return a time of a csv (text, empty for None) or of JSON (a number or null)."""
    value = without_blanks(value)
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{place} must be a number of seconds, not {value!r}") from error
