"""Tasks in processes, some of which die."""

import os
import signal
import time
from pathlib import Path

import pytest

from dataloaders.worker_pool import ProcessDied, available_cores, run_tasks


def double_or_die(task: int) -> int:
    """Twice the task; multiples of 7 crash as a decoder does, and 5 ends its process."""
    if task % 7 == 0:
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == 5:
        os._exit(3)
    return 2 * task


def own_process(task: float) -> int:
    time.sleep(task)
    return os.getpid()


def fail(task: int) -> int:
    raise ZeroDivisionError(f"task {task}")


def crash_or_fail(task: int) -> int:
    return double_or_die(task) if task == 7 else fail(task)


@pytest.mark.parametrize("processes", [1, 3])
def test_every_task_has_one_result_and_only_the_ones_that_crash_have_none(processes):
    results = list(run_tasks(double_or_die, range(1, 23), processes))
    assert sorted(task for task, _ in results) == list(range(1, 23))
    crashed = ProcessDied("killed by SIGSEGV")
    special = {7: crashed, 14: crashed, 21: crashed, 5: ProcessDied("ended with exit code 3")}
    assert dict(results) == {task: special.get(task, 2 * task) for task in range(1, 23)}


def test_tasks_run_beside_each_other_in_other_processes():
    used = {result for _, result in run_tasks(own_process, [0.3] * 4, 2)}
    assert len(used) == 2
    assert os.getpid() not in used


def test_an_error_of_the_function_ends_the_run():
    with pytest.raises(ZeroDivisionError, match="task 1"):
        list(run_tasks(fail, [1], 1))


def test_a_process_that_was_killed_between_two_tasks_costs_none():
    results = run_tasks(own_process, [0.0, 0.0, 0.0], 1)
    _, killed = next(results)
    time.sleep(0.5)  # in which the second task is done, too
    os.kill(killed, signal.SIGKILL)
    time.sleep(0.5)
    (_, second), (_, third) = results
    assert second == killed
    assert isinstance(third, int) and third != killed


def test_an_error_after_a_crash_ends_the_run_too():
    with pytest.raises(ZeroDivisionError, match="task 1"):
        list(run_tasks(crash_or_fail, [7, 1], 1))


def die_at_first(task: Path) -> str:
    """The process ends, as one that the system kills for its memory, unless the file is there that it makes then."""
    if task.name.startswith("killed") and not task.exists():
        task.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.1)
    (task.parent / "running").mkdir()  # fails beside another task
    time.sleep(0.1)
    (task.parent / "running").rmdir()
    return task.name


def test_a_task_whose_process_is_killed_once_is_tried_again_alone(tmp_path):
    names = ["killed1", "killed2", "killed3"]
    results = dict(run_tasks(die_at_first, [tmp_path / name for name in names], 3))
    assert results == {tmp_path / name: name for name in names}


def test_no_tasks_need_no_process():
    assert list(run_tasks(fail, [], 4)) == []


def test_cores():
    assert 1 <= available_cores() <= os.cpu_count()
