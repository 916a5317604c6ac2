"""modules/file_utils.py against a real S3 API on this machine, and against one that fails."""

import base64
import hashlib
from pathlib import Path

import pytest

from modules import file_utils
from modules.file_utils import cached_path
from tests.helpers.download_cases import BODY, SECRET, check_cache, check_no_secret, running_server


@pytest.fixture
def server(monkeypatch):
    with running_server(monkeypatch) as server:
        yield server


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


def test_s3_refusal_names_no_credentials(bucket, server, tmp_path, monkeypatch):
    """moto takes any key, so the refusal is S3's own answer, served by hand."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    answer = f"<Error><Code>InvalidAccessKeyId</Code><Message>no {SECRET}</Message></Error>".encode()
    server.answers = [{"status": 403, "body": answer}]
    with pytest.raises(OSError, match=r"s3://models/a\.pt: HTTP 403 InvalidAccessKeyId; check the cred") as caught:
        cached_path(f"s3://user:{SECRET}@models/a.pt", tmp_path)
    check_no_secret(caught)
    assert len(server.requests) == 1
    check_cache(tmp_path, copies=0)


def test_s3_without_credentials_says_where_they_belong(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it keeps the credentials of the tests before
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(OSError, match=r"NoCredentialsError; check .* boto3's settings \(credentials"):
        cached_path("s3://models/a.pt", tmp_path / "cache")


def test_s3_download_goes_on_where_it_broke_off(bucket, server, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    server.answers = [{"send": len(BODY) // 2}, {"ranges": True}]
    assert Path(cached_path("s3://models/a.pt", tmp_path)).read_bytes() == BODY
    asked = server.requests[1][1]
    assert asked["If-Match"] == '"one"'
    assert 0 < int(asked["Range"].removeprefix("bytes=").removesuffix("-")) <= len(BODY) // 2
    check_cache(tmp_path, copies=1)


def test_s3_object_that_changes_meanwhile_is_fetched_from_its_start(bucket, server, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    server.answers = [{"send": len(BODY) // 2}, {"status": 412, "body": b""}, {"headers": {"ETag": '"two"'}}]
    assert Path(cached_path("s3://models/a.pt", tmp_path)).read_bytes() == BODY
    assert ["Range" in headers for _, headers in server.requests] == [False, True, False]
    check_cache(tmp_path, copies=1)


@pytest.mark.parametrize("name", ["md5", "sha256"])
def test_s3_content_must_have_its_hash(bucket, server, tmp_path, monkeypatch, name):
    """The object as moto answers, but for one flipped bit."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    damaged = bytes([BODY[0] ^ 1]) + BODY[1:]
    if name == "md5":
        headers = {"ETag": f'"{hashlib.md5(BODY).hexdigest()}"'}
    else:
        headers = {"x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(BODY).digest()).decode()}
    server.answers = [{"body": damaged, "headers": headers}]
    with pytest.raises(OSError, match=r"\(4 attempts\)"):
        cached_path("s3://models/a.pt", tmp_path)
    check_cache(tmp_path, copies=0)
    server.answers = [{"body": damaged, "headers": headers}, {"headers": headers}]
    assert Path(cached_path("s3://models/a.pt", tmp_path)).read_bytes() == BODY


@pytest.mark.parametrize(
    ("answer", "digest"),
    [
        ({"ETag": '"' + "0" * 32 + '"'}, ("md5", "0" * 32)),
        ({"ETag": '"' + "0" * 32 + '-2"'}, None),
        ({"ETag": '"' + "0" * 32 + '"', "ServerSideEncryption": "aws:kms"}, None),
        ({"ETag": '"' + "0" * 32 + '"', "SSECustomerAlgorithm": "AES256"}, None),
        ({"ChecksumSHA256": "q80=", "ETag": '"' + "0" * 32 + '"'}, ("sha256", "abcd")),
        ({"ChecksumSHA256": "q80=-2", "ETag": '"' + "0" * 32 + '-2"'}, None),
        ({}, None),
    ],
)
def test_s3_hashes_that_are_of_the_content(answer, digest):
    assert file_utils.s3_digest(answer) == digest


def test_s3_object_with_a_checksum_and_one_in_parts(bucket, tmp_path):
    bucket.put_object(Bucket="models", Key="checked.pt", Body=BODY, ChecksumAlgorithm="SHA256")
    assert Path(cached_path("s3://models/checked.pt", tmp_path)).read_bytes() == BODY
    upload = bucket.create_multipart_upload(Bucket="models", Key="parts.pt")["UploadId"]
    address = {"Bucket": "models", "Key": "parts.pt", "UploadId": upload}
    parts = [
        {"PartNumber": number, "ETag": bucket.upload_part(**address, PartNumber=number, Body=part)["ETag"]}
        for number, part in ((1, bytes(5 << 20)), (2, BODY))
    ]
    bucket.complete_multipart_upload(**address, MultipartUpload={"Parts": parts})
    assert Path(cached_path("s3://models/parts.pt", tmp_path)).read_bytes() == bytes(5 << 20) + BODY
