"""One run: its folder, position, results, curves and training checkpoints; saved, restored bit for bit, and stopped."""

import logging
from collections.abc import Mapping
from pathlib import Path

import util
from dataloaders.fingerprint import SplitContent
from dataloaders.video_loader import VideoLoader
from engine.evaluation import Evaluation
from engine.output_folder import check_nothing_is_lost
from engine.record import RunRecord
from engine.resumption import SAMPLES, check_data, check_flags, check_position, explain_failure, versions
from engine.run_files import DIRECTIONS, NUMBERS
from engine.run_log import RunLog
from engine.signals import StoppedBySignal, StopRequest
from modules.checkpoint import (
    load_optimizer,
    load_optimizer_content,
    model_path,
    optimizer_content,
    optimizer_path,
    save_checkpoint,
)
from modules.distributed import all_gather_objects, broadcast_object, broadcast_weights, on_main_process
from modules.resume import TrainingCheckpoints

logger = logging.getLogger(__name__)


class Run:
    """A run on one process of R; methods whose docstring says so must be called by all of them.

    Args:
        folder: `--output_dir`, or None for a run that keeps nothing.
        record: the results, on the main process alone.
        flags: those that must be the same when a training is resumed (`decisive_flags`).
        save_steps: optimizer steps between training checkpoints within an epoch; 0 for none.
        weight_files: the contents of the files of weights that flags name (`resumption.weight_files`).

    Attributes:
        epoch, batches_done: the epoch from 0, and this process's batches done in it.
        global_step: optimizer steps of the whole run.
        total_loss: sum of this process's losses in the epoch.
        curves: the `RunLog`, on the main process of a run with a folder.
        stop: the `StopRequest`, set by signals.
    """

    def __init__(
        self, folder: str | Path | None, process: util.Process, record: RunRecord | None = None,
        flags: dict | None = None, save_steps: int = 0, weight_files: dict | None = None,
    ):  # fmt: skip
        self.folder = None if folder is None else Path(folder)
        self.process, self.record, self.flags, self.save_steps = process, record, flags, save_steps
        self.weight_files = weight_files or {}
        self.epoch = self.batches_done = self.global_step = 0
        self.total_loss = 0.0
        self.stop = StopRequest()
        is_writer = process.is_main and folder is not None
        self.curves = RunLog(folder) if is_writer else None
        self._checkpoints = TrainingCheckpoints(folder) if is_writer else None
        self._random: dict | None = None
        self._saved_step: int | None = None
        self._weights: dict | None = None
        self._contents: dict[str, SplitContent] = {}

    def follow(self, model, optimizer, scaler, loader, evaluated: Mapping[str, VideoLoader]) -> None:
        """Register the objects of a training whose states its checkpoints hold; `model` is the bare model.

        `evaluated` are the loaders of the splits that it is evaluated on.
        """
        self.model, self.optimizer, self.scaler, self.loader = model, optimizer, scaler, loader
        self._datasets = {"train": loader.dataset} | {split: other.dataset for split, other in evaluated.items()}

    # ---- start -------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start a run that continues no other: remove the lists that an earlier one left in the folder."""
        if self.process.is_main:
            self.record.begin()

    def continue_from(self, resume_model: str | Path, steps_per_epoch: int) -> None:
        """Continue after the epoch of a `pytorch_opt.bin.N`, with the history of its run."""
        self.epoch, loss = load_optimizer(resume_model, self.optimizer, self.scaler)
        self.global_step = self.epoch * steps_per_epoch
        logger.info("Resumed from %s: epoch %d, loss %f", resume_model, self.epoch, loss)
        if self.process.is_main:
            self.record.continue_from(resume_model, self.epoch)

    def restore(self, accept_changed_data: bool = False) -> bool:
        """Continue from the newest whole training checkpoint in the folder; False without one. For all processes.

        Raises:
            ValueError: flags that decide the numbers differ from those of the checkpoint (`--epochs` may be more); the
                data does, and `accept_changed_data` is False; or the checkpoint cannot be restored.
            FileExistsError: a new run would write over the epochs of a run without whole training checkpoints.
        """
        found = on_main_process(self._open_checkpoint, accept_changed_data)
        if found is None:
            return False
        checkpoint, contents, changes = found
        position = contents["run.bin"]
        with explain_failure(checkpoint, position):
            if self._weights is not None:
                self.model.load_state_dict(self._weights)
                self._weights = None
            broadcast_weights(self.model)
            load_optimizer_content(contents["optimizer.bin"], self.optimizer, self.scaler)
            self.epoch, self.batches_done = position["epoch"], position["batches_done"]
            self.global_step = self._saved_step = position["global_step"]
            rank = position["ranks"][self.process.rank]
            self.total_loss = rank["total_loss"]
            util.restore_random_state(rank["random"], self.process.device)
            self.loader.start_at(self.batches_done, rank["bad_videos"])
        if self.process.is_main:
            self.record.restore(position["record"])
            if any(changes.values()):
                self.record.changes.append({"epoch": self.epoch, "step": self.global_step, **changes})
                logger.warning("this run differs from the one that it resumes: %s", changes)
        logger.info("Resumed after step %d, in epoch %d", self.global_step, self.epoch + 1)
        return True

    def _open_checkpoint(self, accept_changed_data: bool) -> tuple[Path, dict, dict] | None:
        """Return path and contents of the checkpoint to restore, without the weights, and what differs; or None."""
        contents = self._checkpoints.newest()
        if contents is None:
            check_nothing_is_lost(self.folder)
            return None
        checkpoint, position = self._checkpoints.found, contents["run.bin"]
        with explain_failure(checkpoint, position):
            check_position(position, self.process.world_size)
            saved_files, saved_data = position.get("weight_files", {}), position.get("data", {})
            same_files = {name for name, content in self.weight_files.items() if saved_files.get(name) == content}
            saved_data = {split: SplitContent(**state) for split, state in saved_data.items()}
        flags = check_flags(position["flags"], self._decisive(), self.folder, frozenset(same_files), bool(saved_data))
        if not saved_data:
            logger.warning("%s does not record its data: whether that has changed is unknown", checkpoint)
        data = check_data(
            saved_data, self._split_contents(), self._datasets, self.folder, self.flags["bad_videos"],
            accept_changed_data,
        )  # fmt: skip
        self._weights = contents.pop("model.bin")
        return checkpoint, contents, {"flags": flags, "data": data}

    def _split_contents(self) -> dict[str, SplitContent]:
        return {split: self._content_of(split, dataset) for split, dataset in self._datasets.items()}

    def _content_of(self, split: str, dataset) -> SplitContent:
        """Return the content of a split as it is when this is first called."""
        if split not in self._contents:
            self._contents[split] = SplitContent.of(dataset.annotations)
        return self._contents[split]

    # ---- steps and epochs --------------------------------------------------------------------------------------------

    def before_step(self) -> None:
        """Keep the random states, for a checkpoint of this place that is written after the step has drawn from them."""
        if self.folder is not None:
            self._random = util.random_state(self.process.device)

    def count_step(self, batches_done: int) -> None:
        """Move on to the place after an optimizer step, or after one that was left out."""
        self.batches_done = batches_done
        self.global_step += 1

    def after_step(self, is_stopping: bool) -> None:
        """Save if `save_steps` or a signal to any rank calls for it. For all processes.

        Raises:
            StoppedBySignal: `is_stopping`, and all is saved.
            OSError: `is_stopping`, and the training checkpoint cannot be written.
        """
        if is_stopping:
            self.stop.is_answered = True
            if not self.save(wait=True):
                raise OSError(f"stopped by a signal, but no training checkpoint could be written in {self.folder}")
            logger.warning("stopped by a signal after step %d; --resume auto goes on from there", self.global_step)
            raise StoppedBySignal
        if self.save_steps and self.global_step % self.save_steps == 0 and self.batches_done < len(self.loader):
            self.save()  # `save_epoch` saves the last step, in less space

    def save_before_step(self) -> None:
        """Write a training checkpoint of the place before a step that cannot be finished. For all processes."""
        if self.folder is not None:
            self.save(wait=True, random=self._random)

    def save_epoch(self, loss: float) -> Path:
        """Write the files of an epoch with this mean loss, and return the path of its weights. For all processes."""
        if self.process.is_main:
            self.curves.add("epoch", self.epoch, self.global_step, loss=loss)
            save_checkpoint(self.folder, self.epoch, self.model, self.optimizer, loss, self.scaler)
        path = model_path(self.folder, self.epoch)
        logger.info("Model saved to %s", path)
        self.save(files={"model.bin": path, "optimizer.bin": optimizer_path(self.folder, self.epoch)})
        self.list_unreadable()
        return path

    def next_epoch(self) -> None:
        """Move on to the next epoch, after the evaluation of this one."""
        self.epoch, self.batches_done, self.total_loss = self.epoch + 1, 0, 0.0

    def finish(self) -> None:
        """Wait until all is written."""
        if self._checkpoints is not None:
            self._checkpoints.finish()

    # ---- training checkpoints ----------------------------------------------------------------------------------------

    def save(self, wait: bool = False, random: dict | None = None, files: dict[str, Path] | None = None) -> bool:
        """Write a training checkpoint; with `wait`, return False if it cannot be written. For all processes.

        With `wait` no rank leaves before the checkpoint is there: a launcher ends the others as soon as one does.
        Without, a step that has been saved is not saved again. `files` of an epoch are shared, not written again.
        """
        if not wait and self._saved_step == self.global_step:
            return True
        self._saved_step = self.global_step
        ranks = all_gather_objects(
            {
                "random": random or util.random_state(self.process.device),
                "total_loss": self.total_loss,
                "bad_videos": self.loader.unreadable.state(),
            }
        )
        is_written = True
        if self.process.is_main:
            position = {
                "epoch": self.epoch, "batches_done": self.batches_done, "global_step": self.global_step,
                "ranks": ranks, "flags": self._decisive(), "record": self.record.state(), "versions": versions(),
                "weight_files": self.weight_files,
                "data": {split: content.state() for split, content in self._split_contents().items()},
            }  # fmt: skip
            states = files or {
                "model.bin": self.model.state_dict(),
                "optimizer.bin": optimizer_content(self.epoch, self.optimizer, self.total_loss, self.scaler),
            }
            is_written = self._checkpoints.save(self.global_step, {**states, "run.bin": position}, wait)
        return broadcast_object(is_written) if wait else True

    def _decisive(self) -> dict:
        return self.flags | {SAMPLES: len(self.loader.dataset)}

    # ---- results -----------------------------------------------------------------------------------------------------

    def add_evaluation(
        self, evaluation: Evaluation | None, epoch: int | None, checkpoint, step: int | None = None
    ) -> None:
        """Write the results of a checkpoint; `step` is the number of optimizer steps so far in a training's epoch."""
        if not self.process.is_main:
            return
        self.record.list_unreadable(evaluation.dataset, evaluation.unreadable, epoch)
        self.record.list_gallery(evaluation.dataset)
        content = self._content_of(evaluation.split, evaluation.dataset)
        self.record.add(evaluation, epoch, checkpoint, content.sha256())
        entry = self.record.history[-1]
        numbers = {key: {name: entry[key][name] for name in NUMBERS} for key in DIRECTIONS.values()}
        self.curves.add("evaluation", epoch, step, split=evaluation.split, **numbers)

    def list_unreadable(self) -> None:
        """Log and list the unreadable and the damaged videos of the epoch's training pass. For all processes."""
        unreadable = self.loader.unreadable
        unreadable.merge(all_gather_objects(unreadable))
        if not self.process.is_main:
            return
        if unreadable.by_item:
            logger.warning(
                "%d of %d video files cannot be read; other samples took the place of %d: %s",
                len(unreadable.paths()), unreadable.files, unreadable.samples, unreadable.listing(),
            )  # fmt: skip
        if unreadable.damaged:
            logger.warning(unreadable.damage_listing())
        self.record.list_unreadable(self.loader.dataset, unreadable, self.epoch)
