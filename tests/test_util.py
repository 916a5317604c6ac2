"""The process: its log, its random numbers, its device and its group."""

import logging
import random
import re
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist

import util


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def root_logger():
    """The root logger without pytest's handlers, put back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    yield root
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_logging_goes_to_file_and_terminal(root_logger, tmp_path, capsys):
    util.setup_logging(tmp_path / "log.txt")
    logging.getLogger("a.module").info("Größe: %d", 3)
    line = r"\d\d/\d\d/\d{4} \d\d:\d\d:\d\d - INFO -   Größe: 3\n"
    assert re.fullmatch(line, (tmp_path / "log.txt").read_text(encoding="utf-8"))
    assert re.fullmatch(line, capsys.readouterr().err)


def test_logging_again_doubles_no_line(root_logger, tmp_path):
    util.setup_logging(tmp_path / "first.txt")
    util.setup_logging(tmp_path / "second.txt")
    logging.getLogger().info("once")
    assert (tmp_path / "first.txt").read_text() == ""
    assert (tmp_path / "second.txt").read_text().count("once") == 1


def test_names_cannot_forge_records_or_reach_the_terminal_raw(root_logger, tmp_path):
    util.setup_logging(tmp_path / "log.txt")
    name = "a\n11/28/2026 00:00:00 - INFO -   FORGED\x1b]0;title\x07\u202e\x85\u2028b\udce9.mp4"
    logging.getLogger().info("\t%s", name)
    try:
        raise ValueError(name)
    except ValueError:
        logging.getLogger().exception("failed")
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").split("\n")
    shown = r"a\n11/28/2026 00:00:00 - INFO -   FORGED\x1b]0;title\x07\u202e\x85\u2028b\udce9.mp4"
    assert lines[0].endswith(f" - INFO -   \t{shown}")
    assert sum(line.startswith("11/28/2026 00:00:00") for line in lines) == 0
    assert lines[-2] == "    " + shown.split(r"\n")[1]
    assert all(character.isprintable() or character == "\t" for line in lines for character in line)


def test_other_processes_log_errors_to_the_terminal_only(root_logger, tmp_path, capsys):
    util.setup_logging(tmp_path / "log.txt", is_main=False)
    logging.getLogger("a.module").warning("a warning")
    logging.getLogger("a.module").error("an error")
    assert not (tmp_path / "log.txt").exists()
    message = capsys.readouterr().err
    assert "an error" in message and "a warning" not in message


def test_seed_holds_every_generator():
    draws = []
    for seed in (7, 7, 8):
        util.set_seed(seed)
        draws.append((random.random(), float(np.random.rand()), torch.rand(1).item()))
    assert draws[0] == draws[1]
    assert all(first != other for first, other in zip(draws[0], draws[2], strict=True))


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_one_process_needs_no_group(no_gpu):
    with util.distributed_process() as process:
        assert process == util.Process(torch.device("cpu"), rank=0, local_rank=0, world_size=1)
        assert process.is_main
        assert not dist.is_initialized()


def set_launcher(monkeypatch, **environment: str) -> None:
    """The environment that torchrun gives the only process of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    values = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in {**values, **environment}.items():
        monkeypatch.setenv(name, value)


def test_a_launched_process_joins_a_group_and_leaves_it(no_gpu, monkeypatch):
    set_launcher(monkeypatch)
    with util.distributed_process() as process:
        assert dist.is_initialized() and dist.get_backend() == "gloo"
        assert (process.rank, process.world_size) == (0, 1)
    assert not dist.is_initialized()


def test_the_group_is_not_waited_for_after_an_error(no_gpu, monkeypatch):
    """Leaving it waits for the other ranks, which may sit in a collective: the error has to get out first."""
    set_launcher(monkeypatch)
    with pytest.raises(RuntimeError, match="out of memory"), util.distributed_process():
        raise RuntimeError("out of memory")
    assert dist.is_initialized()
    dist.destroy_process_group()


@pytest.mark.parametrize("from_environment", [True, False])
def test_more_processes_than_gpus(monkeypatch, from_environment):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if from_environment:
        monkeypatch.setenv("LOCAL_RANK", "2")
    flag = 0 if from_environment else 2
    with pytest.raises(ValueError, match=r"local rank 2 .* 2 visible"), util.distributed_process(flag):
        pass
