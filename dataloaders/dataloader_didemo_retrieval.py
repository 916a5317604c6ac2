"""DiDeMo: a list and a JSON file of descriptions for each split; all descriptions of a video are one text."""

from dataloaders.annotation_files import check_entry, read_ids, read_json, texts_of_split
from dataloaders.annotations import Annotations, Caption, locate_captions, require_path
from dataloaders.data_config import DataConfig

START, END = 0, 31  # seconds: the annotators saw the first half minute only


def read_split(config: DataConfig, subset: str) -> Annotations:
    """Read `{train,val,test}_list.txt` and `{train,val,test}_data.json` in the folder `--data_path`.

    An id is a file name. If that file is missing, one with another extension is taken, such as a compressed copy. A
    few videos are listed under two extensions; they may then share a file, which the log counts.

    Raises:
        FileNotFoundError: a file, video or folder is missing.
        ValueError: a file does not have the published form.
    """
    folder = require_path(config.data_path, "--data_path", folder=True)
    listing, source = folder / f"{subset}_list.txt", folder / f"{subset}_data.json"
    descriptions: dict[str, list[str]] = {}
    for entry in read_json(source, "--data_path", list):
        check_entry(entry, {"video": str, "description": str}, f"{source} (--data_path)")
        descriptions.setdefault(entry["video"], []).append(entry["description"].strip())
    texts = texts_of_split(read_ids(listing, "--data_path"), descriptions, listing, source)
    captions = [Caption(video_id, " ".join(found), START, END) for video_id, found in texts.items()]
    return locate_captions(
        captions,
        config.features_path,
        source=f"{listing} with {source}",
        flag="--data_path",
        by_name=True,
        exclude=config.exclude,
    )
