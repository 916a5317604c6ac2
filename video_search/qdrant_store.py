"""Vectors in Qdrant, for collections beyond one machine: `QdrantStore`, a `SearchableStore` and a `WritableStore`.

A file is one point. Its id is the UUID5 of its path relative to the indexed folder; its vectors are "pooled", which
selects candidates, and "frames", a multivector compared by MAX_SIM (MaxSim). An unreadable file is a point without
vectors. The distance is always the dot product: Qdrant's cosine would normalize the frames that a cross encoder reads.

Settings and fingerprint are metadata of the collection, created together with it in one request. A point for them could
be missing after an interruption, and every search would have to exclude it.

The client's embedded mode (a folder, or ":memory:") does the same in one process, without a server. It unpickles its
files, and a pickle can run code: open only folders of your own.
"""

import json
import os
import re
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import numpy as np

from modules.heads import HEADS
from video_search.stores import Check, FileState
from video_search.vectors import Query, VideoVectors

INSTALL = 'pip install "qdrant-client>=1.20"'  # embedded MAX_SIM of earlier versions fails on points without vectors
LEAST_SERVER = (1, 16)  # the first with metadata of a collection
API_KEY = "QDRANT_API_KEY"  # the environment variable
IN_MEMORY = ":memory:"
COLLECTION_NAME = re.compile(r"\w[\w.-]{0,199}")  # harmless in an address and in a path
METADATA, FORMAT = "video_search", 1
CONNECT_SECONDS, WORK_SECONDS = 5, 60
BATCH_VIDEOS, BATCH_VALUES = (
    64,
    1 << 20,
)  # about 20 bytes of JSON per number; a server accepts 32 MB per request
PAGE = 1000  # files per answer
WIDENING, LEAST_CANDIDATES = 4, 200  # of the first stage: per final candidate, and at least
STATE_FIELDS = ["path", "size", "mtime_ns", "reason"]


