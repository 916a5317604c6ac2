"""VATEX: a list of videos for each split, and JSON files with ten English captions per video."""

from pathlib import Path

from dataloaders.annotation_files import check_entry, check_texts, read_ids, read_json, texts_of_split
from dataloaders.annotations import Annotations, Caption, locate_captions, require_path
from dataloaders.data_config import DataConfig

JSON_FILES = "vatex*.json"


def read_split(config: DataConfig, subset: str) -> Annotations:
    """Read `{train,val,test}_list.txt` and every `vatex*.json` in the folder `--data_path`; every caption is used.

    The JSON files may be those that VATEX publishes (`vatex_training_v1.0.json`, `vatex_validation_v1.0.json`,
    `vatex_public_test_english_v1.1.json`) or a single one: the lists define the splits.

    Raises:
        FileNotFoundError: a file, video or folder is missing.
        ValueError: a file does not have the published form.
    """
    folder = require_path(config.data_path, "--data_path", folder=True)
    listing, source = folder / f"{subset}_list.txt", folder / JSON_FILES
    texts = texts_of_split(read_ids(listing, "--data_path"), read_captions(folder), listing, source)
    captions = [Caption(video_id, text) for video_id, found in texts.items() for text in found]
    return locate_captions(
        captions, config.features_path, source=f"{listing} with {source}", flag="--data_path", exclude=config.exclude
    )


def read_captions(folder: Path) -> dict[str, list[str]]:
    """Return the English captions by video id from lists of `{"videoID", "enCap": [text, ...]}`."""
    files = sorted(folder.glob(JSON_FILES))
    if not files:
        raise FileNotFoundError(f"no such file: {folder / JSON_FILES} (--data_path)")
    texts: dict[str, list[str]] = {}
    for path in files:
        place = f"{path} (--data_path)"
        for entry in read_json(path, "--data_path", list):
            check_entry(entry, {"videoID": str, "enCap": list}, place)
            if entry["videoID"] in texts:
                raise ValueError(f"{place}: {entry['videoID']} occurs twice in {folder / JSON_FILES}; keep one of them")
            texts[entry["videoID"]] = check_texts(entry["enCap"], f"{place}, {entry['videoID']}, enCap")
    return texts
