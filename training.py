"""Training: the optimizer, the epochs with their checkpoints and evaluations, and the step."""

import logging
import math
import resource
import sys
import time
from datetime import timedelta

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

import util
from evaluation import Evaluator
from modules.checkpoint import load_optimizer, model_path, save_checkpoint
from modules.distributed import all_gather_objects, average_gradients, broadcast_weights
from modules.grad_cache import grad_cache_backward
from modules.modeling import CLIP4Clip
from modules.module_clip import cut_padding
from modules.optimization import BertAdam, prepare_optimizer_groups

logger = logging.getLogger(__name__)

MAX_LOGIT_SCALE = math.log(100)  # CLIP's bound: a larger scale makes the softmax, and its gradients, degenerate
MAX_GRADIENT_NORM = 1.0


def train(args, model: CLIP4Clip, train_loader, sampler, evaluator: Evaluator, process: util.Process) -> None:
    """All epochs: train, save, evaluate."""
    steps_per_epoch = math.ceil(len(train_loader) / args.gradient_accumulation_steps)
    steps = steps_per_epoch * args.epochs
    optimizer = BertAdam(
        prepare_optimizer_groups(model.named_parameters(), args.lr, args.coef_lr),
        lr=args.lr, warmup=args.warmup_proportion, schedule="warmup_cosine", t_total=steps,
        b1=0.9, b2=0.98, e=1e-6, weight_decay=0.2, max_grad_norm=1.0,
    )  # fmt: skip
    scaler = torch.amp.GradScaler(process.device.type, enabled=args.precision == "fp16")
    logger.info("  Num optimizer steps = %d", steps)
    log_types(model, args.precision)
    first_epoch = 0
    if args.resume_model:
        first_epoch, loss = load_optimizer(args.resume_model, optimizer, scaler)
        logger.info("Resumed from %s: epoch %d, loss %f", args.resume_model, first_epoch, loss)
        evaluator.resume(first_epoch)
        if first_epoch >= args.epochs:
            raise ValueError(f"--resume_model has {first_epoch} epochs behind it and --epochs is {args.epochs}")
    step_model = model
    if process.world_size > 1 and args.grad_cache_chunk:
        broadcast_weights(model)  # as DDP does at its start; the gradient cache goes around it
    elif process.world_size > 1:
        step_model = DistributedDataParallel(
            model,
            device_ids=[process.local_rank] if process.device.type == "cuda" else None,
            find_unused_parameters=model.config.sim_header == "tightTransf",  # logit_scale takes no part there
        )

    global_step = first_epoch * steps_per_epoch
    for epoch in range(first_epoch, args.epochs):
        sampler.set_epoch(epoch)
        loss, global_step = train_epoch(epoch, args, step_model, train_loader, process, optimizer, global_step, scaler)
        logger.info("Epoch %d/%s Finished, Train Loss: %f", epoch + 1, args.epochs, loss)
        evaluator.report_bad_videos(train_loader, epoch)
        output_file = model_path(args.output_dir, epoch)
        if process.is_main:
            save_checkpoint(args.output_dir, epoch, model, optimizer, loss, scaler)
            logger.info("Model saved to %s", output_file)
        evaluator.after_epoch(epoch, output_file)


def log_types(model: CLIP4Clip, precision: str) -> None:
    """In which numbers the weights and the optimizer's moments are kept, and the activations computed."""
    weights = sorted({str(weight.dtype).removeprefix("torch.") for weight in model.parameters()})
    activations = str(model.autocast_dtype).removeprefix("torch.") if model.autocast_dtype else "those of the weights"
    logger.info(
        "precision %s: weights and moments in %s, the encoders' activations in %s, scores and loss in float32",
        precision, " and ".join(weights), activations,
    )  # fmt: skip


