"""Videos and their frames as the application serves them: in ranges, decoded once, and those of the index only."""

import io
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.web_cases import FakeSearch, write_clip
from video_search.web import clips as clips_module
from video_search.web.clips import clip_id

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from video_search.web.app import create_app

LOCAL = "http://127.0.0.1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips") / "videos"
    write_clip(folder / "a.mp4", 0)
    (folder / "bad.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture
def client(folder) -> Iterator[TestClient]:
    with TestClient(create_app(FakeSearch(folder)), base_url=LOCAL) as client:
        yield client


def test_video_in_ranges(client, folder):
    content = (folder / "a.mp4").read_bytes()
    address = f"/video/{clip_id('a.mp4')}"
    whole = client.get(address)
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, content, "video/mp4")
    part = client.get(address, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(content)}"
    assert client.get(address, headers={"Range": "bytes=-5"}).content == content[-5:]
    assert client.get(address, headers={"Range": f"bytes={len(content)}-"}).status_code == 416


def test_frames(client, folder):
    """Each is the second's picture: the shapes' colours are those that the video was drawn with."""
    expected = {0: (225, 30, 30), 1: (30, 180, 50), 2: (40, 70, 240)}
    for number, colour in expected.items():
        response = client.get(f"/frame/{clip_id('a.mp4')}/{number}.jpg")
        assert response.headers["content-type"] == "image/jpeg"
        picture = np.asarray(Image.open(io.BytesIO(response.content)), dtype=int)
        assert picture.shape == (224, 224, 3)
        near = (abs(picture - colour).max(axis=2) < 30).mean()
        assert near > 0.1, f"frame {number} shows no {colour}"


def test_frames_are_decoded_once_and_asked_for_once(client, folder, monkeypatch):
    decoded = []
    read = clips_module.RawVideoExtractor.read_frames

    def count(extractor, path, *args):
        decoded.append(path)
        time.sleep(0.05)
        return read(extractor, path, *args)

    monkeypatch.setattr(clips_module.RawVideoExtractor, "read_frames", count)
    addresses = [f"/frame/{clip_id('a.mp4')}/{number}.jpg" for number in range(3)]
    with ThreadPoolExecutor(3) as threads:
        responses = list(threads.map(client.get, addresses))
    assert len(decoded) == 1
    etag = responses[0].headers["etag"]
    assert client.get(addresses[0], headers={"If-None-Match": etag}).status_code == 304
    assert client.get(addresses[1], headers={"If-None-Match": etag}).status_code == 200
    os.utime(folder / "a.mp4", (1, 1))
    assert client.get(addresses[0], headers={"If-None-Match": etag}).status_code == 200
    assert len(decoded) == 2


@pytest.mark.parametrize(("room", "decoded"), [(2.5, "ab"), (1.5, "abab"), (0.5, "aaabbbaaabbb")])
def test_the_cache_is_bounded_by_the_size_of_its_frames(folder, tmp_path, monkeypatch, room, decoded):
    """With room for both videos, for the last one alone, and for less than one, whose frames are never kept."""
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes((folder / "a.mp4").read_bytes())
    read, names = clips_module.RawVideoExtractor.read_frames, []

    def note(extractor, path, *args):
        names.append(path.stem)
        return read(extractor, path, *args)

    addresses = {name: [f"/frame/{clip_id(f'{name}.mp4')}/{number}.jpg" for number in range(3)] for name in "ab"}
    with TestClient(create_app(FakeSearch(folder)), base_url=LOCAL) as client:
        pictures = [client.get(address).content for address in addresses["a"]]
    monkeypatch.setattr(clips_module, "CACHE_BYTES", int(room * sum(map(len, pictures))))
    monkeypatch.setattr(clips_module.RawVideoExtractor, "read_frames", note)
    with TestClient(create_app(FakeSearch(tmp_path)), base_url=LOCAL) as client:
        for name in "abab":
            assert [client.get(address).content for address in addresses[name]] == pictures
    assert "".join(names) == decoded


@pytest.mark.parametrize("number", ["3", "-1", "x", "1.5", "99999999999999999999"])
def test_frames_that_do_not_exist(client, number):
    assert client.get(f"/frame/{clip_id('a.mp4')}/{number}.jpg").status_code in (404, 422)


@pytest.mark.parametrize(
    "name",
    ["0", "a.mp4", "x/../../secret.txt", "..%2fsecret.txt", "%2e%2e%2fsecret.txt", "%2fetc%2fpasswd", "bad.mp4", "%00"],
)
def test_only_ids_of_the_index_are_served(client, folder, name):
    (folder.parent / "secret.txt").write_text("secret")
    for address in (f"/video/{name}", f"/frame/{name}/0.jpg", f"/api/similar?video={name}"):
        response = client.get(address)
        assert response.status_code == 404
        assert "secret" not in response.text
    assert client.get(f"/video/{clip_id('bad.mp4')}").status_code == 404  # a file that the index lists as bad


def test_links_out_of_the_folder_and_files_that_are_gone(folder, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    (tmp_path / "outside.mp4").write_bytes((folder / "a.mp4").read_bytes())
    for name in ("link.mp4", "gone.mp4", "folder.mp4", "../outside.mp4"):
        (videos / name).touch()
    (tmp_path / "outside.mp4").write_bytes((folder / "a.mp4").read_bytes())
    search = FakeSearch(videos)
    search.store.files = lambda: dict.fromkeys(
        ("link.mp4", "gone.mp4", "folder.mp4", "../outside.mp4"), type("State", (), {"reason": ""})
    )
    with TestClient(create_app(search), base_url=LOCAL) as client:
        (videos / "link.mp4").unlink()
        (videos / "link.mp4").symlink_to(tmp_path / "outside.mp4")
        (videos / "gone.mp4").unlink()
        (videos / "folder.mp4").unlink()
        (videos / "folder.mp4").mkdir()
        reasons = {
            "link.mp4": "link.mp4 leads out of the folder of the index, so it is not shown.",
            "../outside.mp4": "../outside.mp4 leads out of the folder of the index, so it is not shown.",
            "gone.mp4": "gone.mp4 is no longer in the folder of the index.",
            "folder.mp4": "folder.mp4 is no longer in the folder of the index.",
        }
        for name, reason in reasons.items():
            for address in (f"/video/{clip_id(name)}", f"/frame/{clip_id(name)}/0.jpg"):
                response = client.get(address)
                assert (response.status_code, response.json()["detail"]) == (404, reason)


def test_a_video_is_never_sent_as_a_page(folder, tmp_path):
    (tmp_path / "clip.html").write_bytes((folder / "a.mp4").read_bytes())
    with TestClient(create_app(FakeSearch(tmp_path)), base_url=LOCAL) as client:
        response = client.get(f"/video/{clip_id('clip.html')}")
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["x-content-type-options"] == "nosniff"
