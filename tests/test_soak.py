"""The soak: a short one ends well, and its judgement tells growth from none."""

import numpy as np
import pytest

from benchmarks import soak

MINUTES = np.linspace(1, 10, soak.ROWS)


def most(memory: np.ndarray) -> np.ndarray:
    """Parts of the time in which only the memory changes."""
    return np.stack([MINUTES, memory, *np.full((3, soak.ROWS), 8.0)], axis=1)


def test_growth_is_that_of_a_line_after_the_warm_up():
    """From part 4 to part 10, 100 MB grow by 1 MB a part; what came before does not count."""
    memory = np.array([900, 5, 700, *range(100, 107)], dtype=float)
    gained = soak.growth(most(memory))
    assert gained == pytest.approx({"memory MB": 0.06, "file descriptors": 0, "threads": 0, "child processes": 0})
    assert soak.growth(most(np.full(soak.ROWS, 50.0)))["memory MB"] == pytest.approx(0)


class NoFaults:
    runs, lost, tried = 1, (), soak.Counter(kill=2)


@pytest.mark.parametrize(
    ("last", "lost", "is_well"), [(104, [], True), (120, [], False), (100, ["run 1 (kill): exit code 1"], False)]
)
def test_what_grows_or_is_lost_is_not_well(last, lost, is_well):
    faults = NoFaults()
    faults.lost = lost
    text, found = soak.report(most(np.linspace(100, last, soak.ROWS)), 7, faults, ["--minutes", "1"])
    assert found == is_well
    assert ("NOT FLAT" in text) == (last == 120)
    assert f"1 runs met 2 faults (2 x kill); runs lost: {len(lost)}." in text
    assert all(line in text for line in lost)


@pytest.mark.slow
def test_a_short_soak_has_its_figures(tmp_path):
    """So short that a growth says nothing: one disturbed run, beside the steady one."""
    text, _ = soak.soak(tmp_path, 0.1, seed=0, arguments=[])
    assert text.count("\n| ") == 1 + soak.ROWS and text.rstrip().endswith("runs lost: 0.")
