"""Search of an index: latency and memory as it grows, and the loss of re-ranking candidates only.

    python -m benchmarks.search [--videos 1000 10000 100000] [--shortlist 50 100 200 500 1000] [--repeats 7]
                                [--index DIR --queries FILE.csv [--init_model CKPT]] [--output FILE.md]

size    one query of --words words for the best 10 of N videos of --frames frames, D = 512: random unit vectors in
        files like those of an index (2.5 GB in the temporary folder for 100,000 videos, removed afterwards).
        Contestants alternate; a time is the median of the repeats, without encoding the text.
            plain      all frames loaded; per 1,000 videos, padded to (B,V,D), an einsum with the words, maxima, sums
            exact      `scoring.token_scores` on the index's files: when they were read before; and cold, the first
                       search, which reads and checks them when the page cache has dropped them
            shortlist  candidates by their pooled vectors, re-ranked exactly
        Memory is the peak of a separate process above its level before it opened the index and searched once.
truth   an index of real videos made with a trained checkpoint: the share of the exact best 10 among the candidates,
        over the queries (column "sentence" or "caption" of the file), and the latency of a whole search, from encoding
        the text to explaining the hits. Omitted without --index.
"""

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.memory import forget_peak, held_bytes, in_new_process, peak_bytes
from benchmarks.reporting import header, publish
from video_search.index_files import crc32
from video_search.scoring import nearest, token_scores, top
from video_search.search import VideoSearch
from video_search.stored_rows import Parts, StoredRows
from video_search.vectors import Query, VideoVectors

WIDTH, TOP = 512, 10
PLAIN_VIDEOS = 1000  # per block of the baseline
EXACT_GOAL, SHORTLIST_GOAL = 0.5, 0.05  # seconds at 100,000 videos


