"""A stand-in for a Qdrant server: the REST requests of the client over a real socket, answered by the embedded mode.

It shows that what the store sends is whole and parses, not that a real server does the same with it.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pydantic_core import to_jsonable_python
from qdrant_client import QdrantClient, models


class StandIn(ThreadingHTTPServer):
    """Record `requests`; `answers` (status, body) are sent first, in place of the real ones."""

    daemon_threads = True

    def __init__(self, version: str = "1.17.0") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.version = version
        self.client = QdrantClient(":memory:")
        self.requests: list[tuple[str, str, bytes]] = []
        self.keys: list[str | None] = []
        self.answers: list[tuple[int, bytes]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, method: str, path: str, body: dict) -> object:
        name, _, action = path.removeprefix("/collections/").partition("/")
        match method, action:
            case "GET", "exists":
                return {"exists": self.client.collection_exists(name)}
            case "GET", "":
                return self.client.get_collection(name)
            case "PUT", "":
                vectors = models.CreateCollection(**body).vectors
                return self.client.create_collection(name, vectors_config=vectors, metadata=body["metadata"])
            case "PATCH", "":
                return self.client.update_collection(name, metadata=body["metadata"])
            case "PUT", "points":
                return self.client.upsert(name, models.PointsList(**body).points)
            case "POST", "points":
                asked = models.PointRequest(**body)
                return self.client.retrieve(name, asked.ids, asked.with_payload, asked.with_vector)
            case "POST", "points/delete":
                return self.client.delete(name, models.PointIdsList(**body))
            case "POST", "points/count":
                return self.client.count(name, models.CountRequest(**body).filter)
            case "POST", "points/scroll":
                asked = models.ScrollRequest(**body)
                points, offset = self.client.scroll(
                    name, limit=asked.limit, offset=asked.offset, with_payload=asked.with_payload
                )
                return {"points": points, "next_page_offset": offset}
            case "POST", "points/query":
                asked = models.QueryRequest(**body)
                return self.client.query_points(
                    name, asked.query, asked.using, asked.prefetch, limit=asked.limit,
                    with_payload=asked.with_payload, with_vectors=asked.with_vector,
                )  # fmt: skip
        raise NotImplementedError(f"{method} {path}")


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, self.path, body))
        self.server.keys.append(self.headers.get("api-key"))
        if self.server.answers:
            status, content = self.server.answers.pop(0)
        elif path == "/":
            status, content = 200, json.dumps({"title": "stand-in", "version": self.server.version}).encode()
        else:
            result = self.server.answer(self.command, path, json.loads(body or b"{}"))
            status = 200
            content = json.dumps({"result": to_jsonable_python(result), "status": "ok", "time": 0}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_PATCH = handle_any

    def log_message(self, *arguments: object) -> None:
        """Log nothing: the tests read `requests`."""


@contextmanager
def stand_in(version: str = "1.17.0") -> Iterator[StandIn]:
    with StandIn(version) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
