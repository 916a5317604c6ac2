"""Training checkpoints: all that a run needs to go on as if it had never stopped, written whole and found again.

    OUTPUT_DIR/resume/step-00000120/model.bin        weights
                                    optimizer.bin    optimizer and gradient scaler
                                    run.bin          where the run is, its flags, its history, all random states
                                    manifest.json    size and sha256 of each

A point is written under a temporary name by a thread of its own, while the training goes on, and renamed when all of it
is on the disk. One that is damaged is found by its manifest, and the one before it is taken.
"""

import json
import logging
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
POINTS_KEPT = 2  # the newest, and one to fall back on


class DamagedCheckpointError(ValueError):
    """A training checkpoint is not what its manifest says."""


class TrainingCheckpoints:
    """The training checkpoints in an `--output_dir`; for the main process.

    A point that cannot be written (disk full, folder read-only) is a warning, and the training goes on: the points
    before it stay.
    """

    def __init__(self, output_dir: str | Path):
        self.folder = Path(output_dir) / FOLDER
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="resume-point")
        self._writing: Future | None = None
        self._damaged: list[Path] = []

    def save(self, step: int, contents: dict[str, dict], wait: bool = False) -> bool:
        """Write the point of an optimizer step: `contents` holds what goes into each of `FILES`.

        Tensors are copied before this returns; with `wait` it returns when the point is on the disk, and False where
        it could not be written.
        """
        self.finish()
        self._writing = self._thread.submit(
            self._write_or_warn, step, {name: on_host(contents[name]) for name in FILES}
        )
        return self.finish() if wait else True

    def finish(self) -> bool:
        """Wait until the last point is written; False where it could not be."""
        writing, self._writing = self._writing, None
        return True if writing is None else writing.result()

    def newest(self) -> dict[str, dict] | None:
        """What the newest whole point holds, by file; None where there is none.

        A damaged one is passed over with a warning.
        """
        for point in self._points():
            try:
                contents = read_training_checkpoint(point)
            except (OSError, ValueError) as error:
                logger.warning("the training checkpoint %s is damaged, the one before it is tried: %s", point, error)
                self._damaged.append(point)
            else:
                logger.info("Resuming from %s", point)
                return contents
        return None

    def _points(self) -> list[Path]:
        """The folders of all points, newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _write_or_warn(self, step: int, contents: dict[str, dict]) -> bool:
        try:
            self._write(step, contents)
        except OSError as error:
            logger.warning("no training checkpoint could be written in %s; the run goes on: %s", self.folder, error)
            return False
        return True

    def _write(self, step: int, contents: dict[str, dict]) -> None:
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
                    torch.save(content, temporary / name)
                manifest[name] = about_file(temporary / name)
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            for name in (*contents, MANIFEST):
                sync(temporary / name)
            if target.exists():  # of a run that was resumed from an earlier point
                shutil.rmtree(target)
            rename_synced(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._remove_old(target)

    def _remove_old(self, newest: Path) -> None:
        """Keep `POINTS_KEPT` points; a damaged one is none to fall back on."""
        damaged, self._damaged = [point for point in self._damaged if point != newest], []
        whole = [point for point in self._points() if point not in damaged]
        for old in (*damaged, *whole[POINTS_KEPT:]):
            shutil.rmtree(old)


def read_training_checkpoint(point: Path) -> dict[str, dict]:
    """What a point holds, by file; DamagedCheckpointError or OSError where it is not what its manifest says."""
    try:
        manifest = json.loads((point / MANIFEST).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedCheckpointError(f"{point / MANIFEST}: {error}") from error
    for name in FILES:
        found, expected = about_file(point / name), manifest.get(name) if isinstance(manifest, dict) else None
        if found != expected:
            raise DamagedCheckpointError(f"{point / name} is {found}, and {MANIFEST} says {expected}")
    return {name: load_tensors(point / name) for name in FILES}


def about_file(path: Path) -> dict:
    """Size and sha256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": file_digest("sha256", path)}


def on_host(content):
    """A copy whose tensors are on the CPU and stay as they are."""
    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: on_host(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(map(on_host, content))
    return content
