"""Parts of the training split: held-out videos that pick the epoch, and a bank of captions for QB-Norm.

Both choices follow one rule: sort by the sha256 of seed and name, take the first. It depends on the seed and the names
alone, neither on the order in files nor on the version of a random generator.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable

from dataloaders.annotations import Annotations, CaptionsOnly
from dataloaders.data_config import DataConfig

ReadSplit = Callable[[DataConfig, str], Annotations]


def read_subset(read_split: ReadSplit, config: DataConfig, subset: str) -> Annotations:
    """What the reader gives for `subset`, and the parts of its training split.

    "train" is the training split without the `--holdout` videos, "holdout" is these with all their captions, "bank"
    is `--qb_norm_size` distinct captions of "train" (all, if there are fewer) without videos; any other is the
    reader's own.

    Raises whatever the reader raises, and ValueError where `--holdout` leaves nothing to train on.
    """
    if subset == "bank":
        if not config.holdout:  # which needs to know what videos share a file
            config = dataclasses.replace(config, features_path=CaptionsOnly)
        captions = read_subset(read_split, config, "train").captions
        keys = {f"{caption.video_id}\n{caption.text}": caption for caption in captions}
        chosen = seeded_choice(keys, config.qb_norm_size, config.seed)
        return Annotations([keys[key] for key in chosen], {})
    if subset not in ("train", "holdout"):
        return read_split(config, subset)
    annotations = read_split(config, "train")
    if not config.holdout and subset == "train":
        return annotations
    training, holdout = split_holdout(annotations, config.holdout, config.seed)
    return training if subset == "train" else holdout


def split_holdout(annotations: Annotations, size: int, seed: int) -> tuple[Annotations, Annotations]:
    """Training split without `size` of its videos, and these; each with all its captions in their order.

    Ids that share a file are one video, so that none is on both sides.
    Raises ValueError for a size below 2 or one that leaves no video.
    """
    video_ids = {caption.video_id for caption in annotations.captions}
    ids_of_file: dict = {}
    for video_id in sorted(video_ids):
        ids_of_file.setdefault(annotations.video_paths.get(video_id, video_id), []).append(video_id)
    videos = {names[0]: names for names in ids_of_file.values()}
    if not 2 <= size < len(videos):
        raise ValueError(
            f"--holdout {size} must be at least 2 and leave some of the {len(videos)} training videos to train on"
        )
    held_out = {video_id for name in seeded_choice(videos, size, seed) for video_id in videos[name]}
    return _part(annotations, video_ids - held_out), _part(annotations, held_out)


def seeded_choice(names: Iterable[str], size: int, seed: int) -> list[str]:
    """The first `size` names by the sha256 of seed and name."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}\n{name}".encode()).digest())[:size]


def _part(annotations: Annotations, video_ids: set[str]) -> Annotations:
    return Annotations(
        [caption for caption in annotations.captions if caption.video_id in video_ids],
        {video_id: path for video_id, path in annotations.video_paths.items() if video_id in video_ids},
        annotations.notes,
    )
