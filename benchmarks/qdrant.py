"""Qdrant's embedded mode against the exact scan of arrays: bytes per video, insertion, and the stages of a search.

    python -m benchmarks.qdrant [--videos 1000 5000] [--frames 12] [--words 11] [--count 50] [--repeats 9]
                                [--output FILE.md]

The embedded mode is numpy and Python behind the interface of the server's client: it compares the frames of every
video, candidate or not, and stores each video as a pickle. Its bytes and milliseconds show that the parts work
together; they do not measure a server's speed.

Videos are random: the frames of a video have a common centre, and a query is near one of the videos. Contestants
alternate with the same query, and times are medians over the queries. "pooled" is the search of a pooled head, which
ends with the first stage, and "MAX_SIM" that of a token head; both return the candidates' vectors. "found" is the share
of the exact scan's best ten among the candidates, "difference" the largest one of the re-ranked scores.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.reporting import header, publish
from video_search.qdrant_store import QdrantStore, as_point
from video_search.scoring import token_scores, top
from video_search.stores import FileState
from video_search.vectors import Query, VideoVectors

WIDTH = 512
BEST = 10
TOKEN_HEAD, POOLED_HEAD = {"sim_header": "wti"}, {"sim_header": "meanP"}


def units(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def around(random: np.random.Generator, centre: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return unit vectors (count,D) near `centre` (D,), their weights, and their normalized weighted sum (D,)."""
    vectors = units(centre + 1.5 * random.standard_normal((count, len(centre))))
    weights = random.random(count).astype(np.float32) + np.float32(0.1)
    weights /= weights.sum()
    return vectors, weights, units(weights @ vectors)


def random_video(random: np.random.Generator, frames: int) -> VideoVectors:
    vectors, weights, pooled = around(random, random.standard_normal(WIDTH), frames)
    seconds, floors = np.arange(frames, dtype=np.float32), np.full(1, -np.inf, np.float32)
    return VideoVectors(vectors, weights, seconds, np.array([frames]), floors, pooled[None])


def random_query(random: np.random.Generator, videos: VideoVectors, words: int) -> Query:
    centre = videos.pooled[random.integers(len(videos))] * np.sqrt(WIDTH)
    vectors, weights, pooled = around(random, centre, words)
    return Query(vectors, weights, pooled, -np.inf, ("word",) * words)


def array_bytes(video: VideoVectors) -> int:
    """Return the bytes of vectors, weights and seconds of one video as float32."""
    return sum(array.nbytes for array in (video.frames, video.weights, video.seconds, video.pooled))


def timed(call: Callable[[], object]) -> tuple[float, object]:
    started = time.perf_counter()
    result = call()
    return 1000 * (time.perf_counter() - started), result


def fill(folder: Path, videos: list[VideoVectors]) -> None:
    store = QdrantStore.open(str(folder))
    store.begin(TOKEN_HEAD, "benchmark", folder)
    for number, video in enumerate(videos):
        store.put(f"{number}.mp4", FileState(1, 1, ""), video)
    store.commit()
    store.close()


def search(store: QdrantStore, videos: VideoVectors, options: argparse.Namespace) -> dict[str, float]:
    """Return median milliseconds of the contestants, and the share of the best that is `found`."""
    random = np.random.default_rng(1)
    milliseconds: dict[str, list[float]] = {name: [] for name in ("exact", "pooled", "MAX_SIM", "rerank")}
    found, differences = [], []
    for _ in range(options.repeats):
        query = random_query(random, videos, options.words)
        taken, scores = timed(lambda query=query: token_scores(query, videos))
        milliseconds["exact"].append(taken)
        for name, store.settings in (("pooled", POOLED_HEAD), ("MAX_SIM", TOKEN_HEAD)):
            taken, (paths, candidates) = timed(lambda query=query: store.candidates(query, options.count))
            milliseconds[name].append(taken)
        taken, reranked = timed(lambda query=query, candidates=candidates: token_scores(query, candidates))
        milliseconds["rerank"].append(taken)
        places = [int(path.removesuffix(".mp4")) for path in paths]
        differences.append(float(np.abs(reranked - scores[places]).max()))
        found.append(len(set(places) & set(top(scores, BEST).tolist())) / min(BEST, len(videos)))
    medians = {name: statistics.median(times) for name, times in milliseconds.items()}
    return {**medians, "found": statistics.mean(found), "difference": max(differences)}


def sizes_and_times(count: int, options: argparse.Namespace) -> tuple[str, str]:
    """Return one row of each table."""
    random = np.random.default_rng(0)
    videos = [random_video(random, options.frames) for _ in range(count)]
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "vectors"
        inserted, _ = timed(lambda: fill(folder, videos))
        stored = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        opened, store = timed(lambda: QdrantStore.open(str(folder)))
        result = search(store, VideoVectors.concatenate(videos), options)
        store.close()
    sent = len(as_point("folder/video.mp4", FileState(1, 1, ""), videos[0]).model_dump_json())
    sizes = (
        f"| {count} | {array_bytes(videos[0]):,} | {stored / count:,.0f} | {sent:,} "
        f"| {1000 * count / inserted:.0f} | {opened / 1000:.1f} |"
    )
    times = (
        f"| {count} | {result['exact']:.1f} | {result['pooled']:.1f} | {result['MAX_SIM']:.1f} "
        f"| {result['rerank']:.2f} | **{(result['MAX_SIM'] + result['rerank']) / result['exact']:.1f}** "
        f"| {100 * result['found']:.0f} % | {result['difference']:.0e} |"
    )
    return sizes, times


def tables(options: argparse.Namespace) -> Iterator[str]:
    rows = [sizes_and_times(count, options) for count in tqdm(options.videos, unit="size", disable=None)]
    yield "## Bytes per video, insertion and opening\n"
    yield "| videos | float32 arrays | embedded folder | JSON to a server | inserted/s | opening s |"
    yield "|" + "---:|" * 6
    yield from (sizes for sizes, _ in rows)
    yield f"\n## A search, {options.count} candidates: milliseconds\n"
    yield "| videos | exact scan | pooled | MAX_SIM | rerank | MAX_SIM and rerank / exact scan | found | difference |"
    yield "|" + "---:|" * 8
    yield from (times for _, times in rows)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--words", type=int, default=11)
    parser.add_argument("--count", type=int, default=50, help="candidates per search")
    parser.add_argument("--repeats", type=int, default=9, help="number of queries")
    parser.add_argument("--output", type=Path, help="also write the report to this Markdown file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    remarks = (
        f"qdrant-client {version('qdrant-client')}", f"{torch.get_num_threads()} threads", f"D = {WIDTH}",
        f"{options.frames} frames", f"{options.words} words", f"medians of {options.repeats} queries",
        "embedded mode, not a measure of a server's speed",
    )  # fmt: skip
    publish("\n".join([header("qdrant", arguments, *remarks), *tables(options)]), options.output)


if __name__ == "__main__":
    main()
