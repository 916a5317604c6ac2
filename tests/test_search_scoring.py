"""The scan of an index scores as the formula of the heads does, in any blocks; the best are found in a fixed order."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.heads import HEADS
from modules.token_interaction import masked_softmax, token_interaction
from video_search.scoring import blocks, interaction, nearest, scores, token_scores, top
from video_search.vectors import Query, VideoVectors

WIDTH = 6


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    return (np.exp(logits) / np.exp(logits).sum()).astype(np.float32)


def floor_of(tokens: int, length: int, padding: str) -> float:
    return 0.0 if padding == "zero" and tokens < length else -math.inf


def make_query(vectors: np.ndarray, logits: np.ndarray, length: int, padding: str) -> Query:
    floor = floor_of(len(vectors), length, padding)
    names = tuple(f"word {number}" for number in range(len(vectors)))
    return Query(unit(vectors), softmax(logits), unit(vectors.sum(axis=0)), floor, names)


def make_videos(frames: list[np.ndarray], logits: list[np.ndarray], length: int, padding: str) -> VideoVectors:
    counts = np.array([len(rows) for rows in frames], np.int64)
    return VideoVectors(
        frames=unit(np.concatenate(frames)),
        weights=np.concatenate([softmax(values) for values in logits]),
        seconds=np.concatenate([np.arange(count, dtype=np.float32) for count in counts]),
        counts=counts,
        floors=np.array([floor_of(count, length, padding) for count in counts], np.float32),
        pooled=unit(np.stack([rows.mean(axis=0) for rows in frames])),
    )


def padded(rows: list[np.ndarray], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different lengths as one float64 tensor, filled up with noise, and the mask of what is real."""
    noise = torch.randn(len(rows), length, *rows[0].shape[1:], generator=torch.Generator().manual_seed(5))
    tensor, mask = noise.double(), torch.zeros(len(rows), length)
    for place, row in enumerate(rows):
        tensor[place, : len(row)] = torch.as_tensor(row)
        mask[place, : len(row)] = 1
    return tensor, mask


def formula(words, word_logits, frames, frame_logits, text_length, video_length, padding) -> np.ndarray:
    """(N,) by `token_interaction` on padded tensors."""
    (text, text_mask), (video, video_mask) = padded([words], text_length), padded(frames, video_length)
    text_weights = masked_softmax(padded([word_logits], text_length)[0], text_mask)
    video_weights = masked_softmax(padded(frame_logits, video_length)[0], video_mask)
    return token_interaction(text, video, text_mask, video_mask, text_weights, video_weights, padding)[0].numpy()


@settings(deadline=None, max_examples=150)
@given(
    words=st.integers(1, 5), counts=st.lists(st.integers(1, 6), min_size=1, max_size=9),
    missing_words=st.integers(0, 1), missing_frames=st.integers(0, 1), padding=st.sampled_from(["zero", "exclude"]),
    block_bytes=st.sampled_from([1, 60, 200, 1 << 20]), sign=st.sampled_from([1, -1]), seed=st.integers(0, 10_000),
)  # fmt: skip
def test_the_scan_equals_the_formula(words, missing_words, counts, missing_frames, padding, block_bytes, sign, seed):
    """Any counts of frames, padding on either side, any blocks; with the sign -1 most cosines lie below the floors."""
    generator = np.random.default_rng(seed)
    text = np.abs(generator.standard_normal((words, WIDTH)))
    frames = [sign * generator.standard_normal((count, WIDTH)) for count in counts]
    if sign < 0:
        frames = [-np.abs(rows) for rows in frames]
    word_logits, frame_logits = generator.standard_normal(words), [generator.standard_normal(c) for c in counts]
    lengths = words + missing_words, max(counts) + missing_frames
    expected = formula(text, word_logits, frames, frame_logits, *lengths, padding)
    query = make_query(text, word_logits, lengths[0], padding)
    videos = make_videos(frames, frame_logits, lengths[1], padding)
    found = token_scores(query, videos, block_bytes)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_hand_worked_floor():
    """One word opposite to the one frame: -1, or 0 where padding on both sides counts as cosine 0, or half way."""
    word = np.array([[1.0] + [0.0] * (WIDTH - 1)])
    for text_length, video_length, expected in ((1, 1, -1.0), (2, 2, 0.0), (2, 1, -0.5), (1, 2, -0.5)):
        query = make_query(word, np.zeros(1), text_length, "zero")
        videos = make_videos([-word], [np.zeros(1)], video_length, "zero")
        assert interaction(query, videos).tolist() == [expected]


