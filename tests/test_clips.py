"""Videos and their frames as the application serves them: in ranges, decoded once, and those of the index only."""

import asyncio
import errno
import io
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.web_cases import FakeSearch, write_clip
from video_search.web.clips import clip_id

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from video_search.web import frames
from video_search.web.app import create_app
from video_search.web.decoding import Decoders

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


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the videos in the order in which they are decoded."""
    names, run = [], Decoders.run

    async def note(decoders, task, path):
        names.append(Path(path).stem)
        await asyncio.sleep(0.05)
        return await run(decoders, task, path)

    monkeypatch.setattr(Decoders, "run", note)
    return names


def test_frames_are_decoded_once_and_asked_for_once(client, folder, decoded):
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


def test_a_file_without_frames_is_decoded_once_for_a_while(folder, tmp_path, decoded):
    (tmp_path / "text.mp4").write_bytes(b"no video" * 100)
    with TestClient(create_app(FakeSearch(tmp_path)), base_url=LOCAL) as client:
        for number in range(3):
            response = client.get(f"/frame/{clip_id('text.mp4')}/{number}.jpg")
            assert response.status_code == 404
            assert response.json()["detail"].startswith("No frames can be read: ")
            assert str(tmp_path) not in response.text
        assert decoded == ["text"]
        (tmp_path / "text.mp4").write_bytes((folder / "a.mp4").read_bytes())
        assert client.get(f"/frame/{clip_id('text.mp4')}/0.jpg").status_code == 200


@pytest.mark.parametrize(("room", "expected"), [(2.5, "ab"), (1.5, "abab"), (0.5, "aaabbbaaabbb")])
def test_the_cache_is_bounded_by_the_size_of_its_frames(folder, tmp_path, monkeypatch, decoded, room, expected):
    """With room for both videos, for the last one alone, and for less than one, whose frames are never kept."""
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes((folder / "a.mp4").read_bytes())
    addresses = {name: [f"/frame/{clip_id(f'{name}.mp4')}/{number}.jpg" for number in range(3)] for name in "ab"}
    with TestClient(create_app(FakeSearch(folder)), base_url=LOCAL) as client:
        pictures = [client.get(address).content for address in addresses["a"]]
    decoded.clear()
    monkeypatch.setattr(frames, "CACHE_BYTES", int(room * sum(map(len, pictures))))
    with TestClient(create_app(FakeSearch(tmp_path)), base_url=LOCAL) as client:
        for name in "abab":
            assert [client.get(address).content for address in addresses[name]] == pictures
    assert "".join(decoded) == expected


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
        flag = "scripts.serve shows it with --media_root FOLDER, the folder of the file"
        reasons = {
            "link.mp4": f"link.mp4 leads out of the folder of the index, so it is not shown; {flag}",
            "../outside.mp4": f"../outside.mp4 leads out of the folder of the index, so it is not shown; {flag}",
            "gone.mp4": "gone.mp4 is no longer in the folder of the index.",
            "folder.mp4": "folder.mp4 is no longer in the folder of the index.",
        }
        for name, reason in reasons.items():
            for address in (f"/video/{clip_id(name)}", f"/frame/{clip_id(name)}/0.jpg"):
                response = client.get(address)
                assert (response.status_code, response.json()["detail"]) == (404, reason)


def test_links_into_a_media_root_are_shown(folder, tmp_path):
    """As in a folder of links to several disks; a root shows the files below it alone."""
    for name in ("disk", "disk2", "videos"):
        (tmp_path / name).mkdir()
    for disk in ("disk", "disk2"):
        (tmp_path / disk / "sha0").write_bytes((folder / "a.mp4").read_bytes())
        (tmp_path / "videos" / f"{disk}.mp4").symlink_to(f"../{disk}/sha0")
    app = create_app(FakeSearch(tmp_path / "videos"), media_roots=[tmp_path / "disk"])
    with TestClient(app, base_url=LOCAL) as client:
        shown = client.get(f"/video/{clip_id('disk.mp4')}")
        assert (shown.content, shown.headers["content-type"]) == ((folder / "a.mp4").read_bytes(), "video/mp4")
        assert client.get(f"/frame/{clip_id('disk.mp4')}/0.jpg").status_code == 200
        assert client.get(f"/video/{clip_id('disk2.mp4')}").status_code == 404


def test_files_that_cannot_be_read_are_answered_with_a_reason(folder, tmp_path, monkeypatch):
    names = ("loop.mp4", "forbidden.mp4", "pipe.mp4", "empty.mp4", "failing.mp4", "below/file.mp4")
    (tmp_path / "below").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    real_open = os.open

    def failing_open(path, flags, *rest, **options):
        errors = {"forbidden.mp4": errno.EACCES, "failing.mp4": errno.EIO}
        if os.path.basename(path) in errors:
            raise OSError(errors[os.path.basename(path)], os.strerror(errors[os.path.basename(path)]), path)
        return real_open(path, flags, *rest, **options)

    with TestClient(create_app(FakeSearch(tmp_path)), base_url=LOCAL) as client:
        for name in ("loop.mp4", "pipe.mp4"):
            (tmp_path / name).unlink()
        (tmp_path / "loop.mp4").symlink_to("loop.mp4")
        os.mkfifo(tmp_path / "pipe.mp4")
        (tmp_path / "empty.mp4").write_bytes(b"")
        shutil.rmtree(tmp_path / "below")
        (tmp_path / "below").write_bytes(b"x")
        monkeypatch.setattr(os, "open", failing_open)
        answers = {
            "loop.mp4": (404, "loop.mp4 cannot be read: Too many levels of symbolic links."),
            "forbidden.mp4": (403, "The server has no permission to read forbidden.mp4."),
            "failing.mp4": (503, "failing.mp4 cannot be read: Input/output error."),
            "pipe.mp4": (409, "pipe.mp4 is empty or not a file any more."),
            "empty.mp4": (409, "empty.mp4 is empty or not a file any more."),
            "below/file.mp4": (404, "below/file.mp4 is no longer in the folder of the index."),
        }
        for name in names:
            for address in (f"/video/{clip_id(name)}", f"/frame/{clip_id(name)}/0.jpg"):
                response = client.get(address)
                assert (response.status_code, response.json()["detail"]) == answers[name]


@pytest.mark.parametrize("content_range", ["bytes=5-2", "seconds=0-1", "bytes", "bytes=", "bytes=x-y", "bytes=²-"])
def test_a_range_that_is_not_valid(client, content_range):
    response = client.get(f"/video/{clip_id('a.mp4')}", headers={"Range": content_range.encode()})
    assert (response.status_code, response.json()["detail"]) == (400, "The Range header is not valid.")


def test_a_range_behind_the_end(client, folder):
    size = (folder / "a.mp4").stat().st_size
    response = client.get(f"/video/{clip_id('a.mp4')}", headers={"Range": f"bytes={size}-"})
    assert response.json()["detail"] == "The Range header names bytes that the file does not have."
    assert response.headers["content-range"] == f"bytes */{size}"


def test_several_ranges(client, folder):
    content = (folder / "a.mp4").read_bytes()
    response = client.get(f"/video/{clip_id('a.mp4')}", headers={"Range": "bytes=0-3,10-12"})
    assert response.status_code == 206
    assert content[:4] in response.content and content[10:13] in response.content
    many = ",".join(f"{2 * place}-{2 * place}" for place in range(2000))
    assert client.get(f"/video/{clip_id('a.mp4')}", headers={"Range": f"bytes={many}"}).content == content


def test_head_is_answered_like_get_without_the_content(client):
    for address in ("/", "/page.js", f"/video/{clip_id('a.mp4')}", f"/frame/{clip_id('a.mp4')}/0.jpg"):
        got, head = client.get(address), client.head(address)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers == got.headers
    assert client.head("/video/0").status_code == 404
    part = client.head(f"/video/{clip_id('a.mp4')}", headers={"Range": "bytes=0-9"})
    assert (part.status_code, part.headers["content-length"]) == (206, "10")


def test_a_video_is_never_sent_as_a_page(folder, tmp_path):
    (tmp_path / "clip.html").write_bytes((folder / "a.mp4").read_bytes())
    with TestClient(create_app(FakeSearch(tmp_path)), base_url=LOCAL) as client:
        response = client.get(f"/video/{clip_id('clip.html')}")
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["x-content-type-options"] == "nosniff"
