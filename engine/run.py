"""Where a run is between two optimizer steps: saved, restored bit for bit, and stopped by signals at such a place."""

import logging
from pathlib import Path

import util
from engine.evaluation import Evaluator
from engine.provenance import decisive_flags
from engine.signals import StoppedBySignal, StopRequest
from modules.distributed import all_gather_objects, broadcast_object, broadcast_weights
from modules.optimization import BertAdam
from modules.resume import FOLDER, TrainingCheckpoints

logger = logging.getLogger(__name__)


class RunState:
    """The position of a run, and everything that the rest of it depends on.

    Attributes:
        epoch, batches_done: the epoch from 0, and this process's batches behind it in that epoch.
        global_step: optimizer steps of the whole run.
        total_loss: sum of this process's losses in the epoch.
    """

    def __init__(self, args, model, optimizer: BertAdam, scaler, loader, evaluator: Evaluator, process: util.Process):
        self.args, self.model, self.optimizer, self.scaler = args, model, optimizer, scaler
        self.loader, self.evaluator, self.process = loader, evaluator, process
        self.epoch = self.batches_done = self.global_step = 0
        self.total_loss = 0.0
        self.random: dict | None = None
        self.saved_step: int | None = None
        self.stop = StopRequest()
        self.points = TrainingCheckpoints(args.output_dir) if process.is_main else None

    def after_step(self, batches_done: int, total_loss: float, is_stopping: bool) -> None:
        """Note an optimizer step; save where `--save_steps` says so, or where any rank is asked to stop."""
        self.batches_done, self.total_loss = batches_done, total_loss
        self.global_step += 1
        if is_stopping:
            self.stop.is_answered = True
            if not self.save(wait=True):
                raise OSError(
                    f"stopped by a signal, but no training checkpoint could be written in {self.args.output_dir}"
                )
            logger.warning("stopped by a signal after step %d; --resume auto goes on from there", self.global_step)
            raise StoppedBySignal
        if self.args.save_steps and self.global_step % self.args.save_steps == 0:
            self.save()

    def next_epoch(self) -> None:
        """The epoch and its evaluation are over."""
        self.epoch, self.batches_done, self.total_loss = self.epoch + 1, 0, 0.0

    def before_step(self) -> None:
        """Remember the random states, for a point of here that is written after the step has drawn from them."""
        self.random = util.random_state(self.process.device)

    def save_before_step(self) -> None:
        """Write a training checkpoint of the place where the step, which cannot be finished, began."""
        self.save(wait=True, random=self.random)

    def save(self, wait: bool = False, random: dict | None = None) -> bool:
        """Write a training checkpoint; every rank must call this. With `wait`, False where it could not be written.

        No rank leaves before the point is there: a launcher ends the others as soon as one does. Without `wait` a point
        that this step has already is not written again.
        """
        if not wait and self.saved_step == self.global_step:
            return True
        self.saved_step = self.global_step
        ranks = all_gather_objects(
            {
                "random": random or util.random_state(self.process.device),
                "total_loss": self.total_loss,
                "bad_videos": self.loader.unreadable.state(),
            }
        )
        is_written = True
        if self.process.is_main:
            run = {
                "epoch": self.epoch, "batches_done": self.batches_done, "global_step": self.global_step,
                "ranks": ranks, "flags": self._decisive(), "record": self.evaluator.record.state(),
            }  # fmt: skip
            optimizer = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
            contents = {"model.bin": self.model.state_dict(), "optimizer.bin": optimizer, "run.bin": run}
            is_written = self.points.save(self.global_step, contents, wait)
        return broadcast_object(is_written) if wait else True

    def _decisive(self) -> dict:
        """What must be the same in a resumed run: the flags, and the size of the training split."""
        return decisive_flags(self.args, self.process.world_size) | {"training samples": len(self.loader.dataset)}

    def finish(self) -> None:
        """The run is over: wait until all is written."""
        if self.process.is_main:
            self.points.finish()

    def restore(self) -> bool:
        """Go on from the newest whole training checkpoint in `--output_dir`; False where there is none.

        Raises ValueError where flags that decide the numbers differ from those of the run; `--epochs` may be more.
        """
        contents = self.points.newest() if self.process.is_main else None
        weights = None if contents is None else contents.pop("model.bin")
        contents = broadcast_object(contents)
        if contents is None:
            return False
        run = contents["run.bin"]
        check_flags(run["flags"], self._decisive(), self.args.output_dir)
        if weights is not None:
            self.model.load_state_dict(weights)
        broadcast_weights(self.model)
        self.optimizer.load_state_dict(contents["optimizer.bin"]["optimizer"])
        self.scaler.load_state_dict(contents["optimizer.bin"]["scaler"])
        self.epoch, self.batches_done, self.global_step = run["epoch"], run["batches_done"], run["global_step"]
        rank = run["ranks"][self.process.rank]
        self.total_loss = rank["total_loss"]
        util.restore_random_state(rank["random"], self.process.device)
        self.loader.start_at(self.batches_done, rank["bad_videos"])
        if self.process.is_main:
            self.evaluator.record.restore(run["record"])
        logger.info("Resumed after step %d, in epoch %d", self.global_step, self.epoch + 1)
        return True


def check_flags(of_point: dict, of_now: dict, folder) -> None:
    """Raise ValueError listing what would make the resumed run another one.

    More epochs do not, nor does `--skip_nonfinite`, the way past a step that stopped the run.
    """
    differing = {name for name in of_point | of_now if of_point.get(name) != of_now.get(name)} - {"skip_nonfinite"}
    if "epochs" in differing and of_now["epochs"] > of_point["epochs"]:
        differing.remove("epochs")
    if differing:
        changes = "; ".join(f"{name} was {of_point.get(name)}, is {of_now.get(name)}" for name in sorted(differing))
        raise ValueError(
            f"--resume auto: the run in {folder} had other settings ({changes}); give its flags (--epochs may be "
            "more), or another --output_dir"
        )


def check_output_dir(args) -> None:
    """Raise FileExistsError where a training would write over another run's checkpoints."""
    if not args.do_train or args.resume or args.resume_model:
        return
    folder = Path(args.output_dir)
    found = sorted([*folder.glob("pytorch_model.bin.*"), *folder.glob(f"{FOLDER}/step-*")])
    if found:
        raise FileExistsError(
            f"--output_dir {folder} holds the checkpoints of a run ({found[0].relative_to(folder)}, {len(found)} in "
            "all): go on with it by --resume auto, choose another folder, or delete them"
        )
