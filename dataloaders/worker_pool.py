"""Tasks on all cores where one that crashes its process, as a video decoder can, costs that task alone."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ProcessDied:
    """In the place of a task's result: the process that ran it ended; `reason` says how."""

    reason: str


def run_tasks(
    function: Callable[[Any], Any], tasks: Iterable, processes: int, preload: tuple[str, ...] = ()
) -> Iterator[tuple[Any, Any]]:
    """Pairs of a task and `function(task)`, in the order in which they are done.

    A process that dies does not say which task it had. Those that were running at the time are therefore run again,
    each in a process of its own; one that dies there too has a `ProcessDied` for its result.

    Args:
        function: picklable; what it raises is raised here and ends the run.
        tasks: picklable.
        processes: how many run at once, at least 1.
        preload: modules that the processes share, so that each does not spend seconds on importing them; not the
            one that `python -m` runs, of which Python would warn.
    """
    context = _context(preload)
    waiting = deque(tasks)
    while waiting:
        running: dict[Future, Any] = {}
        executor = ProcessPoolExecutor(
            min(processes, len(waiting)), mp_context=context, initializer=_start_worker, initargs=(function,)
        )
        try:
            while waiting or running:
                while waiting and len(running) < 2 * processes:
                    future = executor.submit(_run, waiting[0])
                    running[future] = waiting.popleft()
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    result = future.result()
                    yield running.pop(future), result
        except BrokenProcessPool:
            for task in running.values():
                yield task, _run_alone(function, task, context)
        finally:
            executor.shutdown(cancel_futures=True)


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


def _run_alone(function: Callable[[Any], Any], task, context) -> Any:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, function, task))
    process.start()
    sender.close()  # so that the end of the process is the end of the pipe
    try:
        result, error = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode
        return ProcessDied(f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}")
    finally:
        receiver.close()
        process.join()
    if error is not None:
        raise error
    return result


def _start_worker(function: Callable[[Any], Any]) -> None:
    global _function  # handed over once, it keeps what it learns from task to task
    _function = function
    _die_on_interrupt()


def _run(task) -> Any:
    return _function(task)


def _send_result(sender, function: Callable[[Any], Any], task) -> None:
    _die_on_interrupt()
    try:
        answer = function(task), None
    except Exception as error:
        answer = None, error
    sender.send(answer)


def _die_on_interrupt() -> None:
    """Ctrl-C reaches every process of the terminal: the workers end at once and leave the message to the main one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