class QdrantStore:
    """A collection of a Qdrant server or of an embedded folder.

    A full batch of `put` is stored at once, the rest by `commit`; reads return stored vectors only. Each file is
    replaced as a whole, so that after an interruption every file has either its previous or its new state. Errors are
    OSError and ValueError of one line.
    """

    directory = None

    def __init__(self, url: str, collection: str, client: Any) -> None:
        """`client` is a QdrantClient, or None for a folder that `begin` creates."""
        self.settings: dict[str, Any] = {}
        self.fingerprint = ""
        self.folder: Path | None = None
        self._url, self._collection, self._client = url, collection, client
        self._place = f"collection {collection!r} of {url}"
        self._waiting: dict[str, Any] = {}  # path: its PointStruct, or None to remove it
        self._is_made = False
        if client is not None:
            with clear_errors(url):
                self._is_made = client.collection_exists(collection)
            if self._is_made:
                self._read_metadata()

    @classmethod
    def open(cls, url: str, collection: str = "videos") -> "QdrantStore":
        """Open the collection at `url`: http(s)://, a folder for the embedded mode, or ":memory:".

        Nothing is created before `begin`. The key of a server is the environment variable QDRANT_API_KEY.

        Raises: OSError if the server cannot be reached or the folder is in use; ValueError if the collection was not
        made by this program.
        """
        if not COLLECTION_NAME.fullmatch(collection):
            raise ValueError(f"--collection {collection!r}: letters, digits, '_', '-' and '.' make a name, up to 200")
        return cls(url, collection, connect(url))

    def close(self) -> None:
        """Release an embedded folder; uncommitted changes are dropped."""
        if self._client is not None:
            self._client.close()

    def __len__(self) -> int:
        if not self._is_made:
            return 0
        models = qdrant().models
        with_vectors = models.Filter(must=[models.HasVectorCondition(has_vector="pooled")])
        with clear_errors(self._url):
            return self._client.count(self._collection, count_filter=with_vectors, exact=True).count

    def files(self) -> dict[str, FileState]:
        """Return the state of every file, unreadable ones included, by its path."""
        return {
            payload["path"]: FileState(payload["size"], payload["mtime_ns"], payload["reason"])
            for payload in self._payloads()
        }

    def begin(self, settings: dict[str, Any], fingerprint: str, folder: Path) -> None:
        """Set the encoder and the folder of the vectors that follow.

        The first video creates the collection, as its width is not known before.
        """
        before = self._metadata()
        self.settings, self.fingerprint, self.folder = settings, fingerprint, folder
        if self._client is None:
            self._client = connect(self._url, make_folder=True)
        if self._is_made and self._metadata() != before:
            with clear_errors(self._url):
                self._client.update_collection(self._collection, metadata=self._metadata())

    def check(self) -> Check:
        """Return nothing: the server checks its files, and reading all vectors would take hours."""
        return Check(set(), 0)

    def put(self, path: str, state: FileState, vectors: VideoVectors | None) -> None:
        """Add or replace one file: the vectors of one video, or None for an unreadable file.

        Raises: ValueError if a vector is not finite.
        """
        if vectors is not None:
            vectors.check_finite(repr(path))
        self._wait(path, as_point(path, state, vectors))

    def remove(self, path: str) -> None:
        """Remove one file, if it is present."""
        self._wait(path, None)

    def commit(self) -> None:
        """Store every `put` and `remove`.

        Unreadable files wait for the first video, whose width defines the collection.
        """
        if not self._is_made:
            videos = self._new_videos()
            if not videos:
                return
            self._make_collection(len(videos[0].vector["pooled"]))
        points = [point for point in self._waiting.values() if point is not None]
        removed = [point_id(path) for path, point in self._waiting.items() if point is None]
        with clear_errors(self._url):
            if points:
                self._client.upsert(self._collection, points, wait=True)
            if removed:
                self._client.delete(self._collection, points_selector=removed, wait=True)
        self._waiting.clear()

    def compact(self) -> None:
        """Do nothing: Qdrant drops the space of deleted points by itself."""

    def scan(self) -> None:
        """Return None: a search fetches the vectors of its candidates alone."""

    def candidates(self, query: Query, count: int) -> tuple[list[str], VideoVectors]:
        """Return paths and vectors of `count` candidates to re-rank by their exact scores, fewer if there are fewer.

        Pooled and tight heads: the nearest pooled vectors. Token heads: of four times as many of these, the highest
        MaxSim of weighted words with frames, the sum over words of w_t max_v cosine: the text-to-video half of the
        weighted token-wise interaction, except for the floor of a video with padding.

        Raises: OSError if the server cannot be reached, if the collection was made again with another encoder, or if
        vectors are not finite; ValueError if it has no videos.
        """
        if not self._is_made:
            raise ValueError(f"{self._place} has no videos")
        models = qdrant().models
        stages: dict[str, Any] = {"query": query.pooled.tolist(), "using": "pooled"}
        if HEADS[self.settings["sim_header"]].encodes_tokens:
            shortlist = models.Prefetch(**stages, limit=max(WIDENING * count, LEAST_CANDIDATES))
            words = query.vectors * query.weights[:, np.newaxis]
            stages = {"prefetch": shortlist, "query": words.tolist(), "using": "frames"}
        with clear_errors(self._url):
            points = self._client.query_points(
                self._collection, **stages, limit=count, with_payload=True, with_vectors=True
            ).points
        self._check_encoder()
        if not points:
            raise ValueError(f"{self._place} has no videos")
        return [point.payload["path"] for point in points], VideoVectors.concatenate(
            [as_vectors(point, self._place) for point in points]
        )

    def example(self, path: str) -> VideoVectors:
        """Return the stored vectors of one video. Raises ValueError if it has none; OSError as of `candidates`."""
        points = []
        if self._is_made:
            with clear_errors(self._url):
                points = self._client.retrieve(self._collection, [point_id(path)], with_payload=True, with_vectors=True)
            self._check_encoder()
        if not points or not points[0].vector:
            raise ValueError(f"{self._place} has no video {path!r}")
        return as_vectors(points[0], self._place)

    def _payloads(self) -> Iterator[dict[str, Any]]:
        """Yield path and state of every file, page by page."""
        offset = None
        while self._is_made:
            with clear_errors(self._url):
                points, offset = self._client.scroll(
                    self._collection, limit=PAGE, offset=offset, with_payload=STATE_FIELDS, with_vectors=False
                )
            yield from (point.payload for point in points)
            if offset is None:
                return

    def _wait(self, path: str, point: Any) -> None:
        self._waiting[path] = point
        values = sum(len(video.vector["frames"]) * len(video.vector["pooled"]) for video in self._new_videos())
        if len(self._waiting) >= BATCH_VIDEOS or values >= BATCH_VALUES:
            self.commit()

    def _new_videos(self) -> list[Any]:
        return [point for point in self._waiting.values() if point is not None and point.vector]

    def _make_collection(self, width: int) -> None:
        models = qdrant().models
        max_sim = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
        vectors = {
            "pooled": models.VectorParams(size=width, distance=models.Distance.DOT),
            # frames are compared for candidates only: they need no graph and no memory
            "frames": models.VectorParams(
                size=width,
                distance=models.Distance.DOT,
                multivector_config=max_sim,
                hnsw_config=models.HnswConfigDiff(m=0),
                on_disk=True,
            ),
        }
        with clear_errors(self._url):
            self._client.create_collection(self._collection, vectors_config=vectors, metadata=self._metadata())
        self._is_made = True

    def _metadata(self) -> dict[str, str]:
        """Return the metadata as one text, because Qdrant merges metadata key by key."""
        index = {"fingerprint": self.fingerprint, "settings": self.settings, "folder": str(self.folder)}
        return {METADATA: json.dumps({"format": FORMAT, **index}, sort_keys=True)}

    def _read_metadata(self) -> None:
        """Read settings, fingerprint and folder. Raises ValueError if this class did not make the collection."""
        index = self._stored_metadata()
        self.settings, self.fingerprint, self.folder = index["settings"], index["fingerprint"], Path(index["folder"])

    def _stored_metadata(self) -> dict[str, Any]:
        with clear_errors(self._url):
            config = self._client.get_collection(self._collection).config
        text = (config.metadata or {}).get(METADATA)
        advice = "it is left as it is; choose another --collection"
        if text is None or not has_our_vectors(config.params.vectors):
            raise ValueError(f"{self._place} is not an index of videos; {advice}")
        index = json.loads(text)
        if index["format"] != FORMAT:
            raise ValueError(f"{self._place} has format {index['format']}, and this program reads {FORMAT}; {advice}")
        return index

    def _check_encoder(self) -> None:
        """Raise OSError if the collection was made again with another encoder since it was opened."""
        if self._stored_metadata()["fingerprint"] != self.fingerprint:
            raise OSError(f"{self._place} was made again with another model; start this program again")


