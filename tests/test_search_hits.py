"""What is told of a found video: moments, and shares of words that a person can work out."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.explanation import whole_words
from modules.heads import HEADS
from modules.tokenization_clip import END_TOKEN, START_TOKEN
from tests.test_search_scoring import random_query, random_videos
from video_search.hits import describe, moments_of, token_words
from video_search.scoring import interaction
from video_search.vectors import Query, VideoVectors

EAST, NORTH, WEST = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)


def video_of(frames: list[np.ndarray], weights: list[float], seconds: list[float], floor: float = -np.inf):
    """One video with these unit vectors."""
    return VideoVectors(
        np.stack(frames), np.array(weights, np.float32), np.array(seconds, np.float32),
        np.array([len(frames)]), np.array([floor], np.float32), NORTH[np.newaxis],
    )  # fmt: skip


def query_of(vectors: list[np.ndarray], weights: list[float], names: list[str], floor: float = -np.inf) -> Query:
    return Query(np.stack(vectors), np.array(weights, np.float32), NORTH, floor, tuple(names))


def encoder_with(sim_header: str, **more) -> SimpleNamespace:
    return SimpleNamespace(head=HEADS[sim_header], config=SimpleNamespace(max_words=8), **more)


def test_shares_of_words_by_hand():
    """A skateboarder of two tokens, east and north, in a video that shows north at 2 s, west at 5 s, both at 7 s."""
    query = query_of([EAST, NORTH, WEST], [0.5, 0.3, 0.2], ["skate", "boarder</w>", "falls</w>"])
    video = video_of([NORTH, WEST, (EAST + NORTH) * np.float32(np.sqrt(0.5))], [0.75, 0.25, 0], [2, 5, 7])
    skateboarder, falls = token_words(query, whole_words(query.names), video)
    assert (skateboarder.text, falls.text) == ("skateboarder", "falls")
    assert (skateboarder.weight, falls.weight) == pytest.approx((0.8, 0.2))
    # its tokens match best by cos 45 degrees and 1; the first frame matches it best, by 1
    assert skateboarder.share == pytest.approx((0.5 * np.sqrt(0.5) + 0.3 * 1) / 2 + 0.75 * 1 / 2)
    assert falls.share == pytest.approx(0.2 * 1 / 2 + 0.25 * 1 / 2)
    assert (skateboarder.second, falls.second) == (2, 5)


@settings(deadline=None)
@given(
    words=st.integers(1, 5), frames=st.integers(1, 5), seed=st.integers(0, 1000),
    query_floor=st.sampled_from([0.0, -np.inf]),
)  # fmt: skip
def test_shares_of_all_words_sum_to_the_score(words, frames, seed, query_floor):
    video = random_videos([frames], seed)
    query = random_query(words, floor=query_floor, names=(START_TOKEN, "a</w>", "b", "c</w>", END_TOKEN)[:words])
    total = sum(word.share for word in token_words(query, whole_words(query.names), video))
    assert total == pytest.approx(interaction(query, video).item(), abs=1e-6)


def test_moments_by_hand():
    """The frames of a cross encoder have any length; a moment's score is the cosine with the query's nearest vector."""
    query = query_of([EAST, 5 * NORTH], [0.5, 0.5], ["a</w>", "b</w>"])
    video = video_of([3 * WEST, 2 * (EAST + NORTH), 7 * NORTH], [0.2, 0.3, 0.5], [0, 1.5, 4])
    moments = moments_of(query, video)
    assert [moment.second for moment in moments] == [0, 1.5, 4]
    assert [moment.weight for moment in moments] == pytest.approx([0.2, 0.3, 0.5])
    assert [moment.score for moment in moments] == pytest.approx([0, np.sqrt(0.5), 1], abs=1e-6)


def sum_of_words(text: str) -> Query:
    """A sentence encoder whose words anyone can add up; "very" says nothing. No length is 1, for plain sums."""
    vectors = {"east": EAST, "north": NORTH, "west": WEST, "very": 0 * NORTH}
    vector = sum(vectors[word] for word in text.split()).astype(np.float32)
    return Query(vector[np.newaxis], np.ones(1, np.float32), vector, -np.inf, (text,))


def texts(sentences: list[str]) -> list[Query]:
    return list(map(sum_of_words, sentences))


def two_videos() -> VideoVectors:
    videos = VideoVectors.concatenate([
        video_of([EAST, NORTH], [0.5, 0.5], [1, 2]), video_of([WEST, NORTH, EAST], [0.4, 0.3, 0.3], [3, 4, 5]),
    ])  # fmt: skip
    return VideoVectors(**{**vars(videos), "pooled": np.stack([EAST, WEST])})


def test_words_left_out_of_a_sentence():
    """Pooled heads: a word's share is what the score falls without it."""
    text = "very north east"
    hits = describe(
        sum_of_words(text),
        text,
        ["a.mp4", "b.mp4"],
        np.array([1, -1]),
        two_videos(),
        encoder_with("meanP", texts=texts),
    )
    shares = {hit.path: {word.text: word.share for word in hit.words} for hit in hits}
    assert shares == {"a.mp4": {"very": 0, "north": 0, "east": 1}, "b.mp4": {"very": 0, "north": 0, "east": -1}}
    assert all(word.weight == pytest.approx(1 / 3) for hit in hits for word in hit.words)
    seconds = {hit.path: {word.text: word.second for word in hit.words} for hit in hits}
    assert (seconds["a.mp4"]["north"], seconds["a.mp4"]["east"]) == (2, 1)
    assert (seconds["b.mp4"]["north"], seconds["b.mp4"]["east"]) == (4, 5)
    assert [len(hit.moments) for hit in hits] == [2, 3]


def test_the_only_word_has_the_whole_score():
    encoder = encoder_with("meanP", texts=None)  # nothing is left to encode
    (hit,) = describe(sum_of_words("east"), "east", ["a.mp4"], np.array([1]), two_videos().take(np.array([0])), encoder)
    (word,) = hit.words
    assert (word.text, word.weight, word.share, word.second) == ("east", 1, 1, 1)


def test_words_that_the_encoder_cuts_off_are_not_left_out():
    """max_words is 8 here: of 2,000 words no more than 8 texts are encoded, and none is longer."""
    asked = []

    def counting_texts(sentences: list[str]) -> list[Query]:
        asked.extend(sentences)
        return texts(sentences)

    text = " ".join(["east", "north"] * 1000)
    describe(
        sum_of_words(text), text, ["a.mp4"], np.array([1]), two_videos().take(np.array([0])),
        encoder_with("meanP", texts=counting_texts),
    )  # fmt: skip
    assert [len(sentence.split()) for sentence in asked] == [7] * 8


@pytest.mark.parametrize("sim_header", ["wti", "meanP", "xti"])
def test_an_example_video_has_no_words(sim_header):
    query = random_query(3, is_video=True)
    hits = describe(query, "a.mp4", ["a.mp4", "b.mp4"], np.zeros(2), random_videos([2, 3]), encoder_with(sim_header))
    assert [hit.words for hit in hits] == [(), ()]
    assert [len(hit.moments) for hit in hits] == [2, 3]