def random_videos(counts: list[int], seed: int = 0) -> VideoVectors:
    generator = np.random.default_rng(seed)
    frames = [generator.standard_normal((count, WIDTH)) for count in counts]
    return make_videos(frames, [generator.standard_normal(count) for count in counts], 4, "zero")


def random_query(words: int = 3, **more) -> Query:
    generator = np.random.default_rng(99)
    query = make_query(generator.standard_normal((words, WIDTH)), generator.standard_normal(words), words, "zero")
    return Query(**{**vars(query), **more})


def test_blocks_hold_whole_videos_and_copy_nothing():
    videos = random_videos([2, 3, 1, 4, 7, 2])
    parts = list(blocks(videos, 5))
    assert [part.counts.tolist() for part in parts] == [[2, 3], [1, 4], [7], [2]]
    assert all(np.shares_memory(part.frames, videos.frames) for part in parts)
    again = VideoVectors.concatenate(parts)
    for name, array in vars(videos).items():
        assert np.array_equal(getattr(again, name), array), name


def test_frames_on_disk_are_only_read(tmp_path):
    videos = random_videos([4, 1, 2])
    videos.frames.tofile(tmp_path / "frames.f32")
    mapped = np.memmap(tmp_path / "frames.f32", np.float32, "r", shape=videos.frames.shape)
    on_disk = VideoVectors(**{**vars(videos), "frames": mapped})
    query = random_query()
    assert np.array_equal(token_scores(query, on_disk), token_scores(query, videos))


def no_videos() -> VideoVectors:
    return random_videos([1]).take(np.array([], dtype=np.int64))


def cross_scores(query: Query, videos: VideoVectors) -> np.ndarray:
    """As a cross encoder has them: a number for each video that no cosine could be."""
    return np.array([10 + frames.sum() for frames in np.split(videos.frames, videos.starts()[1:])], np.float32)


def encoder_with(sim_header: str) -> SimpleNamespace:
    return SimpleNamespace(head=HEADS[sim_header], cross_scores=cross_scores)


@pytest.mark.parametrize("is_video", [False, True])
@pytest.mark.parametrize("sim_header", ["meanP", "seqLSTM", "seqTransf", "tightTransf", "xti", "ti", "wti"])
def test_each_head_scores_by_its_own_vectors(sim_header, is_video):
    videos, query = random_videos([2, 5, 1, 3] * 300), random_query(is_video=is_video)
    if sim_header in ("ti", "wti"):
        expected = interaction(query, videos)
    elif sim_header in ("tightTransf", "xti") and not is_video:
        expected = cross_scores(query, videos)
    else:
        expected = [vector @ query.pooled for vector in videos.pooled]
    found = scores(query, videos, encoder_with(sim_header))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert scores(query, no_videos(), encoder_with(sim_header)).tolist() == []


@given(values=st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]), max_size=30), count=st.integers(1, 35))
def test_top_is_the_start_of_a_stable_sort(values, count):
    paths = [f"{(7 * number) % 31:02d}.mp4" for number in range(len(values))]
    array = np.array(values, np.float32)
    places = sorted(range(len(values)), key=lambda place: (-values[place], place))
    assert top(array, count).tolist() == places[:count]
    by_path = sorted(range(len(values)), key=lambda place: (-values[place], paths[place]))
    assert top(array, count, paths).tolist() == by_path[:count]


def test_a_score_that_is_no_number_comes_last():
    assert top(np.array([np.nan, 0.1, np.nan, 0.3], np.float32), 3).tolist()[:2] == [3, 1]
    assert top(np.array([np.nan, 0.1, 0.3], np.float32), 1).tolist() == [2]


def test_candidates_have_the_nearest_pooled_vectors():
    query = random_query(pooled=unit(np.eye(WIDTH)[0]))
    cosines = np.array([0.1, 0.9, -0.5, 0.7], np.float32)
    pooled = np.zeros((4, WIDTH), np.float32)
    pooled[:, 0], pooled[:, 1] = cosines, np.sqrt(1 - cosines**2)
    assert nearest(query, pooled, 3).tolist() == [1, 3, 0]
