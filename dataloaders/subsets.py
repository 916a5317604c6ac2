"""Parts of the training split: held-out videos that choose the epoch, and the query bank of QB-Norm.

Both are the first names by the sha256 of seed and name, which depends neither on the order in files nor on the version
of a random generator.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable

from dataloaders.annotations import Annotations, CaptionsOnly
from dataloaders.data_config import DataConfig

ReadSplit = Callable[[DataConfig, str], Annotations]


def read_subset(read_split: ReadSplit, config: DataConfig, subset: str) -> Annotations:
    """Read a split, or a part of the training split.

    "train" is the training split without the `--holdout` videos; "holdout" is these videos with all their captions;
    "bank" is `--qb_norm_size` distinct captions of "train", or all if there are fewer, without videos. Any other
    subset is the reader's own.

    Raises:
        FileNotFoundError, ValueError: as the reader.
        ValueError: `--holdout` leaves no training video.
    """
    if subset == "bank":
        if not config.holdout:  # a holdout depends on which videos share a file
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
    """Split off `size` videos: return the rest and these, each with all captions in order.

    Ids that share a file are one video, so that no video is in both parts.

    Raises:
        ValueError: `size` is below 2 or leaves no training video.
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
    return part_of(annotations, video_ids - held_out), part_of(annotations, held_out)


def seeded_choice(names: Iterable[str], size: int, seed: int) -> list[str]:
    """Return the first `size` names by the sha256 of seed and name."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}\n{name}".encode()).digest())[:size]


def part_of(annotations: Annotations, video_ids: set[str]) -> Annotations:
    return Annotations(
        [caption for caption in annotations.captions if caption.video_id in video_ids],
        {video_id: path for video_id, path in annotations.video_paths.items() if video_id in video_ids},
        annotations.notes,
    )