def qdrant() -> ModuleType:
    """Import the package qdrant_client, which only this store needs. Raises ValueError if it is not installed."""
    try:
        import qdrant_client
    except ModuleNotFoundError as error:
        raise ValueError(f"--store qdrant needs a package that is not installed ({error.name}): {INSTALL}") from error
    return qdrant_client


def connect(url: str, make_folder: bool = False) -> Any:
    """Return a QdrantClient of a server or a folder; None for a missing folder unless `make_folder`."""
    if url.lower().startswith(("http://", "https://")):
        return connect_to_server(url)
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", url):
        raise ValueError(f"--url {url}: the address of a server begins with http:// or https://")
    if url == IN_MEMORY:
        return qdrant().QdrantClient(location=url)
    if not (Path(url) / "meta.json").is_file():  # the embedded mode writes it first
        if Path(url).is_dir() and any(Path(url).iterdir()):
            raise ValueError(f"--url {url}: this folder has other files and no Qdrant collections; choose a new one")
        if not make_folder:
            return None
    return open_folder(url)


def connect_to_server(url: str) -> Any:
    if "@" in url:  # the client would drop user and password, and errors would show them
        raise ValueError(f"--url has an '@'; a server's key comes from the environment variable {API_KEY}")
    key = os.environ.get(API_KEY, "").strip()
    if not (key.isascii() and key.isprintable()):  # the error of the HTTP library would show the key
        raise ValueError(f"the environment variable {API_KEY} has characters that a key cannot have")

    def client(seconds: int) -> Any:
        # the client's own version check warns from a thread, also about versions that work
        return qdrant().QdrantClient(url=url, api_key=key or None, timeout=seconds, check_compatibility=False)

    with clear_errors(url):
        first = client(CONNECT_SECONDS)
        version = first.info().version
        first.close()
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < LEAST_SERVER:
        least = ".".join(map(str, LEAST_SERVER))
        raise ValueError(f"Qdrant at {url} is version {version}; {least} or later is needed")
    return client(WORK_SECONDS)


