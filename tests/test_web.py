"""The application without a browser: answers, refusals, and temporary files."""

import errno
import io
import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.helpers.launch import is_running, wait_until
from tests.helpers.web_cases import FakeSearch, decode_after, write_clip
from video_search.web.clips import clip_id

pytest.importorskip("fastapi")
import uvicorn
from fastapi.testclient import TestClient

from video_search.web import app as web
from video_search.web import limits

CLIPS = ("a.mp4", "b/c.mp4", "d.mp4")
LOCAL = "http://127.0.0.1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("web") / "videos"
    for seed, name in enumerate(CLIPS):
        write_clip(folder / name, seed)
    (folder / "bad.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture
def search(folder) -> FakeSearch:
    return FakeSearch(folder)


@pytest.fixture
def client(search) -> Iterator[TestClient]:
    with TestClient(web.create_app(search, max_upload_bytes=1 << 20), base_url=LOCAL) as client:
        yield client


def post_text(client, text="red circle", **body):
    return client.post("/api/search", json={"text": text, **body})


def post_example(client, content, **headers):
    return client.post("/api/example", content=content, headers={"Content-Type": "application/octet-stream", **headers})


@pytest.fixture
def temporary_folder(tmp_path, monkeypatch) -> Path:
    """Where uploads are kept while they are searched for."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


# ---- Searching ----


def test_text_search(client, search):
    answer = post_text(client, "red circle", top=2).json()
    assert search.asked == [("red circle", 2)]
    assert answer["scanned"] == 3
    assert [(hit["name"], hit["score"]) for hit in answer["hits"]] == [("a.mp4", 0.9), ("b/c.mp4", 0.8)]
    first = answer["hits"][0]
    assert first["video"] == clip_id("a.mp4")
    assert first["words"] == [
        {"text": "red", "weight": 3 / 9, "share": 1.5 / 9, "second": 0.0},
        {"text": "circle", "weight": 6 / 9, "share": 3 / 9, "second": 1.0},
    ]
    assert [moment["second"] for moment in first["moments"]] == [0, 1, 2]
    assert [moment["weight"] for moment in first["moments"]] == [1 / 6, 2 / 6, 3 / 6]


def test_about(client, search, tmp_path):
    assert client.get("/api/about").json() == {
        "videos": 3, "head": "wti", "folder": "videos", "notice": "",
        "max_characters": 2000, "max_top": 100, "max_upload_bytes": 1 << 20,
    }  # fmt: skip
    search.store.folder = tmp_path / "moved"
    with TestClient(web.create_app(search), base_url=LOCAL) as other:
        assert other.get("/api/about").json()["notice"] == f"The folder of the index, {tmp_path / 'moved'}, is missing."


def test_example(client, search, tmp_path, temporary_folder):
    content = write_clip(tmp_path / "small.mp4", 0, seconds=1, size=24).read_bytes()
    assert len(content) < io.DEFAULT_BUFFER_SIZE  # of which nothing is in a file before it is flushed
    answer = post_example(client, content).json()
    assert (answer["is_video"], answer["hits"][0]["name"], answer["hits"][0]["words"]) == (True, "a.mp4", [])
    assert search.asked == [((1, 3, 32, 32), [0.0], 10)]
    assert list(temporary_folder.iterdir()) == []


def test_similar(client, search):
    response = client.get("/api/similar", params={"video": clip_id("b/c.mp4"), "top": 1})
    assert search.asked == [("b/c.mp4", 1)]
    assert len(response.json()["hits"]) == 1


@pytest.mark.parametrize("text", ["👩‍👩‍👧 🐕", "كلب يجري", "<img src=x onerror=alert(1)>", "a\x00b", "x" * 2000])
def test_any_text_is_searched_for_as_it_is(client, search, text):
    assert post_text(client, text).status_code == 200
    assert search.asked == [(text, 10)]


def test_names_that_are_no_utf8(folder, tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / name).write_bytes((folder / "a.mp4").read_bytes())
    with TestClient(web.create_app(FakeSearch(tmp_path / "videos")), base_url=LOCAL) as client:
        (hit,) = post_text(client).json()["hits"]
        assert hit["name"] == "caf\N{REPLACEMENT CHARACTER}.mp4"
        assert client.get(f"/video/{hit['video']}").content == (folder / "a.mp4").read_bytes()


def test_a_video_that_was_indexed_later_is_shown(client, search, folder):
    write_clip(folder / "later.mp4", 5, seconds=1)
    search.listed.append("later.mp4")
    assert client.get(f"/video/{clip_id('later.mp4')}").status_code == 404
    hit = post_text(client).json()["hits"][-1]
    assert client.get(f"/video/{hit['video']}").status_code == 200
    (folder / "later.mp4").unlink()


# ---- What is refused ----


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "body: Invalid JSON"),
        (b'{"text"', "body: Invalid JSON"),
        (b"[]", "body: "),
        (b"{}", "text: Field required"),
        (b'{"text": 5}', "text: "),
        (b'{"text": ""}', "Type a few words"),
        (b'{"text": " \\n\\t"}', "Type a few words"),
        (b'{"text": "\\ud83d"}', "body: Invalid JSON"),
        (json.dumps({"text": "x" * 2001}).encode(), "text: String should have at most 2000 characters"),
        (b'{"text": "a", "top": 0}', "top: "),
        (b'{"text": "a", "top": 101}', "top: "),
        (b'{"text": "a", "top": "5"}', "top: "),
        (b'{"text": "a", "path": "/etc/passwd"}', "path: Extra inputs are not permitted"),
        (b'{"text": ' + b"[" * 50_000, "body: Invalid JSON"),
    ],
)
def test_bad_bodies(client, search, body, reason):
    response = client.post("/api/search", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert reason in response.json()["detail"]
    assert search.asked == []


@pytest.mark.parametrize("address", ["/api/similar?video=0&top=101", "/api/similar?video=0&top=x", "/api/similar"])
def test_bad_questions(client, search, address):
    assert client.get(address).status_code == 422
    assert client.post("/api/example?top=0", content=b"x").status_code == 422
    assert search.asked == []


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_bodies_that_forms_of_other_sites_can_send(client, search, kind):
    for address in ("/api/search", "/api/example"):
        response = client.post(address, content=b'{"text": "a"}', headers={"Content-Type": kind})
        assert response.status_code == 415
    assert search.asked == []


@pytest.mark.parametrize("address", ["/docs", "/redoc", "/openapi.json", "/page", "/page/index.html", "/../web.py"])
def test_there_is_nothing_else(client, address):
    assert client.get(address).status_code == 404


# ---- Uploads ----


def test_upload_that_is_too_large(client, search, temporary_folder):
    response = post_example(client, b"x" * ((1 << 20) + 1))
    detail = "The video is too large: at most 1 MB are accepted (--max_upload_mb of scripts.serve)."
    assert (response.status_code, response.json()["detail"]) == (413, detail)
    assert search.asked == []


def test_upload_without_a_length_is_counted(client, search, temporary_folder):
    response = post_example(client, iter([b"x" * (1 << 16)] * 17))
    assert "content-length" not in response.request.headers
    assert response.status_code == 413
    assert search.asked == []
    assert list(temporary_folder.iterdir()) == []


def test_query_without_a_length_is_counted(client):
    body = (b'{"text": "', *[b" " * 1000] * 70, b'"}')
    response = client.post("/api/search", content=iter(body), headers={"Content-Type": "application/json"})
    assert response.status_code == 413


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty"), (b"no video" * 100, "cannot be read as a video")])
def test_upload_that_is_no_video(client, search, temporary_folder, content, reason):
    response = post_example(client, content)
    assert response.status_code == 422
    assert reason in response.json()["detail"]
    assert str(temporary_folder) not in response.text
    assert list(temporary_folder.iterdir()) == []


@pytest.mark.parametrize(("error", "status"), [(ValueError("too odd"), 422), (OSError("the index is gone"), 503)])
def test_errors_of_the_search_are_answered(client, search, monkeypatch, error, status):
    def fail(text, top):
        raise error

    monkeypatch.setattr(search, "text", fail)
    response = post_text(client)
    assert response.status_code == status
    assert str(error) in response.json()["detail"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_an_error(client, search, monkeypatch, number):
    """JSON has no such numbers: pydantic would write null."""
    results = search.results(["red"], 1)
    moment = replace(results.hits[0].moments[1], score=number)
    results.hits[0] = replace(results.hits[0], moments=(moment,))
    monkeypatch.setattr(search, "text", lambda text, top: results)
    response = post_text(client)
    assert response.status_code == 503
    assert response.json()["detail"].startswith("The index cannot be searched: a number is not valid: ")


def test_an_updated_index_changes_the_videos_that_are_shown(client, search, folder, tmp_path):
    write_clip(tmp_path / "new.mp4", 3, seconds=1)
    assert client.get(f"/video/{clip_id('a.mp4')}").status_code == 200
    search.store = FakeSearch(tmp_path).store  # what VideoSearch.refresh does
    search.notice = "the index has changed"
    about = client.get("/api/about").json()
    assert (about["videos"], about["notice"]) == (1, "the index has changed")
    assert client.get(f"/video/{clip_id('a.mp4')}").status_code == 404
    assert client.get(f"/frame/{clip_id('new.mp4')}/0.jpg").status_code == 200


# ---- What every answer has ----


def test_headers(client):
    for address in ("/", "/page.js", "/page.css", "/icon.svg", "/api/about", f"/video/{clip_id('a.mp4')}", "/nothing"):
        headers = client.get(address, headers={"Origin": "http://127.0.0.1"}).headers
        assert headers["content-security-policy"].startswith("default-src 'self'; media-src 'self' blob:;")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers


def test_the_page_has_no_inline_code_and_no_foreign_address(client):
    page, code, style = (client.get(address).text for address in ("/", "/page.js", "/page.css"))
    assert "<style" not in page and " style=" not in page and " onclick=" not in page
    assert page.count("<script") == 1 and '<script src="page.js"' in page
    for text in (page, code, style):
        assert "http:" not in text and "https:" not in text and "//" not in text.replace("// ", "")
    assert "innerHTML" not in code and "insertAdjacentHTML" not in code


# ---- Many at once ----


def test_one_search_at_a_time_and_a_clear_answer_when_busy(client, search, monkeypatch):
    running, most, gate = [], [], threading.Event()

    def slow(text, top):
        running.append(text)
        most.append(len(running))
        gate.wait(10)
        running.remove(text)
        return search.results([text], top)

    monkeypatch.setattr(search, "text", slow)
    with ThreadPoolExecutor(80) as threads:
        waiting = [threads.submit(post_text, client, f"query{number}") for number in range(80)]
        wait_until(lambda: sum(one.done() for one in waiting) == 80 - limits.MAX_WAITING)
        assert client.get("/api/about").status_code == 200  # the event loop is free
        gate.set()
        responses = [one.result() for one in waiting]
    busy = [response for response in responses if response.status_code == 503]
    assert len(busy) == 80 - limits.MAX_WAITING
    assert {(one.json()["detail"][:19], one.headers["retry-after"]) for one in busy} == {("The server is busy:", "2")}
    found = [one.json()["hits"][0]["words"][0]["text"] for one in responses if one.status_code == 200]
    assert len(set(found)) == limits.MAX_WAITING
    assert max(most) == 1
    assert post_text(client).status_code == 200


def test_few_uploads_at_once(client, search, tmp_path, monkeypatch, temporary_folder):
    slow = partial(decode_after, gate=tmp_path / "gate")
    monkeypatch.setattr(search.encoder, "video_reader", lambda: slow)
    with ThreadPoolExecutor(10) as threads:
        waiting = [threads.submit(post_example, client, b"video") for _ in range(10)]
        wait_until(lambda: sum(one.done() for one in waiting) == 10 - limits.MAX_UPLOADS)
        assert len(list(temporary_folder.iterdir())) == limits.MAX_UPLOADS
        assert post_text(client).status_code == 200  # searches go on meanwhile
        (tmp_path / "gate").touch()
        statuses = sorted(one.result().status_code for one in waiting)
    assert statuses == [200] * limits.MAX_UPLOADS + [503] * (10 - limits.MAX_UPLOADS)
    assert list(temporary_folder.iterdir()) == []


def test_a_temporary_folder_that_is_full(client, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda prefix: FullFile())
    response = post_example(client, b"video")
    assert response.status_code == 507
    assert response.json()["detail"] == "The server cannot keep the video: No space left on device."


class FullFile(io.BytesIO):
    def write(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ---- A real server ----


@pytest.fixture
def server(search) -> Iterator[int]:
    """The port of the application in a real server."""
    listener = socket.create_server(("127.0.0.1", 0))
    settings = uvicorn.Config(web.create_app(search, max_upload_bytes=1 << 20), log_level="warning")
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(10)
    listener.close()


def test_a_client_that_leaves_while_it_sends(server, temporary_folder, caplog):
    with socket.create_connection(("127.0.0.1", server)) as client:
        client.sendall(
            b"POST /api/example HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
            b"Content-Length: 100000\r\n\r\n" + b"x" * 1000
        )
        wait_until(lambda: list(temporary_folder.iterdir()))
    wait_until(lambda: not list(temporary_folder.iterdir()))
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_client_that_leaves_while_its_video_is_decoded(
    server, search, tmp_path, temporary_folder, monkeypatch, caplog
):
    slow = partial(decode_after, gate=tmp_path / "gate", started=tmp_path / "started")
    monkeypatch.setattr(search.encoder, "video_reader", lambda: slow)
    with socket.create_connection(("127.0.0.1", server)) as client:
        client.sendall(
            b"POST /api/example HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
            b"Content-Length: 5\r\n\r\nvideo"
        )
        wait_until((tmp_path / "started").exists)
        process = int((tmp_path / "started").read_text())
        assert is_running(process)
    wait_until(lambda: not is_running(process))
    wait_until(lambda: not list(temporary_folder.iterdir()))
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
