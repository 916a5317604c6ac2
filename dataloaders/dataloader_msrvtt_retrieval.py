"""MSR-VTT: a csv of the training videos with a JSON file of all captions, and a test csv with its own captions."""

from pathlib import Path

from dataloaders.annotation_files import check_entry, read_csv, read_json, texts_of_split
from dataloaders.annotations import Annotations, Caption, locate_captions, require_path
from dataloaders.data_config import DataConfig


def read_split(config: DataConfig, subset: str) -> Annotations:
    """Read "train" from `--train_csv` and `--data_path`, or the test split from `--val_csv` for any other subset.

    Raises:
        FileNotFoundError: a file, video or folder is missing.
        ValueError: a file does not have the published form.
    """
    if subset == "train":
        csv_path = require_path(config.train_csv, "--train_csv")
        json_path = require_path(config.data_path, "--data_path")
        video_ids = dict.fromkeys(row["video_id"].strip() for _, row in read_csv(csv_path, "--train_csv", ["video_id"]))
        texts = read_sentences(json_path)
        # Some files in the `annotations` form have bare numbers as ids.
        texts = {name: texts.get(name) or texts.get(name.removeprefix("video"), []) for name in video_ids}
        texts = texts_of_split(video_ids, texts, csv_path, json_path, "--train_csv, --data_path")
        captions = [Caption(name, text) for name, found in texts.items() for text in found]
        source, flags = f"{csv_path} with {json_path}", "--train_csv, --data_path"
        return locate_captions(captions, config.features_path, source=source, flag=flags, exclude=config.exclude)

    rows = read_csv(config.val_csv, "--val_csv", ["video_id", "sentence"])
    captions = [Caption(row["video_id"].strip(), row["sentence"]) for _, row in rows]
    return locate_captions(
        captions, config.features_path, source=config.val_csv, flag="--val_csv", exclude=config.exclude
    )


def read_sentences(path: Path) -> dict[str, list[str]]:
    """Return texts by video id: `{"sentences": [{video_id, caption}]}` or `{"annotations": [{image_id, caption}]}`."""
    place = f"{path} (--data_path)"
    content = read_json(path, "--data_path", dict)
    if isinstance(content.get("sentences"), list):
        entries, id_key = content["sentences"], "video_id"
    elif isinstance(content.get("annotations"), list):
        entries, id_key = content["annotations"], "image_id"
    else:
        raise ValueError(
            f"{place} needs a list with the key 'sentences' (beside 'videos') or 'annotations'; "
            f"it has the keys {', '.join(sorted(content))}"
        )
    texts: dict[str, list[str]] = {}
    for entry in entries:
        check_entry(entry, {id_key: (str, int), "caption": str}, place)
        texts.setdefault(str(entry[id_key]), []).append(entry["caption"])
    return texts
