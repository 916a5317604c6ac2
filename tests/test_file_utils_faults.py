"""Downloads from servers that break off, stall, lie and redirect, and onto disks that are full."""

import errno
import gzip
import hashlib
import ipaddress
import json
import logging
import subprocess
import sys
import textwrap
from collections import namedtuple
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from modules import file_utils
from modules.file_utils import cached_path
from tests.conftest import REPOSITORY
from tests.helpers.download_cases import BODY, SECRET, check_cache, check_no_secret, running_server

HALF, LAST = len(BODY) // 2, len(BODY) - 1
KEPT = 1 << 20  # of HALF: whole chunks
HASH = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server(monkeypatch):
    with running_server(monkeypatch) as server:
        yield server


def ranges_asked(server) -> list[str | None]:
    return [headers.get("Range") for _, headers in server.requests]


# ---- breaking off ----------------------------------------------------------------------------------------------------


def test_broken_download_goes_on_where_it_stopped(server, tmp_path):
    server.answers = [{"send": HALF}, {"ranges": True, "send": 1000}, {"ranges": True}]
    assert Path(cached_path(f"{server.address}/a.pt", tmp_path)).read_bytes() == BODY
    first, second, third = ranges_asked(server)
    assert first is None
    assert second == f"bytes={KEPT}-" and third == f"bytes={KEPT}-"
    assert server.requests[1][1]["If-Range"] == '"one"'
    check_cache(tmp_path, copies=1)


def test_file_that_changed_meanwhile_comes_from_its_start(server, tmp_path):
    other = BODY[::-1]
    server.answers = [{"send": HALF}, {"ranges": True, "headers": {"ETag": '"two"'}, "body": other}]
    assert Path(cached_path(f"{server.address}/a.pt", tmp_path)).read_bytes() == other
    check_cache(tmp_path, copies=1)


@pytest.mark.parametrize(
    "second",
    [
        {},
        {"status": 416, "body": b""},
        {"status": 412, "body": b""},
        {"status": 206, "body": BODY[7:]},
        {"status": 206, "body": BODY[7:], "headers": {"Content-Range": f"bytes 7-{LAST}/{LAST + 1}"}},
        {"status": 206, "body": BODY[KEPT:-1], "headers": {"Content-Range": f"bytes {KEPT}-{LAST - 1}/{LAST + 1}"}},
        {"status": 206, "body": BODY[KEPT:], "headers": {"Content-Range": f"bytes {KEPT}-{LAST}/{LAST + 1}",
                                                         "ETag": '"two"'}},
    ],
    ids=["whole file", "416", "412", "no range", "other range", "part of the rest", "other version"],
)  # fmt: skip
def test_answers_to_a_range_that_do_not_fit_start_again(server, tmp_path, second):
    server.answers = [{"send": HALF}, second, {"ranges": True}]
    assert Path(cached_path(f"{server.address}/a.pt", tmp_path)).read_bytes() == BODY
    assert ranges_asked(server)[2:] == ([] if not second else [None])
    check_cache(tmp_path, copies=1)


