"""cached_path: return the local path of a file, after fetching it from https:// or s3:// into the cache if remote."""

import base64
import errno
import logging
import os
import random
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urljoin, urlsplit

from tqdm import tqdm

from modules.whole_files import file_digest, rename_synced, text_sha256

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10
READ_SECONDS = 60
# Pauses before the second attempt and so on; each is randomly up to a half longer, so that clients do not synchronise.
RETRY_SECONDS = (1.0, 3.0, 9.0)
MAX_BYTES = 20 * 10**9
MAX_REDIRECTS = 5
# Request timeout, too many requests; every 5xx too.
_RETRY_STATUS = (408, 429)
# The requested range does not exist, or not in the requested version: the file has changed.
_CHANGED_STATUS = (412, 416)
_OPENAI_HOST = "openaipublic.azureedge.net"
_CHUNK_BYTES = 1 << 20
_ROOM = "make room there, or name another folder by --cache_dir or CLIP4CLIP_CACHE"


@dataclass(frozen=True)
class RemoteFile:
    """An open download of the bytes from `start` on.

    `version` identifies the version of the file ("" if unknown), `length` is the size of the whole file in bytes if
    known, `digest` the name of a hash and its hexadecimal value over the whole file if known.
    """

    version: str
    length: int | None
    start: int
    chunks: Iterator[bytes]
    can_resume: bool
    digest: tuple[str, str] | None = None


@dataclass
class PartialFile:
    """The bytes that the attempts of one download have written so far; with a `version` the next may continue them."""

    path: Path
    version: str = ""

    def size(self) -> int:
        return self.path.stat().st_size if self.version else 0


class TemporaryFailure(Exception):
    """A download failed for a reason that may be gone in another attempt."""


class StartAgain(TemporaryFailure):
    """A temporary failure after which the bytes received so far are useless."""


_Opener = Callable[[str, PartialFile], AbstractContextManager[RemoteFile]]


def cached_path(
    url_or_path: str | os.PathLike,
    cache_dir: str | os.PathLike | None = None,
    *,
    sha256: str | None = None,
    max_bytes: int = MAX_BYTES,
    retry_seconds: Sequence[float] | None = None,
) -> str:
    """Return the local path of a file that is given by path or URL.

    A remote file is fetched once per version: its name in the cache is made of the URL and the ETag (or
    Last-Modified), so a changed file is fetched again; without either, the first copy is kept for good. It appears
    under that name only when complete. An interrupted transfer continues where it stopped if the server supports it,
    and starts again otherwise. If the server cannot be reached, the copy fetched last is used, with a logged warning.

    Args:
        url_or_path: a path (returned unchanged), https://, http:// or s3://bucket/key. S3 credentials, region and
            endpoint are boto3's usual settings.
        cache_dir: default: the environment's CLIP4CLIP_CACHE, else ~/.cache/clip4clip.
        sha256: expected hash in hexadecimal. OpenAI's addresses contain theirs.
        max_bytes: a larger file is refused.
        retry_seconds: the pauses between attempts, one fewer than those; default: RETRY_SECONDS.

    Raises:
        FileNotFoundError: the path, or the file on the server, does not exist.
        ValueError: another scheme, an s3:// without bucket or key, or a local file with another hash.
        OSError: the download failed; the message names the URL without credentials and query.
    """
    location = os.fspath(url_or_path)
    scheme, separator, _ = location.partition("://")
    if not separator:
        if not os.path.exists(location):
            raise FileNotFoundError(f"no such file: {location}")
        if sha256 and file_digest("sha256", Path(location)) != sha256.lower():
            raise ValueError(f"{location} does not have the sha256 {sha256}: the file is damaged or a different one")
        return location
    if not location.isprintable():
        raise ValueError(f"an address must have printable characters only, got {public_url(location)!a}")
    if scheme.lower() in ("http", "https"):
        open_remote = open_http
        sha256 = sha256 or openai_sha256(location)
    elif scheme.lower() == "s3":
        open_remote = open_s3
    else:
        raise ValueError(f"unknown scheme {scheme!r}: give a local path, https://, http:// or s3://bucket/key")

    cache = Path(cache_dir or os.environ.get("CLIP4CLIP_CACHE") or "~/.cache/clip4clip").expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    pauses = RETRY_SECONDS if retry_seconds is None else retry_seconds
    return str(fetch_file(location, open_remote, cache, (sha256 or "").lower(), max_bytes, pauses))


