"""Processes that decode: their answers, their limits, and their end."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dataloaders.rawvideo_util import VideoReadError
from tests.helpers.launch import REPOSITORY, is_running, wait_until
from video_search.web.decoding import Decoders, read_answer


def run(check, seconds: float = 30) -> None:
    """Run `check` with a `Decoders`, whose processes end afterwards."""

    async def run_check() -> None:
        decoders = Decoders(2, seconds)
        try:
            await check(decoders)
        finally:
            await decoders.close()

    asyncio.run(run_check())


def numbers(path: str) -> list[np.ndarray]:
    return [np.arange(3), np.full((2, 2), len(path), np.uint8)]


def process_id(path: str) -> list[np.ndarray]:
    print("a library prints", flush=True)
    os.write(1, b"and a library in C too")
    return [np.array(os.getpid())]


def unreadable(path: str) -> list[np.ndarray]:
    raise VideoReadError(path, "it is blue")


def broken(path: str) -> list[np.ndarray]:
    raise IndexError(f"{path} has no tuple")


def greedy(path: str) -> list[np.ndarray]:
    return [np.zeros(1 << 32, np.uint8)]


def endless(path: str, started: Path) -> list[np.ndarray]:
    started.write_text(str(os.getpid()))
    while True:
        time.sleep(1)


def killed(path: str, times: Path) -> list[np.ndarray]:
    """End this process by SIGKILL while `times` has lines left; one is removed each time."""
    lines = times.read_text().split()
    if lines:
        times.write_text("\n".join(lines[1:]))
        os.kill(os.getpid(), signal.SIGKILL)
    return [np.array(1)]


def test_arrays_are_returned_and_processes_kept():
    async def check(decoders):
        first, second = await decoders.run(numbers, "name")
        assert (first.tolist(), second.tolist(), second.dtype) == ([0, 1, 2], [[4, 4], [4, 4]], np.uint8)
        ids = {int((await decoders.run(process_id, "name"))[0]) for _ in range(3)}
        assert len(ids) == 1 and os.getpid() not in ids
        os.kill(*ids, signal.SIGKILL)  # as a machine without memory does
        assert int((await decoders.run(process_id, "name"))[0]) not in ids

    run(check)


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (unreadable, "it is blue"),
        (broken, "IndexError: the file has no tuple"),
        (greedy, "decoding it takes more than 2 GiB of memory"),
    ],
)
def test_a_file_that_cannot_be_read(task, reason):
    async def check(decoders):
        with pytest.raises(VideoReadError) as raised:
            await decoders.run(task, "/tmp/secret_name")
        assert raised.value.reason == reason
        assert len(await decoders.run(numbers, "next")) == 2

    run(check)


@pytest.mark.parametrize(("kills", "is_read"), [(1, True), (2, False)])
def test_a_process_that_is_killed(tmp_path, kills, is_read):
    """Once may be the machine's fault, twice is the file's."""
    (tmp_path / "times").write_text("kill\n" * kills)

    async def check(decoders):
        reading = decoders.run(partial(killed, times=tmp_path / "times"), "name")
        if is_read:
            assert await reading == [1]
        else:
            with pytest.raises(VideoReadError, match="the process that read it was killed by SIGKILL"):
                await reading

    run(check)


def test_the_time_limit_names_its_flag(tmp_path):
    async def check(decoders):
        with pytest.raises(VideoReadError, match=r"more than 1 seconds \(--decoding_seconds of scripts.serve\)"):
            await decoders.run(partial(endless, started=tmp_path / "id"), "name")
        assert not (tmp_path / "id").exists() or not is_running(int((tmp_path / "id").read_text()))

    run(check, seconds=1)


def test_a_request_that_is_cancelled_ends_its_process(tmp_path):
    async def check(decoders):
        reading = asyncio.create_task(decoders.run(partial(endless, started=tmp_path / "id"), "name"))
        while not (tmp_path / "id").exists() or not (tmp_path / "id").read_text():
            await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert not is_running(int((tmp_path / "id").read_text()))

    run(check)


def test_processes_end_with_a_server_that_is_killed(tmp_path):
    code = f"""
        import asyncio
        from functools import partial
        from pathlib import Path
        from tests.test_web_decoding import endless
        from video_search.web.decoding import Decoders
        asyncio.run(Decoders(1, 60).run(partial(endless, started=Path({str(tmp_path / "id")!r})), "name"))
    """
    server = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=REPOSITORY)
    wait_until(lambda: (tmp_path / "id").exists() and (tmp_path / "id").read_text(), 20)
    server.kill()
    server.wait()
    wait_until(lambda: not is_running(int((tmp_path / "id").read_text())), 20)


def test_objects_are_never_read_from_an_answer():
    for answer in (b"", b"PK", b"\x80\x04N."):
        with pytest.raises(VideoReadError, match="sent an answer that is not valid"):
            read_answer("name", answer)