@pytest.mark.parametrize("etag", [None, 'W/"one"'])
def test_without_a_strong_etag_the_next_attempt_starts_again(server, tmp_path, etag):
    answer = {"ranges": True, "headers": {"ETag": etag, "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}}
    server.answers = [{**answer, "send": HALF}, answer]
    assert Path(cached_path(f"{server.address}/a.pt", tmp_path)).read_bytes() == BODY
    assert ranges_asked(server) == [None, None]


def test_server_that_stalls_is_given_up_and_asked_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(file_utils, "READ_SECONDS", 0.2)
    server.answers = [{"send": HALF, "stall": 30}, {"ranges": True}]
    assert Path(cached_path(f"{server.address}/a.pt", tmp_path)).read_bytes() == BODY
    server.answers = [{"send": 10, "stall": 30}]
    with pytest.raises(OSError, match=r"b\.pt: \w+ \(2 attempts\); try again later"):
        cached_path(f"{server.address}/b.pt", tmp_path, retry_seconds=[0])
    check_cache(tmp_path, copies=1)


# ---- lies ------------------------------------------------------------------------------------------------------------


def test_length_that_is_too_long_is_a_broken_download(server, tmp_path):
    server.answers = [{"headers": {"Content-Length": str(len(BODY) + 1)}}]
    with pytest.raises(OSError, match=r"\(4 attempts\)"):
        cached_path(f"{server.address}/a.pt", tmp_path)
    check_cache(tmp_path, copies=0)


def test_length_that_is_too_short_or_missing_is_found_by_the_hash(server, tmp_path):
    for length in ("100", None):
        server.answers = [{"headers": {"Content-Length": length}, "body": BODY if length else BODY[:100]}]
        with pytest.raises(OSError, match=f"the sha256 of the download is .*, not {HASH}"):
            cached_path(f"{server.address}/a.pt", tmp_path, sha256=HASH)
        check_cache(tmp_path, copies=0)


@pytest.mark.parametrize("length", ["-5", "1e3", "²", "9" * 30])
def test_length_that_is_none_is_an_error_or_left_aside(server, tmp_path, length):
    server.answers = [{"headers": {"Content-Length": length}}]
    try:
        assert Path(cached_path(f"{server.address}/a.pt", tmp_path)).read_bytes() == BODY
    except OSError:
        check_cache(tmp_path, copies=0)


def test_hash_is_verified_and_another_content_fetched_again_from_the_start(server, tmp_path):
    damaged = bytes([BODY[0] ^ 1]) + BODY[1:]
    server.answers = [{"body": damaged}, {"ranges": True}]
    assert Path(cached_path(f"{server.address}/a.pt", tmp_path, sha256=HASH.upper())).read_bytes() == BODY
    assert ranges_asked(server) == [None, None]


def test_copy_with_another_hash_is_neither_taken_nor_a_replacement(server, tmp_path, caplog):
    path = Path(cached_path(f"{server.address}/a.pt", tmp_path, sha256=HASH))
    path.write_bytes(BODY[::-1])
    assert Path(cached_path(f"{server.address}/a.pt", tmp_path, sha256=HASH)).read_bytes() == BODY
    path.write_bytes(BODY[::-1])
    server.answers = [{"status": 500}]
    with pytest.raises(OSError, match="HTTP 500"):
        cached_path(f"{server.address}/a.pt", tmp_path, sha256=HASH)
    assert cached_path(f"{server.address}/a.pt", tmp_path) == str(path)
    assert "using the copy fetched before" in caplog.text


def test_local_file_must_have_the_hash(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(BODY)
    assert cached_path(path, sha256=HASH) == str(path)
    with pytest.raises(ValueError, match=rf"a\.pt does not have the sha256 {'0' * 64}"):
        cached_path(path, sha256="0" * 64)


def test_hash_in_openais_addresses():
    url = f"https://openaipublic.azureedge.net/clip/models/{HASH}/ViT-B-32.pt"
    assert file_utils.openai_sha256(url) == HASH
    for other in (url.replace(HASH, HASH[1:]), url.replace("openaipublic", "other"), url + "/more", url + "?a=/b"):
        assert file_utils.openai_sha256(other) in (None, HASH if other.endswith("?a=/b") else None)


@pytest.mark.parametrize("announced", [True, False])
def test_body_without_end_stops_at_the_bound(server, tmp_path, announced):
    server.answers = [{} if announced else {"headers": {"Content-Length": None}}]
    with pytest.raises(OSError, match=f"more than the {HALF} "):
        cached_path(f"{server.address}/a.pt", tmp_path, max_bytes=HALF)
    assert len(server.requests) == 1
    check_cache(tmp_path, copies=0)
    assert Path(cached_path(f"{server.address}/a.pt", tmp_path, max_bytes=len(BODY))).read_bytes() == BODY


def test_compressed_body_is_unpacked_and_bounded(server, tmp_path):
    headers = {"Content-Encoding": "gzip"}
    server.answers = [{"body": gzip.compress(BODY), "headers": headers}]
    assert Path(cached_path(f"{server.address}/a.pt", tmp_path)).read_bytes() == BODY
    server.answers = [{"body": gzip.compress(bytes(50_000_000)), "headers": headers}]
    with pytest.raises(OSError, match="more than the 1000000 bytes"):
        cached_path(f"{server.address}/b.pt", tmp_path, max_bytes=1_000_000)
    server.answers = [{"body": b"no gzip", "headers": headers}]
    with pytest.raises(OSError, match="ContentDecodingError"):
        cached_path(f"{server.address}/c.pt", tmp_path)
    check_cache(tmp_path, copies=1)


# ---- redirects and addresses -----------------------------------------------------------------------------------------


def redirect(target: str) -> dict:
    return {"status": 302, "body": b"", "headers": {"Location": target}}


def test_redirects_are_followed_up_to_a_number(server, tmp_path):
    server.answers = [redirect("/1"), redirect(f"{server.address}/2"), {}]
    assert Path(cached_path(f"{server.address}/a.pt", tmp_path)).read_bytes() == BODY
    assert [path for path, _ in server.requests] == ["/a.pt", "/1", "/2"]
    server.answers = [redirect("/loop")]
    server.requests.clear()
    with pytest.raises(OSError, match="TooManyRedirects; check the address"):
        cached_path(f"{server.address}/b.pt?key={SECRET}", tmp_path)
    assert len(server.requests) == 1 + file_utils.MAX_REDIRECTS


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "s3://models/a", "http://[bad/", "http://"]
)
def test_redirect_to_what_is_no_http_is_refused(server, tmp_path, target):
    server.answers = [redirect(target)]
    with pytest.raises(OSError, match=r"cannot download http://127.*/a\.pt: \w+") as caught:
        cached_path(f"{server.address}/a.pt?key={SECRET}", tmp_path)
    check_no_secret(caught)
    check_cache(tmp_path, copies=0)


@pytest.fixture
def secure_server(monkeypatch, tmp_path_factory):
    """A server with a certificate of its own that requests is told to trust."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(timezone.utc)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(address, critical=False).sign(key, hashes.SHA256())
    )  # fmt: skip
    file = tmp_path_factory.mktemp("certificate") / "server.pem"
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    file.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain) + certificate.public_bytes(encoding)
    )
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(file))
    with running_server(monkeypatch, file) as server:
        yield server


def test_https_never_becomes_http(server, secure_server, tmp_path):
    assert Path(cached_path(f"{secure_server.address}/good.pt", tmp_path)).read_bytes() == BODY
    secure_server.answers = [redirect("/moved.pt"), {}]
    assert Path(cached_path(f"{secure_server.address}/a.pt", tmp_path)).read_bytes() == BODY
    secure_server.answers = [redirect("/moved.pt"), redirect(f"{server.address}/b.pt?key={SECRET}")]
    with pytest.raises(OSError, match=rf"redirects to {server.address}/b\.pt, which is not https://; if") as caught:
        cached_path(f"{secure_server.address}/b.pt", tmp_path)
    check_no_secret(caught)
    assert server.requests == []
    server.answers = [redirect(f"{secure_server.address}/c.pt")]
    secure_server.answers = [{}]
    assert Path(cached_path(f"{server.address}/c.pt", tmp_path)).read_bytes() == BODY


def test_certificate_that_nobody_vouches_for_is_refused(secure_server, tmp_path, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(OSError, match="SSLError"):
        cached_path(f"{secure_server.address}/a.pt", tmp_path)


@pytest.mark.parametrize(
    ("url", "public"),
    [
        (f"https://user:{SECRET}@host/a@336px.pt?X-Amz-Signature={SECRET}#{SECRET}", "https://host/a@336px.pt"),
        (f"https://user:pa/{SECRET}@host/a.pt", "https://***"),
        (f"https://user:pa?{SECRET}@host/a.pt", "https://***"),
        (f"https://{SECRET}@[::1]:80/a.pt", "https://[::1]:80/a.pt"),
        (f"s3://{SECRET}@bucket/key", "s3://bucket/key"),
    ],
)
def test_public_address_has_no_secret(url, public):
    assert file_utils.public_url(url) == public


@pytest.mark.parametrize("url", ["http://127.0.0.1/a\nb", "https://host/\x00", "s3://models/\ud800"])
def test_unprintable_address_is_refused(url, tmp_path):
    with pytest.raises(ValueError, match="printable"):
        cached_path(url, tmp_path)


# ---- disks and neighbours --------------------------------------------------------------------------------------------


def run_python(code: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_disk_that_is_known_to_be_too_full_is_not_begun_on(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(file_utils.shutil, "disk_usage", lambda folder: usage(10**9, 10**9, len(BODY) - 1))
    with pytest.raises(OSError, match=rf"not have the {len(BODY)} bytes free.*make room there, or name") as caught:
        cached_path(f"{server.address}/a.pt", tmp_path)
    assert caught.value.errno == errno.ENOSPC
    check_cache(tmp_path, copies=0)


def test_file_that_the_system_lets_grow_no_further_leaves_nothing(server, tmp_path):
    """The limit of the process stands for the disk: the kernel refuses the write in the middle of the file."""
    code = """
        import resource, signal, sys
        from modules.file_utils import cached_path
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
        try:
            cached_path(sys.argv[1], sys.argv[2])
        except OSError as error:
            print(error)
    """
    output, errors = run_python(code, f"{server.address}/a.pt?key={SECRET}", str(tmp_path)).communicate(timeout=60)
    assert f"cannot download {server.address}/a.pt: cannot write to {tmp_path}: File too large; make room" in output, (
        errors
    )
    assert SECRET not in output + errors
    assert len(server.requests) == 1
    check_cache(tmp_path, copies=0)


def test_cache_folder_that_is_none(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        cached_path(f"{server.address}/a.pt", tmp_path / "file" / "cache")


def test_processes_that_fetch_the_same_file_at_once_all_get_it_whole(server, tmp_path):
    code = """
        import hashlib, json, sys
        from modules.file_utils import cached_path
        path = cached_path(sys.argv[1], sys.argv[2], retry_seconds=[0, 0, 0])
        print(json.dumps([path, hashlib.sha256(open(path, "rb").read()).hexdigest()]))
    """
    server.answers = [{"send": HALF}, {"send": HALF}, {}, {"ranges": True}]
    processes = [run_python(code, f"{server.address}/a.pt", str(tmp_path)) for _ in range(4)]
    results = [process.communicate(timeout=60) for process in processes]
    found = [json.loads(output) for output, _ in results]
    assert {digest for _, digest in found} == {HASH}
    assert len({path for path, _ in found}) == 1
    check_cache(tmp_path, copies=1)


def test_what_a_killed_download_left_is_not_taken_for_a_copy(server, tmp_path, caplog):
    server.answers = [{"send": HALF, "stall": 30}]
    process = run_python("import sys; from modules.file_utils import cached_path; cached_path(*sys.argv[1:])",
                         f"{server.address}/a.pt", str(tmp_path))  # fmt: skip
    while not list(tmp_path.glob(".*.partial")):
        assert process.poll() is None
    process.kill()
    process.communicate()
    server.answers = [{"status": 500}]
    with caplog.at_level(logging.WARNING), pytest.raises(OSError, match="HTTP 500"):
        cached_path(f"{server.address}/a.pt", tmp_path)
    assert caplog.text == ""
    server.answers = [{}]
    assert Path(cached_path(f"{server.address}/a.pt", tmp_path)).read_bytes() == BODY