def fetch_file(
    url: str, open_remote: _Opener, cache: Path, sha256: str, max_bytes: int, pauses: Sequence[float]
) -> Path:  # fmt: skip
    """Return the cached copy of the URL's present version, after at most one attempt more than there are pauses."""
    url_hash = text_sha256(url)
    # Several processes may fetch the same file at once: each writes its own, and the last rename wins.
    partial = PartialFile(cache / f".{uuid.uuid4().hex}.partial")
    try:
        for pause in (*pauses, None):
            try:
                with open_remote(url, partial) as remote:
                    target = cache / f"{url_hash}.{text_sha256(remote.version)}{file_suffix(url)}"
                    if not is_whole(target, remote.length, sha256):
                        write_file(remote, partial, url, max_bytes)
                        verify_download(remote, partial, sha256)
                        rename_synced(partial.path, target)
                    return target
            except TemporaryFailure as failure:
                reason = str(failure)
                if isinstance(failure, StartAgain):
                    partial.version = ""
            if pause is not None:
                logger.info("%s: %s; next attempt in about %g s", public_url(url), reason, pause)
                # not the global generator: it is the training's, which must not depend on the network
                time.sleep(pause * random.Random().uniform(1, 1.5))
    finally:
        partial.path.unlink(missing_ok=True)

    copies = [path for path in cache.glob(f"{url_hash}.*") if is_whole(path, None, sha256)]
    if not copies:
        raise OSError(
            f"cannot download {public_url(url)}: {reason} ({len(pauses) + 1} attempts); try again later, or fetch the "
            "file by other means and give its local path"
        )
    copy = max(copies, key=lambda path: path.stat().st_mtime)
    logger.warning("cannot reach %s (%s): using the copy fetched before, %s", public_url(url), reason, copy)
    return copy


def write_file(remote: RemoteFile, partial: PartialFile, url: str, max_bytes: int) -> None:
    """Append the remote bytes to the partial file, or replace its content if they begin at 0."""
    folder = partial.path.parent
    failure = f"cannot download {public_url(url)}"
    needed = (remote.length or 0) - remote.start
    if (remote.length or 0) > max_bytes:
        raise OSError(f"{failure}: {remote.length} bytes, more than the {max_bytes} allowed")
    if needed > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, f"{failure}: {folder} does not have the {needed} bytes free; {_ROOM}")
    if remote.start and remote.version != partial.version:
        raise StartAgain("the file changed meanwhile")
    partial.version = remote.version if remote.can_resume else ""
    size = remote.start
    with (
        # unbuffered: after a full disk, closing a buffered file would write and fail again
        open(partial.path, "r+b" if size else "wb", buffering=0) as file,
        # disable=None: no bar if the output is not a terminal
        tqdm(
            total=remote.length, initial=size, unit="B", unit_scale=True, desc=PurePosixPath(public_url(url)).name,
            disable=None,
        ) as progress,
    ):  # fmt: skip
        file.seek(size)
        for chunk in remote.chunks:
            size += len(chunk)
            if size > max_bytes:
                raise OSError(f"{failure}: more than the {max_bytes} bytes allowed")
            write_all(file, chunk, f"{failure}: cannot write to {folder}")
            progress.update(len(chunk))
        os.fsync(file.fileno())
    if remote.length is not None and size != remote.length:
        raise TemporaryFailure(f"got {size} of {remote.length} bytes")


