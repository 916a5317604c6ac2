"""The addresses that search: bodies and parameters in, one search at a time, results as JSON out."""

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError

from dataloaders.rawvideo_util import VideoReadError
from video_search.web.clips import Clips, display_path
from video_search.web.decoding import Decoders
from video_search.web.limits import (
    MAX_CHARACTERS,
    MAX_QUERY_BYTES,
    MAX_TOP,
    MAX_UPLOADS,
    MAX_WAITING,
    RequestLimit,
    limited_body,
    require_type,
    while_connected,
)
from video_search.web.sites import refuse_other_sites

EXAMPLE = "the example video"
Top = Annotated[int, Query(ge=1, le=MAX_TOP)]


class TextSearch(BaseModel, extra="forbid", strict=True):
    """The body of /api/search."""

    text: str = Field(max_length=MAX_CHARACTERS)
    top: int = Field(default=10, ge=1, le=MAX_TOP)


async def read_text_search(request: Request) -> TextSearch:
    """Return the body of /api/search; raise 413, 415 or 422 with the reason if it is not valid."""
    require_type(request, "application/json")
    body = b"".join([part async for part in limited_body(request, MAX_QUERY_BYTES, "The query is too long.")])
    try:
        query = TextSearch.model_validate_json(body)
    except ValidationError as error:
        raise HTTPException(422, reasons(error)) from error
    if not query.text.strip():
        raise HTTPException(422, "Type a few words to search for.")
    return query


def reasons(error: ValidationError | RequestValidationError) -> str:
    """Return the names of the values that are not valid, with the reason for each; the values are not repeated."""
    return "; ".join(f"{(*one['loc'],)[-1] if one['loc'] else 'body'}: {one['msg']}" for one in error.errors())


def as_json(results: Any, clips: Clips) -> dict:
    """Return what the page shows of `video_search.search.Results`."""
    return {
        "is_video": results.query.is_video,
        "notice": results.notice,
        "seconds": results.seconds,
        "scanned": results.scanned,
        "hits": [
            {
                "video": clips.add(hit.path),
                "name": display_path(hit.path),
                "score": hit.score,
                "moments": [vars(moment) for moment in hit.moments],
                "words": [vars(word) for word in hit.words],
            }
            for hit in results.hits
        ],
    }


class Searcher:
    """Run searches one after the other in a thread of their own, because the model serves one thread at a time.

    Example videos are decoded in other processes, so that searches go on meanwhile.
    """

    def __init__(self, search: Any, clips: Clips, max_upload_bytes: int, decoding_seconds: float):
        self.search = search
        self.clips = clips
        self.max_upload_bytes = max_upload_bytes
        self.waiting = RequestLimit(
            MAX_WAITING, "The server is busy: too many searches are waiting. Try again in a moment."
        )
        self.uploads = RequestLimit(
            MAX_UPLOADS, "The server is busy: too many videos are being sent. Try again in a moment."
        )
        self._decoders = Decoders(MAX_UPLOADS, decoding_seconds)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")

    async def run(self, request: Request, find: Callable[[], Any]) -> JSONResponse:
        """Return the results of `find` for the page; a search that still waits when the client leaves is dropped.

        Raises: 503 if too many searches wait or the index cannot be read; 422 for a query that cannot be searched for.
        """
        with self.waiting.enter():
            try:
                results = await while_connected(request, self._find(find))
            except ValueError as error:
                raise HTTPException(422, str(error)) from error
            except OSError as error:
                raise HTTPException(503, f"The index cannot be searched: {error}") from error
        try:
            return JSONResponse(as_json(results, self.clips))  # which refuses numbers that are not finite
        except ValueError as error:
            raise HTTPException(503, f"The index cannot be searched: a number is not valid: {error}") from error

    async def by_example(self, request: Request, top: int) -> JSONResponse:
        """Search with the video that is the body of the request; stop at any point when the client leaves.

        Raises: 422 for a file that is not a readable video; 507 if it cannot be kept; errors as in `run`.
        """
        limit = f"{self.max_upload_bytes / (1 << 20):g} MB"
        refusal = f"The video is too large: at most {limit} are accepted (--max_upload_mb of scripts.serve)."
        with self.uploads.enter(), disk_errors(), tempfile.NamedTemporaryFile(prefix="video_search_") as file:
            async for part in limited_body(request, self.max_upload_bytes, refusal):
                await asyncio.to_thread(file.write, part)
            await asyncio.to_thread(file.flush)
            reading = self._decoders.run(self.search.encoder.video_reader(), file.name)
            try:
                video = await while_connected(request, reading)
            except VideoReadError as error:
                raise HTTPException(422, f"This file cannot be read as a video: {error.reason}.") from error
        return await self.run(request, partial(self.search.frames, *video, EXAMPLE, top=top))

    async def _find(self, find: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, find)

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        await self._decoders.close()


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raise 507 for an error of the temporary folder, such as that its disk is full."""
    try:
        yield
    except OSError as error:
        raise HTTPException(507, f"The server cannot keep the video: {error.strerror or error}.") from error


def about(search: Any, clips: Clips, max_upload_bytes: int) -> dict:
    """Return what the page shows of the index as it is now, and the limits of a query."""
    search.refresh()
    missing = f"The folder of the index, {display_path(str(clips.folder))}, is missing."
    notices = search.notice, "" if clips.folder.is_dir() else missing
    return {
        "videos": len(clips),
        "head": search.store.settings["sim_header"],
        "folder": display_path(clips.folder.name),
        "notice": "; ".join(filter(None, notices)),
        "max_characters": MAX_CHARACTERS,
        "max_top": MAX_TOP,
        "max_upload_bytes": max_upload_bytes,
    }


def api_routes(searcher: Searcher) -> APIRouter:
    """Return the routes below /api."""
    router = APIRouter(prefix="/api", dependencies=[Depends(refuse_other_sites)])
    search, clips = searcher.search, searcher.clips

    @router.get("/about")
    def read_about() -> dict:
        return about(search, clips, searcher.max_upload_bytes)

    @router.post("/search")
    async def search_text(request: Request, query: Annotated[TextSearch, Depends(read_text_search)]) -> JSONResponse:
        return await searcher.run(request, partial(search.text, query.text, top=query.top))

    @router.post("/example")
    async def search_example(request: Request, top: Top = 10) -> JSONResponse:
        require_type(request, "application/octet-stream")
        return await searcher.by_example(request, top)

    @router.get("/similar")
    async def search_similar(request: Request, video: str, top: Top = 10) -> JSONResponse:
        return await searcher.run(request, partial(search.similar, clips.path(video), top=top))

    return router
