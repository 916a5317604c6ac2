"""Vectors in Qdrant: they come back unchanged, and the stages select candidates by the formula."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.token_interaction import token_interaction
from tests.helpers.qdrant_cases import (
    FOLDER,
    MEAN_P,
    TIGHT,
    WTI,
    filled,
    random_query,
    random_video,
    random_videos,
    same,
)
from tests.helpers.qdrant_stand_in import stand_in
from video_search import qdrant_store
from video_search.indexing import update
from video_search.qdrant_store import QdrantStore
from video_search.scoring import token_scores
from video_search.stores import FileState
from video_search.vectors import Query, VideoVectors


@pytest.fixture(params=["memory", "folder", "reopened folder", "server"])
def opened(request, tmp_path):
    """A function that fills a store of one kind and gives it as it is to be read."""
    if request.param == "server":
        with stand_in() as server:
            yield lambda *arguments: filled(QdrantStore.open(server.url), *arguments)
        return

    def fill(*arguments) -> QdrantStore:
        url = ":memory:" if request.param == "memory" else str(tmp_path / "vectors")
        store = filled(QdrantStore.open(url), *arguments)
        if request.param == "reopened folder":
            store.close()
            store = QdrantStore.open(url)
        return store

    yield fill


def test_vectors_come_back_unchanged(opened):
    videos = random_videos(20)
    store = opened(videos)
    assert (len(store), store.settings, store.fingerprint, store.folder) == (20, WTI, "abc", FOLDER)
    paths, found = store.candidates(random_query(np.random.default_rng(0)), 50)
    assert sorted(paths) == sorted(videos)
    assert same(found, VideoVectors.concatenate([videos[path] for path in paths]))
    assert all(same(store.example(path), video) for path, video in videos.items())


def test_order_of_all_is_that_of_the_exact_scan(opened):
    videos = random_videos(30)
    store, query = opened(videos), random_query(np.random.default_rng(1))
    paths, found = store.candidates(query, 30)
    reranked = np.array(paths)[np.argsort(-token_scores(query, found))]
    assert reranked.tolist() == sorted(videos, key=lambda path: -formula(query, videos[path]))


def formula(query: Query, video: VideoVectors) -> float:
    """The score by the model's own formula; one more frame of padding where padding counts."""
    padding = int(video.floors[0] == 0)
    frames = torch.from_numpy(np.pad(video.frames, ((0, padding), (0, 0))))[None]
    weights = torch.from_numpy(np.pad(video.weights, (0, padding)))[None]
    mask = torch.ones_like(weights)
    mask[:, len(video.frames) :] = 0
    words, word_weights = torch.from_numpy(query.vectors)[None], torch.from_numpy(query.weights)[None]
    return token_interaction(words, frames, torch.ones_like(word_weights), mask, word_weights, weights).item()


def test_scores_of_candidates_are_the_exact_ones(opened):
    videos = random_videos(25)
    store, query = opened(videos), random_query(np.random.default_rng(2))
    paths, found = store.candidates(query, 7)
    assert len(paths) == 7
    expected = [formula(query, videos[path]) for path in paths]
    assert token_scores(query, found) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("count", [1, 9, 60])
def test_token_heads_choose_by_pooled_vectors_then_by_the_weighted_best_frames(count):
    videos = random_videos(260)
    store, query = filled(QdrantStore.open(":memory:"), videos), random_query(np.random.default_rng(3))

    def text_to_video(path: str) -> float:
        best = [max(float(word @ frame) for frame in videos[path].frames) for word in query.vectors]
        return sum(float(weight) * cosine for weight, cosine in zip(query.weights, best, strict=True))

    by_pooled = sorted(videos, key=lambda path: -float(videos[path].pooled[0] @ query.pooled))
    nearest = by_pooled[: max(200, 4 * count)]
    paths, _ = store.candidates(query, count)
    assert paths == sorted(nearest, key=text_to_video, reverse=True)[:count]
    if count == 60:  # the shortlist matters: some of the best lie outside it
        assert set(paths) != set(sorted(videos, key=text_to_video, reverse=True)[:count])


@pytest.mark.parametrize("configuration", [MEAN_P, TIGHT])
def test_other_heads_choose_by_pooled_vectors_alone(configuration):
    videos = random_videos(40)
    store = filled(QdrantStore.open(":memory:"), videos, configuration)
    query = random_query(np.random.default_rng(4))
    by_pooled = sorted(videos, key=lambda path: -float(videos[path].pooled[0] @ query.pooled))
    assert store.candidates(query, 6)[0] == by_pooled[:6]


