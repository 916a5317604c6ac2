"""Requests that are refused because another site made them, and the headers that protect every answer."""

import ipaddress
import re
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]", "::1")
HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:\d{0,5})?", re.ASCII)

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Another site's page can neither show these videos nor learn from loading them which ones the index has.
    "Cross-Origin-Resource-Policy": "same-origin",
}


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


class HostCheck:
    """ASGI middleware that answers only requests for the names of this server.

    It excludes the name of another site that was made to point at this machine (DNS rebinding). An address is not a
    name that a site can own: with `any_address` all of them are accepted.
    """

    def __init__(self, app: Callable, allowed_hosts: Sequence[str], any_address: bool):
        self.app = app
        self.allowed_hosts = {host.lower() for host in allowed_hosts}
        self.any_address = any_address

    async def __call__(self, scope, receive, send) -> None:
        refusal = self.refusal(Headers(scope=scope).get("host", "")) if scope["type"] == "http" else ""
        if refusal:
            await JSONResponse({"detail": refusal}, 400)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def refusal(self, host: str) -> str:
        """Return the reason why requests for this host are refused, or an empty text."""
        match = HOST.fullmatch(host)
        if match is None:
            return f"The Host header {host[:100]!r} is not a valid host name."
        name = match["name"].lower()
        if name in self.allowed_hosts or (self.any_address and is_address(name.strip("[]"))):
            return ""
        return f"Requests for the host {name} are refused; scripts.serve accepts them with --allowed_hosts {name}"


def is_address(name: str) -> bool:
    """Return True for an IP address, False for a name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def refuse_other_sites(request: Request) -> None:
    """Raise 403 for a request that another site's page made the browser send; 400 if its sender cannot be read."""
    headers = request.headers
    site = headers.get("sec-fetch-site")
    sender = headers.get("origin", headers.get("referer"))
    if site is None and sender is not None:  # browsers omit Sec-Fetch-Site if the address is neither https nor local
        try:
            site = "same-origin" if urlsplit(sender).netloc == headers.get("host") else "cross-site"
        except ValueError as error:
            raise HTTPException(400, "The Origin or Referer header is not a valid address.") from error
    if site not in (None, "same-origin", "none"):
        raise HTTPException(403, "Only the page of this server may search and show videos here.")
