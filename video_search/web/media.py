"""The addresses of the page's own files, of the videos, and of their frames."""

import mimetypes
import os
from pathlib import Path
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Depends, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, JSONResponse
from starlette.datastructures import Headers

from video_search.web.clips import Clips
from video_search.web.frames import Frames
from video_search.web.limits import REVALIDATE, while_connected
from video_search.web.sites import refuse_other_sites

PAGE_FOLDER = Path(__file__).parent / "page"
PAGE_FILES = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css", "/icon.svg": "icon.svg"}
READ_METHODS = ["GET", "HEAD"]
RANGE_REFUSALS = {
    400: "The Range header is not valid.",
    416: "The Range header names bytes that the file does not have.",
}


class VideoResponse(FileResponse):
    """The content of an open file, in ranges.

    The file is opened before the answer begins, so that every error has its own status. As many bytes are sent as the
    headers declare, even if the file grows meanwhile; if it is cut, the server closes the connection.
    """

    def __init__(self, file: BinaryIO, **options):
        self.file, self.size = file, os.fstat(file.fileno()).st_size
        super().__init__(f"/dev/fd/{file.fileno()}", stat_result=os.fstat(file.fileno()), **options)

    async def __call__(self, scope, receive, send) -> None:
        left = 0  # bytes of the declared length
        is_done = False

        async def send_declared(message) -> None:
            nonlocal left, is_done
            if is_done:
                return
            if message["type"] == "http.response.start":
                if refusal := RANGE_REFUSALS.get(message["status"]):
                    is_done = True
                    answer = JSONResponse(
                        {"detail": refusal}, message["status"], {"Content-Range": f"bytes */{self.size}"}
                    )
                    await answer(scope, receive, send)
                    return
                left = int(Headers(raw=message["headers"])["content-length"])
            elif scope["method"] != "HEAD":
                body = message.get("body", b"")[:left]
                left -= len(body)
                is_done = not left
                if left and not message.get("more_body", False):
                    return  # an incomplete answer makes uvicorn close the connection
                message = {**message, "body": body, "more_body": bool(left)}
            await send(message)

        with self.file:
            await super().__call__(scope, receive, send_declared)


def media_routes(clips: Clips, frames: Frames) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    def read_page(request: Request) -> FileResponse:
        return FileResponse(PAGE_FOLDER / PAGE_FILES[request.url.path], headers=REVALIDATE)

    for address in PAGE_FILES:
        router.add_api_route(address, read_page, methods=READ_METHODS)

    @router.api_route("/video/{name}", methods=READ_METHODS, dependencies=[Depends(refuse_other_sites)])
    def read_video(name: str) -> VideoResponse:
        file = clips.open(name)
        kind = mimetypes.guess_type(clips.path(name))[0] or ""
        # Whatever the file's name, its type never lets the browser show it as a page.
        media_type = kind if kind.startswith("video/") else "application/octet-stream"
        return VideoResponse(file, media_type=media_type, headers=REVALIDATE)

    @router.api_route("/frame/{name}/{number}.jpg", methods=READ_METHODS, dependencies=[Depends(refuse_other_sites)])
    async def read_frame(name: str, number: Annotated[int, PathParameter(ge=0)], request: Request) -> Response:
        frame, etag = await while_connected(request, frames.frame(name, number))
        headers = {**REVALIDATE, "ETag": etag}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(frame, media_type="image/jpeg", headers=headers)

    return router
