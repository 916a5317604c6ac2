"""The encoder of texts and videos for a search: `Encoder.load("runs/wti/pytorch_model.bin.4")`.

Sampling, padding and weights are those of an evaluation.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dataloaders.annotations import SURROGATE
from dataloaders.rawvideo_util import RawVideoExtractor
from dataloaders.retrieval_dataset import pad_ids, with_special_tokens
from dataloaders.worker_pool import available_cores
from modules.checkpoint import open_model
from modules.clip_weights import describe_clip
from modules.configuration import CLIP4ClipConfig
from modules.heads import Head
from modules.initialization import set_precision
from modules.modeling import CLIP4Clip
from modules.module_clip import trim_padding
from modules.tokenization_clip import SimpleTokenizer
from video_search.encoder_flags import ENCODER_FLAGS, SETTINGS_OF_OLDER_INDEXES, resolve_flags
from video_search.reading import UnreadableFile, read_sampled, read_videos
from video_search.vectors import Query, VideoVectors

MAX_CHARACTERS = 20_000
FRAMES_AT_ONCE = 192  # 16 videos of 12 frames: enough to keep a GPU busy, and 2 GB at most for the largest CLIP
TEXTS_AT_ONCE = 64


class Encoder:
    """A model in evaluation, for one thread at a time.

    Attributes:
        config: the model's `CLIP4ClipConfig`.
        head: the model's head, which determines the vectors and how they are compared.
        settings: the flags that made it, as JSON values; `load(settings=...)` makes it again.
        fingerprint: sha256 of the weights and of all else that decides the vectors of videos, in hexadecimal.
    """

    def __init__(self, model: CLIP4Clip, settings: dict[str, Any], fingerprint: str):
        self.model, self.settings, self.fingerprint = model, settings, fingerprint
        self.config: CLIP4ClipConfig = model.config
        self.head: Head = model.head
        self.device = model.clip.logit_scale.device
        self.tokenizer = SimpleTokenizer()
        self.extractor = RawVideoExtractor(
            settings["feature_framerate"], model.input_resolution, settings["frame_sampling"]
        )

    @classmethod
    def load(
        cls, init_model: str | os.PathLike | None = None, settings: Mapping[str, Any] | None = None, **flags
    ) -> "Encoder":
        """Return the encoder of a checkpoint, or of CLIP itself, on the GPU if there is one.

        `flags` are those of `ENCODER_FLAGS`; one that is not given comes from the `settings` of an index, else from
        flags.json beside the checkpoint, else it has its default.

        Raises:
            ValueError: flags that do not fit the checkpoint or each other, a damaged file, or weights that are not
                finite.
            FileNotFoundError: a missing checkpoint or file of weights.
            TypeError: an unknown flag.
        """
        values = resolve_flags(init_model, settings, flags)
        model = open_model(SimpleNamespace(**values), SimpleTokenizer().vocab_size)
        del values["cache_dir"]  # where downloads lie is no property of the vectors
        fingerprint = fingerprint_of(model, values)
        set_precision(model, values["precision"])
        return cls(model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), values, fingerprint)

    def text(self, text: str) -> Query:
        """Encode a text as a query.

        Raises: ValueError if the text is blank, too long, or not UTF-8, or if its vectors are not finite.
        """
        return self.texts([text])[0]

    def texts(self, texts: Sequence[str]) -> list[Query]:
        """Encode texts as queries, in their order; errors as in `text`."""
        for text in texts:
            check_text(text)
        queries = []
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            queries += self._encode_texts(texts[first : first + TEXTS_AT_ONCE])
        for text, query in zip(texts, queries, strict=True):
            query.check_finite(repr(text))
        return queries

    def video_query(self, path: str | os.PathLike) -> Query:
        """Encode an example video as a query.

        Raises: VideoReadError if it cannot be read; ValueError if its vectors are not finite.
        """
        return self.frames_query(*self.video_reader()(path))

    def video_reader(self) -> Callable[[str | os.PathLike], tuple[np.ndarray, np.ndarray, str]]:
        """Return the function that reads a video for `frames_query`; picklable, so that another process can decode."""
        return partial(
            read_sampled,
            extractor=self.extractor,
            max_frames=self.config.max_frames,
            slice_framepos=self.settings["slice_framepos"],
        )

    def frames_query(self, frames: np.ndarray, seconds: np.ndarray, damage: str = "") -> Query:
        """Encode an example video as a query, from its frames (L,3,S,S) uint8 and their seconds (L,).

        What is lost of it becomes a notice.

        Raises: ValueError if its vectors are not finite.
        """
        video = self._encode_videos([frames], [seconds])
        video.check_finite("the example video")
        notice = f"the example video is damaged: {damage}" if damage else ""
        return replace(example_query(video), notice=notice)

    def videos(
        self,
        paths: Sequence[str | os.PathLike],
        processes: int | None = None,
        progress: bool = False,
        on_read: Callable[[str | os.PathLike, str], None] | None = None,
    ) -> Iterator[tuple[str | os.PathLike, VideoVectors | UnreadableFile]]:
        """Yield every path with the vectors of its video or the reason why it is unreadable, in order of completion.

        `processes` decode in parallel with the encoding, by default one per core; 0 decodes in this process. A decoder
        that crashes costs its video only, except with 0. `progress` shows a bar; `on_read` is that of `read_videos`.

        Raises: ValueError, with the path, if the vectors of a video are not finite.
        """
        batch: list[tuple] = []
        batch_size = max(1, FRAMES_AT_ONCE // self.config.max_frames)
        processes = available_cores() if processes is None else processes
        sampling = self.config.max_frames, self.settings["slice_framepos"]
        results = read_videos(paths, self.extractor, *sampling, processes, on_read)
        for path, result in tqdm(results, total=len(paths), unit="video", disable=not progress):
            if isinstance(result, UnreadableFile):
                yield path, result
                continue
            batch.append((path, *result))
            if len(batch) == batch_size:
                yield from self._encode_batch(batch)
                batch.clear()
        if batch:
            yield from self._encode_batch(batch)

    @torch.no_grad()
    def cross_scores(self, query: Query, videos: VideoVectors) -> np.ndarray:
        """Score a sentence with each of N videos by the cross encoder, all at once: (N,) float32."""
        frames, mask = pad_videos(videos.frames, videos.counts, int(videos.counts.max(initial=1)))
        sentence = torch.from_numpy(query.vectors).unsqueeze(0).to(self.device)
        return self.model.score(sentence, frames.to(self.device), None, mask.to(self.device))[0].cpu().numpy()

    def _encode_batch(self, batch: list[tuple]) -> Iterator[tuple[Any, VideoVectors]]:
        paths, frames, seconds = zip(*batch, strict=True)
        vectors = self._encode_videos(frames, seconds)
        for place, path in enumerate(paths):
            video = vectors.take(np.array([place]))
            video.check_finite(repr(os.fspath(path)))
            yield path, video

    @torch.no_grad()
    def _encode_videos(self, frames: Sequence[np.ndarray], seconds: Sequence[np.ndarray]) -> VideoVectors:
        """Encode B videos from their frames (L,3,S,S) uint8 and the seconds (L,) of these."""
        counts = np.array([len(one) for one in frames], dtype=np.int64)
        # one frame more than the longest video: a last frame with 3d patches reads the padding behind it
        length = min(self.config.max_frames, int(counts.max()) + 1)
        video, mask = (part.to(self.device) for part in pad_videos(np.concatenate(frames), counts, length))
        vectors = self.model.aggregate_frames(self.model.get_visual_output(video, mask), mask)
        packed, pooled = self.head.index_videos(self.model, vectors, mask)
        return VideoVectors(
            frames=as_array(packed.vectors),
            weights=as_array(packed.weights),
            seconds=np.concatenate(seconds).astype(np.float32),
            counts=counts,
            floors=as_array(packed.floor),
            pooled=as_array(pooled),
        )

    @torch.no_grad()
    def _encode_texts(self, texts: Sequence[str]) -> list[Query]:
        length = self.config.max_words
        words = [self.tokenizer.tokenize(text) for text in texts]
        tokens = [with_special_tokens(text_words, length) for text_words in words]
        ids, masks = zip(*(pad_ids(self.tokenizer, text_tokens, length) for text_tokens in tokens), strict=True)
        mask = torch.from_numpy(np.concatenate(masks)).to(self.device)
        input_ids = trim_padding(torch.from_numpy(np.concatenate(ids))).to(self.device)
        vectors = self.model.get_sequence_output(input_ids, None, mask)
        packed, pooled = self.head.index_texts(self.model, vectors, mask)
        starts = np.cumsum(packed.counts.cpu().numpy())[:-1]
        rows = zip(
            np.split(as_array(packed.vectors), starts),
            np.split(as_array(packed.weights), starts),
            as_array(pooled),
            packed.floor.tolist(),
            map(tuple, tokens) if self.head.encodes_tokens else ((text,) for text in texts),
            [truncation_notice(len(text_words), length) for text_words in words],
            strict=True,
        )
        return [Query(*row, notice=notice) for *row, notice in rows]


def example_query(video: VideoVectors) -> Query:
    """Return the query of one example video."""
    names = tuple(f"{second:.1f} s" for second in video.seconds)
    return Query(video.frames, video.weights, video.pooled[0], float(video.floors[0]), names, is_video=True)


def pad_videos(rows: np.ndarray, counts: np.ndarray, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad the M rows of N videos, `counts` (N,) each, with zeros: (N,length,...), and the int64 mask (N,length)."""
    mask = np.arange(length) < counts[:, np.newaxis]
    video = np.zeros((*mask.shape, *rows.shape[1:]), dtype=rows.dtype)
    video[mask] = rows
    return torch.from_numpy(video), torch.from_numpy(mask.astype(np.int64))


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as a float32 array on the CPU."""
    return tensor.float().cpu().numpy()


def check_text(text: str) -> None:
    """Raise ValueError for a text that cannot be a query."""
    if not text.strip():
        raise ValueError("the text is empty; describe in a few words what the video should show")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the text has {len(text)} characters; at most {MAX_CHARACTERS} are read")
    if SURROGATE.search(text):
        raise ValueError(f"the text has bytes that are not UTF-8: {text[:100]!a}")


def truncation_notice(tokens: int, max_words: int) -> str:
    """Return a notice if a text of `tokens` tokens is cut, else an empty text."""
    kept = max_words - 2
    return f"only the first {kept} of the text's {tokens} tokens are read (--max_words {max_words})" * (tokens > kept)


def fingerprint_of(model: CLIP4Clip, settings: Mapping[str, Any]) -> str:
    """Return the fingerprint: SHA-256 of the model's weights, whatever the form of their file, and of the settings.

    Settings count when the vectors of videos depend on them beyond the weights.
    """
    source = describe_clip(settings["pretrained_clip_name"], is_needed=False)
    towers = model.clip.visual.transformer, model.clip.transformer
    decisive = {name: settings[name] for name, flag in ENCODER_FLAGS.items() if flag.decides_videos}
    # Older indexes do not record these.
    decisive = dict(decisive.items() - SETTINGS_OF_OLDER_INDEXES.items())
    facts = {
        **decisive,
        "activation": source.activation,
        "heads": [tower.resblocks[0].attn.heads for tower in towers],
        "frame_statistics": model.frame_statistics,
        "resolution": model.input_resolution,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} ".encode())
        digest.update(weight.float().contiguous().numpy().data)
    return digest.hexdigest()
