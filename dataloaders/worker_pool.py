"""Tasks on all cores where one that crashes its process, as a video decoder can, costs that task alone."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.pool import ExceptionWithTraceback
from queue import LifoQueue
from typing import Any


@dataclass(frozen=True)
class ProcessDied:
    """In the place of a task's result: the process that ran it ended; `reason` says how."""

    reason: str


def run_tasks(
    function: Callable[[Any], Any], tasks: Iterable, processes: int, preload: tuple[str, ...] = ()
) -> Iterator[tuple[Any, Any]]:
    """Pairs of a task and `function(task)`, in the order in which they are done.

    The result of a task that ends its process is a `ProcessDied`; another process takes the place of that one.

    Args:
        function: picklable, and handed to each process once; what it raises is raised here and ends the run.
        tasks: picklable.
        processes: how many run at once, at least 1.
        preload: modules that the processes share, so that each does not spend seconds on importing them; not the
            one that `python -m` runs, of which Python would warn.
    """
    context = _context(preload)
    lock = threading.Lock()
    workers = [_Worker(function, context, lock) for _ in range(processes)]
    idle: LifoQueue[_Worker] = LifoQueue()  # so that few tasks start few processes
    for worker in workers:
        idle.put(worker)

    def run(task):
        worker = idle.get()
        try:
            return worker.run(task)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(processes)
    running: dict[Future, Any] = {}
    try:
        for task in tasks:
            running[threads.submit(run, task)] = task
            if len(running) == 2 * processes:
                yield from _take_finished(running)
        while running:
            yield from _take_finished(running)
    finally:
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.close()


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _context(preload: tuple[str, ...]) -> multiprocessing.context.BaseContext:
    # Not fork: the threads of this process (progress bar, pool, torch) may hold locks that a copy never gets back.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


def _take_finished(running: dict[Future, Any]) -> Iterator[tuple[Any, Any]]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        yield running.pop(future), future.result()


class _Worker:
    """A process that runs one task after the other, for one thread at a time.

    Not concurrent.futures' pool: it does not say which task a process died of, and where one dies while another one is
    started, Python 3.11's waits for ever. All workers share a lock for starting and joining: multiprocessing looks
    after all processes at each start, and of two threads that ask for an exit code one would get 255.
    """

    def __init__(
        self, function: Callable[[Any], Any], context: multiprocessing.context.BaseContext, lock: threading.Lock
    ):
        self._function, self._context, self._lock = function, context, lock
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def run(self, task):
        """The function's result, or `ProcessDied`."""
        self._start_if_needed()
        try:
            self._pipe.send(task)
            result, error = self._pipe.recv()
        except (EOFError, OSError):
            code = self.close()
            return ProcessDied(
                f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            )
        if error is not None:
            raise error
        return result

    def close(self) -> int:
        """End the process; returns its exit code, 0 where there is none."""
        if self._process is None:
            return 0
        self._pipe.close()
        with self._lock:
            self._process.join()
            code, self._process = self._process.exitcode, None
        return code

    def _start_if_needed(self) -> None:
        with self._lock:
            if self._process is not None and self._process.is_alive():
                return
            self._pipe, other_end = self._context.Pipe()
            # a daemon: where this process ends without closing its workers, it does not wait for them
            self._process = self._context.Process(target=_serve, args=(other_end, self._function), daemon=True)
            self._process.start()
            other_end.close()  # so that the end of the process is the end of the pipe


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    # Ctrl-C reaches every process of the terminal: the workers end at once and leave the message to the main one.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with contextlib.suppress(EOFError, ConnectionError):  # the main process needs no more, or is gone
        while True:
            pipe.send(_answer(function, pipe.recv()))


def _answer(function: Callable[[Any], Any], task) -> tuple[Any, ExceptionWithTraceback | None]:
    try:
        return function(task), None
    except Exception as error:
        return None, ExceptionWithTraceback(error, error.__traceback__)
