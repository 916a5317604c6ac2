"""Limits of the search page's server: the size of a request, and how many it answers at once."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from fastapi import HTTPException, Request

MAX_CHARACTERS = 2000
MAX_TOP = 100
MAX_QUERY_BYTES = 64 << 10  # JSON may write each character as an escape of 12 bytes
MAX_WAITING = 64  # searches, the running one included
MAX_UPLOADS = 4  # each fills the temporary folder with a whole video
DECODING_THREADS = 4

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


def require_type(request: Request, media_type: str) -> None:
    """Raise 415 for a body of another type: browsers send HTML forms from any site without a preflight request."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != media_type:
        raise HTTPException(415, f"The body must be {media_type}.")


async def limited_body(request: Request, limit: int, refusal: str) -> AsyncIterator[bytes]:
    """Yield the parts of the body; raise 413 as soon as they, or the announced length, exceed `limit` bytes."""
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit:
        raise HTTPException(413, refusal)
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise HTTPException(413, refusal)
        yield part
