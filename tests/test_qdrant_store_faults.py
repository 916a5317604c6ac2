"""Vectors in Qdrant: kills, collections and folders of others, servers that fail. Errors are one clear line."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from tests.helpers.qdrant_cases import (
    FOLDER,
    MEAN_P,
    WIDTH,
    WTI,
    filled,
    random_query,
    random_video,
    random_videos,
    same,
)
from tests.helpers.qdrant_stand_in import stand_in
from video_search import qdrant_store
from video_search.qdrant_store import QdrantStore, as_point
from video_search.stores import FileState

REPOSITORY = Path(__file__).resolve().parent.parent


WRITER = """
import sys
import numpy as np
from tests.helpers.qdrant_cases import FOLDER, WTI, random_videos
from video_search.stores import FileState
from video_search.qdrant_store import QdrantStore, as_point
store = QdrantStore.open(sys.argv[1])
store.begin(WTI, "abc", FOLDER)
for path, video in random_videos(70).items():
    store.put(path, FileState(1, 2, ""), video)
print("put", flush=True)
sys.stdin.read()
"""


def test_a_killed_writer_leaves_whole_batches_and_locks_while_it_lives(tmp_path):
    folder = tmp_path / "vectors"
    command = [sys.executable, "-c", WRITER, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                          text=True, **pipes) as writer:  # fmt: skip
        try:
            assert writer.stdout.readline() == "put\n"
            with pytest.raises(OSError, match="another process has this folder open") as caught:
                QdrantStore.open(str(folder))
            assert "\n" not in str(caught.value)
        finally:
            writer.send_signal(signal.SIGKILL)
    store, videos = QdrantStore.open(str(folder)), random_videos(70)
    assert (len(store), store.fingerprint) == (64, "abc")
    assert list(store.files()) and all(same(store.example(path), videos[path]) for path in store.files())
    filled(store, videos)
    assert len(store) == 70


def test_opening_makes_nothing(tmp_path):
    store = QdrantStore.open(str(tmp_path / "vectors"))
    assert (len(store), store.files(), store.fingerprint, store.folder) == (0, {}, "", None)
    with pytest.raises(ValueError, match=r"collection 'videos' of .*vectors has no videos"):
        store.candidates(random_query(np.random.default_rng(0)), 5)
    with pytest.raises(ValueError, match=r"has no video 'a.mp4'"):
        store.example("a.mp4")
    store.close()
    assert list(tmp_path.iterdir()) == []


def dense(size: int = WIDTH, distance: str = "Dot") -> models.VectorParams:
    return models.VectorParams(size=size, distance=distance)


def frames(**changes) -> models.VectorParams:
    max_sim = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    return models.VectorParams(**{"size": WIDTH, "distance": "Dot", "multivector_config": max_sim, **changes})


OURS = {"video_search": json.dumps({"format": 1, "fingerprint": "abc", "settings": WTI, "folder": "/videos"})}


@pytest.mark.parametrize(
    ("vectors", "metadata", "message"),
    [
        ({"pooled": dense(), "frames": frames()}, None, "is not an index of videos"),
        ({"pooled": dense(), "frames": frames()}, {"project": "another"}, "is not an index of videos"),
        (dense(), OURS, "is not an index of videos"),
        ({"pooled": dense()}, OURS, "is not an index of videos"),
        ({"pooled": dense(), "frames": dense()}, OURS, "is not an index of videos"),
        ({"pooled": frames(), "frames": frames()}, OURS, "is not an index of videos"),
        ({"pooled": dense(), "frames": frames(size=4)}, OURS, "is not an index of videos"),
        ({"pooled": dense(distance="Cosine"), "frames": frames()}, OURS, "is not an index of videos"),
        ({"pooled": dense(), "frames": frames()}, {"video_search": '{"format": 2}'}, "has format 2, and .* reads 1"),
    ],
)
def test_a_collection_of_another_program_is_left_as_it_is(tmp_path, vectors, metadata, message):
    folder = str(tmp_path / "vectors")
    client = QdrantClient(path=folder)
    client.create_collection("videos", vectors_config=vectors, metadata=metadata)
    client.close()
    before = files_below(tmp_path)
    with pytest.raises(ValueError, match=rf"collection 'videos' of .*{message}.*; it is left as it is") as caught:
        QdrantStore.open(folder)
    assert "\n" not in str(caught.value)
    assert files_below(tmp_path) == before
    del caught
    other = filled(QdrantStore.open(folder, "ours"), random_videos(2))
    assert len(other) == 2


def files_below(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_our_own_metadata_is_read(tmp_path):
    """The cases above are refused for what they change of this one."""
    client = QdrantClient(path=str(tmp_path))
    client.create_collection("videos", vectors_config={"pooled": dense(), "frames": frames()}, metadata=OURS)
    client.close()
    assert QdrantStore.open(str(tmp_path)).settings == WTI


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "a?b", "x" * 201, "-a"])
def test_names_of_collections(name):
    with pytest.raises(ValueError, match="--collection"):
        QdrantStore.open(":memory:", name)


def test_folders_that_are_no_store(tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"film")
    with pytest.raises(ValueError, match="this folder has other files and no Qdrant collections"):
        QdrantStore.open(str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["film.mp4"]
    with pytest.raises(OSError, match="film.mp4"):
        QdrantStore.open(str(tmp_path / "film.mp4")).begin(WTI, "abc", FOLDER)
    with pytest.raises(ValueError, match="the address of a server begins with http:// or https://"):
        QdrantStore.open("localhost:6333")


@pytest.mark.parametrize("name", ["meta.json", "collection/videos/storage.sqlite"])
def test_a_damaged_folder(tmp_path, name):
    filled(QdrantStore.open(str(tmp_path)), random_videos(2)).close()
    (tmp_path / name).write_bytes(b"garbage" * 1000)
    with pytest.raises(OSError, match=r"damaged, or not made by Qdrant") as caught:
        QdrantStore.open(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_row_that_cannot_be_read(tmp_path):
    filled(QdrantStore.open(str(tmp_path)), random_videos(2)).close()
    with sqlite3.connect(tmp_path / "collection/videos/storage.sqlite") as rows:
        rows.execute("UPDATE points SET point = substr(point, 1, 100)")
    rows.close()
    with pytest.raises(OSError, match=r"damaged, or not made by Qdrant"):
        QdrantStore.open(str(tmp_path))


def refusal(url: str) -> str:
    """The one line of an address that cannot be used."""
    with pytest.raises((OSError, ValueError)) as caught:
        QdrantStore.open(url)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_server_that_is_not_there(monkeypatch):
    monkeypatch.setattr(qdrant_store, "CONNECT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert "cannot be reached, or is not Qdrant: timed out" in refusal(f"http://127.0.0.1:{port}")
    assert f"Qdrant at http://127.0.0.1:{port} cannot be reached" in refusal(f"http://127.0.0.1:{port}")
    assert "Failed to parse: '127.0.0.1:door'" in refusal("http://127.0.0.1:door")
    message = refusal(f"http://me:secret@127.0.0.1:{port}")
    assert "--url has an '@'" in message
    assert "secret" not in message


def test_a_server_that_does_not_answer_as_one(monkeypatch):
    monkeypatch.setenv("QDRANT_API_KEY", "topsecret\n")  # as a file ends
    with stand_in() as server, pytest.warns(UserWarning, match="insecure connection"):
        server.answers = [(401, b"topsecret")]
        message = refusal(server.url)
        assert "denies access (401); set the environment variable QDRANT_API_KEY" in message
        assert "topsecret" not in message
        server.answers = [(200, b"<html>hello</html>")]
        assert "is not Qdrant" in refusal(server.url)
        server.answers = [(200, b'{"name": "another program"}')]
        assert "is not Qdrant" in refusal(server.url)
        server.answers = [(500, b'{"status": {"error": "out of memory"}}')]
        assert 'answers 500: {"status": {"error": "out of memory"}}' in refusal(server.url)
        assert set(server.keys) == {"topsecret"}
    monkeypatch.delenv("QDRANT_API_KEY")
    with stand_in("1.9.7") as server:
        assert "is version 1.9.7; 1.16 or later is needed" in refusal(server.url)


def test_a_key_that_cannot_be_one_is_not_shown(monkeypatch):
    monkeypatch.setenv("QDRANT_API_KEY", "top\nsecret")
    message = refusal("http://127.0.0.1:1")
    assert "QDRANT_API_KEY has characters that a key cannot have" in message
    assert "secret" not in message


def test_work_may_take_longer_than_the_first_answer():
    with stand_in() as server:
        client = QdrantStore.open(server.url)._client
        assert client.init_options["timeout"] == qdrant_store.WORK_SECONDS > qdrant_store.CONNECT_SECONDS


def test_what_a_server_refused_is_kept_for_the_next_commit():
    with stand_in() as server:
        store = filled(QdrantStore.open(server.url), random_videos(2))
        store.put("late.mp4", FileState(1, 2, ""), random_video(np.random.default_rng(0)))
        server.answers = [(507, b"no room")]
        with pytest.raises(OSError, match="answers 507: no room"):
            store.commit()
        assert len(store) == 2
        store.commit()
        assert len(store) == 3


def test_batches_stay_below_what_a_server_takes(monkeypatch):
    """By their count, and by their numbers; 32 MB is the limit of Qdrant's default configuration."""
    monkeypatch.setattr(qdrant_store, "BATCH_VALUES", 2000)
    random = np.random.default_rng(0)
    with stand_in() as server:
        store = filled(QdrantStore.open(server.url), {f"{n}.mp4": random_video(random, 100, 9) for n in range(7)})
        written = [body for method, path, body in server.requests if path.endswith("/points?wait=true")]
        points = [len(json.loads(body)["points"]) for body in written]
        assert points == [3, 3, 1]
        bytes_per_value = max(map(len, written)) / (3 * 9 * 100)
        assert bytes_per_value * (1 << 20) < 32e6
        assert len(store) == 7


