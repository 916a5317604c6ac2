"""Training: the optimizer, the epochs with their files and evaluations, and the step."""

import logging
import math
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

import util
from engine.evaluation import Evaluator
from engine.nonfinite import NonFiniteSteps, StepGroup, is_finite_step
from engine.progress import Progress
from engine.run import Run
from engine.run_files import write_flags
from modules.checkpoint import keep_last_checkpoints, load_checkpoint
from modules.distributed import all_gather_objects, any_over_ranks, average_gradients, broadcast_weights
from modules.grad_cache import grad_cache_backward
from modules.modeling import CLIP4Clip
from modules.module_clip import trim_padding
from modules.optimization import BertAdam, prepare_optimizer_groups

logger = logging.getLogger(__name__)

MAX_LOGIT_SCALE = math.log(100)  # CLIP's bound: a larger scale makes the softmax, and its gradients, degenerate
MAX_GRADIENT_NORM = 1.0


def train(args, model: CLIP4Clip, train_loader, sampler, evaluator: Evaluator, run: Run) -> None:
    """Train, save and evaluate every epoch that the run still lacks."""
    process = run.process
    steps_per_epoch = math.ceil(len(train_loader) / args.gradient_accumulation_steps)
    optimizer = build_optimizer(args, model, steps_per_epoch * args.epochs)
    scaler = torch.amp.GradScaler(process.device.type, enabled=args.precision == "fp16")
    log_dtypes(model, args.precision)
    run.follow(model, optimizer, scaler, train_loader, evaluator.loaders)
    start_or_resume(args, run, steps_per_epoch)
    step_model = distribute(model, process, args.grad_cache_chunk)
    run.stop.listen()
    try:
        while run.epoch < args.epochs:
            epoch = run.epoch
            sampler.set_epoch(epoch)
            loss, _ = train_epoch(
                epoch, args, step_model, train_loader, process, optimizer, run.global_step, scaler, run
            )
            logger.info("Epoch %d/%s Finished, Train Loss: %f", epoch + 1, args.epochs, loss)
            checkpoint = run.save_epoch(loss)
            evaluate_epoch(evaluator, run, checkpoint)
            if process.is_main:
                keep_last_checkpoints(run.folder, args.keep_last, epoch, run.record.best()["epoch"])
            run.next_epoch()
    finally:  # so that no message follows the cause of an error
        run.finish()
        run.stop.forget()


def build_optimizer(args, model: CLIP4Clip, steps: int) -> BertAdam:
    """Return CLIP4Clip's optimizer for a run of so many steps."""
    logger.info("  Num optimizer steps = %d", steps)
    return BertAdam(
        prepare_optimizer_groups(model.named_parameters(), args.lr, args.coef_lr),
        lr=args.lr, warmup=args.warmup_proportion, schedule="warmup_cosine", t_total=steps,
        b1=0.9, b2=0.98, e=1e-6, weight_decay=0.2, max_grad_norm=1.0,
    )  # fmt: skip


def log_dtypes(model: CLIP4Clip, precision: str) -> None:
    """Log the dtypes of the weights, the optimizer's moments and the activations."""
    weights = sorted({str(weight.dtype).removeprefix("torch.") for weight in model.parameters()})
    activations = str(model.autocast_dtype).removeprefix("torch.") if model.autocast_dtype else "the weights' dtype"
    logger.info(
        "precision %s: weights and moments in %s, the encoders' activations in %s, scores and loss in float32",
        precision, " and ".join(weights), activations,
    )  # fmt: skip


def start_or_resume(args, run: Run, steps_per_epoch: int) -> None:
    """Move the run to where it starts: the beginning, its newest training checkpoint, or `--resume_model`.

    Raises:
        ValueError: the run to resume differs in what decides the numbers, or has all epochs done; its files stay.
    """
    if args.resume_model:
        run.continue_from(args.resume_model, steps_per_epoch)
        if run.epoch >= args.epochs:
            raise ValueError(
                f"--resume_model {args.resume_model} has {run.epoch} epochs done and --epochs is {args.epochs}"
            )
    elif not (args.resume and run.restore(args.accept_changed_data)):
        run.begin()
    if run.process.is_main:
        write_flags(run.folder, args)
        earlier_run = Path(args.resume_model).parent if args.resume_model else run.folder
        run.curves.begin(run.epoch, run.global_step, earlier_run)


def distribute(model: CLIP4Clip, process: util.Process, grad_cache_chunk: int):
    """Return the model as a step calls it: in DDP over several ranks, but for the gradient cache.

    The gradient cache averages the gradients itself.
    """
    if process.world_size == 1:
        return model
    if grad_cache_chunk:
        broadcast_weights(model)  # as DDP does at its start
        return model
    return DistributedDataParallel(
        model,
        device_ids=[process.local_rank] if process.device.type == "cuda" else None,
        find_unused_parameters=not model.head.is_scaled_in_training,  # logit_scale has no gradient then
    )