def train_epoch(
    epoch: int, args, model, train_loader, process: util.Process, optimizer: BertAdam, global_step: int,
    scaler: torch.amp.GradScaler | None = None,
) -> tuple[float, int]:  # fmt: skip
    """One pass over the training split; returns the mean loss and the number of optimizer steps so far.

    Raises FloatingPointError at the first loss that is not finite, before the optimizer moves.
    """
    model.train()
    clip = getattr(model, "module", model).clip
    scaler = scaler or torch.amp.GradScaler(process.device.type, enabled=False)
    accumulate, batches = args.gradient_accumulation_steps, len(train_loader)
    total_loss, progress = 0.0, Progress(epoch, args, train_loader, process)
    for index, batch in enumerate(
        tqdm(train_loader, desc=f"epoch {epoch + 1}/{args.epochs}", disable=None if process.is_main else True)
    ):
        # the last group of an epoch may be smaller than the others
        share = min(accumulate, batches - (index - index % accumulate))
        value = back_propagate(model, batch, args.grad_cache_chunk, process.device, scaler, share).item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} in epoch {epoch + 1}, batch {index + 1} of {batches}")
        total_loss += value
        progress.clips += len(batch[0])
        if (index + 1) % accumulate and index + 1 < batches:
            continue
        if args.grad_cache_chunk:
            average_gradients(model.parameters())
        scaler.unscale_(optimizer)
        gradient_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        global_step += 1
        progress.steps += 1
        if global_step % args.n_display == 0:
            progress.log(index, value, optimizer.get_lr(), clip.logit_scale.exp().item(), gradient_norm.item())
    # of heads with negatives of their own, and of the exact gather, each rank has another share
    return sum(all_gather_objects(total_loss)) / process.world_size / batches, global_step


def back_propagate(
    model, batch, chunk: int, device: torch.device, scaler: torch.amp.GradScaler, share: int
) -> "HostCopy":
    """Adds the gradients of `loss / share` of a loader's batch to the parameters; returns the loss on its way here.

    With a `chunk` the gradient cache encodes that many pairs at once; the caller then averages over the ranks.
    """
    input_ids, input_mask, segment_ids, video, video_mask = batch
    inputs = cut_padding(input_ids), segment_ids, input_mask, video, video_mask
    copies = []

    def scaled(loss: torch.Tensor) -> torch.Tensor:
        copies.append(HostCopy(loss.detach()))  # before the backward pass, which it does not wait for
        return scaler.scale(loss / share)

    if chunk:
        grad_cache_backward(model, inputs, chunk, scaled)
    else:
        scaled(model(*(tensor.to(device, non_blocking=True) for tensor in inputs))).backward()
    return copies[0]


class HostCopy:
    """A number on its way from the device to the host, which computes on meanwhile.

    Reading it waits for what was queued before it, not for what came after: the loss is checked in every step, and the
    GPU never runs out of work for that.
    """

    def __init__(self, value: torch.Tensor):
        self.value, self.arrived = value, None
        if value.is_cuda:
            self.value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def item(self) -> float:
        """The number."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.value.item()


class Progress:
    """Work since the last log line, in this epoch: optimizer steps, and clips of this process."""

    def __init__(self, epoch: int, args, loader, process: util.Process):
        self.epoch, self.args, self.loader, self.process = epoch, args, loader, process
        self._restart()

    def _restart(self) -> None:
        self.clips = self.steps = 0
        self.started, self.waited_before = time.perf_counter(), self._seconds_waited()

    def _seconds_waited(self) -> float:
        return getattr(self.loader, "seconds_waited", 0.0)  # any iterable of batches will do

    def log(self, index: int, loss: float, rates: list[float], logit_scale: float, gradient_norm: float) -> None:
        """CLIP4Clip's line, and behind it what tells whether the run is healthy and where its time goes."""
        seconds = time.perf_counter() - self.started
        waited = self._seconds_waited() - self.waited_before
        batches = len(self.loader)
        batches_left = (self.args.epochs - self.epoch) * batches - index - 1
        seconds_left = batches_left / self.args.gradient_accumulation_steps * seconds / self.steps
        logger.info(
            "Epoch: %d/%s, Step: %d/%d, Lr: %s, Loss: %f, Time/step: %f (data %f, compute %f), Clips/s: %.1f, "
            "Logit scale: %.2f, Gradient norm: %.3f, Peak memory: %.2f GB, Eta: %s",
            self.epoch + 1, self.args.epochs, index + 1, batches,
            "-".join(f"{rate:.9f}" for rate in sorted(set(rates))), loss,
            seconds / self.steps, waited / self.steps, (seconds - waited) / self.steps,
            self.clips * self.process.world_size / seconds, logit_scale, gradient_norm,
            peak_memory(self.process.device) / 1e9, timedelta(seconds=round(seconds_left)),
        )  # fmt: skip
        self._restart()


def peak_memory(device: torch.device) -> int:
    """The most bytes so far: of tensors on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
