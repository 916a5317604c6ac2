"""The search as a web page: `create_app` makes the FastAPI application that scripts/serve.py runs.

    GET  /  /page.js  /page.css  /icon.svg     the page, which loads nothing from elsewhere
    GET  /api/about                            what is searched, and the limits
    POST /api/search                           {"text": "a red circle", "top": 10}
    POST /api/example?top=10                   a video file as the body, application/octet-stream
    GET  /api/similar?video=ID&top=10          a video of the index as the example
    GET  /video/ID                             its file, in ranges
    GET  /frame/ID/N.jpg                       its sampled frame N, from 0

An ID is `clips.clip_id` of a video that the index lists.  Errors are {"detail": text}, in words for the page's user.
"""

import asyncio
import mimetypes
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from dataloaders.rawvideo_util import VideoReadError
from video_search.web.clips import Clips, NoSuchClip, shown

PAGE_FOLDER = Path(__file__).parent / "page"
PAGE_FILES = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css", "/icon.svg": "icon.svg"}
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]", "::1")

MAX_CHARACTERS = 2000
MAX_TOP = 100
MAX_QUERY_BYTES = 64 << 10  # JSON may write each of the characters as an escape of 12 bytes
MAX_WAITING = 64  # searches, the running one included
MAX_UPLOADS = 4  # each takes room for a whole video in the temporary folder
DECODING_THREADS = 4

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Another site's page cannot show these videos, nor learn from loading them what is in the index.
    "Cross-Origin-Resource-Policy": "same-origin",
}
# A browser asks again whether what it keeps is still the same, as files and indexes change behind the same address.
REVALIDATE = {"Cache-Control": "private, no-cache"}

Top = Annotated[int, Query(ge=1, le=MAX_TOP)]


class TextSearch(BaseModel, extra="forbid", strict=True):
    """The body of /api/search."""

    text: str = Field(max_length=MAX_CHARACTERS)
    top: int = Field(default=10, ge=1, le=MAX_TOP)


class Room:
    """At most `places` requests at once; the next one is told to come again.  Used by the event loop's thread alone."""

    def __init__(self, places: int, busy: str):
        self.places = places
        self.busy = busy
        self.taken = 0

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
    """Raise 403 for a request that another site's page has made the browser send."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is None and origin is not None:  # browsers leave the first out where the address is neither https nor local
        site = "same-origin" if urlsplit(origin).netloc == request.headers.get("host") else "cross-site"
    if site not in (None, "same-origin", "none"):
        raise HTTPException(403, "Only the page of this server may search here.")


def require_type(request: Request, media_type: str) -> None:
    """Raise 415 for a body of another type: those of HTML forms come from any site without the browser asking first."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != media_type:
        raise HTTPException(415, f"The body has to be {media_type}.")


async def limited_body(request: Request, limit: int, refusal: str) -> AsyncIterator[bytes]:
    """The parts of the body; raises 413 as soon as they, or what is promised of them, exceed `limit` bytes."""
    promised = request.headers.get("content-length", "0")
    if promised.isdecimal() and int(promised) > limit:
        raise HTTPException(413, refusal)
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise HTTPException(413, refusal)
        yield part


async def read_text_search(request: Request) -> TextSearch:
    """The body of /api/search; raises 413, 415 or 422 with what is wrong in it."""
    require_type(request, "application/json")
    body = b"".join([part async for part in limited_body(request, MAX_QUERY_BYTES, "The query is too long.")])
    try:
        query = TextSearch.model_validate_json(body)
    except ValidationError as error:
        reasons = [f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in error.errors()]
        raise HTTPException(422, "; ".join(reasons)) from error
    if not query.text.strip():
        raise HTTPException(422, "Type a few words to search for.")
    return query


def as_json(results: Any, clips: Clips) -> dict:
    """What the page needs of `video_search.search.Results`."""
    return {
        "is_video": results.query.is_video,
        "notice": results.notice,
        "seconds": results.seconds,
        "scanned": results.scanned,
        "hits": [
            {
                "video": clips.add(hit.path),
                "name": shown(hit.path),
                "score": hit.score,
                "moments": [vars(moment) for moment in hit.moments],
                "words": [vars(word) for word in hit.words],
            }
            for hit in results.hits
        ],
    }


