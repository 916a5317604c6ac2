"""Captions of a split and the files of their videos: the form in which every data set's reader returns them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dataloaders.video_files import VIDEO_EXTENSIONS as VIDEO_EXTENSIONS  # readers import these from here
from dataloaders.video_files import first_names
from dataloaders.video_files import require_path as require_path
from dataloaders.video_lookup import CaptionsOnly as CaptionsOnly
from dataloaders.video_lookup import MissingVideosError as MissingVideosError
from dataloaders.video_lookup import find_videos as find_videos
from dataloaders.video_lookup import locate_videos

SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Caption:
    """A text and the video that it describes; `start` and `end` are seconds, or None for the video's own."""

    video_id: str
    text: str
    start: float | None = None
    end: float | None = None


@dataclass
class Annotations:
    """The captions of a split in order, the file of each of their videos, and notes for the log."""

    captions: list[Caption]
    video_paths: dict[str, Path]
    notes: tuple[str, ...] = ()

    def count_line(self) -> str:
        """Return the counts and notes for the log; missing files are not among them, since they are an error."""
        counts = f"{len(self.video_paths)} videos", f"{len(self.captions)} captions"
        return ", ".join((*counts, *self.notes))


def locate_captions(
    captions: list[Caption],
    features_path,
    *,
    source,
    flag: str,
    by_name: bool = False,
    named_by_file: bool = False,
    prefix: str = "",
    notes: tuple[str, ...] = (),
    exclude: Sequence[str] | None = None,
) -> Annotations:
    """Check the captions of a split and find the files of their videos: the last step of every reader.

    Args:
        captions: captions of the split, in order.
        features_path: folder of the videos, or `CaptionsOnly`.
        source, flag: the file that the captions come from and the flag that names it, for errors.
        by_name, prefix, exclude: see `locate_videos`.
        named_by_file: a file's path below `features_path` becomes the video's id, so that two spellings of a name are
            one video.
        notes: facts for the log beside the counts.

    Raises:
        ValueError: the split is empty, a caption has no text, a time span is not valid, a video has several files, or
            an id does not name a file below `features_path`.
        MissingVideosError: a video has no file.
    """
    if not captions:
        raise ValueError(f"the split is empty: {source} ({flag}) gives no captions")
    empty = list(dict.fromkeys(caption.video_id for caption in captions if not caption.text.strip()))
    if empty:
        raise ValueError(f"{source} ({flag}): captions without text, of {len(empty)} videos: {first_names(empty)}")
    unwritable = [ascii(caption.video_id) for caption in captions if SURROGATE.search(caption.video_id + caption.text)]
    if unwritable:
        raise ValueError(
            f"{source} ({flag}): halves of surrogate pairs, which no file can hold, in the id or a caption of "
            f"{first_names(list(dict.fromkeys(unwritable)))}"
        )
    for caption in captions:
        start = 0 if caption.start is None else caption.start
        end = math.inf if caption.end is None else caption.end
        if not (0 <= start <= end and start < math.inf):
            raise ValueError(
                f"{source} ({flag}), video {caption.video_id}: a time span needs 0 <= start <= end, "
                f"not {caption.start} to {caption.end} seconds"
            )
    video_ids = list(dict.fromkeys(caption.video_id for caption in captions))
    paths, passed_over = locate_videos(video_ids, features_path, by_name=by_name, prefix=prefix, exclude=exclude or ())
    if named_by_file and paths:
        names = {video_id: path.relative_to(features_path).as_posix() for video_id, path in paths.items()}
        captions = [replace(caption, video_id=names[caption.video_id]) for caption in captions]
        paths = {names[video_id]: path for video_id, path in paths.items()}
    shared = len(paths) - len(set(paths.values()))
    if shared:
        notes = (*notes, f"{shared} share the file of another video")
    return Annotations(captions, paths, (*notes, *passed_over))
