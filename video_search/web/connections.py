"""uvicorn with limits: the number of connections, the time that they may wait, the lines of the log, and its end."""

import logging
import os
import signal
import threading
import time
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 256
FILES_PER_CONNECTION = 2  # the socket and the video that is sent
OTHER_FILES = 64
IDLE_SECONDS = 15  # for a request to arrive, from the connection or the previous answer to the end of its headers
STALL_SECONDS = 60  # for a client to take 48 KiB of an answer; a player that pauses connects again
SHUTDOWN_SECONDS = 3  # for answers in progress, such as a long video
LOG_LINES = 20  # a minute, of each logger
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 72\r\n"
    b"Retry-After: 2\r\nConnection: close\r\n\r\n"
    b'{"detail":"The server is busy: it has no place for another connection."}'
)


class BoundedConnection(H11Protocol):
    """A connection of uvicorn that ends when its client waits too long, or to make room for a newer one."""

    def __init__(self, *args, max_connections: int, **options):
        super().__init__(*args, **options)
        self.max_connections = max_connections
        self.idle_since = self.loop.time()
        self._idle_timer = self._stall_timer = None

    @property
    def is_idle(self) -> bool:
        """Whether the client has the answers to all of its requests; one that is not complete does not count."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._idle_timer = self.loop.call_later(IDLE_SECONDS, self._end_if_idle)
        if len(self.connections) <= self.max_connections:
            return
        idle = [one for one in self.connections if one is not self and one.is_idle]
        if idle:
            min(idle, key=lambda one: one.idle_since).transport.abort()
        else:
            transport.write(BUSY)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._idle_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self.idle_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()

    def _end_if_idle(self) -> None:
        patience = STALL_SECONDS if self.transport.get_write_buffer_size() else IDLE_SECONDS
        left = self.idle_since + patience - self.loop.time() if self.is_idle else IDLE_SECONDS
        if left > 0:
            self._idle_timer = self.loop.call_later(left, self._end_if_idle)
        else:
            self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn's server; the process ends soon after a signal, whatever a search or a disk is doing."""

    def handle_exit(self, sig: int, frame: Any) -> None:
        if not self.should_exit:
            code = 0 if sig == signal.SIGINT else 128 + sig
            timer = threading.Timer(SHUTDOWN_SECONDS + 2, os._exit, [code])
            timer.daemon = True
            timer.start()
        super().handle_exit(sig, frame)


class LogLimit(logging.Filter):
    """Keep `lines` records a minute, and add the number of those left out to the next one."""

    def __init__(self, lines: int = LOG_LINES):
        super().__init__()
        self.lines, self.minute, self.kept, self.left_out = lines, 0, 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        minute = int(time.monotonic() / 60)
        if minute != self.minute:
            self.minute, self.kept = minute, 0
        if self.kept == self.lines:
            self.left_out += 1
            return False
        self.kept += 1
        if self.left_out:
            record.msg = f"{record.getMessage()} ({self.left_out} other lines were left out)"
            record.args, self.left_out = (), 0
        return True


def make_server(app: Any, max_connections: int = MAX_CONNECTIONS) -> Server:
    """Return the server of an application, to be run with a listening socket."""
    connection = partial(BoundedConnection, max_connections=min(max_connections, connections_of_files()))
    settings = uvicorn.Config(
        app, http=connection, ws="none", backlog=128, log_level="warning", access_log=False, server_header=False,
        proxy_headers=False, timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )  # fmt: skip
    for name in ("uvicorn.error", "asyncio"):  # asyncio reports each connection that it cannot accept
        logging.getLogger(name).addFilter(LogLimit())
    return Server(settings)


def connections_of_files() -> int:
    """Return the number of connections that this process has files for, after raising its limit if needed."""
    try:
        import resource
    except ModuleNotFoundError:
        return MAX_CONNECTIONS
    needed = OTHER_FILES + FILES_PER_CONNECTION * MAX_CONNECTIONS
    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < needed:
        files = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    files = needed if files == resource.RLIM_INFINITY else files
    return max(4, (files - OTHER_FILES) // FILES_PER_CONNECTION)
