"""The search as a web page: `create_app` makes the FastAPI application that scripts/serve.py runs.

    GET  /  /page.js  /page.css  /icon.svg     the page, which loads nothing from elsewhere
    GET  /api/about                            the index, and the limits of a query
    POST /api/search                           {"text": "a red circle", "top": 10}
    POST /api/example?top=10                   a video file as the body, application/octet-stream
    GET  /api/similar?video=ID&top=10          a video of the index as the example
    GET  /video/ID                             its file, in ranges
    GET  /frame/ID/N.jpg                       its sampled frame N, from 0

An ID is `clips.clip_id` of a video that the index lists. Errors are {"detail": text}, worded for the page's user.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from os import PathLike
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from video_search.web.api import Searcher, api_routes, reasons
from video_search.web.clips import Clips, ClipUnavailable
from video_search.web.decoding import Decoders
from video_search.web.frames import Frames
from video_search.web.limits import MAX_DECODING, QuietEnd
from video_search.web.media import media_routes
from video_search.web.sites import LOCAL_HOSTS, HostCheck, SafeHeaders


def create_app(
    search: Any,
    *,
    allowed_hosts: Sequence[str] = LOCAL_HOSTS,
    any_address: bool = False,
    media_roots: Sequence[str | PathLike] = (),
    max_upload_bytes: int = 64 << 20,
    decoding_seconds: float = 60,
) -> FastAPI:
    """Return the application that searches with `search`, a `video_search.search.VideoSearch`.

    Args:
        allowed_hosts: names of this server: Host headers, without their port, of the requests that it answers.
        any_address: whether IP addresses are accepted besides.
        media_roots: folders whose files may be shown when links of the index's folder lead there.
        max_upload_bytes: size limit of an example video.
        decoding_seconds: time limit for the frames of a video.
    """
    clips = Clips(search, media_roots)
    searcher = Searcher(search, clips, max_upload_bytes, decoding_seconds)
    decoders = Decoders(MAX_DECODING, decoding_seconds)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await searcher.close()
        await decoders.close()

    # Without a description of the interface, its pages, which load scripts from the internet, do not exist either.
    app = FastAPI(title="Video search", openapi_url=None, lifespan=lifespan)
    app.add_exception_handler(ClipUnavailable, answer_unavailable_clip)
    app.add_exception_handler(RequestValidationError, answer_bad_parameters)
    app.add_exception_handler(ClientDisconnect, answer_disconnected_client)
    app.include_router(api_routes(searcher))
    app.include_router(media_routes(clips, Frames(clips, decoders, search.store.settings)))
    app.add_middleware(HostCheck, allowed_hosts=allowed_hosts, any_address=any_address)
    app.add_middleware(QuietEnd)
    app.add_middleware(SafeHeaders)
    return app


async def answer_unavailable_clip(request: Request, error: ClipUnavailable) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, error.status)


async def answer_bad_parameters(request: Request, error: RequestValidationError) -> JSONResponse:
    return JSONResponse({"detail": reasons(error)}, 422)


async def answer_disconnected_client(request: Request, error: ClientDisconnect) -> Response:
    """Return an answer that nobody reads; without it, the log would report a closed page as a server error."""
    return Response(status_code=400)
