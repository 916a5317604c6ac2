"""A real server with clients that wait, send slowly, do not read, or are too many."""

import json
import logging
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.helpers.web_cases import FakeSearch, write_clip
from video_search.web.clips import clip_id

pytest.importorskip("fastapi")
from video_search.web import connections, limits
from video_search.web.app import create_app

GET_ABOUT = b"GET /api/about HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
POST_EXAMPLE = (
    b"POST /api/example HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
    b"Content-Length: 1000000\r\n\r\nx"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("connections")
    write_clip(folder / "a.mp4", 0, seconds=1)
    with open(folder / "long.mp4", "wb") as file:
        file.truncate(64 << 20)  # more than the buffers of two sockets
    return folder


@contextmanager
def running(folder: Path, max_connections: int = 8) -> Iterator[int]:
    """Run the server in a thread; its port."""
    server = connections.make_server(create_app(FakeSearch(folder)), max_connections)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()


@contextmanager
def client(port: int, content: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(content)
        yield connection


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    parts = []
    with suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def detail(answer: bytes) -> str:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["detail"]


@pytest.mark.parametrize("content", [b"", b"GET / HTTP/1.1\r\nHost: 127", GET_ABOUT, GET_ABOUT * 3 + b"GET"])
def test_idle_connections_end(folder, monkeypatch, content):
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.3)
    with running(folder) as port, client(port, content) as connection:
        assert read_all(connection).count(b"HTTP/1.1 200") == content.count(GET_ABOUT)


def test_a_connection_that_drips_headers_ends(folder, monkeypatch):
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.3)
    with running(folder) as port, client(port, b"GET / HTTP/1.1\r\n") as connection, pytest.raises(OSError):
        for number in range(100):  # each part restarts uvicorn's own timer
            connection.sendall(b"X-%d: 1\r\n" % number)
            time.sleep(0.05)


@pytest.mark.parametrize(("slow", "silent"), [(30, 0.3), (0.3, 20)])
def test_a_body_that_does_not_arrive_gives_its_place_back(folder, monkeypatch, slow, silent):
    monkeypatch.setattr(limits, "SLOW_SECONDS", slow)
    monkeypatch.setattr(limits, "SILENT_SECONDS", silent)
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.3)
    with running(folder) as port:
        for _ in range(limits.MAX_UPLOADS + 1):
            with client(port, POST_EXAMPLE) as connection:
                answer = read_all(connection)
                assert (status(answer), detail(answer)) == (408, "The request arrives too slowly.")


def test_a_client_that_does_not_read_ends(folder, monkeypatch):
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.3)
    address = f"GET /video/{clip_id('long.mp4')} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    with running(folder, max_connections=1) as port, client(port, address) as connection:
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        end = time.monotonic() + 10
        while time.monotonic() < end:  # until its place is free
            with client(port, GET_ABOUT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as other:
                if b" 200 OK" in read_all(other)[:20]:
                    break
            time.sleep(0.05)
        else:
            pytest.fail("the connection still holds its place")
        assert len(read_all(connection)) < 64 << 20


def test_the_connection_that_is_idle_longest_makes_room(folder):
    with running(folder, max_connections=4) as port:
        with suppress(OSError):
            waiting = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(20)]
        with client(port, GET_ABOUT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as connection:
            assert status(read_all(connection)) == 200
        assert read_all(waiting[0]) == b""
        for connection in waiting:
            connection.close()


def test_a_connection_without_place_is_told(folder, monkeypatch):
    """Connections with a request in progress, here an upload, are never ended to make room."""
    with running(folder, max_connections=2) as port, client(port, POST_EXAMPLE), client(port, POST_EXAMPLE):
        time.sleep(0.2)
        with client(port) as third:
            answer = read_all(third)
        assert status(answer) == 503
        assert detail(answer) == "The server is busy: it has no place for another connection."


def test_an_answer_is_as_long_as_its_headers_say(folder, tmp_path, caplog):
    """A file that grows is cut to the length that it had; one that is cut ends the connection without a traceback."""
    for change in (1 << 20, -(1 << 20)):
        path = tmp_path / "a.mp4"
        with open(path, "wb") as file:
            file.truncate(32 << 20)
        address = f"GET /video/{clip_id('a.mp4')} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
        with running(tmp_path) as port, client(port, address) as connection:
            start = connection.recv(1 << 12)
            os.truncate(path, (32 << 20) + change)
            body = (start + read_all(connection)).partition(b"\r\n\r\n")[2]
        assert len(body) == (32 << 20) + min(change, 0)
    assert not any(record.exc_info for record in caplog.records)


def test_a_pipelined_flood_is_answered_in_order(folder):
    last = GET_ABOUT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with running(folder) as port, client(port, GET_ABOUT * 200 + last) as connection:
        assert read_all(connection).count(b"HTTP/1.1 200 OK") == 201


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        b"GET /a\x1b[31mred\nforged: line HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ],
)
def test_malformed_requests_never_reach_the_log(folder, request_bytes, caplog):
    with running(folder) as port, client(port) as connection:
        with suppress(OSError):
            connection.sendall(request_bytes)
        assert read_all(connection)[:12] in (b"HTTP/1.1 400", b"")
    assert {record.getMessage() for record in caplog.records} <= {"Invalid HTTP request received."}


def test_the_log_is_bounded(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(connections.time, "monotonic", lambda: now[0])
    logger = logging.getLogger("bounded")
    logger.addFilter(connections.LogLimit(lines=2))
    for number in range(10):
        logger.warning("line %d", number)
    now[0] = 60.0
    logger.warning("line %d", 10)
    logger.warning("line %d", 11)
    lines = ["line 0", "line 1", "line 10 (8 other lines were left out)", "line 11"]
    assert [record.getMessage() for record in caplog.records] == lines


@pytest.mark.parametrize(
    ("files", "hard", "raised_to", "expected"), [(1024, 4096, None, 480), (256, 256, 256, 96), (256, 4096, 576, 256)]
)
def test_connections_fit_the_limit_of_open_files(monkeypatch, files, hard, raised_to, expected):
    limits_set = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (files, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits_set.append(pair))
    assert connections.connections_of_files() == expected
    assert limits_set == ([] if raised_to is None else [(raised_to, hard)])


def test_the_process_ends_even_if_a_thread_does_not(monkeypatch):
    ended = threading.Event()
    codes = []
    monkeypatch.setattr(connections, "SHUTDOWN_SECONDS", -1.9)
    monkeypatch.setattr(connections.os, "_exit", lambda code: (codes.append(code), ended.set()))
    server = connections.Server(connections.uvicorn.Config(None))
    server.handle_exit(signal.SIGINT, None)
    assert server.should_exit
    assert ended.wait(10)
    assert codes == [0]