def random_units(generator: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = generator.standard_normal(shape, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def write_index(folder: Path, videos: int, frames: int) -> None:
    """Write vectors of random videos in flat files like those of an index."""
    generator = np.random.default_rng(0)
    checksums: dict[str, list[int]] = {"frames": [], "pooled": []}
    with (folder / "frames.f32").open("wb") as frames_file, (folder / "pooled.f32").open("wb") as pooled_file:
        for first in range(0, videos, PLAIN_VIDEOS):
            vectors = random_units(generator, min(PLAIN_VIDEOS, videos - first), frames, WIDTH)
            pooled = vectors.mean(axis=1)
            pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
            vectors.tofile(frames_file)
            pooled.tofile(pooled_file)
            checksums["frames"] += map(crc32, vectors)
            checksums["pooled"] += map(crc32, pooled)
    (folder / "checksums.json").write_text(json.dumps(checksums))


def open_index(folder: Path, videos: int, frames: int) -> VideoVectors:
    tokens = np.full(videos * frames, 1 / frames, np.float32)
    checksums = json.loads((folder / "checksums.json").read_text())
    names = [f"video{number}" for number in range(videos)]

    def rows(name: str, count: int) -> StoredRows:
        counts = np.full(videos, count)
        parts = Parts(names, np.arange(videos) * count, counts, checksums[name])
        return StoredRows(folder / f"{name}.f32", WIDTH, parts, "write it again")

    return VideoVectors(
        frames=rows("frames", frames),
        weights=tokens,
        seconds=np.zeros_like(tokens),
        counts=np.full(videos, frames),
        floors=np.full(videos, -np.inf, np.float32),
        pooled=rows("pooled", 1),
    )


def random_query(words: int) -> Query:
    vectors = random_units(np.random.default_rng(1), words, WIDTH)
    pooled = vectors.sum(axis=0)
    weights = np.full(words, 1 / words, np.float32)
    return Query(vectors, weights, pooled / np.linalg.norm(pooled), 0.0, ("word",) * words)


class Plain:
    """The baseline: everything loaded, padded to the longest video, and scored literally by the formula."""

    def __init__(self, query: Query, videos: VideoVectors):
        shape = len(videos), int(videos.counts.max())
        loaded = np.fromfile(videos.frames.path, np.float32, count=len(videos.frames) * WIDTH)
        self.frames = torch.from_numpy(loaded).view(*shape, WIDTH)
        self.weights = torch.from_numpy(videos.weights).view(shape)
        self.mask = torch.ones(shape)
        self.words, self.word_weights = torch.from_numpy(query.vectors), torch.from_numpy(query.weights)

    def __call__(self) -> np.ndarray:
        parts = []
        for first in range(0, len(self.frames), PLAIN_VIDEOS):
            rows = slice(first, first + PLAIN_VIDEOS)
            cosine = torch.einsum("td,bvd->btv", self.words, self.frames[rows]) * self.mask[rows, None]
            text_to_video = (cosine.amax(dim=2) * self.word_weights).sum(dim=1)
            best_word = cosine.amax(dim=1).clamp(min=0)
            parts.append((text_to_video + (best_word * self.weights[rows]).sum(dim=1)) / 2)
        return torch.cat(parts).topk(TOP).indices.numpy()


def exact(query: Query, videos: VideoVectors) -> np.ndarray:
    return top(token_scores(query, videos), TOP)


def reranked(query: Query, videos: VideoVectors, count: int) -> np.ndarray:
    places = nearest(query, videos.pooled, count)
    return places[top(token_scores(query, videos.take(places)), TOP)]


def prepared(name: str, query: Query, videos: VideoVectors) -> Callable[[], np.ndarray]:
    """Return the search of "plain", "exact" or "shortlist COUNT"; a search returns places of the best videos."""
    if name == "plain":
        return Plain(query, videos)
    if name == "exact":
        return partial(exact, query, videos)
    return partial(reranked, query, videos, int(name.split()[1]))


def seconds_of(search: Callable[[], object]) -> float:
    started = time.perf_counter()
    search()
    return time.perf_counter() - started


def latencies(folder: Path, videos: int, names: list[str], options: argparse.Namespace) -> dict[str, float]:
    """Return median seconds of every contestant. Raises ValueError if exact scan and baseline find different videos."""
    index, query = open_index(folder, videos, options.frames), random_query(options.words)
    searches = {name: prepared(name, query, index) for name in names}
    if set(searches["plain"]()) != set(searches["exact"]()):
        raise ValueError(f"the exact scan of {videos} videos finds other videos than the plain one")
    seconds = {name: [] for name in names}
    for _ in range(options.repeats):
        for name, search in searches.items():
            seconds[name].append(seconds_of(search))
    return {name: statistics.median(times) for name, times in seconds.items()}


def memory(folder: Path, videos: int, name: str, options: argparse.Namespace) -> int:
    """Return bytes for opening the index and one search."""
    query = random_query(options.words)
    prepared(name, query, open_index(folder, TOP, options.frames))()  # allocations of libraries at their first call
    held = held_bytes("cpu")
    forget_peak("cpu")
    index = open_index(folder, videos, options.frames)
    prepared(name, query, index)()
    return peak_bytes("cpu") - held


def read_bytes() -> int:
    """Return the bytes that this process has read from disks."""
    (line,) = (line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("read_bytes"))
    return int(line.split()[1])


def cold(folder: Path, videos: int, options: argparse.Namespace) -> tuple[float, int]:
    """Return seconds and bytes read from disk of an exact search with an empty page cache."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)  # the cache keeps pages that are not written yet
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    query, before = random_query(options.words), read_bytes()
    seconds = seconds_of(lambda: exact(query, open_index(folder, videos, options.frames)))
    return seconds, read_bytes() - before


def size(options: argparse.Namespace) -> Iterator[str]:
    """Yield the rows of two tables: latencies, then memory."""
    names = ["plain", "exact", *(f"shortlist {count}" for count in options.shortlist)]
    memories = []
    yield f"| videos | MB | {' | '.join(names)} | exact, cold | MB/s read | plain / exact | exact / {names[-1]} |"
    yield "|" + "---:|" * (len(names) + 6)
    for videos in options.videos:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_index(folder, videos, options.frames)
            megabytes = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
            times = in_new_process(latencies, folder, videos, names, options)
            memories += [(videos, name, in_new_process(memory, folder, videos, name, options)) for name in names]
            cold_seconds, read = in_new_process(cold, folder, videos, options)
        cells = " | ".join(f"{1000 * times[name]:.1f} ms" for name in names)
        yield (
            f"| {videos} | {megabytes:.0f} | {cells} | {1000 * cold_seconds:.0f} ms | {read / cold_seconds / 1e6:.0f} "
            f"| **{times['plain'] / times['exact']:.1f}** | {times['exact'] / times[names[-1]]:.1f} |"
        )
    yield f"\nGoals at 100,000 videos: exact {EXACT_GOAL} s, with re-ranked candidates {SHORTLIST_GOAL} s.\n"
    yield "| videos | contestant | MiB |"
    yield "|---:|---|---:|"
    for videos, name, taken in memories:
        yield f"| {videos} | {name} | {taken / 2**20:.0f} |"


def read_queries(file: Path) -> list[str]:
    """Return the texts of a csv. Raises ValueError if it has no column of texts."""
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    column = next((name for name in ("sentence", "caption") if rows and name in rows[0]), None)
    if column is None:
        raise ValueError(f"{file} (--queries) has no row, or no column named sentence or caption")
    return [row[column] for row in rows]


def truth(options: argparse.Namespace) -> Iterator[str]:
    """Yield the rows of the table of exact results found among the candidates."""
    search = VideoSearch.open(options.index, options.init_model)
    texts = read_queries(options.queries)
    queries = [search.encoder.text(text) for text in texts]
    exact_paths = [search.rank(query, TOP).paths for query in queries]
    yield f"{len(search.store)} videos of `{search.store.settings['sim_header']}`, {len(queries)} queries.\n"
    yield "| search | among the candidates, of the exact 10 | of the exact best | whole search, ms |"
    yield "|---|---:|---:|---:|"
    for count in (None, *options.shortlist):
        if count is not None and count >= len(search.store):
            continue
        times, kept, best_kept = [], [], []
        for text, query, expected in zip(texts, queries, exact_paths, strict=True):
            found = search.rank(query, TOP, count).paths
            kept.append(len({*expected} & {*found}) / len(expected))
            best_kept.append(found[0] == expected[0])
            times.append(seconds_of(partial(search.text, text, TOP, count)))
        name = "exact" if count is None else f"shortlist {count}"
        shares = f"{100 * statistics.mean(kept):.1f} % | {100 * statistics.mean(best_kept):.0f} %"
        yield f"| {name} | {shares} | {1000 * statistics.median(times):.1f} |"


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--frames", type=int, default=12, help="frames per video")
    parser.add_argument("--words", type=int, default=12, help="words of the query, start and end token included")
    parser.add_argument(
        "--shortlist", type=int, nargs="+", default=[50, 100, 200, 500, 1000], help="numbers of candidates"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--index", type=Path, help="an index of real videos")
    parser.add_argument("--init_model", help="its checkpoint, if it has moved")
    parser.add_argument("--queries", type=Path, help="csv of texts to search for")
    parser.add_argument("--output", type=Path, help="also write the report to this Markdown file")
    options = parser.parse_args(arguments)
    if (options.index is None) != (options.queries is None):
        parser.error("--index and --queries must be given together")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write `--output`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    shape = f"{options.frames} frames a video, {options.words} words, D = {WIDTH}"
    remarks = f"{torch.get_num_threads()} threads", shape, f"medians of {options.repeats}"
    lines = [header("search", arguments, *remarks), "## size", ""]
    lines += tqdm(size(options), desc="size", unit="line", disable=None)
    if options.index is not None:
        lines += ["", "## truth", "", *tqdm(truth(options), desc="truth", unit="line", disable=None)]
    publish("\n".join(lines), options.output)


if __name__ == "__main__":
    main()
