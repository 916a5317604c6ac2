"""What is told of a found video: its moments, and what each word of the query adds to its score."""

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
    """The hits of N videos with these paths and scores (N,), in their order; those of an example video have no words.

    The words of the token heads include "[start]" and "[end]", tokens that stand for the sentence as a whole: with them
    the shares of the words sum to the score. `text` is what the other heads leave words out of.
    """
    singles = [videos.take(np.array([place])) for place in range(len(videos))]
    if query.is_video:
        words = [()] * len(videos)
    elif encoder.head.encodes_tokens:
        named = whole_words(query.names)
        words = [token_words(query, named, video) for video in singles]
    else:
        words = words_left_out(query, text, videos, encoder)
    return tuple(
        Hit(path, float(score), moments_of(query, video), words_of_video)
        for path, score, video, words_of_video in zip(paths, found_scores, singles, words, strict=True)
    )


def unit(vectors: np.ndarray) -> np.ndarray:
    """Of the frames and sentences that cross encoders read, which are no unit vectors, as all others are."""
    return unit_vectors(torch.from_numpy(vectors)).numpy()


def moments_of(query: Query, video: VideoVectors) -> tuple[Moment, ...]:
    """Every frame of one video."""
    best = (unit(query.vectors) @ unit(video.frames).T).max(axis=0)
    return tuple(
        Moment(float(second), float(weight), float(score))
        for second, weight, score in zip(video.seconds, video.weights, best, strict=True)
    )


def token_words(query: Query, named: list[tuple[str, list[int]]], video: VideoVectors) -> tuple[Word, ...]:
    """The `whole_words` of a query of a token head, whose shares of the score of one video sum to that score.

    A word's share is half of its weight times its best cosine, and the same of each frame that it is the best word of;
    a word of several tokens has theirs together.
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


def words_left_out(query: Query, text: str, videos: VideoVectors, encoder) -> list[tuple[Word, ...]]:
    """The words of a head that knows only the sentence, for each of N videos; their weights are all alike.

    A word's share is how much the score falls when the word is left out, its second that of the frame whose cosine
    then falls most. The only word has the whole score.
    """
    words = text.split()[: encoder.config.max_words]  # a word is a token or more, so that later ones are cut off
    rest = [" ".join(words[:place] + words[place + 1 :]) for place in range(len(words))]
    if len(words) > 1:
        others = encoder.texts(rest)
        falls = [scores(query, videos, encoder) - scores(other, videos, encoder) for other in others]
        turns = [query.pooled - other.pooled for other in others]
    else:
        falls, turns = [scores(query, videos, encoder)], [query.pooled]
    cosines = np.split(np.stack(turns) @ unit(videos.frames).T, videos.starts()[1:], axis=1)
    return [
        tuple(
            Word(word, 1 / len(words), float(falls[place][video]), float(seconds[cosines[video][place].argmax()]))
            for place, word in enumerate(words)
        )
        for video, seconds in enumerate(np.split(videos.seconds, videos.starts()[1:]))
    ]
