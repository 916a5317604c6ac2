"""Training checkpoints: all that a run needs to go on as if it had never stopped, written whole and found again.

    OUTPUT_DIR/resume/step-00000120/model.bin        weights
                                    optimizer.bin    optimizer and gradient scaler
                                    run.bin          position of the run, its flags, its history, all random states
                                    manifest.json    size and sha256 of each

A checkpoint is written under a temporary name by a thread, while the training goes on, and renamed when all of it is on
the disk. Damage is found by the manifest, and the checkpoint before is taken.

At the end of an epoch `model.bin` and `optimizer.bin` are hard links to the epoch's `pytorch_model.bin.N` and
`pytorch_opt.bin.N`, so that they are written once and take their space once. Each name lives on without the other:
`--keep_last` may remove the epoch's, a resumed run may write the epoch's anew, and the folder may be moved or copied.
"""

import json
import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from modules.tensor_files import load_tensors
from modules.whole_files import explain_write_errors, file_digest, rename_synced, sync

logger = logging.getLogger(__name__)

FOLDER = "resume"
MANIFEST = "manifest.json"
FILES = ("model.bin", "optimizer.bin", "run.bin")
TEMPORARY_PREFIX = ".incomplete-"
KEPT_CHECKPOINTS = 2  # the newest, and one to fall back on


class DamagedCheckpointError(ValueError):
    """A training checkpoint differs from its manifest."""


class TrainingCheckpoints:
    """The training checkpoints in an `--output_dir`; for the main process. `found` is the one that `newest` returned.

    If one cannot be written (disk full, folder read-only), a warning is logged, the training goes on, and the
    checkpoints before it stay.
    """

    def __init__(self, output_dir: str | Path):
        self.folder = Path(output_dir) / FOLDER
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="training-checkpoint")
        self._writing: Future | None = None
        self._damaged: list[Path] = []
        self.found: Path | None = None

    def save(self, step: int, contents: dict[str, dict | Path], wait: bool = False) -> bool:
        """Write the checkpoint of an optimizer step; with `wait`, return False if it cannot be written.

        `contents` holds for each of `FILES` its content, whose tensors are copied before this returns, or a file on the
        disk that has it. With `wait` this returns when the checkpoint is on the disk.
        """
        self.finish()
        self._writing = self._thread.submit(
            self._write_or_warn, step, {name: copy_to_host(contents[name]) for name in FILES}
        )
        return self.finish() if wait else True

    def finish(self) -> bool:
        """Wait until the last checkpoint is written; return False if it could not be."""
        writing, self._writing = self._writing, None
        return True if writing is None else writing.result()

    def newest(self) -> dict[str, dict] | None:
        """Return the contents of the newest whole checkpoint by file, or None; log a warning for each damaged one."""
        for checkpoint in self._newest_first():
            try:
                contents = read_training_checkpoint(checkpoint)
            except (OSError, ValueError) as error:
                logger.warning(
                    "the training checkpoint %s is damaged, the one before it is tried: %s", checkpoint, error
                )
                self._damaged.append(checkpoint)
            else:
                logger.info("Resuming from %s", checkpoint)
                self.found = checkpoint
                return contents
        return None

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _write_or_warn(self, step: int, contents: dict[str, dict | Path]) -> bool:
        try:
            self._write(step, contents)
        except OSError as error:
            logger.warning("no training checkpoint could be written in %s; the run goes on: %s", self.folder, error)
            return False
        return True

    def _write(self, step: int, contents: dict[str, dict | Path]) -> None:
        target = self.folder / f"step-{step:08d}"
        temporary = self.folder / f"{TEMPORARY_PREFIX}{target.name}"
        self.folder.mkdir(parents=True, exist_ok=True)
        for abandoned in self.folder.glob(f"{TEMPORARY_PREFIX}*"):
            shutil.rmtree(abandoned)
        try:
            temporary.mkdir()
            manifest = {}
            for name, content in contents.items():
                with explain_write_errors(temporary / name):
                    if isinstance(content, Path):
                        link_or_copy(content, temporary / name)
                    else:
                        torch.save(content, temporary / name)
                manifest[name] = describe_file(temporary / name)
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            for name in (*contents, MANIFEST):
                sync(temporary / name)
            if target.exists():  # the run was resumed from an earlier checkpoint
                shutil.rmtree(target)
            rename_synced(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._remove_old(target)

    def _remove_old(self, newest: Path) -> None:
        """Keep the newest whole checkpoints; damaged ones are never used as a fallback."""
        damaged, self._damaged = [checkpoint for checkpoint in self._damaged if checkpoint != newest], []
        whole = [checkpoint for checkpoint in self._newest_first() if checkpoint not in damaged]
        for old in (*damaged, *whole[KEPT_CHECKPOINTS:]):
            shutil.rmtree(old)


def read_training_checkpoint(checkpoint: Path) -> dict[str, dict]:
    """Return the contents of a training checkpoint by file.

    Raises:
        DamagedCheckpointError: a file differs from the manifest.
        OSError: a file is missing or cannot be read.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedCheckpointError(f"{checkpoint / MANIFEST}: {error}") from error
    for name in FILES:
        found, expected = describe_file(checkpoint / name), manifest.get(name) if isinstance(manifest, dict) else None
        if found != expected:
            raise DamagedCheckpointError(f"{checkpoint / name} is {found}, and {MANIFEST} says {expected}")
    return {name: load_tensors(checkpoint / name) for name in FILES}


def describe_file(path: Path) -> dict:
    """Return size and sha256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": file_digest("sha256", path)}


about_file = describe_file  # the name that tools outside this repository import


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def copy_to_host(content):
    """Return a copy whose tensors are on the CPU and stay as they are; anything but containers is returned as it is."""
    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: copy_to_host(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(map(copy_to_host, content))
    return content
