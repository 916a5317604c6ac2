"""Tasks on all cores, where a task that crashes its process, as a video decoder can, costs that task alone."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.pool import ExceptionWithTraceback
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any


@dataclass(frozen=True)
class ProcessDied:
    """Takes the place of a task's result if its process ended; `reason` is how it ended."""

    reason: str


def run_tasks(
    function: Callable[[Any], Any], tasks: Iterable, processes: int, preload: tuple[str, ...] = ()
) -> Iterator[tuple[Any, Any]]:
    """Yield each task with `function(task)`, in the order in which they are done.

    If the process of a task ends, a new process takes over, and the task is tried again after all others, alone: the
    system may have ended the process for the memory of all. If it ends again, the result is a `ProcessDied`. An
    exception in `function` is raised here and ends the run; so does an interrupt. Closing the iterator ends all
    processes.

    Args:
        function: picklable; sent to each process once.
        tasks: picklable; at most `2 * processes` are taken ahead of the results.
        processes: number of processes, at least 1; no more are started than there are tasks.
        preload: modules that the processes share instead of importing them once each. The module that `python -m` runs
            must not be among them: Python would warn.
    """
    died = []
    with contextlib.closing(run_once(function, tasks, processes, preload)) as results:
        for task, result in results:
            if isinstance(result, ProcessDied):
                died.append(task)
            else:
                yield task, result
    for task in died:
        yield from run_once(function, [task], 1, preload)


def run_once(
    function: Callable[[Any], Any], tasks: Iterable, processes: int, preload: tuple[str, ...]
) -> Iterator[tuple[Any, Any]]:
    pool = Pool(function, processes, forkserver_context(preload))
    try:
        for task in tasks:
            pool.submit(task)
            if pool.pending == 2 * processes:
                yield pool.take_result()
        while pool.pending:
            yield pool.take_result()
    finally:
        pool.close()


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def forkserver_context(preload: tuple[str, ...]) -> BaseContext:
    # Not fork: threads of this process (progress bar, pool, torch) may hold locks that a copy would never release.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


class Pool:
    """Threads of this process with a worker process each.

    Not pebble's or concurrent.futures' pool. Workers of pebble write to one pipe, so that one that is killed while it
    sends a result stops all for ever, and one that is killed between two tasks breaks the pool. concurrent.futures
    does not name the task of a crash, and waits for ever if a process dies while another one starts (Python 3.11).

    Only queues of C join the threads with the main one: an interrupt there can leave no lock behind.
    """

    def __init__(self, function: Callable[[Any], Any], processes: int, context: BaseContext):
        self.function, self.processes, self.context = function, processes, context
        self.pending = 0
        self.lock = threading.Lock()  # held to start or join: each start of multiprocessing polls all processes
        self.is_closed = False
        self.running: set[BaseProcess] = set()
        self._threads = 0
        self._tasks: SimpleQueue = SimpleQueue()
        self._results: SimpleQueue = SimpleQueue()

    def submit(self, task) -> None:
        """Give a task to the next free worker."""
        self.pending += 1
        self._tasks.put((task,))
        if self._threads < min(self.pending, self.processes):
            self._threads += 1
            # a daemon: an interrupted program does not wait for it
            threading.Thread(target=self._serve, daemon=True).start()

    def take_result(self) -> tuple[Any, Any]:
        """Wait for the next result; return it with its task, or raise the exception of the function."""
        task, result, error = self._results.get()
        self.pending -= 1
        if error is not None:
            raise error
        return task, result

    def close(self) -> None:
        """End all processes, whatever they are doing."""
        for _ in range(self._threads):
            self._tasks.put(None)
        with self.lock:
            self.is_closed = True
            for process in self.running:
                process.terminate()
            for process in self.running:
                process.join()

    def _serve(self) -> None:
        # Ctrl-C reaches all processes of a terminal and is for the main one alone, which ends the others: those that
        # this thread starts inherit its mask.
        if hasattr(signal, "pthread_sigmask"):
            resource_tracker.ensure_running()  # which multiprocessing starts first, and which unblocks SIGINT here
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        worker = Worker(self)
        while (item := self._tasks.get()) is not None and not self.is_closed:
            try:
                self._results.put((*item, worker.run(*item), None))
            except Exception as error:
                self._results.put((*item, None, error))
        worker.close()


class Worker:
    """A process that runs one task after the other, for one thread of a pool."""

    def __init__(self, pool: Pool):
        self._pool = pool
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def run(self, task):
        """Return the function's result or a `ProcessDied`; raise what the function raises."""
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
        """End the process when it has done its task; return its exit code, 0 if none was started."""
        if self._process is None:
            return 0
        self._pipe.close()
        with self._pool.lock:
            self._process.join()
            self._pool.running.discard(self._process)
            code, self._process = self._process.exitcode, None
        return code

    def _start_if_needed(self) -> None:
        with self._pool.lock:
            if self._process is not None and self._process.is_alive():
                return
            if self._pool.is_closed:
                raise RuntimeError("the pool is closed")
            pipe, other_end = self._pool.context.Pipe()
            process = self._pool.context.Process(
                target=run_tasks_of_pipe, args=(other_end, self._pool.function), daemon=True
            )
            process.start()
            other_end.close()  # so that the end of the process is the end of the pipe
            self._pool.running.discard(self._process)
            self._pool.running.add(process)
            self._process, self._pipe = process, pipe


def run_tasks_of_pipe(pipe: Connection, function: Callable[[Any], Any]) -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):  # the main process needs no more, or is gone
        while True:
            pipe.send(answer_task(function, pipe.recv()))


def end_with_parent() -> None:
    """End this process at once when the main process is gone, in the middle of a task if need be."""
    multiprocessing.parent_process().join()
    os._exit(1)


def answer_task(function: Callable[[Any], Any], task) -> tuple[Any, ExceptionWithTraceback | None]:
    try:
        return function(task), None
    except Exception as error:
        return None, ExceptionWithTraceback(error, error.__traceback__)
