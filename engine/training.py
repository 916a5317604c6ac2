"""Training: the optimizer, the epochs with their checkpoints and evaluations, and the step."""

import logging
import math
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

import util
from engine.evaluation import Evaluator
from engine.nonfinite import NonFiniteError, NonFiniteSteps, StepGroup, is_finite_step
from engine.progress import Progress
from engine.run import RunState
from engine.run_files import write_flags
from modules.checkpoint import keep_last_checkpoints, load_optimizer, model_path, save_checkpoint
from modules.distributed import all_gather_objects, any_over_ranks, average_gradients, broadcast_weights
from modules.grad_cache import grad_cache_backward
from modules.modeling import CLIP4Clip
from modules.module_clip import trim_padding
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
    state = RunState(args, model, optimizer, scaler, train_loader, evaluator, process)
    if args.resume and not state.restore() and process.is_main:
        evaluator.record.begin()
    if args.resume_model:
        state.epoch, loss = load_optimizer(args.resume_model, optimizer, scaler)
        state.global_step = state.epoch * steps_per_epoch
        logger.info("Resumed from %s: epoch %d, loss %f", args.resume_model, state.epoch, loss)
        evaluator.resume(state.epoch)
        if state.epoch >= args.epochs:
            raise ValueError(f"--resume_model has {state.epoch} epochs behind it and --epochs is {args.epochs}")
    if process.is_main:  # what a run that is refused has left of another must stay
        write_flags(args)
        earlier_run = Path(args.resume_model).parent if args.resume_model else args.output_dir
        evaluator.run_log.begin(state.epoch, state.global_step, earlier_run)
    step_model = over_ranks(args, model, process)
    state.stop.listen()
    try:
        while state.epoch < args.epochs:
            epoch = state.epoch
            sampler.set_epoch(epoch)
            loss, _ = train_epoch(
                epoch, args, step_model, train_loader, process, optimizer, state.global_step, scaler, state
            )
            logger.info("Epoch %d/%s Finished, Train Loss: %f", epoch + 1, args.epochs, loss)
            if process.is_main:
                evaluator.run_log.add("epoch", epoch, state.global_step, loss=loss)
            state.save()
            evaluator.report_bad_videos(train_loader, epoch)
            output_file = model_path(args.output_dir, epoch)
            if process.is_main:
                save_checkpoint(args.output_dir, epoch, model, optimizer, loss, scaler)
                logger.info("Model saved to %s", output_file)
            evaluator.after_epoch(epoch, output_file, state.global_step)
            if process.is_main:
                keep_last_checkpoints(args.output_dir, args.keep_last, epoch, evaluator.record.best()["epoch"])
            state.next_epoch()
    finally:  # so that nothing is said after the cause of an error
        state.finish()
        state.stop.forget()


def over_ranks(args, model: CLIP4Clip, process: util.Process):
    """The model as a step calls it: in DDP over several ranks, but for the gradient cache, which averages itself."""
    if process.world_size == 1:
        return model
    if args.grad_cache_chunk:
        broadcast_weights(model)  # as DDP does at its start
        return model
    return DistributedDataParallel(
        model,
        device_ids=[process.local_rank] if process.device.type == "cuda" else None,
        find_unused_parameters=not model.head.is_scaled_in_training,  # logit_scale has no gradient then
    )


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
    scaler: torch.amp.GradScaler | None = None, state: RunState | None = None,
) -> tuple[float, int]:  # fmt: skip
    """One pass over the training split; returns the mean loss and the number of optimizer steps so far.

    A `state` says where in the epoch to begin, and is told of every step.
    Raises NonFiniteError on every rank, before the optimizer moves, where a loss or the gradient of any is not finite,
    and `--skip_nonfinite` allows no more.
    """
    model.train()
    clip = getattr(model, "module", model).clip
    scaler = scaler or torch.amp.GradScaler(process.device.type, enabled=False)
    accumulate, batches = args.gradient_accumulation_steps, len(train_loader)
    first = 0 if state is None else state.batches_done
    total_loss = 0.0 if state is None else state.total_loss
    curves = None if state is None else state.evaluator.run_log
    progress = Progress(epoch, args.epochs, accumulate, train_loader, process, curves)
    folder = None if state is None else Path(args.output_dir)
    left_out, group = NonFiniteSteps(args.skip_nonfinite, folder, train_loader, process, epoch), StepGroup()
    bar = tqdm(
        train_loader, desc=f"epoch {epoch + 1}/{args.epochs}", total=batches, initial=first,
        disable=None if process.is_main else True,
    )  # fmt: skip
    for index, batch in enumerate(bar, start=first):
        if state is not None and not group.batches:
            state.before_step()
        # the last group of an epoch may be smaller than the others
        share = min(accumulate, batches - (index - index % accumulate))
        group.add(batch, back_propagate(model, batch, args.grad_cache_chunk, process.device, scaler, share))
        if (index + 1) % accumulate and index + 1 < batches:
            continue
        if args.grad_cache_chunk:
            average_gradients(model.parameters())
        scaler.unscale_(optimizer)
        gradient_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        losses, norm = group.read(gradient_norm)
        is_stopping = state is not None and state.stop.is_set
        any_not_finite, is_stopping = any_over_ranks(
            [not is_finite_step(losses, norm, scaler), is_stopping], process.device
        )
        if any_not_finite:
            try:
                left_out.add(group, index, losses, norm)
            except NonFiniteError:
                if state is not None:
                    state.save_before_step()
                raise
            scaler.update()  # which also makes it ready for the next gradients
        else:
            left_out.end_series()
            total_loss += sum(losses)
            scaler.step(optimizer)
            scaler.update()
            with torch.no_grad():
                clip.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        optimizer.zero_grad()
        progress.add(group.clips())
        group = StepGroup()
        global_step += 1
        if global_step % args.n_display == 0:
            progress.log(index, global_step, losses[-1], optimizer.get_lr(), clip.logit_scale.exp().item(), norm)
        if state is not None:
            state.after_step(index + 1, total_loss, is_stopping)
    # of heads with negatives of their own, and of the exact gather, each rank has another share
    return sum(all_gather_objects(total_loss)) / process.world_size / batches, global_step


def back_propagate(
    model, batch, chunk: int, device: torch.device, scaler: torch.amp.GradScaler, share: int
) -> torch.Tensor:
    """Adds the gradients of `loss / share` of a loader's batch to the parameters; returns the loss, detached.

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
