"""modules/file_utils.py: local paths, and http from a real server on this machine."""

import hashlib
import logging
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import requests

from modules import file_utils
from modules.file_utils import cached_path
from tests.conftest import REPOSITORY
from tests.helpers.download_cases import BODY, SECRET, check_cache, check_no_secret, running_server


@pytest.fixture
def server(monkeypatch):
    with running_server(monkeypatch) as server:
        yield server


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
    path.write_bytes(BODY[::-1])
    assert cached_path(f"{server.address}/a.pt", tmp_path) == str(path)
    assert path.read_bytes() == BODY[::-1]
    assert cached_path(f"{server.address}/b.pt", tmp_path) != str(path)


def test_copy_of_another_length_is_fetched_again(server, tmp_path):
    path = Path(cached_path(f"{server.address}/a.pt", tmp_path))
    path.write_bytes(BODY[:-1])
    assert cached_path(f"{server.address}/a.pt", tmp_path) == str(path)
    assert path.read_bytes() == BODY


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
    assert len(pauses) == 3
    assert all(least <= pause <= 1.5 * least for least, pause in zip((1, 3, 9), pauses, strict=True))
    pauses.clear()
    state = random.getstate()
    with pytest.raises(OSError, match=r"\(3 attempts\)"):
        cached_path(f"{server.address}/a.pt", tmp_path, retry_seconds=(0.001, 0.002))
    assert len(pauses) == 2 and max(pauses) <= 0.003
    assert random.getstate() == state, "a training draws from this generator"


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


def test_bytes_reach_the_disk_before_the_name_and_the_name_before_the_end(server, tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda source, target: (calls.append("replace"), replace(source, target)))
    cached_path(f"{server.address}/a.pt", tmp_path)
    assert calls == ["fsync", "replace", "fsync"]


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


def test_import_leaves_the_network_libraries_alone():
    code = "import sys, modules.file_utils; print([n for n in ('boto3', 'requests', 'torch') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
