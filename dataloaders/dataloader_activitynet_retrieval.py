"""ActivityNet Captions: a list of ids and a file of captions for each split; all sentences of a video are one text."""

import math

from dataloaders.annotation_files import check_entry, check_texts, read_json
from dataloaders.annotations import Annotations, Caption, locate_captions, require_path
from dataloaders.data_config import DataConfig

PREFIX = "v_"
"""Precedes every YouTube id in the annotations, and some or all file names in users' copies."""


def read_split(config: DataConfig, subset: str) -> Annotations:
    """Read `train_ids.json` and `train.json`, or for any other subset `val_ids.json` and `val_1.json`.

    Both are in the folder `--data_path`. Ids lose their prefix. An id without captions is left out and counted in the
    log. The time span of a text is the whole video, with the duration of the annotations.

    Raises:
        FileNotFoundError: a file, video or folder is missing.
        ValueError: a file does not have the published form.
    """
    folder = require_path(config.data_path, "--data_path", folder=True)
    names = ("train_ids.json", "train.json") if subset == "train" else ("val_ids.json", "val_1.json")
    listing, source = (folder / name for name in names)
    video_ids = check_texts(read_json(listing, "--data_path", list), f"{listing} (--data_path)")
    entries = read_json(source, "--data_path", dict)
    captions, without_captions = [], 0
    for video_id in dict.fromkeys(video_ids):
        if video_id not in entries:
            without_captions += 1
            continue
        entry, place = entries[video_id], f"{source} (--data_path), {video_id}"
        check_entry(entry, {"duration": (int, float), "sentences": list}, place)
        sentences = check_texts(entry["sentences"], f"{place}, sentences")
        if not 0 < entry["duration"] < math.inf:
            raise ValueError(f"{place}: duration must be a positive number of seconds, not {entry['duration']}")
        text = " ".join(sentence.strip() for sentence in sentences)
        captions.append(Caption(video_id.removeprefix(PREFIX), text, 0, math.ceil(entry["duration"])))
    notes = (f"{without_captions} ids without captions left out",) if without_captions else ()
    return locate_captions(
        captions,
        config.features_path,
        source=f"{listing} with {source}",
        flag="--data_path",
        prefix=PREFIX,
        notes=notes,
        exclude=config.exclude,
    )
