"""Captions and frames as padded arrays, for all data sets; the differences between them are in their readers."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from dataloaders.annotations import Annotations
from dataloaders.rawvideo_util import VideoReadError
from dataloaders.unreadable import DamagedVideo, UnreadableVideo
from dataloaders.video_damage import record_damage

START_TOKEN = "<|startoftext|>"
END_TOKEN = "<|endoftext|>"

MAX_REPLACEMENTS = 100  # more unreadable videos in a row than chance gives below MAX_UNREADABLE_SHARE


def with_special_tokens(words: list[str], max_words: int) -> list[str]:
    """Return start token, as many of the words as `max_words` leaves room for, and end token."""
    return [START_TOKEN, *words[: max_words - 2], END_TOKEN]


def pad_ids(tokenizer, tokens: list[str], max_words: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and mask, int64 `(1, max_words)` each, of at most `max_words` tokens."""
    input_ids, input_mask = np.zeros((2, 1, max_words), dtype=np.int64)
    input_ids[0, : len(tokens)] = tokenizer.convert_tokens_to_ids(tokens)
    input_mask[0, : len(tokens)] = 1
    return input_ids, input_mask


def pad_frames(frames: np.ndarray, max_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return frames, uint8 `(1, max_frames, 1, 3, S, S)`, and mask, int64 `(1, max_frames)`.

    The given `frames` are uint8 `(L, 3, S, S)` with L at most `max_frames`.
    """
    video = np.zeros((1, max_frames, 1, *frames.shape[1:]), dtype=np.uint8)
    video_mask = np.zeros((1, max_frames), dtype=np.int64)
    video[0, : len(frames), 0] = frames
    video_mask[0, : len(frames)] = 1
    return video, video_mask


class RetrievalDataset(Dataset):
    """Pairs of a caption and its video.

    `dataset[i]` is `(input_ids, input_mask, segment_ids, video, video_mask)` with the shapes `(1,T) (1,T) (1,T)` int64,
    `(1,V,1,3,H,W)` uint8 and `(1,V)` int64. Masks are 1 for real tokens and frames; padding is 0 everywhere. Frames
    are not normalised: they travel to the device as bytes and are converted there.

    A video is one item for each time span in its captions; `video_ids` names the items in the order of their first
    caption, and `video_index`, int64 `(A,)`, is each caption's item.

    Args:
        annotations: captions and video files of one split.
        tokenizer: offers `tokenize(text) -> list[str]` and `convert_tokens_to_ids(list[str]) -> list[int]`.
        extractor: a `RawVideoExtractor` or anything with its `size` and `read_frames`.
        max_words: T, the length of every text with its start and end token.
        max_frames: V, the number of frames of every video.
        slice_framepos, frame_order: see `RawVideoExtractor.read_frames`.
        every_caption: every caption is a sample; otherwise every item is, with a random caption in each epoch.
        seed: all random choices depend on it, the epoch (`set_epoch`) and the sample's index alone.

    Raises:
        ValueError: an argument is out of its range.
        VideoReadError: while reading a sample without frames.
    """

    def __init__(
        self,
        annotations: Annotations,
        tokenizer,
        extractor,
        max_words: int,
        max_frames: int,
        slice_framepos: int = 2,
        frame_order: int = 0,
        every_caption: bool = True,
        seed: int = 0,
    ):
        if max_words < 2:
            raise ValueError(f"max_words must be at least 2, for the start and the end token; got {max_words}")
        if max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {max_frames}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.annotations = annotations
        self.tokenizer = tokenizer
        self.extractor = extractor
        self.max_words = max_words
        self.max_frames = max_frames
        self.slice_framepos = slice_framepos
        self.frame_order = frame_order
        self.every_caption = every_caption
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that outlive an epoch see the next

        rows: dict[tuple, int] = {}
        spans = [(caption.video_id, caption.start, caption.end) for caption in annotations.captions]
        self.video_index = np.array([rows.setdefault(span, len(rows)) for span in spans], dtype=np.int64)
        self.video_ids = [video_id for video_id, _, _ in rows]
        self._spans = list(rows)
        self._captions_of_video: list[list[int]] = [[] for _ in rows]
        for caption_number, row in enumerate(self.video_index.tolist()):
            self._captions_of_video[row].append(caption_number)

    def __len__(self) -> int:
        return len(self.video_index) if self.every_caption else len(self.video_ids)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        caption_number, row, generator = self._draw(index)
        return *self._read_caption(caption_number), *self._read_video(row, generator)

    @property
    def epoch(self) -> int:
        """The epoch for which samples are drawn."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch for which captions and frame orders are drawn, here and in workers; call it between epochs."""
        self._epoch.fill_(epoch)

    def samples(self, replace_unreadable: bool) -> Dataset:
        """Return all samples as a data set of `(dataset[i], found)`, with a list of unreadable and damaged videos.

        With `replace_unreadable`, a sample whose video is unreadable becomes another one, which depends on its index
        and the epoch alone (and may occur twice in a batch); without, it has no frames: video and mask are 0.
        """
        return View(len(self), self._sample_or_other if replace_unreadable else self._sample_or_blank)

    def item_of_sample(self, index: int) -> int:
        """Return the number of a sample's item in `video_ids`."""
        return int(self.video_index[index]) if self.every_caption else index

    def item_names(self) -> list[str]:
        """Return a name for every item: its video id, with the time span if its video has several items."""
        times_seen = Counter(self.video_ids)
        return [
            f"{video_id}@{start}-{end}" if times_seen[video_id] > 1 else video_id
            for video_id, start, end in self._spans
        ]

    def item_files(self) -> list[tuple[str, str | Path, float | None, float | None]]:
        """Return name, video file, start and end of every item, in the order of `video_ids`.

        Start and end are in seconds, or None without a time span.
        """
        return [
            (name, self.annotations.video_paths[video_id], start, end)
            for name, (video_id, start, end) in zip(self.item_names(), self._spans, strict=True)
        ]

    def captions_only(self) -> Dataset:
        """Return all captions as a data set of `(input_ids, input_mask, segment_ids)`."""
        return View(len(self.video_index), self._read_caption)

    def videos_only(self) -> Dataset:
        """Return all items as a data set of `((video, video_mask), unreadable)`; unreadable videos have no frames."""
        return View(len(self.video_ids), self._video_or_blank)

    def _draw(self, index: int) -> tuple[int, int, np.random.Generator]:
        """Return caption number and item of a sample, and the generator for its other random choices."""
        index = range(len(self))[index]
        generator = np.random.default_rng((self.seed, self.epoch, index))
        if self.every_caption:
            caption_number = index
        else:
            caption_number = int(generator.choice(self._captions_of_video[index]))
        return caption_number, int(self.video_index[caption_number]), generator

    def _sample_or_other(self, index: int) -> tuple[tuple[np.ndarray, ...], list[UnreadableVideo | DamagedVideo]]:
        found, chosen = [], index
        for attempt in range(1, MAX_REPLACEMENTS + 1):
            try:
                with record_damage() as notes:
                    sample = self[chosen]
                return sample, found + self._damaged_videos(self.item_of_sample(chosen), notes)
            except VideoReadError as error:
                found.append(self._unreadable_video(self.item_of_sample(chosen), error))
            chosen = int(np.random.default_rng((self.seed, self.epoch, index, attempt)).integers(len(self)))
        return self[chosen], found

    def _sample_or_blank(self, index: int) -> tuple[tuple[np.ndarray, ...], list[UnreadableVideo | DamagedVideo]]:
        caption_number, row, generator = self._draw(index)
        video, found = self._video_or_blank(row, generator)
        return (*self._read_caption(caption_number), *video), found

    def _video_or_blank(
        self, row: int, generator: np.random.Generator | None = None
    ) -> tuple[tuple[np.ndarray, np.ndarray], list[UnreadableVideo | DamagedVideo]]:
        try:
            with record_damage() as notes:
                video = self._read_video(row, generator)
            return video, self._damaged_videos(row, notes)
        except VideoReadError as error:
            no_frames = np.empty((0, 3, self.extractor.size, self.extractor.size), np.uint8)
            return pad_frames(no_frames, self.max_frames), [self._unreadable_video(row, error)]

    def _unreadable_video(self, row: int, error: VideoReadError) -> UnreadableVideo:
        return UnreadableVideo(row, self._path(row), error.reason)

    def _damaged_videos(self, row: int, notes: list[str]) -> list[DamagedVideo]:
        return [DamagedVideo(row, self._path(row), "; ".join(notes))] if notes else []

    def _path(self, row: int) -> str:
        return str(self.annotations.video_paths[self.video_ids[row]])

    def _read_caption(self, caption_number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        words = self.tokenizer.tokenize(self.annotations.captions[caption_number].text)
        input_ids, input_mask = pad_ids(self.tokenizer, with_special_tokens(words, self.max_words), self.max_words)
        return input_ids, input_mask, np.zeros_like(input_ids)

    def _read_video(self, row: int, generator: np.random.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
        video_id, start, end = self._spans[row]
        frames = self.extractor.read_frames(
            self.annotations.video_paths[video_id],
            self.max_frames,
            slice_framepos=self.slice_framepos,
            frame_order=self.frame_order,
            start_time=start,
            end_time=end,
            random_generator=generator or np.random.default_rng((self.seed, self.epoch, row)),
        )
        return pad_frames(frames, self.max_frames)


class View(Dataset):
    """A data set whose items are `read(0)` to `read(length - 1)`."""

    def __init__(self, length: int, read: Callable[[int], tuple]):
        self.length = length
        self.read = read

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple:
        return self.read(range(self.length)[index])
