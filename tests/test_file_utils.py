"""modules/file_utils.py against a real http server and a real S3 API, both on this machine."""

import hashlib
import logging
import os
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from modules import file_utils
from modules.file_utils import cached_path
from tests.conftest import REPOSITORY

BODY = bytes(range(256)) * 9000  # 2.3 MB: more than two chunks
SECRET = "hunter2"


class Server:
    """An http server whose answers are a list of dictionaries; the last one is repeated."""

    def __init__(self):
        self.answers = [{}]
        self.requests = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                owner.requests.append((self.path, dict(self.headers)))
                answer = owner.answers.pop(0) if len(owner.answers) > 1 else owner.answers[0]
                body = answer.get("body", BODY)
                self.send_response(answer.get("status", 200))
                headers = {"Content-Length": str(len(body)), "ETag": '"one"'} | answer.get("headers", {})
                for name, value in headers.items():
                    if value is not None:
                        self.send_header(name, value)
                self.end_headers()
                # The client hangs up without the body where it has this version already.
                with suppress(ConnectionError):
                    self.wfile.write(body[: answer.get("send", len(body))])

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.address = f"http://127.0.0.1:{self.http.server_port}"

    def stop(self):
        if self.thread.is_alive():
            self.http.shutdown()
            self.http.server_close()
            self.thread.join()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(file_utils, "RETRY_SECONDS", (0.0, 0.0, 0.0))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.stop()


def check_cache(cache: Path, copies: int) -> None:
    """Exactly so many files, every one of them whole."""
    files = sorted(cache.iterdir())
    assert len(files) == copies, files
    assert not [file for file in files if file.name.endswith(".partial")]


def test_local_path_is_returned_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "weights.pt").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    assert cached_path("weights.pt") == "weights.pt"
    assert cached_path(tmp_path / "weights.pt") == str(tmp_path / "weights.pt")
    assert cached_path(str(tmp_path)) == str(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such file: .*absent\.pt"):
        cached_path(tmp_path / "absent.pt")


@pytest.mark.parametrize("scheme", ["ftp", "file", "gs"])
def test_unknown_scheme_names_it_and_the_choices(scheme, tmp_path):
    with pytest.raises(ValueError, match=rf"'{scheme}'.*local path, https://, http:// or s3://"):
        cached_path(f"{scheme}://user:{SECRET}@host/file", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_download_is_complete_and_named_by_url_and_etag(server, tmp_path):
    url = f"{server.address}/models/tiny.safetensors?key={SECRET}"
    path = Path(cached_path(url, tmp_path / "new" / "cache"))
    assert path.read_bytes() == BODY
    digest = [hashlib.sha256(text.encode()).hexdigest() for text in (url, '"one"')]
    assert path.name == f"{digest[0]}.{digest[1]}.safetensors"
    check_cache(path.parent, copies=1)
    assert server.requests[0][0] == f"/models/tiny.safetensors?key={SECRET}"


def test_unchanged_file_is_not_fetched_again(server, tmp_path):
    path = Path(cached_path(f"{server.address}/a.pt", tmp_path))
    path.write_bytes(b"mark")
    assert cached_path(f"{server.address}/a.pt", tmp_path) == str(path)
    assert path.read_bytes() == b"mark"
    assert cached_path(f"{server.address}/b.pt", tmp_path) != str(path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"ETag": '"one"'}, {"ETag": '"two"'}),
        (
            {"ETag": None, "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"},
            {"ETag": None, "Last-Modified": "Tue, 02 Jan 2024 00:00:00 GMT"},
        ),
    ],
)
def test_changed_file_is_fetched_anew(server, tmp_path, before, after):
    server.answers = [{"body": b"old", "headers": before}, {"body": b"new!", "headers": after}]
    old, new = (Path(cached_path(f"{server.address}/a.pt", tmp_path)) for _ in range(2))
    assert (old.read_bytes(), new.read_bytes()) == (b"old", b"new!")
    check_cache(tmp_path, copies=2)


