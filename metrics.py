"""Ranks and recall from a similarity matrix; numpy only.

The similarity is text by video, larger is better. A rank is the number of wrong candidates that score at least
as high as the true one: 0 is best, and a tie counts against the model, so that a constant similarity scores
worst instead of best. CLIP4Clip's ranks are the same without ties and NaN.

All functions accept what `np.asarray` accepts, and torch tensors that require gradients or are on a GPU.
"""

import numpy as np

RECALL_DEPTHS = (1, 5, 10, 50)
BOOTSTRAP_RESAMPLES = 10_000
TEXT_TO_VIDEO = "text-to-video"
VIDEO_TO_TEXT = "video-to-text"

# rows compared at once: at 3,000 videos the boolean comparison of a block takes 3 MB, that of MSR-VTT's 59,800 test
# captions together 180 MB
_BLOCK_ROWS = 1024


def ranks(similarity, true_column, direction: str = TEXT_TO_VIDEO) -> np.ndarray:
    """Return the rank of each row's true column: the number of other columns with a similarity >= the true one's.

    Args:
        similarity: (A, B) real numbers, -inf and inf included.
        true_column: (A,) integers in [0, B).
        direction: names the rows in the error message.

    Returns:
        (A,) int64, 0 is best, B - 1 is worst.

    Raises:
        ValueError: empty or wrong shape, a column out of range, or NaN (with the first rows that have it).
    """
    similarity = similarity_array(similarity, dimensions=2)
    row_count, column_count = similarity.shape
    true_column = column_array(true_column, row_count, column_count)
    reject_nan(similarity, direction)

    result = np.empty(row_count, dtype=np.int64)
    for start in range(0, row_count, _BLOCK_ROWS):
        block = similarity[start : start + _BLOCK_ROWS]
        true_similarity = np.take_along_axis(block, true_column[start : start + _BLOCK_ROWS, None], axis=1)
        # - 1: the true column counts itself
        result[start : start + _BLOCK_ROWS] = np.count_nonzero(block >= true_similarity, axis=1) - 1
    return result


def summarize(rank) -> dict[str, float]:
    """Return the numbers of a result table from 0-based ranks (N,).

    Returns:
        R1, R5, R10, R50: percentage of the ranks below 1, 5, 10, 50; MR = MedianR and MeanR: median and mean
        rank counted from 1 (CLIP4Clip names the median either way). All are Python floats.

    Raises:
        ValueError: empty, not one axis, or ranks that are not integers >= 0.
    """
    rank = rank_array(rank)
    recalls = {f"R{depth}": 100.0 * float(np.mean(rank < depth)) for depth in RECALL_DEPTHS}
    median = float(np.median(rank)) + 1.0
    return recalls | {"MR": median, "MedianR": median, "MeanR": float(rank.mean()) + 1.0}


