"""Fixtures shared by all tests: the golden numbers of the reference implementations and the real clips."""

import json
import logging
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


def pytest_addoption(parser) -> None:
    parser.addoption("--soak", action="store_true", help="repeat random cases as often as CI does")


def pytest_terminal_summary(terminalreporter, config) -> None:
    if not config.getoption("--soak"):
        terminalreporter.write_line(
            "left out: repetitions of random kills and damaged inputs (--soak adds them, as CI does)"
        )


def pytest_collection_modifyitems(config, items) -> None:
    """Leave out the soak without --soak; run the long tests first when several workers share them.

    Short tests then fill the gaps at the end.
    """
    if not config.getoption("--soak"):
        left_out = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("soak")]
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not {"slow", "faults"} & {mark.name for mark in item.iter_markers()})


@pytest.fixture(scope="session", autouse=True)
def sigint_is_not_ignored():
    """Restore the handler of SIGINT: a shell script's background processes ignore it, and so would their children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def close_log_files():
    """Close the log.txt that a run in this process leaves open before its folder is removed."""
    yield
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if type(handler) is logging.FileHandler]:
        root.removeHandler(handler)
        handler.close()


@pytest.fixture
def small_disk(tmp_path):
    """Return a function that mounts or resizes a file system of a size such as "64k"; skip if mounting fails."""
    mounted = tmp_path / "disk"
    mounted.mkdir()

    def mount(size: str, *options: str) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(mounted)],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
        return mounted

    yield mount
    if mounted.is_mount():
        subprocess.run(["umount", str(mounted)], check=True)


@pytest.fixture(scope="session")
def golden_small() -> dict:
    """Return the reference implementations' tokens, metrics and BertAdam steps."""
    return json.loads((GOLDEN / "peer_small.json").read_text())


@pytest.fixture(scope="session")
def golden_frames() -> dict:
    """Return frame counts, sampled frames and the sha256 of the pixels of the real clips."""
    return json.loads((GOLDEN / "peer_frames.json").read_text())


@pytest.fixture(scope="session")
def golden_parity() -> dict[str, np.ndarray]:
    """Return inputs, weights, outputs and gradient norms of the reference models."""
    with np.load(GOLDEN / "peer_parity.npz") as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """Return the folder of the real clips; skip if the checkout has no shared data beside it."""
    folder = SHARED_DATA / "real_clips"
    if not folder.is_dir():
        pytest.skip(f"the real clips are not part of the repository and {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def real_annotations() -> Path:
    """Return the folder of the real, full-size annotation files; skip if it is absent."""
    folder = SHARED_DATA / "annotations"
    if not folder.is_dir():
        pytest.skip(f"the real annotation files are not part of the repository and {folder} does not exist")
    return folder
