"""ActivityNet Captions: a json list of ids and a json of captions per split; all sentences of a video are one text."""

import math

from dataloaders.annotation_files import check_entry, check_texts, read_json
from dataloaders.annotations import Annotations, Caption, locate_captions, require_path
from dataloaders.data_config import DataConfig

PREFIX = "v_"
"""Stands before every YouTube id in the annotations, and before some or all file names in users' copies."""


def read_split(config: DataConfig, subset: str) -> Annotations:
    """Reads `train_ids.json` and `train.json`, or for any other subset `val_ids.json` and `val_1.json`.

    Both lie in the folder `--data_path`.  Ids are given without their prefix.  An id that the captions lack is left
    out and counted in the log.  The time span of a text is the whole video, as long as the annotations say it is.

    Raises FileNotFoundError for a missing file, video or folder, and ValueError for a file of another form.
    """
    folder = require_path(config.data_path, "--data_path", folder=True)
    names = ("train_ids.json", "train.json") if subset == "train" else ("val_ids.json", "val_1.json")
    listing, source = (folder / name for name in names)
    video_ids = check_texts(read_json(listing, "--data_path", list), f"{listing} (--data_path)")
    entries = read_json(source, "--data_path", dict)
    captions, silent = [], 0
    for video_id in dict.fromkeys(video_ids):
        if video_id not in entries:
            silent += 1
            continue
        entry, place = entries[video_id], f"{source} (--data_path), {video_id}"
        check_entry(entry, {"duration": (int, float), "sentences": list}, place)
        sentences = check_texts(entry["sentences"], f"{place}, sentences")
        if not 0 < entry["duration"] < math.inf:
            raise ValueError(f"{place}: duration must be a positive number of seconds, not {entry['duration']}")
        text = " ".join(sentence.strip() for sentence in sentences)
        captions.append(Caption(video_id.removeprefix(PREFIX), text, 0, math.ceil(entry["duration"])))
    notes = (f"{silent} ids without captions left out",) if silent else ()
    return locate_captions(
        captions,
        config.features_path,
        source=f"{listing} with {source}",
        flag="--data_path",
        prefix=PREFIX,
        notes=notes,
    )
