"""Ctrl-C at any moment of scripts.index: one line, exit code 130, no work lost; and of its sisters."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modules import interrupts
from scripts import embed as embed_script
from scripts import search as search_script
from tests.helpers.search_cases import FakeEncoder, check_index, run_update, write_videos
from video_search import indexing
from video_search.index_reader import IndexReader
from video_search.index_writer import IndexWriter

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["index", "search", "embed"])
def test_while_the_command_imports(name, tmp_path):
    """A module that a command imports early interrupts it, as a user does who sees that nothing happens."""
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemError\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", f"scripts.{name}", "--help"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (130, "")
    assert run.stderr.startswith(f"{name}: interrupted")
    assert run.stderr.count("\n") == 1


def test_a_command_that_ignores_the_signal_goes_on_ignoring_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts.exit_on_interrupt("ended")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        interrupts.raise_on_interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_imports_end_with_the_first_call_that_can_clean_up():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupts.exit_on_interrupt("ended")
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        interrupts.raise_on_interrupt()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("script", "called", "arguments"),
    [(search_script, "open_store", ["text"]), (embed_script, "embed", ["--texts", "x.txt", "--output", "x.npz"])],
)
def test_while_the_command_works(script, called, arguments, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, called, interrupt)
    with pytest.raises(SystemExit) as error:
        script.main(arguments)
    assert error.value.code == 130
    assert capsys.readouterr().err == f"{script.INTERRUPTED}\n"


def interrupt_at(lines: list, target: int):
    """Return a function that interrupts this thread at the line of number `target`, as a signal does between lines."""

    def trace(frame, event, argument):
        if frame.f_globals.get("__name__") not in ("video_search.index_writer", "video_search.indexing"):
            return None
        lines.append(None)
        if len(lines) == target:
            raise KeyboardInterrupt
        return trace

    return trace


def interrupted_update(index: Path, folder: Path, line: int) -> bool:
    """Update an index, interrupted at this line of the two files that write it; return False if it ended before."""
    lines: list[None] = []
    sys.settrace(interrupt_at(lines, line))
    try:
        run_update(index, folder, FakeEncoder())
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def test_no_line_leaves_a_damaged_index(tmp_path, monkeypatch):
    """Every line of an update that adds, changes and removes: the index opens, and the next update makes it whole."""
    monkeypatch.setattr(indexing, "COMMIT_SECONDS", 0)
    folder, made = write_videos(tmp_path / "videos"), tmp_path / "made"
    run_update(made, folder, FakeEncoder())
    (folder / "a.mp4").write_text("changed")
    (folder / "b.mp4").unlink()
    (folder / "h.mp4").write_text("new")
    line = 1
    while True:
        index = tmp_path / "index"
        shutil.rmtree(index, ignore_errors=True)
        shutil.copytree(made, index)
        if not interrupted_update(index, folder, line):
            break
        store = IndexReader.open(index)
        for path in {*store.paths} - {"a.mp4", "b.mp4", "h.mp4"}:
            store.example(path)
        assert {"c.mp4", "d.mp4", "e.mp4", "f.mp4", "deep/er/g.MKV"} <= {*store.paths}
        run_update(index, folder, FakeEncoder())
        check_index(index, folder)
        IndexWriter.open(index).close()
        line += 41
    assert line > 400
