"""Search an index of videos by a text or by an example.

from video_search import VideoSearch

search = VideoSearch.open("runs/index")
for hit in search.text("a red circle moves to the left", top=5).hits:
    print(f"{hit.score:.3f}  {hit.path}  at {hit.best_seconds()[0]:g} s")
"""

import time
from dataclasses import dataclass, replace
from os import PathLike
from typing import NamedTuple

import numpy as np

from modules.heads import Head
from video_search.encoder import Encoder, example_query
from video_search.hits import describe
from video_search.index_reader import IndexReader
from video_search.indexing import check_same_encoder
from video_search.scoring import scores
from video_search.scoring import top as highest
from video_search.stores import ChangingStore, SearchableStore
from video_search.vectors import Hit, Query, VideoVectors

DEFAULT_CANDIDATES = 200  # of a store that cannot be scanned
NOT_FINITE = "the checkpoint is damaged, or its training diverged"
MANY_PAIRS = 500  # a cross encoder reads as many in some seconds


@dataclass(frozen=True)
class Results:
    """The hits, best first, with the query and the cost of the search."""

    query: Query
    asked: str  # text, or path of the example
    hits: tuple[Hit, ...]
    seconds: float  # for encoding the query, finding the hits and explaining them
    scanned: int  # videos that were scored exactly: all, or the candidates

    @property
    def notice(self) -> str:
        """Notice for the user, or an empty text."""
        return self.query.notice


class Ranking(NamedTuple):
    """The K best videos, best first."""

    paths: list[str]
    scores: np.ndarray  # (K,) float32
    videos: VideoVectors
    scanned: int  # videos scored exactly


class VideoSearch:
    """Search of a store of videos with the encoder of their vectors, for one thread at a time.

    Every search by `text`, `video` or `similar` begins with `refresh`, so that it finds the videos of the last update.

    Attributes:
        store: the store that the next search reads, another one after an update.
        notice: why an index that has changed is not the one that is searched, or an empty text.
    """

    def __init__(self, store: SearchableStore, encoder: Encoder):
        """Raises: ValueError if `store` has no videos yet, or the vectors of another encoder."""
        if not store.fingerprint:
            raise ValueError("the index has no videos yet; add some with python -m scripts.index FOLDER --index DIR")
        check_same_encoder(store, encoder)
        self.store = store
        self.encoder = encoder
        self.notice = ""

    @classmethod
    def open(
        cls,
        index: str | PathLike = "runs/index",
        init_model: str | None = None,
        store: SearchableStore | None = None,
        **flags,
    ) -> "VideoSearch":
        """Open the search over the index in this folder, or over `store`.

        Args:
            init_model: checkpoint, by default the one recorded in the index.
            flags: those of `add_encoder_flags`; by default those recorded in the index, which they must not contradict.

        Raises: FileNotFoundError if index or checkpoint is missing; ValueError if one is damaged, or if the vectors of
        the index were made with another checkpoint or other flags.
        """
        store = IndexReader.open(index) if store is None else store
        return cls(store, Encoder.load(init_model, store.settings, **flags))

    def __len__(self) -> int:
        return len(self.store)

    def refresh(self) -> None:
        """Search the index as it is now, if it has changed since it was opened.

        A search in progress ends on the index that it began with. An index that is missing, damaged or of another model
        leaves the previous one in use, and the results of `text`, `video` and `similar` have a notice.
        """
        if not isinstance(self.store, ChangingStore):
            return
        try:
            store = self.store.reopened()
            if store is not self.store:
                check_same_encoder(store, self.encoder)
            self.store, self.notice = store, ""
        except (OSError, ValueError) as error:
            self.notice = f"the index has changed and cannot be used, so the results are those of before: {error}"

    def text(self, text: str, top: int = 10, shortlist: int | None = None) -> Results:
        """Return the `top` videos that match the text best.

        All videos are scored exactly. With `shortlist`, so many candidates are selected by their pooled vectors,
        then re-ranked by their exact scores.

        Raises: ValueError for an empty or too long text, a `top` or `shortlist` below 1, or an empty index.
        """
        started = self._start()
        return self._results(started, self.encoder.text(text), text, top, shortlist)

    def video(self, path: str | PathLike, top: int = 10, shortlist: int | None = None) -> Results:
        """Return the `top` videos that are most similar to the one in this file; otherwise as `text`.

        Raises: VideoReadError if the file is not a readable video.
        """
        started = self._start()
        return self._results(started, self.encoder.video_query(path), str(path), top, shortlist)

    def frames(
        self,
        frames: np.ndarray,
        seconds: np.ndarray,
        damage: str,
        asked: str,
        top: int = 10,
        shortlist: int | None = None,
    ) -> Results:
        """Return the `top` videos that are most similar to the one named `asked`; otherwise as `text`.

        `frames`, `seconds` and `damage` are from `encoder.video_reader()(asked)`, which another process may have read.
        """
        started = self._start()
        return self._results(started, self.encoder.frames_query(frames, seconds, damage), asked, top, shortlist)

    def similar(self, path: str, top: int = 10, shortlist: int | None = None) -> Results:
        """Return the `top` other videos of the index that are most similar to this one of it; otherwise as `text`.

        Raises: ValueError if the path is not in the index.
        """
        started = self._start()
        return self._results(started, example_query(self.store.example(path)), path, top, shortlist, excluded=path)

    def rank(self, query: Query, top: int = 10, shortlist: int | None = None, excluded: str | None = None) -> Ranking:
        """Rank the `top` videos except `excluded` for an encoded query; ties are ordered by path."""
        for name, value in (("top", top), ("shortlist", shortlist)):
            if value is not None and value < 1:
                raise ValueError(f"{name} {value} must be at least 1")
        more = int(excluded is not None)
        store = self.store
        everything = store.scan() if shortlist is None else None
        count = (shortlist or max(top, DEFAULT_CANDIDATES)) + more
        paths, videos = everything or store.candidates(query, count)
        found = scores(query, videos, self.encoder)
        if not np.isfinite(found).all():
            raise OSError(f"the score of {paths[int(np.argmin(np.isfinite(found)))]!r} is not finite: {NOT_FINITE}")
        others = [place for place in highest(found, top + more, paths) if paths[place] != excluded]
        places = np.array(others[:top], dtype=np.int64)
        return Ranking([paths[place] for place in places], found[places], videos.take(places), len(paths))

    def _start(self) -> float:
        """Return the time at which a search begins, on the index as it is now."""
        started = time.perf_counter()
        self.refresh()
        return started

    def _results(
        self, started: float, query: Query, asked: str, top: int, shortlist: int | None, excluded: str | None = None
    ) -> Results:
        ranking = self.rank(query, top, shortlist, excluded)
        hits = describe(query, asked, ranking.paths, ranking.scores, ranking.videos, self.encoder)
        notices = self.notice, query.notice, cross_encoder_notice(self.encoder.head, query, ranking.scanned)
        query = replace(query, notice="; ".join(filter(None, notices)))
        return Results(query, asked, hits, time.perf_counter() - started, ranking.scanned)


def cross_encoder_notice(head: Head, query: Query, scanned: int) -> str:
    """Return a notice on the limits of a head that reads pairs, or an empty text."""
    if head.reads_pairs and query.is_video:
        return (
            f"the head {head.name} cannot read an example video; videos are compared by the cosine of their mean frames"
        )
    if head.reads_pairs and scanned > MANY_PAIRS:
        return f"the head {head.name} read the query with each of {scanned} videos; --shortlist 200 is faster"
    return ""
