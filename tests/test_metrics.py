"""metrics.py against the reference numbers, matrices ranked by eye, and slow loops."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import metrics
from metrics import (
    compute_metrics,
    ranks,
    recall_intervals,
    retrieval_metrics,
    summarize,
    tensor_text_to_video_metrics,
    tensor_video_to_text_sim,
    top_columns,
    video_queries,
)
from tests.conftest import REPOSITORY

KEYS = ("R1", "R5", "R10", "R50", "MR", "MedianR", "MeanR")


def grouped(similarity: np.ndarray, counts: list[int]) -> np.ndarray:
    """(A, B) with the captions of a video in adjacent rows -> CLIP4Clip's (B, captions, B), padded with -inf."""
    result = np.full((len(counts), max(counts), similarity.shape[1]), -np.inf)
    rows = iter(similarity)
    for video, count in enumerate(counts):
        for slot in range(count):
            result[video, slot] = next(rows)
    return result


def slow_retrieval_ranks(similarity, video_index) -> tuple[list[int], list[int]]:
    """The protocol of `retrieval_metrics`, one comparison at a time."""
    text_count, video_count = similarity.shape
    text_to_video = []
    for text in range(text_count):
        true = video_index[text]
        others = [video for video in range(video_count) if video != true]
        text_to_video.append(sum(similarity[text, video] >= similarity[text, true] for video in others))
    best = {
        (group, video): max(similarity[text, video] for text in range(text_count) if video_index[text] == group)
        for group in set(video_index)
        for video in range(video_count)
    }
    video_to_text = [
        sum(best[group, video] >= best[video, video] for group in set(video_index) if group != video)
        for video in sorted(set(video_index))
    ]
    return text_to_video, video_to_text


def check_golden(result: dict, golden: dict) -> None:
    assert golden, "the golden numbers are missing"
    for key, value in golden.items():
        assert result[key] == pytest.approx(value, rel=1e-6), key
    assert result["MedianR"] == golden["MR"]


def test_golden_single(golden_small):
    for case in golden_small["metrics_single"]:
        similarity = np.array(case["sim"])
        check_golden(compute_metrics(similarity), case["t2v"])
        check_golden(compute_metrics(similarity.T), case["v2t"])
        text_to_video, video_to_text = retrieval_metrics(similarity, np.arange(len(similarity)))
        check_golden(text_to_video, case["t2v"])
        check_golden(video_to_text, case["v2t"])


def test_golden_multi(golden_small):
    case = golden_small["metrics_multi"]
    similarity = np.array(case["sim"])
    padded = grouped(similarity, case["counts"])
    check_golden(tensor_text_to_video_metrics(padded), case["t2v"])
    check_golden(compute_metrics(tensor_video_to_text_sim(padded)), case["v2t"])

    video_index = np.repeat(np.arange(len(case["counts"])), case["counts"])
    shuffle = np.random.default_rng(0).permutation(len(video_index))
    text_to_video, video_to_text = retrieval_metrics(similarity[shuffle], video_index[shuffle])
    check_golden(text_to_video, case["t2v"])
    check_golden(video_to_text, case["v2t"])


def test_ranked_by_eye():
    similarity = [
        [9, 1, 2, 3],  # its own video is first
        [5, 4, 3, 2],  # second, behind video 0
        [8, 7, 1, 6],  # last
        [0, 0, 0, 1],  # first
    ]
    result = compute_metrics(similarity)
    assert result["cols"] == [0, 1, 3, 0]
    assert result["R1"] == 50.0
    assert result["R5"] == result["R10"] == result["R50"] == 100.0
    assert result["MR"] == result["MedianR"] == 1.5
    assert result["MeanR"] == 2.0
    assert all(type(result[key]) is float for key in KEYS)
    # Columns: 9 leads; 4 is behind 7; 1 is behind 2, 3; 1 is behind 3, 2, 6.
    assert compute_metrics(np.array(similarity).T)["cols"] == [0, 1, 2, 3]


def test_recall_depths_from_ranks():
    result = summarize(np.array([0, 1, 4, 5, 9, 10, 49, 50]))
    assert [result[key] for key in KEYS] == [12.5, 37.5, 62.5, 87.5, 8.0, 8.0, 17.0]


