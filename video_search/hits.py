"""Descriptions of found videos: the moments of each, and the share of its score that each word of the query has."""

from collections.abc import Sequence

import numpy as np
import torch

from modules.explanation import explain, whole_words
from modules.token_interaction import unit_vectors
from video_search.scoring import scores
from video_search.vectors import Hit, Moment, Query, VideoVectors, Word


def describe(
    query: Query, text: str, paths: Sequence[str], found_scores: np.ndarray, videos: VideoVectors, encoder
) -> tuple[Hit, ...]:
    """Return the hits of N videos with these paths and scores (N,), in their order; an example video has no words.

    The words of the token heads include "[start]" and "[end]", tokens that represent the whole sentence: with them the
    shares of the words sum to the score. Other heads leave words out of `text`, one at a time.
    """
    singles = [videos.take(np.array([place])) for place in range(len(videos))]
    if query.is_video:
        words = [()] * len(videos)
    elif encoder.head.encodes_tokens:
        named = whole_words(query.names)
        words = [token_words(query, named, video) for video in singles]
    else:
        words = leave_one_out_words(query, text, videos, encoder)
    return tuple(
        Hit(path, float(score), moments_of(query, video), words_of_video)
        for path, score, video, words_of_video in zip(paths, found_scores, singles, words, strict=True)
    )


def unit(vectors: np.ndarray) -> np.ndarray:
    """Normalise vectors; those that cross encoders read are not unit vectors."""
    return unit_vectors(torch.from_numpy(vectors)).numpy()


def moments_of(query: Query, video: VideoVectors) -> tuple[Moment, ...]:
    """Return a moment for every frame of one video."""
    best = (unit(query.vectors) @ unit(video.frames).T).max(axis=0)
    return tuple(
        Moment(float(second), float(weight), float(score))
        for second, weight, score in zip(video.seconds, video.weights, best, strict=True)
    )


def token_words(query: Query, named: list[tuple[str, list[int]]], video: VideoVectors) -> tuple[Word, ...]:
    """Return the `whole_words` of a token head's query with their shares, which sum to the score of one video.

    A token's share is half of its weight times its largest cosine, plus the same of each frame whose MaxSim token it
    is; a word has the shares of its tokens.
    """
    vectors = query.vectors, query.weights, video.frames, video.weights
    parts = explain(*map(torch.from_numpy, vectors), query.floor, float(video.floors[0]))
    shares = parts.word_parts.index_add(0, parts.best_word, parts.frame_parts)
    return tuple(
        Word(
            text=word,
            weight=parts.text_weights[places].sum().item(),
            share=shares[places].sum().item(),
            second=float(video.seconds[parts.cosines[places].amax(dim=0).argmax()]),
        )
        for word, places in named
    )


def leave_one_out_words(query: Query, text: str, videos: VideoVectors, encoder) -> list[tuple[Word, ...]]:
    """Return the words of a sentence head's query for each of N videos, with uniform weights.

    A word's share is the drop of the score without the word; its second is that of the frame whose cosine drops most. A
    single word has the whole score.
    """
    words = text.split()[: encoder.config.max_words]  # a word has at least one token, so later words are cut off
    rest = [" ".join(words[:place] + words[place + 1 :]) for place in range(len(words))]
    if len(words) > 1:
        others = encoder.texts(rest)
        score_drops = [scores(query, videos, encoder) - scores(other, videos, encoder) for other in others]
        vector_drops = [query.pooled - other.pooled for other in others]
    else:
        score_drops, vector_drops = [scores(query, videos, encoder)], [query.pooled]
    cosines = np.split(np.stack(vector_drops) @ unit(videos.frames).T, videos.starts()[1:], axis=1)
    return [
        tuple(
            Word(word, 1 / len(words), float(score_drops[place][video]), float(seconds[cosines[video][place].argmax()]))
            for place, word in enumerate(words)
        )
        for video, seconds in enumerate(np.split(videos.seconds, videos.starts()[1:]))
    ]