def open_folder(folder: str) -> Any:
    client_class = qdrant().QdrantClient
    try:
        return client_class(path=folder)
    except RuntimeError as error:  # the client raises it for a locked folder
        raise OSError(f"--url {folder}: another process has this folder open; wait for it, or use a server") from error
    except (KeyError, TypeError, ValueError, EOFError, UnpicklingError, sqlite3.Error) as error:
        raise OSError(f"--url {folder}: damaged, or not made by Qdrant: {first_line(error)}") from error


@contextmanager
def clear_errors(url: str) -> Iterator[None]:
    """Turn the client's errors of a server or a disk into an OSError of one line."""
    package, place = qdrant(), f"Qdrant at {url}"
    try:
        yield
    except package.http.exceptions.UnexpectedResponse as error:
        if error.status_code in (401, 403):
            message = f"{place} denies access ({error.status_code}); set the environment variable {API_KEY}"
        else:
            message = f"{place} answers {error.status_code}: {first_line(error.content.decode(errors='replace'))}"
        raise OSError(message) from error
    except (package.http.exceptions.ResponseHandlingException, json.JSONDecodeError) as error:
        raise OSError(f"{place} cannot be reached, or is not Qdrant: {first_line(error)}") from error
    except package.common.client_exceptions.QdrantException as error:  # too many requests
        raise OSError(f"{place} refuses: {first_line(error)}") from error
    except sqlite3.Error as error:
        raise OSError(f"{place} cannot be read or written: {first_line(error)}") from error


def first_line(error: object) -> str:
    """Return the first line of an error, at most 200 characters."""
    text = str(error) or type(error).__name__
    return text.splitlines()[0][:200]


def has_our_vectors(vectors: Any) -> bool:
    """Return True if a collection's vectors are configured as `QdrantStore` does."""
    models = qdrant().models
    if not isinstance(vectors, dict) or set(vectors) != {"pooled", "frames"}:
        return False
    multivectors = vectors["frames"].multivector_config
    return (
        multivectors is not None
        and multivectors.comparator == models.MultiVectorComparator.MAX_SIM
        and vectors["pooled"].multivector_config is None
        and vectors["pooled"].size == vectors["frames"].size
        and {vector.distance for vector in vectors.values()} == {models.Distance.DOT}
    )


def point_id(path: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, path))


def as_point(path: str, state: FileState, vectors: VideoVectors | None) -> Any:
    """Return the PointStruct of one file. Raises ValueError for a path that is not UTF-8.

    float32 values pass through JSON unchanged. A floor of -inf becomes None, because JSON has no infinity.
    """
    models = qdrant().models
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the file name {path!a} is not UTF-8, and Qdrant keeps text; rename the file") from error
    payload = {"path": path, "size": state.size, "mtime_ns": state.mtime_ns, "reason": state.reason}
    if vectors is None:
        return models.PointStruct(id=point_id(path), vector={}, payload=payload)
    floor = float(vectors.floors[0])
    payload |= {"weights": vectors.weights.tolist(), "seconds": vectors.seconds.tolist()}
    payload["floor"] = floor if np.isfinite(floor) else None
    named = {"pooled": vectors.pooled[0].tolist(), "frames": vectors.frames.tolist()}
    return models.PointStruct(id=point_id(path), vector=named, payload=payload)


def as_vectors(point: Any, place: str) -> VideoVectors:
    """Return the video of a point with vectors and payload. Raises OSError if a number is not finite."""
    floor = point.payload["floor"]
    video = VideoVectors(
        frames=np.array(point.vector["frames"], np.float32),
        weights=np.array(point.payload["weights"], np.float32),
        seconds=np.array(point.payload["seconds"], np.float32),
        counts=np.array([len(point.vector["frames"])]),
        floors=np.array([-np.inf if floor is None else floor], np.float32),
        pooled=np.array([point.vector["pooled"]], np.float32),
    )
    try:
        video.check_finite(repr(point.payload["path"]))
    except ValueError as error:
        raise OSError(
            f"{place} is damaged: the vectors of {point.payload['path']!r} are not finite; to encode it again, "
            "touch the file and run scripts.index"
        ) from error
    return video
