"""Decoding of videos in processes with limits, so that a file which takes minutes or gigabytes costs only its request.

The server keeps a `Decoders`. Each of its processes runs this file: it reads one task after the other from its
standard input, and ends when the server closes that or is gone. Results are arrays, never objects: a process that a
hostile file took over cannot make the server run code.
"""

import asyncio
import contextlib
import io
import os
import pickle
import signal
import sys
import threading
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from dataloaders.rawvideo_util import VideoReadError

MEMORY_BYTES = 2 << 30  # 17 frames of 8192 x 4320 with 10 bits fit, as many as HEVC refers to
MAX_ANSWER_BYTES = 1 << 30
NICENESS = 5  # searches go first
SIZE_BYTES = 8  # of the length before each answer
Task = Callable[[str], Sequence[np.ndarray]]  # raises VideoReadError


class Decoders:
    """Processes that decode, at most `places` at once, each file in at most `seconds`. For one event loop."""

    def __init__(self, places: int, seconds: float):
        self.seconds = seconds
        self._places = asyncio.Semaphore(places)
        self._idle: list[asyncio.subprocess.Process] = []

    async def run(self, task: Task, path: str) -> list[np.ndarray]:
        """Return the arrays of `task(path)`, which is picklable; end its process if this is cancelled.

        Raises: VideoReadError for an unreadable file, and for one that exceeds the time, the memory or the decoder.
        """
        async with self._places:
            try:
                return await self._run(task, path)
            except ProcessEnded:  # perhaps for another reason than the file, such as a machine without memory
                try:
                    return await self._run(task, path)
                except ProcessEnded as error:
                    raise VideoReadError(path, f"the process that read it {error}") from error

    async def _run(self, task: Task, path: str) -> list[np.ndarray]:
        process = await self._take()
        is_usable = False
        try:
            answer = await asyncio.wait_for(exchange(process, task, path), self.seconds)
            is_usable = True
        except asyncio.TimeoutError as error:
            reason = f"decoding it takes more than {self.seconds:g} seconds (--decoding_seconds of scripts.serve)"
            raise VideoReadError(path, reason) from error
        except (asyncio.IncompleteReadError, OSError) as error:
            raise ProcessEnded(how_it_ended(await process.wait())) from error
        finally:
            if is_usable:
                self._idle.append(process)
            else:
                await end(process)
        return read_answer(path, answer)

    async def _take(self) -> asyncio.subprocess.Process:
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # decoders write any number of lines
            cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the server, which ends its processes
        )  # fmt: skip

    async def close(self) -> None:
        """End the processes that wait for work; those that work end with their requests."""
        while self._idle:
            await end(self._idle.pop())


class ProcessEnded(Exception):
    """A process ended before it answered; the message continues "the process"."""


async def exchange(process: asyncio.subprocess.Process, task: Task, path: str) -> bytes:
    """Send a task and return its answer."""
    process.stdin.write(pickle.dumps((task, path)))
    await process.stdin.drain()
    size = int.from_bytes(await process.stdout.readexactly(SIZE_BYTES), "little")
    if size > MAX_ANSWER_BYTES:
        raise OSError(f"an answer of {size} bytes")
    return await process.stdout.readexactly(size)


async def end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def how_it_ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def read_answer(path: str, answer: bytes) -> list[np.ndarray]:
    """Return the arrays of an answer; raise VideoReadError with the reason that it holds instead."""
    try:
        with np.load(io.BytesIO(answer), allow_pickle=False) as arrays:
            if "reason" in arrays:
                raise VideoReadError(path, str(arrays["reason"]))
            return [arrays[f"arr_{number}"] for number in range(len(arrays))]
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise VideoReadError(path, "the process that read it sent an answer that is not valid") from error


# ---- In the process ----


def write_answer(task: Task, path: str) -> bytes:
    """Return the arrays of `task(path)`, or the reason why there are none."""
    content = io.BytesIO()
    try:
        np.savez(content, *task(path))
    except MemoryError:
        return reason_answer(f"decoding it takes more than {MEMORY_BYTES >> 30} GiB of memory")
    except VideoReadError as error:
        return reason_answer(error.reason)
    except Exception as error:  # of this file alone, whatever it is
        return reason_answer(f"{type(error).__name__}: {error}".replace(path, "the file"))
    return content.getvalue()


def reason_answer(reason: str) -> bytes:
    content = io.BytesIO()
    np.savez(content, reason=np.array(reason))
    return content.getvalue()


def read_tasks(server, tasks: SimpleQueue) -> None:
    """Take in tasks until the server is gone; then end at once, also in the middle of a task."""
    try:
        while True:
            tasks.put(
                pickle.Unpickler(server).load()
            )  # as multiprocessing does: written by the program that starts this
    except EOFError:
        os._exit(0)


def limit_memory() -> None:
    """Bound the memory of this process, on systems that can."""
    try:
        import resource
    except ModuleNotFoundError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def main() -> None:
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    limit_memory()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what a library prints is no answer
    tasks: SimpleQueue = SimpleQueue()
    threading.Thread(target=read_tasks, args=(sys.stdin.buffer, tasks), daemon=True).start()
    while True:
        answer = write_answer(*tasks.get())
        answers.write(len(answer).to_bytes(SIZE_BYTES, "little") + answer)
        answers.flush()


if __name__ == "__main__":
    main()