def test_a_file_name_that_is_no_text():
    store = QdrantStore.open(":memory:")
    store.begin(WTI, "abc", FOLDER)
    with pytest.raises(ValueError, match=r"the file name 'a\\udcff.mp4' is not UTF-8"):
        store.put("a\udcff.mp4", FileState(1, 2, ""), random_video(np.random.default_rng(0)))


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(ValueError, match=r'--store qdrant needs .*: pip install "qdrant-client>=1.20"'):
        QdrantStore.open(":memory:")


def test_importing_the_store_needs_no_package():
    code = textwrap.dedent("""
        import sys
        sys.modules["qdrant_client"] = None
        import video_search.qdrant_store
    """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, check=True)


@pytest.mark.parametrize("part", ["frames", "weights"])
def test_points_that_are_not_finite(part):
    """Another program wrote them: `put` refuses them."""
    videos = random_videos(5)
    store = filled(QdrantStore.open(":memory:"), videos, MEAN_P)
    broken = videos["folder/2.mp4"]
    point = as_point("folder/2.mp4", FileState(1, 2), broken)
    getattr(broken, part)[0] = np.inf  # NaN is refused by Qdrant in vectors, not in the payload
    with pytest.raises(ValueError, match="the vectors of 'folder/2.mp4' are not finite"):
        store.put("folder/2.mp4", FileState(1, 2), broken)
    if part == "frames":
        point.vector["frames"] = broken.frames.tolist()
    else:
        point.payload["weights"] = broken.weights.tolist()
    store._client.upsert("videos", [point])
    with pytest.raises(OSError, match="collection 'videos' of :memory: is damaged: .*'folder/2.mp4' are not finite"):
        store.candidates(random_query(np.random.default_rng(0)), 5)
    with pytest.raises(OSError, match="scripts.index"):
        store.example("folder/2.mp4")
    assert same(store.example("folder/1.mp4"), videos["folder/1.mp4"])


def test_a_collection_that_is_made_again_under_a_search():
    """With the same model the search goes on; with another one, scores would mean nothing."""
    videos, query = random_videos(5), random_query(np.random.default_rng(0))
    store = filled(QdrantStore.open(":memory:"), videos, MEAN_P)
    other = QdrantStore("memory", "videos", store._client)
    store._client.delete_collection("videos")
    with pytest.raises((OSError, ValueError), match="videos"):
        store.candidates(query, 5)
    other._is_made = False
    filled(other, dict(list(videos.items())[:3]), MEAN_P)
    assert len(store.candidates(query, 5)[0]) == 3
    other.begin(MEAN_P, "another", FOLDER)
    for search in (lambda: store.candidates(query, 5), lambda: store.example("folder/1.mp4")):
        with pytest.raises(OSError, match="made again with another model; start this program again"):
            search()
