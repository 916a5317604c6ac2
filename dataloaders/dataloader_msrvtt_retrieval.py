"""MSR-VTT: a csv names the videos of a split, one json holds all captions; the test csv brings its own captions."""

import csv
import json
from pathlib import Path

from dataloaders.annotations import Annotations, Caption, locate_captions, require_path


def read_split(args, subset: str) -> Annotations:
    """Reads `train` (`--train_csv`, `--data_path`), or the test csv (`--val_csv`) for any other subset.

    Raises FileNotFoundError for a missing file, video or folder, and ValueError for a file of another form.
    """
    if subset == "train":
        csv_path = require_path(args.train_csv, "--train_csv")
        json_path = require_path(args.data_path, "--data_path")
        video_ids = dict.fromkeys(video_id for (video_id,) in _read_columns(csv_path, "--train_csv", ("video_id",)))
        texts = _read_json(json_path)
        # The `annotations` form is also written with bare numbers for ids.
        texts_of = {name: texts.get(name) or texts.get(name.removeprefix("video")) for name in video_ids}
        silent = [name for name, found in texts_of.items() if not found]
        if silent:
            raise ValueError(
                f"{len(silent)} of {len(texts_of)} videos of {csv_path} (--train_csv) have no caption in {json_path} "
                f"(--data_path): {', '.join(silent[:5])}"
            )
        captions = [Caption(name, text) for name, found in texts_of.items() for text in found]
        return locate_captions(captions, args.features_path, source=csv_path, flag="--train_csv")

    csv_path = require_path(args.val_csv, "--val_csv")
    captions = [Caption(*row) for row in _read_columns(csv_path, "--val_csv", ("video_id", "sentence"))]
    return locate_captions(captions, args.features_path, source=csv_path, flag="--val_csv")


def _read_columns(path: Path, flag: str, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        found = reader.fieldnames or []
        if not set(columns) <= set(found):
            raise ValueError(f"{path} ({flag}) needs the columns {', '.join(columns)}; it has {', '.join(found)}")
        rows = [(reader.line_num, tuple(row[column] for column in columns)) for row in reader]
    for line, row in rows:
        if None in row:
            raise ValueError(f"{path} ({flag}), line {line}: fewer fields than the columns {', '.join(found)}")
    return [row for _, row in rows]


def _read_json(path: Path) -> dict[str, list[str]]:
    """Texts by video id, from `{"sentences": [{video_id, caption}]}` or `{"annotations": [{image_id, caption}]}`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} (--data_path) is no json file: {error}") from error
    keys = sorted(content) if isinstance(content, dict) else [f"a {type(content).__name__}"]
    if "sentences" in keys:
        entries, id_key = content["sentences"], "video_id"
    elif "annotations" in keys:
        entries, id_key = content["annotations"], "image_id"
    else:
        raise ValueError(
            f"{path} (--data_path) needs the key 'sentences' (with 'videos') or 'annotations'; it has {', '.join(keys)}"
        )
    texts: dict[str, list[str]] = {}
    for entry in entries:
        if not (isinstance(entry, dict) and id_key in entry and isinstance(entry.get("caption"), str)):
            raise ValueError(
                f"{path} (--data_path): a caption needs the keys {id_key} and caption; one is {repr(entry)[:200]}"
            )
        texts.setdefault(str(entry[id_key]), []).append(entry["caption"])
    return texts