def write_all(file, chunk: bytes, failure: str) -> None:
    remaining = memoryview(chunk)
    try:
        while remaining:
            remaining = remaining[file.write(remaining) :]
    except OSError as error:
        raise OSError(error.errno, f"{failure}: {error.strerror}; {_ROOM}") from error


def verify_download(remote: RemoteFile, partial: PartialFile, sha256: str) -> None:
    """Raise StartAgain if the file does not have the expected hash."""
    for name, expected in filter(None, (("sha256", sha256) if sha256 else None, remote.digest)):
        found = file_digest(name, partial.path)
        if found != expected:
            raise StartAgain(f"the {name} of the download is {found}, not {expected}")


def is_whole(path: Path, length: int | None, sha256: str) -> bool:
    if not path.is_file() or (length is not None and path.stat().st_size != length):
        return False
    return not sha256 or file_digest("sha256", path) == sha256


@contextmanager
def open_http(url: str, partial: PartialFile) -> Iterator[RemoteFile]:
    import requests

    # not compressed, so that Content-Length counts the bytes of the file
    headers = {"Accept-Encoding": "identity"}
    start = partial.size()
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": partial.version}
    try:
        with requests.Session() as session:
            session.max_redirects = MAX_REDIRECTS
            with session.get(
                url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS),
                hooks={"response": refuse_downgrade},
            ) as response:  # fmt: skip
                check_status(url, response.status_code, response.reason, partial)
                yield http_file(response, start)
    # `from None`: the messages of requests quote the whole URL, which may hold credentials.
    except (ValueError, requests.TooManyRedirects) as error:  # bad addresses, also those of redirects, are ValueErrors
        raise OSError(f"cannot download {public_url(url)}: {type(error).__name__}; check the address") from None
    except requests.RequestException as error:
        raise TemporaryFailure(type(error).__name__) from None


def http_file(response, start: int) -> RemoteFile:
    """Return the file in a response with status 200, or 206 to a request for the bytes from `start` on."""
    etag = response.headers.get("ETag", "")
    is_plain = response.headers.get("Content-Encoding", "identity") == "identity"
    if response.status_code == 206:
        length = length_of_rest(response.headers.get("Content-Range", ""), start)
    else:
        start = 0
        announced = response.headers.get("Content-Length", "")
        length = int(announced) if is_plain and re.fullmatch(r"\d{1,18}", announced, re.ASCII) else None
    return RemoteFile(
        version=etag or response.headers.get("Last-Modified") or "",
        length=length,
        start=start,
        chunks=response.iter_content(_CHUNK_BYTES),
        # A weak ETag does not promise the same bytes.
        can_resume=is_plain and etag.startswith('"'),
    )


def length_of_rest(content_range: str, start: int) -> int:
    """Return the length of the whole file; raises StartAgain if the response is not its bytes from `start` on."""
    answered = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", content_range, re.ASCII)
    if not answered or int(answered[1]) != start or int(answered[2]) + 1 != int(answered[3]):
        raise StartAgain("the server sent a different part of the file than requested")
    return int(answered[3])


def refuse_downgrade(response, **_) -> None:
    """Raise OSError for a redirect from https:// to an address that others on the network can read and change."""
    if response.is_redirect and urlsplit(response.url).scheme == "https":
        target = urljoin(response.url, response.headers["Location"])
        if urlsplit(target).scheme != "https":
            raise OSError(
                f"cannot download {public_url(response.url)}: it redirects to {public_url(target)}, which is not "
                "https://; if you trust that address, give it directly"
            )


