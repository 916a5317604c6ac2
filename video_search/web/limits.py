"""Limits of the search page's server: the size of a request, and how many it answers at once."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

MAX_CHARACTERS = 2000
MAX_TOP = 100
MAX_QUERY_BYTES = 64 << 10  # JSON may write each character as an escape of 12 bytes
MAX_WAITING = 64  # searches, the running one included
MAX_UPLOADS = 4  # each fills the temporary folder with a whole video
MAX_DECODING = 4  # processes for the frames of results; each upload has another one
SILENT_SECONDS = 20  # between two parts of a body
SLOW_SECONDS = 30  # after which a body must have arrived at this rate
SLOW_BYTES_PER_SECOND = 16 << 10

# A browser revalidates its copy each time, because files and indexes change behind the same address.
REVALIDATE = {"Cache-Control": "private, no-cache"}


class RequestLimit:
    """At most `places` requests at once; further ones get 503. Used by the event loop's thread alone."""

    def __init__(self, places: int, busy: str):
        """`busy` is the message of a refusal."""
        self.places, self.busy, self.taken = places, busy, 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        if self.taken >= self.places:
            raise HTTPException(503, self.busy, {"Retry-After": "2"})
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


async def while_connected(request: Request, work: Coroutine) -> Any:
    """Return the result of `work`; cancel it and raise ClientDisconnect when the client leaves. The body is read."""
    task, leaving = asyncio.create_task(work), asyncio.create_task(disconnection(request))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        leaving.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def disconnection(request: Request) -> None:
    """Wait until the client leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class QuietEnd:
    """ASGI middleware that answers the requests which the end of the server cancels."""

    def __init__(self, app: Callable):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        is_started = False

        async def send_noted(message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            await self.app(scope, receive, send_noted)
        except asyncio.CancelledError:
            if scope["type"] != "http":
                raise
            if not is_started:
                await JSONResponse({"detail": "The server is ending."}, 503)(scope, receive, send)


def require_type(request: Request, media_type: str) -> None:
    """Raise 415 for a body of another type: browsers send HTML forms from any site without a preflight request."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != media_type:
        raise HTTPException(415, f"The body must be {media_type}.")


async def limited_body(request: Request, limit: int, refusal: str) -> AsyncIterator[bytes]:
    """Yield the parts of the body.

    Raises: 413 as soon as they, or the announced length, exceed `limit` bytes; 408 if they arrive too slowly.
    """
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit:
        raise HTTPException(413, refusal)
    size, started = 0, time.monotonic()
    parts = aiter(request.stream())
    while True:
        left = started + SLOW_SECONDS + size / SLOW_BYTES_PER_SECOND - time.monotonic()
        try:
            part = await asyncio.wait_for(anext(parts), min(SILENT_SECONDS, left))
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError as error:
            raise HTTPException(408, "The request arrives too slowly.") from error
        size += len(part)
        if size > limit:
            raise HTTPException(413, refusal)
        yield part