def test_frames_that_are_no_unit_vectors_keep_their_length(opened):
    random = np.random.default_rng(5)
    video = random_video(random, frames=3)
    long = VideoVectors(video.frames * 7, video.weights, video.seconds, video.counts, video.floors, video.pooled)
    assert same(opened({"a.mp4": long}, TIGHT).example("a.mp4"), long)


def test_replaced_and_removed(opened):
    videos = random_videos(4)
    store = opened(videos)
    store.put("folder/0.mp4", FileState(7, 8, ""), videos["folder/3.mp4"])
    store.put("folder/1.mp4", FileState(9, 10, "no video stream"), None)
    store.remove("folder/2.mp4")
    store.remove("folder/never.mp4")
    store.commit()
    assert store.files() == {
        "folder/0.mp4": FileState(7, 8, ""),
        "folder/1.mp4": FileState(9, 10, "no video stream"),
        "folder/3.mp4": FileState(103, 10**18 + 3, ""),
    }
    assert same(store.example("folder/0.mp4"), videos["folder/3.mp4"])
    paths, _ = store.candidates(random_query(np.random.default_rng(0)), 9)
    assert sorted(paths) == ["folder/0.mp4", "folder/3.mp4"]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "bad", "remove", "commit"]),
        st.sampled_from(["a.mp4", "ä 🎬.mp4", '{"must": []}', "../x'; DROP--\n*"]),
        st.integers(0, 2**32),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_after_a_commit_the_store_holds_what_was_put(steps):
    store = QdrantStore.open(":memory:")
    store.begin(WTI, "abc", FOLDER)
    # a video that stays lets unreadable files be stored from the start
    first = random_video(np.random.default_rng(0))
    expected = {"first": (FileState(1, 1, ""), first)}
    store.put("first", *expected["first"])
    for kind, path, seed in steps:
        if kind == "commit":
            store.commit()
        elif kind == "remove":
            store.remove(path)
            expected.pop(path, None)
        else:
            video = random_video(np.random.default_rng(seed)) if kind == "put" else None
            expected[path] = FileState(seed, 10**18 + seed, "" if video else "no video stream"), video
            store.put(path, *expected[path])
    store.commit()
    assert store.files() == {path: state for path, (state, _) in expected.items()}
    videos = {path: video for path, (_, video) in expected.items() if video}
    assert len(store) == len(videos)
    assert all(same(store.example(path), video) for path, video in videos.items())
    assert sorted(store.candidates(random_query(np.random.default_rng(6)), 99)[0]) == sorted(videos)


def test_files_of_more_than_one_page(opened, monkeypatch):
    monkeypatch.setattr(qdrant_store, "PAGE", 7)
    videos = random_videos(20)
    assert opened(videos).files() == {
        path: FileState(100 + number, 10**18 + number, "") for number, path in enumerate(videos)
    }


def test_unreadable_files_wait_for_the_first_video(tmp_path):
    store = QdrantStore.open(str(tmp_path / "vectors"))
    store.begin(WTI, "abc", FOLDER)
    bad = FileState(5, 6, "no video stream")
    store.put("bad.mp4", bad, None)
    store.commit()
    assert (len(store), store.files()) == (0, {})
    store.put("good.mp4", FileState(7, 8, ""), random_video(np.random.default_rng(0)))
    store.commit()
    assert (len(store), store.files()) == (1, {"bad.mp4": bad, "good.mp4": FileState(7, 8, "")})
    with pytest.raises(ValueError, match=r"has no video 'bad.mp4'"):
        store.example("bad.mp4")


def test_a_moved_folder_and_new_settings_are_kept(opened, tmp_path):
    store = opened(random_videos(2))
    store.begin({**WTI, "checkpoint": "/new"}, "abc", Path("/moved"))
    again = QdrantStore(store._url, "videos", store._client)
    assert (again.settings, again.folder) == ({**WTI, "checkpoint": "/new"}, Path("/moved"))
    assert len(again) == 2


def test_another_encoder_is_refused(opened, tmp_path):
    store = opened(random_videos(3))
    with pytest.raises(ValueError, match="made with another model: sim_header 'wti' of the index, 'meanP' here"):
        update(store, tmp_path, SimpleNamespace(settings=MEAN_P, fingerprint="other"), moved=True)
    again = QdrantStore(store._url, "videos", store._client)
    assert (again.fingerprint, again.settings, len(again)) == ("abc", WTI, 3)
