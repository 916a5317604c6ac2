"""The addresses of the page's own files, of the videos, and of their frames."""

import asyncio
import mimetypes
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse

from video_search.web.clips import Clips
from video_search.web.limits import REVALIDATE

PAGE_FOLDER = Path(__file__).parent / "page"
PAGE_FILES = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css", "/icon.svg": "icon.svg"}


def media_routes(clips: Clips, decoding: ThreadPoolExecutor) -> APIRouter:
    """Return the routes; frames are decoded in the threads of `decoding`."""
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
        # Whatever the file's name, its type never lets the browser show it as a page.
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
