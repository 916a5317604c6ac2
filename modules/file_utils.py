"""cached_path: a local path, or a file fetched from https:// or s3:// into the cache, as a local path."""

import hashlib
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10
READ_SECONDS = 60
# Pauses before the second, third and fourth attempt.
RETRY_SECONDS = (1.0, 3.0, 9.0)
# Request timeout, too many requests; every 5xx too.
_RETRY_STATUS = (408, 429)
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class _RemoteFile:
    """An open download: what names its version ("" if nothing does), its size if known, and its bytes."""

    version: str
    length: int | None
    chunks: Iterator[bytes]


class _TemporaryFailure(Exception):
    """A download failed in a way that another attempt may not."""


def cached_path(url_or_path: str | os.PathLike, cache_dir: str | os.PathLike | None = None) -> str:
    """The local path of a file that is given by path or URL.

    A remote file is fetched once per version: its name in the cache comes from the URL and the ETag (or
    Last-Modified), so a file that changed is fetched anew; without either, the first copy is kept for good.  It
    appears under that name only when complete.  When the server can not be reached, the copy fetched last is
    used, with a logged warning.

    Args:
        url_or_path: a path (returned as it is), https://, http:// or s3://bucket/key.  S3 credentials, region and
            endpoint are boto3's usual settings.
        cache_dir: default: the environment's CLIP4CLIP_CACHE, else ~/.cache/clip4clip.

    Raises:
        FileNotFoundError: no such path, or the server answers that there is no such file.
        ValueError: another scheme, or an s3:// without bucket or key.
        OSError: the download failed; the message names the URL without credentials and query.
    """
    location = os.fspath(url_or_path)
    scheme, separator, _ = location.partition("://")
    if not separator:
        if not os.path.exists(location):
            raise FileNotFoundError(f"no such file: {location}")
        return location
    if scheme.lower() in ("http", "https"):
        open_remote = _open_http
    elif scheme.lower() == "s3":
        open_remote = _open_s3
    else:
        raise ValueError(f"unknown scheme {scheme!r}: give a local path, https://, http:// or s3://bucket/key")

    cache = Path(cache_dir or os.environ.get("CLIP4CLIP_CACHE") or "~/.cache/clip4clip").expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    return str(_fetch(location, open_remote, cache))


def _fetch(url: str, open_remote: Callable[[str], AbstractContextManager[_RemoteFile]], cache: Path) -> Path:
    """The cached copy of the URL's present version, after as many attempts as it takes and RETRY_SECONDS allows."""
    url_hash = _sha256(url)
    for pause in (*RETRY_SECONDS, None):
        try:
            with open_remote(url) as remote:
                target = cache / f"{url_hash}.{_sha256(remote.version)}{_suffix(url)}"
                if not target.exists():
                    _write(remote, target, description=PurePosixPath(_public_url(url)).name)
                return target
        except _TemporaryFailure as failure:
            reason = str(failure)
        if pause is not None:
            logger.info("%s: %s; next attempt in %g s", _public_url(url), reason, pause)
            time.sleep(pause)

    copies = sorted(cache.glob(f"{url_hash}.*"), key=lambda path: path.stat().st_mtime)
    if not copies:
        raise OSError(f"cannot download {_public_url(url)}: {reason} ({len(RETRY_SECONDS) + 1} attempts)")
    logger.warning("cannot reach %s (%s): using the copy fetched before, %s", _public_url(url), reason, copies[-1])
    return copies[-1]


def _write(remote: _RemoteFile, target: Path, description: str) -> None:
    """Writes the file under a name of its own and renames it when it is complete."""
    # Several processes may fetch the same file at once: each writes its own, and the last rename wins.
    partial = target.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with (
            open(partial, "wb") as file,
            # disable=None: no bar where the output is not a terminal.
            tqdm(total=remote.length, unit="B", unit_scale=True, desc=description, disable=None) as progress,
        ):
            for chunk in remote.chunks:
                file.write(chunk)
                progress.update(len(chunk))
        written = partial.stat().st_size
        if remote.length is not None and written != remote.length:
            raise _TemporaryFailure(f"got {written} of {remote.length} bytes")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _open_http(url: str) -> Iterator[_RemoteFile]:
    import requests

    permanent = (
        requests.exceptions.InvalidURL,
        requests.exceptions.InvalidSchema,
        requests.exceptions.MissingSchema,
        requests.exceptions.TooManyRedirects,
    )
    try:
        # Unencoded, so that Content-Length counts the bytes of the file.
        headers = {"Accept-Encoding": "identity"}
        with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as response:
            _check_status(url, response.status_code, response.reason)
            length = response.headers.get("Content-Length", "")
            is_plain = response.headers.get("Content-Encoding", "identity") == "identity"
            yield _RemoteFile(
                version=response.headers.get("ETag") or response.headers.get("Last-Modified") or "",
                length=int(length) if is_plain and length.isdecimal() else None,
                chunks=response.iter_content(_CHUNK_BYTES),
            )
    # `from None`: the messages of requests quote the whole URL, which may hold credentials.
    except permanent as error:
        raise OSError(f"cannot download {_public_url(url)}: {type(error).__name__}") from None
    except requests.RequestException as error:
        raise _TemporaryFailure(type(error).__name__) from None


@contextmanager
def _open_s3(url: str) -> Iterator[_RemoteFile]:
    bucket, _, key = url.partition("://")[2].partition("/")
    if not bucket or not key:
        raise ValueError(f"an S3 address is s3://bucket/key, got {_public_url(url)}")
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, IncompleteReadError

    # One attempt each: the retries are _fetch's, which also cover a body that breaks off.
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"total_max_attempts": 1, "mode": "standard"},
    )
    try:
        answer = boto3.client("s3", config=config).get_object(Bucket=bucket.rpartition("@")[2], Key=key)
        with closing(answer["Body"]) as body:
            yield _RemoteFile(
                version=answer.get("ETag", ""), length=answer["ContentLength"], chunks=body.iter_chunks(_CHUNK_BYTES)
            )
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        _check_status(url, status, error.response.get("Error", {}).get("Code", ""))
        raise
    except (ConnectionError, HTTPClientError, IncompleteReadError) as error:
        raise _TemporaryFailure(type(error).__name__) from None
    except BotoCoreError as error:
        raise OSError(f"cannot download {_public_url(url)}: {type(error).__name__}") from None


def _check_status(url: str, status: int, reason: str) -> None:
    """Nothing for 200; _TemporaryFailure where another attempt may help, else an OSError."""
    if status == 200:
        return
    if status >= 500 or status in _RETRY_STATUS:
        raise _TemporaryFailure(f"HTTP {status} {reason}")
    error = FileNotFoundError if status in (404, 410) else OSError
    raise error(f"cannot download {_public_url(url)}: HTTP {status} {reason}") from None


def _public_url(url: str) -> str:
    """The URL without user, password, query and fragment, any of which may be secret."""
    scheme, _, rest = url.partition("://")
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _suffix(url: str) -> str:
    """The file type at the end of the URL's path, which tells a loader what it reads; "" if there is none."""
    suffix = PurePosixPath(_public_url(url).partition("://")[2]).suffix
    return suffix if re.fullmatch(r"\.\w{1,16}", suffix, re.ASCII) else ""


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