def evaluate_epoch(evaluator: Evaluator, run: Run, checkpoint: Path) -> None:
    """Evaluate on the split that picks the epoch, and log the best epoch so far."""
    run.add_evaluation(evaluator.evaluate(evaluator.validation_split), run.epoch, checkpoint, run.global_step)
    if run.process.is_main:
        best = run.record.best()
        logger.info(
            "The best model is: %s, the R1 is: %.4f (epoch picked on %s)",
            best["checkpoint"], best["text_to_video"]["R1"], run.record.validation_name(),
        )  # fmt: skip


def evaluate_picked(evaluator: Evaluator, run: Run) -> None:
    """With `--holdout`, evaluate the picked checkpoint on the test split, once."""
    best = run.record.best() if run.process.is_main else {"epoch": None, "checkpoint": None}
    load_checkpoint(best["checkpoint"], evaluator.model)
    run.add_evaluation(evaluator.evaluate("test"), best["epoch"], best["checkpoint"])
    if run.process.is_main:
        logger.info(
            "The picked model is: %s, the R1 is: %.4f (on the test split, evaluated once; epoch picked on %s)",
            best["checkpoint"], run.record.history[-1]["text_to_video"]["R1"], run.record.validation_name(),
        )  # fmt: skip


def train_epoch(
    epoch: int, args, model, train_loader, process: util.Process, optimizer: BertAdam, global_step: int,
    scaler: torch.amp.GradScaler | None = None, run: Run | None = None,
) -> tuple[float, int]:  # fmt: skip
    """Train on the training split once, and return the mean loss and the number of optimizer steps so far.

    With a `run` the pass starts at its position and moves it on with every step; without, nothing is saved.

    Raises:
        NonFiniteError: on every rank, before the optimizer moves, if a loss or gradient of any rank is not finite
            and `--skip_nonfinite` allows no more.
    """
    model.train()
    if run is None:
        run = Run(None, process)
        run.epoch, run.global_step = epoch, global_step
    scaler = scaler or torch.amp.GradScaler(process.device.type, enabled=False)
    logit_scale = getattr(model, "module", model).clip.logit_scale
    accumulate, batches = args.gradient_accumulation_steps, len(train_loader)
    progress = Progress(epoch, args.epochs, accumulate, train_loader, process, run.curves)
    left_out = NonFiniteSteps(
        args.skip_nonfinite, getattr(args, "output_dir", None), train_loader, process, epoch, run.save_before_step
    )
    group, first = StepGroup(), run.batches_done
    for index, batch in enumerate(progress.bar(first), start=first):
        if not group.batches:
            run.before_step()
        # the last group of an epoch may be smaller than the others
        share = min(accumulate, batches - (index - index % accumulate))
        group.add(batch, back_propagate(model, batch, args.grad_cache_chunk, process.device, scaler, share))
        if (index + 1) % accumulate and index + 1 < batches:
            continue
        losses, norm = group.read(clip_gradients(model, optimizer, scaler, args.grad_cache_chunk))
        is_bad, is_stopping = any_over_ranks(
            [not is_finite_step(losses, norm, scaler), run.stop.is_set], process.device
        )
        if is_bad:
            left_out.add(group, index, losses, norm)
            scaler.update()  # which also makes it ready for the next gradients
        else:
            left_out.end_series()
            take_step(optimizer, scaler, logit_scale)
            run.total_loss += sum(losses)
        optimizer.zero_grad()
        progress.add(group.clips())
        run.count_step(index + 1)
        if run.global_step % args.n_display == 0:
            progress.log(index, run.global_step, losses[-1], optimizer.get_lr(), logit_scale.exp().item(), norm)
        run.after_step(is_stopping)
        group = StepGroup()
    # of heads with negatives of their own, and of the exact gather, each rank has another share
    return sum(all_gather_objects(run.total_loss)) / process.world_size / batches, run.global_step


def back_propagate(
    model, batch, chunk: int, device: torch.device, scaler: torch.amp.GradScaler, share: int
) -> torch.Tensor:
    """Add the gradients of `loss / share` of a loader's batch to the parameters, and return the loss, detached.

    With a `chunk` the gradient cache encodes that many pairs at once; the caller then averages over the ranks.
    """
    input_ids, input_mask, segment_ids, video, video_mask = batch
    inputs = trim_padding(input_ids), segment_ids, input_mask, video, video_mask

    def scaled(loss: torch.Tensor) -> torch.Tensor:
        return scaler.scale(loss / share)

    if chunk:
        return grad_cache_backward(model, inputs, chunk, scaled)
    loss = model(*(tensor.to(device, non_blocking=True) for tensor in inputs))
    scaled(loss).backward()
    return loss.detach()


def clip_gradients(model, optimizer: BertAdam, scaler: torch.amp.GradScaler, grad_cache_chunk: int) -> torch.Tensor:
    """Clip the gradients, averaged over the ranks and unscaled, to a global norm of 1; return the norm before."""
    if grad_cache_chunk:
        average_gradients(model.parameters())
    scaler.unscale_(optimizer)
    return torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)


def take_step(optimizer: BertAdam, scaler: torch.amp.GradScaler, logit_scale: torch.nn.Parameter) -> None:
    """Move the weights, and keep the logit scale within CLIP's bound."""
    scaler.step(optimizer)
    scaler.update()
    with torch.no_grad():
        logit_scale.clamp_(max=MAX_LOGIT_SCALE)