def recall_intervals(rank, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Return the 95 % percentile-bootstrap interval of each recall over queries, from 0-based ranks (N,).

    Recalls of a resample depend only on how many of its N ranks are below 1, 5, 10 and 50, and these counts follow a
    multinomial distribution: drawing them directly is the bootstrap of Efron (1979) without N indices per resample.
    Hence the order of the ranks does not matter.

    Returns:
        (low, high) in percent under R1, R5, R10, R50, the same for the same ranks and seed.

    Raises:
        ValueError: as in `summarize`.
    """
    rank = rank_array(rank)
    counts = np.bincount(np.searchsorted(RECALL_DEPTHS, rank, side="right"), minlength=len(RECALL_DEPTHS) + 1)
    resampled = np.random.default_rng(seed).multinomial(len(rank), counts / len(rank), size=BOOTSTRAP_RESAMPLES)
    recalls = 100.0 * resampled.cumsum(axis=1)[:, : len(RECALL_DEPTHS)] / len(rank)
    low, high = np.percentile(recalls, [2.5, 97.5], axis=0).tolist()
    return {f"R{depth}": (low[index], high[index]) for index, depth in enumerate(RECALL_DEPTHS)}


def compute_metrics(sim, direction: str = TEXT_TO_VIDEO) -> dict:
    """Return the metrics of a square similarity whose true pairs are on the diagonal.

    Args:
        sim: (A, A), rows are the queries. Pass the transpose for the other direction.
        direction: names the rows in the error message.

    Returns:
        `summarize`'s numbers, and under "cols" the list of the 0-based ranks, one per row.

    Raises:
        ValueError: not square, empty, or NaN (with the first rows that have it).
    """
    sim = similarity_array(sim, dimensions=2)
    if sim.shape[0] != sim.shape[1]:
        raise ValueError(f"the similarity must be square with the true pairs on its diagonal, got shape {sim.shape}")
    diagonal_ranks = ranks(sim, np.arange(len(sim)), direction)
    return {**summarize(diagonal_ranks), "cols": diagonal_ranks.tolist()}


def retrieval_metrics(similarity, video_index) -> tuple[dict[str, float], dict[str, float]]:
    """Return text-to-video and video-to-text metrics for any number of captions per video.

    Text-to-video ranks each caption's video among all videos. Video-to-text gives every captioned video one
    query: its best own caption against the best caption of each other video (CLIP4Clip's protocol for MSVD).
    A video without captions is a distractor of text-to-video and is not a query of video-to-text. With one caption
    per video both are `compute_metrics` of the similarity and of its transpose.

    Args:
        similarity: (A, B).
        video_index: (A,) integers, the column of each text's true video, in any order.

    Returns:
        The pair (text-to-video, video-to-text) of `summarize`'s numbers.

    Raises:
        ValueError: as in `ranks`.
    """
    similarity = similarity_array(similarity, dimensions=2)
    video_index = column_array(video_index, *similarity.shape)
    text_to_video = summarize(ranks(similarity, video_index, TEXT_TO_VIDEO))
    _, query_by_group = video_queries(similarity, video_index)
    return text_to_video, summarize(ranks(query_by_group, np.arange(len(query_by_group)), VIDEO_TO_TEXT))


def video_queries(similarity, video_index) -> tuple[np.ndarray, np.ndarray]:
    """Return video-to-text of `retrieval_metrics` as a square similarity whose true pairs are on the diagonal.

    Args:
        similarity: (A, B).
        video_index: (A,) integers, the column of each text's true video.

    Returns:
        The G columns of the videos that have captions, ascending, and (G, G): rows are those videos as queries, each
        column holds the best caption of one of them.

    Raises:
        ValueError: as in `ranks`, but for NaN.
    """
    similarity = similarity_array(similarity, dimensions=2)
    video_index = column_array(video_index, *similarity.shape)
    captioned_videos, best_caption = best_caption_per_video(similarity, video_index)
    return captioned_videos, best_caption[:, captioned_videos].T


def top_columns(similarity, true_column, count: int = 5) -> np.ndarray:
    """Return the `count` columns of the largest similarity in each row, best first, or all if there are fewer.

    As in `ranks` a tie counts against the true column: it follows the wrong ones of the same similarity.

    Args:
        similarity: (A, B) without NaN.
        true_column: (A,) integers in [0, B).

    Returns:
        (A, min(count, B)) int64.

    Raises:
        ValueError: as in `ranks`, but for NaN.
    """
    similarity = similarity_array(similarity, dimensions=2)
    row_count, column_count = similarity.shape
    true_column = column_array(true_column, row_count, column_count)
    count = min(count, column_count)
    result = np.empty((row_count, count), dtype=np.int64)
    for start in range(0, row_count, _BLOCK_ROWS):
        block = similarity[start : start + _BLOCK_ROWS].astype(np.float64)
        true = true_column[start : start + _BLOCK_ROWS, None]
        # the next smaller number ranks below ties and above all smaller ones
        np.put_along_axis(block, true, np.nextafter(np.take_along_axis(block, true, axis=1), -np.inf), axis=1)
        best = np.argpartition(-block, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(block, best, axis=1), axis=1, kind="stable")
        result[start : start + _BLOCK_ROWS] = np.take_along_axis(best, order, axis=1)
    return result


def tensor_text_to_video_metrics(sim_tensor) -> dict[str, float]:
    """Return the metrics of each caption's true video, from CLIP4Clip's padded form.

    Args:
        sim_tensor: (B, captions, B): [video of the caption, caption slot, video]. An unused slot is -inf
            against every video; a video whose slots are all unused is only a distractor.

    Returns:
        `summarize`'s numbers over all captions.

    Raises:
        ValueError: wrong shape, only padding, or NaN (with the first [video, slot]).
    """
    sim_tensor, used_slot = grouped_similarity(sim_tensor, TEXT_TO_VIDEO)
    if not used_slot.any():
        raise ValueError(f"every caption slot of the similarity of shape {sim_tensor.shape} is padding (-inf)")
    video_count, slot_count, _ = sim_tensor.shape
    every_rank = ranks(sim_tensor.reshape(-1, video_count), np.repeat(np.arange(video_count), slot_count))
    return summarize(every_rank[used_slot.reshape(-1)])


def tensor_video_to_text_sim(sim_tensor) -> np.ndarray:
    """Return the similarity of each video with the best caption of each video, from CLIP4Clip's padded form.

    Args:
        sim_tensor: (B, captions, B): [video of the caption, caption slot, video], unused slots -inf.

    Returns:
        (B, B), rows are videos, columns are groups of captions: `compute_metrics` of it is video-to-text.

    Raises:
        ValueError: wrong shape, NaN (with the first [video, slot]), or a video without captions, which cannot be
            a query: `retrieval_metrics` leaves it out.
    """
    sim_tensor, used_slot = grouped_similarity(sim_tensor, VIDEO_TO_TEXT)
    without_caption = np.flatnonzero(~used_slot.any(axis=1))
    if without_caption.size:
        raise ValueError(f"{without_caption.size} videos have no caption, first {without_caption[:5].tolist()}")
    return sim_tensor.max(axis=1).T


def best_caption_per_video(similarity: np.ndarray, video_index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the G videos with captions, and (G, B): the largest similarity of each one's captions with each video."""
    captioned_videos, group_of_text = np.unique(video_index, return_inverse=True)
    best = np.full((len(captioned_videos), similarity.shape[1]), similarity.min(), dtype=similarity.dtype)
    text_order = np.argsort(group_of_text, kind="stable")
    for start in range(0, len(text_order), _BLOCK_ROWS):
        texts = text_order[start : start + _BLOCK_ROWS]
        groups, first_text = np.unique(group_of_text[texts], return_index=True)
        # a group may span blocks, so a block only raises the maxima of the blocks before it
        best[groups] = np.maximum(best[groups], np.maximum.reduceat(similarity[texts], first_text, axis=0))
    return captioned_videos, best


def grouped_similarity(sim_tensor, direction: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the checked array (B, captions, B), and whether each slot holds a caption, (B, captions)."""
    sim_tensor = similarity_array(sim_tensor, dimensions=3)
    if sim_tensor.shape[0] != sim_tensor.shape[2]:
        raise ValueError(f"the similarity must have shape (B, captions, B), got {sim_tensor.shape}")
    reject_nan(sim_tensor, direction)
    return sim_tensor, sim_tensor.max(axis=2) != -np.inf


def rank_array(rank) -> np.ndarray:
    """Return the ranks as a non-empty array (N,) of integers >= 0."""
    rank = np.asarray(rank)
    if rank.ndim != 1 or rank.size == 0:
        raise ValueError(f"ranks must have shape (N,) with N >= 1, got {rank.shape}")
    if not np.issubdtype(rank.dtype, np.integer) or rank.min() < 0:
        raise ValueError(f"ranks must be integers >= 0, got {rank.dtype} with minimum {rank.min()}")
    return rank


def similarity_array(similarity, dimensions: int) -> np.ndarray:
    """Return the similarity as a non-empty real array of that many axes."""
    similarity = as_array(similarity)
    if similarity.ndim != dimensions or similarity.size == 0:
        raise ValueError(
            f"the similarity must have {dimensions} axes, none of them empty, got shape {similarity.shape}"
        )
    if not (np.issubdtype(similarity.dtype, np.floating) or np.issubdtype(similarity.dtype, np.integer)):
        raise ValueError(f"the similarity must hold real numbers, got {similarity.dtype}")
    return similarity


def column_array(true_column, row_count: int, column_count: int) -> np.ndarray:
    """Return the true columns as integers (row_count,) in [0, column_count)."""
    true_column = as_array(true_column)
    if true_column.shape != (row_count,):
        raise ValueError(f"one true column per row is needed: shape ({row_count},), got {true_column.shape}")
    if not np.issubdtype(true_column.dtype, np.integer):
        raise ValueError(f"true columns must be integers, got {true_column.dtype}")
    if true_column.min() < 0 or true_column.max() >= column_count:
        raise ValueError(f"true columns must be in [0, {column_count}), got {true_column.min()} to {true_column.max()}")
    return true_column


def reject_nan(similarity: np.ndarray, direction: str) -> None:
    """Raise ValueError for NaN, which compares false with everything and would look like a perfect rank."""
    # max propagates NaN without a boolean array of the similarity's size
    rows = np.argwhere(np.isnan(similarity.max(axis=-1)))
    if len(rows):
        first = [tuple(row) if len(row) > 1 else row[0] for row in rows[:5].tolist()]
        raise ValueError(f"{direction}: NaN similarity in {len(rows)} rows, first {first}")


def as_array(values) -> np.ndarray:
    # a tensor that requires gradients or is on a GPU converts only after detach().cpu(); torch is not imported
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