@contextmanager
def open_s3(url: str, partial: PartialFile) -> Iterator[RemoteFile]:
    bucket, _, key = url.partition("://")[2].partition("/")
    bucket = bucket.rpartition("@")[2]
    if not bucket or not key:
        raise ValueError(f"an S3 address is s3://bucket/key, got {public_url(url)}")
    import boto3
    from botocore import exceptions
    from botocore.config import Config

    # one attempt each: fetch_file retries, also after an interrupted body
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"total_max_attempts": 1, "mode": "standard"},
    )
    start = partial.size()
    which = {"Range": f"bytes={start}-", "IfMatch": partial.version} if start else {"ChecksumMode": "ENABLED"}
    try:
        answer = boto3.client("s3", config=config).get_object(Bucket=bucket, Key=key, **which)
        is_rest = answer["ResponseMetadata"]["HTTPStatusCode"] == 206
        length = length_of_rest(answer.get("ContentRange", ""), start) if is_rest else answer["ContentLength"]
        with closing(answer["Body"]) as body:
            yield RemoteFile(
                version=answer.get("ETag", ""),
                length=length,
                start=start if is_rest else 0,
                chunks=body.iter_chunks(_CHUNK_BYTES),
                can_resume="ETag" in answer,
                digest=s3_digest(answer),
            )
    except exceptions.ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        check_status(url, status, error.response.get("Error", {}).get("Code", ""), partial)
        raise
    except (
        exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError,
        exceptions.FlexibleChecksumError,
    ) as error:  # fmt: skip
        raise TemporaryFailure(type(error).__name__) from None
    except exceptions.BotoCoreError as error:
        advice = "check the address and boto3's settings (credentials, region, endpoint)"
        raise OSError(f"cannot download {public_url(url)}: {type(error).__name__}; {advice}") from None


def s3_digest(answer: dict) -> tuple[str, str] | None:
    """Return S3's hash of the object's content, None for objects uploaded in parts, which have hashes of hashes."""
    checksum = answer.get("ChecksumSHA256", "")
    if checksum and "-" not in checksum:
        return "sha256", base64.b64decode(checksum).hex()
    etag = answer.get("ETag", "").strip('"')
    # encrypted with a key of KMS or of the customer, an object has an ETag that is not a hash of its content
    is_md5 = answer.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in answer
    return ("md5", etag) if is_md5 and re.fullmatch(r"[0-9a-f]{32}", etag) else None


def check_status(url: str, status: int, reason: str, partial: PartialFile) -> None:
    """Raise TemporaryFailure for a status that may pass, OSError for any other without the requested file or part."""
    if status == 200 or (status == 206 and partial.size()):
        return
    if status in _CHANGED_STATUS and partial.size():
        raise StartAgain(f"the file changed meanwhile (HTTP {status})")
    if status >= 500 or status in _RETRY_STATUS:
        raise TemporaryFailure(f"HTTP {status} {reason}")
    error = FileNotFoundError if status in (404, 410) else OSError
    advice = "; check the credentials, and that the address has not expired" if status in (401, 403) else ""
    raise error(f"cannot download {public_url(url)}: HTTP {status} {reason}{advice}") from None


def public_url(url: str) -> str:
    """Return the URL without user, password, query and fragment, any of which may be secret."""
    scheme, _, rest = url.partition("://")
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    host = host.rpartition("@")[2]
    # a port that is not a number is the beginning of a password with an unescaped / ? or # in it
    if not re.fullmatch(r"(\[[^]]*\]|[^:]*)(:\d*)?", host):
        return f"{scheme}://***"
    return f"{scheme}://{host}{slash}{path}"


def openai_sha256(url: str) -> str | None:
    """Return the hash in an OpenAI address: the folder that holds the file. None for other addresses."""
    found = re.match(rf"https?://{re.escape(_OPENAI_HOST)}/(?:.*/)?([0-9a-f]{{64}})/[^/]+$", url)
    return found[1] if found else None


def file_suffix(url: str) -> str:
    """Return the suffix of the URL's path, by which loaders recognise the file type; "" without one."""
    suffix = PurePosixPath(public_url(url).partition("://")[2]).suffix
    return suffix if re.fullmatch(r"\.\w{1,16}", suffix, re.ASCII) else ""