class Searcher:
    """Runs searches one after the other in a thread of their own, as the model is for one thread at a time."""

    def __init__(self, search: Any, clips: Clips, max_upload_bytes: int):
        self.search = search
        self.clips = clips
        self.max_upload_bytes = max_upload_bytes
        self.waiting = Room(MAX_WAITING, "The server is busy: too many searches are waiting. Try again in a moment.")
        self.uploads = Room(MAX_UPLOADS, "The server is busy: too many videos are being sent. Try again in a moment.")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")

    async def run(self, find: Callable[[], Any]) -> dict:
        """What `find` returns, for the page; raises 503 where too many wait, and 422 for a query that finds nothing."""
        with self.waiting.enter():
            try:
                results = await asyncio.get_running_loop().run_in_executor(self._thread, find)
            except VideoReadError as error:
                raise HTTPException(422, f"This is no video that can be read: {error.reason}.") from error
            except ValueError as error:
                raise HTTPException(422, str(error)) from error
            except OSError as error:
                raise HTTPException(503, f"The index cannot be searched: {error}") from error
        return as_json(results, self.clips)

    async def by_example(self, request: Request, top: int) -> dict:
        """Search with the video that is the body of the request."""
        refusal = f"The video is too large: at most {self.max_upload_bytes / (1 << 20):g} MB are taken."
        with self.uploads.enter(), tempfile.NamedTemporaryFile(prefix="video_search_") as file:
            async for part in limited_body(request, self.max_upload_bytes, refusal):
                await asyncio.to_thread(file.write, part)
            file.flush()
            return await self.run(partial(self.search.video, file.name, top=top))

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def about(search: Any, clips: Clips, max_upload_bytes: int) -> dict:
    """What the page says of the index, and the limits that it holds its user to."""
    notice = "" if clips.folder.is_dir() else f"The folder of the index, {shown(str(clips.folder))}, is gone."
    return {
        "videos": len(clips),
        "head": search.store.settings["sim_header"],
        "folder": shown(clips.folder.name),
        "notice": notice,
        "max_characters": MAX_CHARACTERS,
        "max_top": MAX_TOP,
        "max_upload_bytes": max_upload_bytes,
    }


def api_routes(searcher: Searcher) -> APIRouter:
    """The addresses that search."""
    router = APIRouter(prefix="/api", dependencies=[Depends(refuse_other_sites)])
    search, clips = searcher.search, searcher.clips

    @router.get("/about")
    def read_about() -> dict:
        return about(search, clips, searcher.max_upload_bytes)

    @router.post("/search")
    async def search_text(query: Annotated[TextSearch, Depends(read_text_search)]) -> dict:
        return await searcher.run(partial(search.text, query.text, top=query.top))

    @router.post("/example")
    async def search_example(request: Request, top: Top = 10) -> dict:
        require_type(request, "application/octet-stream")
        return await searcher.by_example(request, top)

    @router.get("/similar")
    async def search_similar(video: str, top: Top = 10) -> dict:
        return await searcher.run(partial(search.similar, clips.path(video), top=top))

    return router


def file_routes(clips: Clips, decoding: ThreadPoolExecutor) -> APIRouter:
    """The addresses of the page's own files, of the videos and of their frames."""
    router = APIRouter()

    @router.get("/")
    @router.get("/page.js")
    @router.get("/page.css")
    @router.get("/icon.svg")
    def read_page(request: Request) -> FileResponse:
        return FileResponse(PAGE_FOLDER / PAGE_FILES[request.url.path], headers=REVALIDATE)

    @router.get("/video/{name}")
    def read_video(name: str) -> FileResponse:
        file = clips.file(name)
        kind = mimetypes.guess_type(file.name)[0] or ""
        # Whatever the file is called, the browser is never told to take it for a page.
        media_type = kind if kind.startswith("video/") else "application/octet-stream"
        return FileResponse(file, media_type=media_type, headers=REVALIDATE)

    @router.get("/frame/{name}/{number}.jpg")
    async def read_frame(name: str, number: Annotated[int, PathParameter(ge=0)], request: Request) -> Response:
        frame, etag = await asyncio.get_running_loop().run_in_executor(decoding, clips.frame, name, number)
        headers = {**REVALIDATE, "ETag": etag}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(frame, media_type="image/jpeg", headers=headers)

    return router


async def no_such_clip(request: Request, error: NoSuchClip) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 404)


async def sender_left(request: Request, error: ClientDisconnect) -> Response:
    """Nobody reads this answer; without it, the log would call a closed page an error of the server."""
    return Response(status_code=400)


def create_app(search: Any, *, allowed_hosts: Sequence[str] = LOCAL_HOSTS, max_upload_bytes: int = 64 << 20) -> FastAPI:
    """The application that searches with `search`, a `video_search.search.VideoSearch`.

    It answers only requests whose Host header, without its port, is one of `allowed_hosts`: another site's name that is
    made to point at this machine is none of them.
    """
    clips = Clips(search.store)
    searcher = Searcher(search, clips, max_upload_bytes)
    decoding = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="frames")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        searcher.close()
        decoding.shutdown(wait=False, cancel_futures=True)

    # Without the description of the interface there are no pages of it, which load scripts from the internet.
    app = FastAPI(title="Video search", openapi_url=None, lifespan=lifespan)
    app.add_exception_handler(NoSuchClip, no_such_clip)
    app.add_exception_handler(ClientDisconnect, sender_left)
    app.include_router(api_routes(searcher))
    app.include_router(file_routes(clips, decoding))
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False)
    app.add_middleware(SafeHeaders)
    return app
