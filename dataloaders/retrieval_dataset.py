"""Text and frames of every data set as padded arrays; what differs between data sets is in their readers."""

from collections import Counter
from collections.abc import Callable

import numpy as np
from torch.utils.data import Dataset

from dataloaders.annotations import Annotations

START_TOKEN = "<|startoftext|>"
END_TOKEN = "<|endoftext|>"


class RetrievalDataset(Dataset):
    """Pairs of a caption and its video.

    `dataset[i]` is `(input_ids, input_mask, segment_ids, video, video_mask)` with the shapes `(1,T) (1,T) (1,T)` int64,
    `(1,V,1,3,H,W)` uint8 and `(1,V)` int64.  Masks are 1 for real tokens and frames; padding is 0 everywhere.  Frames
    are not normalised: bytes travel to the device and become numbers there.

    A video is an item of its own for each time span that captions give it; `video_ids` names the items, in the order
    in which the captions first mention them, and `video_index`, int64 `(A,)`, is each caption's item.

    Args:
        annotations: captions and video files of one split.
        tokenizer: offers `tokenize(text) -> list[str]` and `convert_tokens_to_ids(list[str]) -> list[int]`.
        extractor: a `RawVideoExtractor` or anything with its `size` and `read_frames`.
        max_words: T, the length of every text with its start and end token.
        max_frames: V, the number of frames of every video.
        slice_framepos, frame_order: see `RawVideoExtractor.read_frames`.
        every_caption: every caption is a sample; otherwise every item is, with a caption drawn anew in each epoch.
        seed: together with the epoch (`set_epoch`) and the sample's index, decides everything that is random.

    Raises VideoReadError while reading a sample whose file gives no frames.
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
        self.epoch = 0

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
        index = range(len(self))[index]
        generator = np.random.default_rng((self.seed, self.epoch, index))
        if self.every_caption:
            caption_number = index
        else:
            caption_number = int(generator.choice(self._captions_of_video[index]))
        row = int(self.video_index[caption_number])
        return *self._read_caption(caption_number), *self._read_video(row, generator)

    def set_epoch(self, epoch: int) -> None:
        """Draws captions and shuffles frames anew; call it before an epoch's workers start."""
        self.epoch = epoch

    def item_names(self) -> list[str]:
        """A name for every item: its video id, with the time span where several items are of one video."""
        times_seen = Counter(self.video_ids)
        return [
            f"{video_id}@{start}-{end}" if times_seen[video_id] > 1 else video_id
            for video_id, start, end in self._spans
        ]

    def captions_only(self) -> Dataset:
        """Every caption once, `(input_ids, input_mask, segment_ids)` as in a pair."""
        return _View(len(self.video_index), self._read_caption)

    def videos_only(self) -> Dataset:
        """Every item of `video_ids` once, `(video, video_mask)` as in a pair."""
        return _View(len(self.video_ids), self._read_video)

    def _read_caption(self, caption_number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        words = self.tokenizer.tokenize(self.annotations.captions[caption_number].text)
        tokens = [START_TOKEN, *words[: self.max_words - 2], END_TOKEN]
        input_ids, input_mask, segment_ids = np.zeros((3, 1, self.max_words), dtype=np.int64)
        input_ids[0, : len(tokens)] = self.tokenizer.convert_tokens_to_ids(tokens)
        input_mask[0, : len(tokens)] = 1
        return input_ids, input_mask, segment_ids

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
        size = self.extractor.size
        video = np.zeros((1, self.max_frames, 1, 3, size, size), dtype=np.uint8)
        video_mask = np.zeros((1, self.max_frames), dtype=np.int64)
        video[0, : len(frames), 0] = frames
        video_mask[0, : len(frames)] = 1
        return video, video_mask


class _View(Dataset):
    """The first `length` results of `read(index)` as a data set."""

    def __init__(self, length: int, read: Callable[[int], tuple[np.ndarray, ...]]):
        self.length = length
        self.read = read

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        return self.read(range(self.length)[index])
