"""Requests that other sites make a browser send, and requests that are malformed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.web_cases import FakeSearch, write_clip
from video_search.web.clips import Clips, clip_id

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from video_search.web.app import create_app

LOCAL = "http://127.0.0.1"
REFUSED = "Requests for the host {0} are refused; scripts.serve accepts them with --allowed_hosts {0}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sites")
    write_clip(folder / "a.mp4", 0, seconds=1)
    return folder


@pytest.fixture
def search(folder) -> FakeSearch:
    return FakeSearch(folder)


@pytest.fixture
def client(search) -> Iterator[TestClient]:
    with TestClient(create_app(search), base_url=LOCAL) as client:
        yield client


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://127.0.0.1"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:9000"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://proxied.example"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_other_sites(client, search, headers, status):
    assert client.post("/api/search", json={"text": "a"}, headers=headers).status_code == status
    assert client.get(f"/api/similar?video={clip_id('a.mp4')}", headers=headers).status_code == status
    assert len(search.asked) == (2 if status == 200 else 0)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("[::1]:8000", 200),
        ("evil.example", 400),
        ("localhost.evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("", 400),
    ],
)
def test_hosts(client, host, status):
    """A name of another site that is made to point here (DNS rebinding) is no name of this server."""
    for address in ("/", "/api/about", f"/video/{clip_id('a.mp4')}"):
        assert client.get(address, headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),  # typed into the address bar
        ({"Origin": "http://127.0.0.1"}, 200),
        ({"Referer": "http://127.0.0.1/?q=a"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": ""}, 403),
        ({"Referer": "http://evil.example/page"}, 403),
        ({"Origin": "http://["}, 400),
        ({"Referer": "http://[1/"}, 400),
    ],
)
def test_media_for_other_sites(client, headers, status):
    for address in (f"/video/{clip_id('a.mp4')}", f"/frame/{clip_id('a.mp4')}/0.jpg", "/api/about"):
        response = client.get(address, headers=headers)
        assert response.status_code == status
        assert status == 200 or isinstance(response.json()["detail"], str)
    assert client.get("/", headers=headers).status_code == 200  # the page itself may be linked to


def test_nothing_is_looked_up_for_other_sites(client, monkeypatch):
    """The answers, and their times, are the same for videos that the index has and has not."""
    opened = []
    monkeypatch.setattr(Clips, "path", lambda clips, name: opened.append(name))
    answers = {
        client.get(address, headers={"Sec-Fetch-Site": "cross-site"}).text
        for name in (clip_id("a.mp4"), clip_id("absent.mp4"))
        for address in (f"/video/{name}", f"/frame/{name}/0.jpg", f"/frame/{name}/x.jpg", f"/api/similar?video={name}")
    }
    assert len(answers) == 1
    assert opened == []


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("evil.example:80", REFUSED.format("evil.example")),
        ("192.168.1.5", REFUSED.format("192.168.1.5")),
        ("evil@127.0.0.1", "The Host header 'evil@127.0.0.1' is not a valid host name."),
        ("127.0.0.1/", "The Host header '127.0.0.1/' is not a valid host name."),
        ("127.0.0.1:x", "The Host header '127.0.0.1:x' is not a valid host name."),
        ("[::1", "The Host header '[::1' is not a valid host name."),
        ("", "The Host header '' is not a valid host name."),
    ],
)
def test_a_refused_host_is_told_the_flag(client, host, reason):
    response = client.get("/", headers={"Host": host})
    assert response.status_code == 400
    assert response.json()["detail"] == reason


def test_any_address_of_the_machine(folder):
    """A server that listens on all addresses cannot know by which of them, or of a router, it is reached."""
    with TestClient(create_app(FakeSearch(folder), any_address=True), base_url=LOCAL) as client:
        for host in ("10.1.2.3:8000", "[fe80::1]:8000", "[::ffff:10.0.0.1]", "LOCALHOST"):
            assert client.get("/api/about", headers={"Host": host}).status_code == 200
        for host in ("evil.example", "10.1.2.3.evil.example", "10.1.2", "[evil]"):
            assert client.get("/api/about", headers={"Host": host}).status_code == 400


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("/api/similar?video=x&top=9999", "top: Input should be less than or equal to 100"),
        ("/api/similar", "video: Field required"),
        ("/frame/x/y.jpg", "number: Input should be a valid integer"),
    ],
)
def test_bad_parameters_are_answered_with_words(client, address, reason):
    response = client.get(address)
    assert response.status_code == 422
    assert response.json()["detail"].startswith(reason)


def test_there_is_no_permission_for_other_sites(client):
    asking = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for address in ("/api/search", "/api/example", f"/video/{clip_id('a.mp4')}"):
        response = client.options(address, headers=asking)
        assert response.status_code == 405
        assert not [name for name in response.headers if name.startswith("access-control-")]
