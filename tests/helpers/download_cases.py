"""For the tests of downloads: an HTTP server with given answers, and checks of the cache and the messages."""

import ssl
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from modules import file_utils

BODY = bytes(range(256)) * 9000  # 2.3 MB: more than two chunks
SECRET = "hunter2"
CONDITIONS = ("If-Range", "If-Match")  # of http and of S3


class Server:
    """An HTTP server whose answers are a list of dictionaries; the last one is repeated.

    An answer with "ranges" keeps to the headers Range and If-Range; the others take no notice of them.
    """

    def __init__(self, certificate=None):
        self.answers = [{}]
        self.requests = []
        self.released = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                owner.requests.append((self.path, dict(self.headers)))
                answer = owner.answers.pop(0) if len(owner.answers) > 1 else owner.answers[0]
                status, body = answer.get("status", 200), answer.get("body", BODY)
                headers = {"ETag": '"one"'} | answer.get("headers", {})
                start = int(self.headers.get("Range", "bytes=0-")[6:-1])
                if answer.get("ranges") and start and headers["ETag"] in (self.headers[name] for name in CONDITIONS):
                    headers = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} | headers
                    status, body = 206, body[start:]
                self.send_response(status)
                headers = {"Content-Length": str(len(body))} | headers
                for name, value in headers.items():
                    if value is not None:
                        self.send_header(name, value)
                self.end_headers()
                # The client hangs up without the body where it has this version already.
                with suppress(ConnectionError):
                    self.wfile.write(body[: answer.get("send", len(body))])
                    owner.released.wait(answer.get("stall", 0))

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.address = f"{'https' if certificate else 'http'}://127.0.0.1:{self.http.server_port}"

    def stop(self):
        self.released.set()
        if self.thread.is_alive():
            self.http.shutdown()
            self.http.server_close()
            self.thread.join()


@contextmanager
def running_server(monkeypatch, certificate=None) -> Iterator[Server]:
    """Start a server (HTTPS if given a certificate file) that requests and boto3 use directly and retry at once."""
    monkeypatch.setattr(file_utils, "RETRY_SECONDS", (0.0, 0.0, 0.0))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    server = Server(certificate)
    yield server
    server.stop()


def check_cache(cache: Path, copies: int) -> None:
    """Assert that the cache holds this many files, each of them whole."""
    files = sorted(cache.iterdir())
    assert len(files) == copies, files
    assert not [file for file in files if file.name.endswith(".partial")]


def check_no_secret(caught) -> None:
    """Assert that neither the message nor the traceback, which a user may paste into an issue, holds the secret."""
    assert SECRET not in "".join(traceback.format_exception_only(caught.value))
    cause = caught.value.__cause__ or (None if caught.value.__suppress_context__ else caught.value.__context__)
    assert cause is None or SECRET not in str(cause)