def test_cache_folder_comes_from_the_environment_at_the_call(server, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP4CLIP_CACHE", str(tmp_path / "chosen"))
    assert Path(cached_path(f"{server.address}/a.pt")).parent == tmp_path / "chosen"
    monkeypatch.delenv("CLIP4CLIP_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Path(cached_path(f"{server.address}/a.pt")).parent == tmp_path / "home" / ".cache" / "clip4clip"


def test_without_content_length_the_body_is_taken_as_sent(server, tmp_path):
    server.answers = [{"headers": {"Content-Length": None}}]
    assert Path(cached_path(f"{server.address}/a.pt", tmp_path)).read_bytes() == BODY


@pytest.mark.parametrize("sent", [0, 1000, len(BODY) - 1])
def test_cut_short_once_is_fetched_again(server, tmp_path, sent):
    server.answers = [{"send": sent}, {}]
    assert Path(cached_path(f"{server.address}/a.pt", tmp_path)).read_bytes() == BODY
    assert len(server.requests) == 2
    check_cache(tmp_path, copies=1)


def test_always_cut_short_leaves_nothing(server, tmp_path):
    server.answers = [{"send": len(BODY) // 2}]
    with pytest.raises(OSError, match=r"cannot download http://127.0.0.1:\d+/a\.pt: .*\(4 attempts\)"):
        cached_path(f"{server.address}/a.pt?key={SECRET}", tmp_path)
    assert len(server.requests) == 4
    check_cache(tmp_path, copies=0)


def test_length_is_verified_even_where_the_library_does_not(server, tmp_path, monkeypatch):
    monkeypatch.setattr(requests.Response, "iter_content", lambda self, size: iter([b"short"]))
    with pytest.raises(OSError, match=f"got 5 of {len(BODY)} bytes"):
        cached_path(f"{server.address}/a.pt", tmp_path)
    check_cache(tmp_path, copies=0)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_server_trouble_is_retried(server, tmp_path, status):
    server.answers = [{"status": status, "body": b"sorry"}, {"status": status, "body": b"sorry"}, {}]
    assert Path(cached_path(f"{server.address}/a.pt", tmp_path)).read_bytes() == BODY
    assert len(server.requests) == 3
    check_cache(tmp_path, copies=1)


def test_attempts_pause_longer_and_longer(server, tmp_path, monkeypatch):
    monkeypatch.setattr(file_utils, "RETRY_SECONDS", (1.0, 3.0, 9.0))
    pauses = []
    monkeypatch.setattr(file_utils.time, "sleep", pauses.append)
    server.answers = [{"status": 500}]
    with pytest.raises(OSError, match=r"HTTP 500 .*\(4 attempts\)"):
        cached_path(f"{server.address}/a.pt", tmp_path)
    assert pauses == [1.0, 3.0, 9.0]


@pytest.mark.parametrize(("status", "error"), [(404, FileNotFoundError), (403, OSError), (204, OSError)])
def test_refusal_is_final_and_names_the_public_url(server, tmp_path, status, error):
    server.answers = [{"status": status, "body": b""}]
    url = server.address.replace("http://", f"http://user:{SECRET}@") + f"/folder/a.pt?key={SECRET}#part-{SECRET}"
    with pytest.raises(error, match=f"HTTP {status}") as caught:
        cached_path(url, tmp_path)
    assert f"{server.address}/folder/a.pt:" in str(caught.value)
    check_no_secret(caught)
    assert len(server.requests) == 1
    assert "Authorization" in server.requests[0][1]
    check_cache(tmp_path, copies=0)


def check_no_secret(caught) -> None:
    """Neither in the message nor in the traceback that a user would paste into an issue."""
    assert SECRET not in "".join(traceback.format_exception_only(caught.value))
    cause = caught.value.__cause__ or (None if caught.value.__suppress_context__ else caught.value.__context__)
    assert cause is None or SECRET not in str(cause)


def test_unreachable_server_is_an_error_without_credentials(server, tmp_path):
    server.stop()
    url = server.address.replace("http://", f"http://user:{SECRET}@") + f"/a.pt?key={SECRET}"
    with pytest.raises(OSError, match=rf"cannot download {server.address}/a\.pt: ConnectionError") as caught:
        cached_path(url, tmp_path)
    check_no_secret(caught)
    check_cache(tmp_path, copies=0)


def test_bad_address_is_final(server, tmp_path):
    with pytest.raises(OSError, match="InvalidURL") as caught:
        cached_path(f"http://user:{SECRET}@:notaport/a.pt?{SECRET}", tmp_path)
    check_no_secret(caught)


@pytest.mark.parametrize("trouble", ["stopped", "500", "cut short"])
def test_cached_copy_replaces_an_unreachable_server_with_a_warning(server, tmp_path, caplog, trouble):
    url = f"{server.address}/a.pt?key={SECRET}"
    server.answers = [{"body": b"old", "headers": {"ETag": '"1"'}}, {"body": b"new", "headers": {"ETag": '"2"'}}]
    paths = [Path(cached_path(url, tmp_path)) for _ in range(2)]
    os.utime(paths[0], (1, 1))
    cached_path(f"{server.address}/other.pt", tmp_path)
    if trouble == "stopped":
        server.stop()
    elif trouble == "500":
        server.answers = [{"status": 500}]
    else:
        server.answers = [{"send": 10, "headers": {"ETag": '"3"'}}]
    with caplog.at_level(logging.WARNING):
        path = Path(cached_path(url, tmp_path))
    assert path == paths[1]
    assert path.read_bytes() == b"new"
    assert f"cannot reach {server.address}/a.pt (" in caplog.text
    assert SECRET not in caplog.text
    check_cache(tmp_path, copies=3)


def test_file_that_is_gone_is_an_error_despite_a_cached_copy(server, tmp_path):
    cached_path(f"{server.address}/a.pt", tmp_path)
    server.answers = [{"status": 404}]
    with pytest.raises(FileNotFoundError, match="HTTP 404"):
        cached_path(f"{server.address}/a.pt", tmp_path)


def test_interrupted_or_unwritable_download_leaves_nothing(server, tmp_path, monkeypatch):
    def stop(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(file_utils.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        cached_path(f"{server.address}/a.pt", tmp_path)
    check_cache(tmp_path, copies=0)


def test_processes_that_fetch_the_same_file_at_once_all_get_it(server, tmp_path):
    paths = []
    threads = [
        threading.Thread(target=lambda: paths.append(cached_path(f"{server.address}/a.pt", tmp_path))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4
    assert len(set(paths)) == 1
    assert Path(paths[0]).read_bytes() == BODY
    check_cache(tmp_path, copies=1)


@pytest.fixture(scope="module")
def s3_server():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch):
    """A bucket `models` in the S3 API that boto3's usual environment variables point to."""
    import boto3

    monkeypatch.setattr(file_utils, "RETRY_SECONDS", (0.0, 0.0, 0.0))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    return client


def test_s3_download_and_change(bucket, tmp_path):
    bucket.put_object(Bucket="models", Key="folder/a b.pt", Body=BODY)
    first = Path(cached_path("s3://models/folder/a b.pt", tmp_path))
    assert first.read_bytes() == BODY
    assert first.suffix == ".pt"
    assert cached_path("s3://models/folder/a b.pt", tmp_path) == str(first)
    check_cache(tmp_path, copies=1)
    bucket.put_object(Bucket="models", Key="folder/a b.pt", Body=b"changed")
    assert Path(cached_path("s3://models/folder/a b.pt", tmp_path)).read_bytes() == b"changed"
    check_cache(tmp_path, copies=2)


def test_s3_errors(bucket, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot download s3://models/absent\.pt: HTTP 404 NoSuchKey"):
        cached_path("s3://models/absent.pt", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"HTTP 404 NoSuchBucket"):
        cached_path("s3://absent-bucket/a.pt", tmp_path)
    with pytest.raises(OSError, match="ParamValidationError"):
        cached_path("s3://not a bucket/a.pt", tmp_path)
    for incomplete in ("s3://models", "s3://models/", "s3:///a.pt"):
        with pytest.raises(ValueError, match=f"s3://bucket/key, got {incomplete}"):
            cached_path(incomplete, tmp_path)
    check_cache(tmp_path, copies=0)


def test_s3_cached_copy_replaces_an_unreachable_server(bucket, server, tmp_path, monkeypatch, caplog):
    bucket.put_object(Bucket="models", Key="b.pt", Body=b"kept")
    path = cached_path("s3://models/b.pt", tmp_path)
    server.stop()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    assert cached_path("s3://models/b.pt", tmp_path) == path
    assert "cannot reach s3://models/b.pt (EndpointConnectionError)" in caplog.text
    with pytest.raises(OSError, match=r"s3://models/c\.pt: EndpointConnectionError \(4 attempts\)"):
        cached_path("s3://models/c.pt", tmp_path)


def test_s3_body_cut_short_or_server_trouble_is_retried(bucket, server, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    server.answers = [{"send": 1000}, {"status": 503, "body": b""}, {}]
    assert Path(cached_path("s3://models/a.pt", tmp_path / "whole")).read_bytes() == BODY
    assert len(server.requests) == 3
    check_cache(tmp_path / "whole", copies=1)
    server.answers = [{"send": 1000}]
    with pytest.raises(OSError, match=r"s3://models/a\.pt: .*\(4 attempts\)"):
        cached_path("s3://models/a.pt", tmp_path / "none")
    check_cache(tmp_path / "none", copies=0)


def test_import_leaves_the_network_libraries_alone():
    code = "import sys, modules.file_utils; print([n for n in ('boto3', 'requests', 'torch') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