def test_several_captions_by_eye():
    # Texts 0 and 1 describe video 0, text 2 describes video 2; video 1 is a distractor.
    similarity = [
        [5, 1, 2],  # right
        [3, 9, 4],  # its video is last
        [6, 8, 7],  # second, behind the distractor
    ]
    text_to_video, video_to_text = retrieval_metrics(similarity, [0, 0, 2])
    assert text_to_video["R1"] == pytest.approx(100 / 3)
    assert text_to_video["MeanR"] == 2.0
    # Video 0: own best 5, video 2's best 6 -> second.  Video 2: own 7, video 0's best 4 -> first.  No third query.
    assert video_to_text["R1"] == 50.0
    assert video_to_text["MeanR"] == 1.5


def test_video_queries_by_eye():
    columns, by_group = video_queries([[5, 1, 2], [3, 9, 4], [6, 8, 7]], [0, 0, 2])
    assert columns.tolist() == [0, 2]
    # video 0 with the best of texts 0 and 1, and with text 2; video 2 likewise
    assert by_group.tolist() == [[5, 6], [4, 7]]


def test_top_columns_by_eye():
    similarity = [[1, 9, 3, 7, 5, 8], [4, 4, 4, 4, 4, 4], [0, 2, 2, 1, -1, -np.inf]]
    top = top_columns(similarity, [2, 0, 1])
    assert top[0].tolist() == [1, 5, 3, 4, 2]
    assert sorted(top[1].tolist()) == [1, 2, 3, 4, 5]  # five others tie with the true one
    assert top[2].tolist() == [2, 1, 3, 0, 4]  # 2 ties with the true 1 and comes first
    assert top_columns([[1.0, 2.0]], [0]).tolist() == [[1, 0]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_the_true_column_is_at_the_place_of_its_rank(dtype):
    generator = np.random.default_rng(1)
    similarity = generator.integers(0, 4, (2500, 9)).astype(dtype)
    true_column = generator.integers(0, 9, 2500)
    top, rank = top_columns(similarity, true_column), ranks(similarity, true_column)
    for row in range(len(top)):
        scores = similarity[row, top[row]]
        assert scores.tolist() == sorted(similarity[row].tolist(), reverse=True)[:5]
        assert (true_column[row] in top[row]) == (rank[row] < 5)
        if rank[row] < 5:
            assert top[row, rank[row]] == true_column[row]


def test_intervals_of_known_binomials():
    """With 50 of 100 hits the resampled counts are binomial(100, 0.5): its 2.5 % and 97.5 % quantiles are 40 and 60."""
    intervals = recall_intervals(np.repeat([0, 7, 20, 60], [50, 20, 30, 0]))
    assert intervals["R1"] == intervals["R5"] == (40.0, 60.0)
    # 70 of 100: the quantiles of binomial(100, 0.7) are 61 and 79
    assert intervals["R10"] == (61.0, 79.0)
    assert intervals["R50"] == (100.0, 100.0)
    assert list(recall_intervals([3]).values()) == [(0.0, 0.0)] + 3 * [(100.0, 100.0)]


def test_intervals_equal_resampling_queries_one_by_one():
    generator = np.random.default_rng(5)
    rank = generator.geometric(0.2, 200) - 1
    resamples = rank[generator.integers(0, 200, (4000, 200))]
    for depth in metrics.RECALL_DEPTHS:
        expected = np.percentile(100 * (resamples < depth).mean(axis=1), [2.5, 97.5])
        assert recall_intervals(rank)[f"R{depth}"] == pytest.approx(expected, abs=1.0)


def test_intervals_repeat_and_ignore_the_order():
    rank = np.random.default_rng(5).integers(0, 80, 300)
    assert recall_intervals(rank) == recall_intervals(rank) == recall_intervals(rank[::-1])
    assert recall_intervals(rank) != recall_intervals(rank, seed=1)
    with pytest.raises(ValueError, match=r"\(N,\)"):
        recall_intervals([])


def test_ties_count_against_the_model():
    constant = np.zeros((4, 4))
    assert compute_metrics(constant)["cols"] == [3, 3, 3, 3]
    assert compute_metrics([[1, 1, 0], [0, 1, 0], [1, 1, 1]])["cols"] == [1, 0, 2]
    assert ranks([[-np.inf, -np.inf], [np.inf, 0]], [0, 0]).tolist() == [1, 0]
    assert retrieval_metrics(constant, np.arange(4))[1]["MeanR"] == 4.0


def test_a_caption_of_minus_infinity_against_its_own_video_is_the_worst_not_padding():
    padded = np.full((2, 2, 2), -np.inf)
    padded[0, 0] = [-np.inf, 1.0]
    padded[1, 0] = [0.0, 1.0]
    assert tensor_text_to_video_metrics(padded)["MeanR"] == 1.5


def test_distractors_of_the_grouped_form():
    padded = np.full((3, 1, 3), -np.inf)
    padded[0, 0] = [1.0, 2.0, 0.0]
    padded[2, 0] = [1.0, 2.0, 3.0]
    assert tensor_text_to_video_metrics(padded)["MeanR"] == 1.5
    with pytest.raises(ValueError, match=r"1 videos have no caption, first \[1\]"):
        tensor_video_to_text_sim(padded)


def test_grouped_similarity_has_videos_in_rows():
    padded = np.array([[[1.0, 2.0], [3.0, 0.0]], [[5.0, 6.0], [-np.inf, -np.inf]]])
    assert tensor_video_to_text_sim(padded).tolist() == [[3.0, 5.0], [2.0, 6.0]]


def test_nan_names_rows_and_direction():
    similarity = np.eye(12)
    similarity[[3, 7], [0, 7]] = np.nan
    with pytest.raises(ValueError, match=r"text-to-video: NaN similarity in 2 rows, first \[3, 7\]"):
        compute_metrics(similarity)
    with pytest.raises(ValueError, match=r"video-to-text: NaN similarity in 2 rows, first \[0, 7\]"):
        compute_metrics(similarity.T, metrics.VIDEO_TO_TEXT)
    with pytest.raises(ValueError, match=r"text-to-video: NaN similarity in 2 rows"):
        retrieval_metrics(similarity, np.arange(12))
    similarity[:] = np.nan
    with pytest.raises(ValueError, match=r"NaN similarity in 12 rows, first \[0, 1, 2, 3, 4\]"):
        compute_metrics(similarity)


@pytest.mark.parametrize(
    ("function", "direction"),
    [(tensor_text_to_video_metrics, "text-to-video"), (tensor_video_to_text_sim, "video-to-text")],
)
def test_nan_of_the_grouped_form_names_video_and_slot(function, direction):
    padded = np.full((2, 3, 2), -np.inf)
    padded[:, 0] = np.eye(2)
    padded[1, 2, 0] = np.nan
    with pytest.raises(ValueError, match=rf"{direction}: NaN similarity in 1 rows, first \[\(1, 2\)\]"):
        function(padded)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compute_metrics(np.zeros((2, 3))), r"square.*\(2, 3\)"),
        (lambda: compute_metrics(np.zeros(3)), r"2 axes.*\(3,\)"),
        (lambda: compute_metrics(np.zeros((0, 0))), r"\(0, 0\)"),
        (lambda: compute_metrics(np.array([["a"]])), "real numbers"),
        (lambda: compute_metrics(np.array([[1j]])), "real numbers"),
        (lambda: retrieval_metrics(np.zeros((0, 3)), []), r"\(0, 3\)"),
        (lambda: retrieval_metrics(np.zeros((2, 3)), [0]), r"\(2,\), got \(1,\)"),
        (lambda: retrieval_metrics(np.zeros((2, 3)), [0, 3]), r"\[0, 3\), got 0 to 3"),
        (lambda: retrieval_metrics(np.zeros((2, 3)), [-1, 0]), r"\[0, 3\), got -1 to 0"),
        (lambda: retrieval_metrics(np.zeros((2, 3)), [0.0, 1.0]), "integers, got float64"),
        (lambda: tensor_text_to_video_metrics(np.zeros((2, 2))), r"3 axes.*\(2, 2\)"),
        (lambda: tensor_text_to_video_metrics(np.zeros((2, 5, 3))), r"\(2, 5, 3\)"),
        (lambda: tensor_text_to_video_metrics(np.full((2, 5, 2), -np.inf)), "every caption slot"),
        (lambda: tensor_video_to_text_sim(np.zeros((0, 5, 0))), r"\(0, 5, 0\)"),
        (lambda: summarize([]), r"\(N,\)"),
        (lambda: summarize([[1]]), r"\(1, 1\)"),
        (lambda: summarize([-1]), "minimum -1"),
        (lambda: summarize([0.5]), "float64"),
    ],
)
def test_bad_input_names_what_it_got(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@st.composite
def similarity_and_videos(draw):
    video_count = draw(st.integers(1, 6))
    video_index = draw(st.lists(st.integers(0, video_count - 1), min_size=1, max_size=10))
    # Few distinct values, so that ties are common.
    values = st.sampled_from([-np.inf, -1.0, 0.0, 0.25, 1.0, np.inf])
    rows = [draw(st.lists(values, min_size=video_count, max_size=video_count)) for _ in video_index]
    return np.array(rows), np.array(video_index)


@settings(max_examples=150, deadline=None)
@given(similarity_and_videos(), st.randoms(use_true_random=False), st.integers(1, 4))
def test_equals_a_slow_loop_and_ignores_order(case, random, block_rows):
    similarity, video_index = case
    text_ranks, video_ranks = slow_retrieval_ranks(similarity, video_index.tolist())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_BLOCK_ROWS", block_rows)
        assert ranks(similarity, video_index).tolist() == text_ranks
        result = retrieval_metrics(similarity, video_index)
        for actual, expected in zip(result, (text_ranks, video_ranks), strict=True):
            assert actual["MeanR"] == pytest.approx(np.mean(expected) + 1)
            assert actual["MedianR"] == actual["MR"] == np.median(expected) + 1
            assert actual["R1"] == pytest.approx(100 * np.mean(np.array(expected) < 1))
            assert actual["R5"] == pytest.approx(100 * np.mean(np.array(expected) < 5))

        gallery = list(range(similarity.shape[1]))
        random.shuffle(gallery)
        texts = list(range(len(similarity)))
        random.shuffle(texts)
        new_position = np.argsort(gallery)
        shuffled = retrieval_metrics(similarity[texts][:, gallery], new_position[video_index[texts]])
        for actual, expected in zip(shuffled, result, strict=True):
            assert actual == pytest.approx(expected)


def test_many_captions_span_blocks():
    generator = np.random.default_rng(0)
    similarity = generator.standard_normal((3000, 7)).astype(np.float32)
    video_index = generator.integers(0, 6, 3000)
    text_to_video, video_to_text = retrieval_metrics(similarity, video_index)
    text_ranks, video_ranks = slow_retrieval_ranks(similarity, video_index.tolist())
    assert text_to_video["MeanR"] == pytest.approx(np.mean(text_ranks) + 1)
    assert video_to_text["MeanR"] == pytest.approx(np.mean(video_ranks) + 1)


def test_memory_stays_well_below_a_copy_of_the_similarity():
    """Nothing of the similarity's size is made, of whatever type (float32 here: 60 MB)."""
    similarity = np.random.default_rng(0).standard_normal((20_000, 750), dtype=np.float32)
    video_index = np.arange(20_000) % 750
    tracemalloc.start()
    try:
        retrieval_metrics(similarity, video_index)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < similarity.nbytes / 4


def test_torch_tensors_are_accepted():
    similarity = torch.tensor([[2.0, 1.0], [3.0, 1.0]], requires_grad=True)
    assert compute_metrics(similarity)["cols"] == [0, 1]
    assert retrieval_metrics(similarity, torch.tensor([0, 1]))[0]["MeanR"] == 1.5
    assert tensor_text_to_video_metrics(similarity[:, None])["MeanR"] == 1.5
    assert tensor_video_to_text_sim(similarity[:, None]).tolist() == [[2.0, 3.0], [1.0, 1.0]]


def test_imports_only_numpy():
    code = "import sys, metrics; print([name for name in ('torch', 'modules', 'util') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
