"""The folder of a run, `--output_dir`: one run at a time, no results of another replaced, and errors in its log."""

import argparse
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import util
from engine.resumption import way_out
from modules.checkpoint import read_flags
from modules.resume import FOLDER

logger = logging.getLogger(__name__)

LOG_FILE = "log.txt"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}  # NFS without a lock daemon, FUSE


@contextmanager
def output_folder(folder: str | Path) -> Iterator[None]:
    """Hold the folder of a run, log to its `log.txt`, and add to that file the traceback of an error in the block.

    The main process makes and locks the folder; the others report errors to the terminal, and to the file if they
    see it.

    Raises:
        NotADirectoryError: the folder is a file.
        RuntimeError: another run holds the folder; nothing is written there.
    """
    folder, rank = Path(folder), util.launched_rank()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--output_dir {folder} is a file, not a folder")
    if rank:
        util.setup_logging(None, is_main=False)
        with util.errors_in_log(folder / LOG_FILE, rank):
            yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG_FILE).open("ab") as file:
        # a forked worker would hold the lock for as long as it lives
        os.register_at_fork(after_in_child=file.close)
        unlockable = lock(file)
        util.setup_logging(folder / LOG_FILE)
        if unlockable:
            logger.warning(
                "--output_dir %s is on a file system without locks (%s): make sure that no other run writes there",
                folder, unlockable,
            )  # fmt: skip
        with util.errors_in_log(folder / LOG_FILE, rank):
            yield


def lock(file) -> str:
    """Lock an open file until it is closed or its process ends; return why it cannot be locked, or an empty text.

    Raises:
        RuntimeError: another process has locked the file.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        folder = Path(file.name).parent
        raise RuntimeError(
            f"another run is writing into --output_dir {folder}; its process is named in {file.name}: wait until it "
            "ends, or choose another folder"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return error.strerror
    return ""


def check_output_folder(args: argparse.Namespace) -> None:
    """Raise FileExistsError if the run of `args` would write over another run's checkpoints or results."""
    if not args.do_train:
        check_evaluation_folder(Path(args.output_dir))
    elif not (args.resume or args.resume_model):
        check_training_folder(Path(args.output_dir))


def check_training_folder(folder: Path) -> None:
    """Raise FileExistsError if a new training would write over another run's checkpoints."""
    found = checkpoints_in(folder)
    if found:
        raise FileExistsError(
            f"--output_dir {folder} holds the checkpoints of a run ({found[0].relative_to(folder)}, {len(found)} in "
            "all): go on with it by --resume auto, choose another folder, or delete them"
        )


def check_evaluation_folder(folder: Path) -> None:
    """Raise FileExistsError if an evaluation would replace a training's flags.json, metrics.json and ranks.csv."""
    found = checkpoints_in(folder)
    if found or read_flags(folder).get("do_train"):
        raise FileExistsError(
            f"--output_dir {folder} is the folder of a training, whose flags.json, metrics.json and ranks.csv an "
            f"evaluation would replace: choose a folder of its own, such as --output_dir {folder}-eval"
        )


def check_nothing_is_lost(folder: Path) -> None:
    """Raise FileExistsError if a run that finds no whole training checkpoint would write over the work of another.

    A run that was killed in its first epoch has at most the weights of that epoch.
    """
    found = [path for path in checkpoints_in(folder) if path.name != "pytorch_model.bin.0"]
    if found:
        raise FileExistsError(
            f"--resume auto: {folder} has no training checkpoint that is whole, but other work "
            f"({found[0].relative_to(folder)}, {len(found)} in all) that a new run would write over: {way_out(folder)}"
        )


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a run's folder, weights first."""
    return sorted([*folder.glob("pytorch_model.bin.*"), *folder.glob(f"{FOLDER}/step-*")])
