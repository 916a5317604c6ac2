"""Limits of the search page's server: the requests it refuses, how many it runs at once, and the headers it adds."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from fastapi import HTTPException, Request

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]", "::1")

MAX_CHARACTERS = 2000
MAX_TOP = 100
MAX_QUERY_BYTES = 64 << 10  # JSON may write each character as an escape of 12 bytes
MAX_WAITING = 64  # searches, the running one included
MAX_UPLOADS = 4  # each fills the temporary folder with a whole video
DECODING_THREADS = 4

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Another site's page can neither show these videos nor learn from loading them which ones the index has.
    "Cross-Origin-Resource-Policy": "same-origin",
}
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


class SafeHeaders:
    """ASGI middleware that adds `HEADERS` to every response."""

    def __init__(self, app: Callable):
        self.app = app
        self.headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope, receive, send) -> None:
        async def send_safely(message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self.headers]}
            await send(message)

        await self.app(scope, receive, send_safely)


def refuse_other_sites(request: Request) -> None:
    """Raise 403 for a request that another site's page made the browser send."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is None and origin is not None:  # browsers omit Sec-Fetch-Site if the address is neither https nor local
        site = "same-origin" if urlsplit(origin).netloc == request.headers.get("host") else "cross-site"
    if site not in (None, "same-origin", "none"):
        raise HTTPException(403, "Only the page of this server may search here.")


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
