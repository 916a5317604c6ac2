"""Training: the optimizer, the epochs with their checkpoints and evaluations, and the step."""

import logging
import math
import time

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

import util
from evaluation import Evaluator
from modules.checkpoint import load_optimizer, model_path, save_checkpoint
from modules.modeling import CLIP4Clip
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
    logger.info("  Num optimizer steps = %d", steps)
    first_epoch = 0
    if args.resume_model:
        first_epoch, loss = load_optimizer(args.resume_model, optimizer)
        logger.info("Resumed from %s: epoch %d, loss %f", args.resume_model, first_epoch, loss)
        evaluator.resume(first_epoch)
        if first_epoch >= args.epochs:
            raise ValueError(f"--resume_model has {first_epoch} epochs behind it and --epochs is {args.epochs}")
    step_model = model
    if process.world_size > 1:
        step_model = DistributedDataParallel(
            model,
            device_ids=[process.local_rank] if process.device.type == "cuda" else None,
            find_unused_parameters=args.sim_header == "tightTransf",  # logit_scale takes no part there
        )

    global_step = first_epoch * steps_per_epoch
    for epoch in range(first_epoch, args.epochs):
        sampler.set_epoch(epoch)
        loss, global_step = train_epoch(epoch, args, step_model, train_loader, process, optimizer, global_step)
        logger.info("Epoch %d/%s Finished, Train Loss: %f", epoch + 1, args.epochs, loss)
        evaluator.report_bad_videos(train_loader, epoch)
        output_file = model_path(args.output_dir, epoch)
        if process.is_main:
            save_checkpoint(args.output_dir, epoch, model, optimizer, loss)
            logger.info("Model saved to %s", output_file)
        evaluator.after_epoch(epoch, output_file)


def train_epoch(
    epoch: int, args, model, train_loader, process: util.Process, optimizer: BertAdam, global_step: int
) -> tuple[float, int]:
    """One pass over the training split; returns the mean loss and the number of optimizer steps so far.

    Raises FloatingPointError at the first loss that is not finite, before the optimizer moves.
    """
    model.train()
    clip = getattr(model, "module", model).clip
    accumulate, batches = args.gradient_accumulation_steps, len(train_loader)
    total_loss, started, steps_before = 0.0, time.perf_counter(), global_step
    progress = tqdm(train_loader, desc=f"epoch {epoch + 1}/{args.epochs}", disable=None if process.is_main else True)
    for index, batch in enumerate(progress):
        input_ids, input_mask, segment_ids, video, video_mask = (
            tensor.to(process.device, non_blocking=True) for tensor in batch
        )
        loss = model(input_ids, segment_ids, input_mask, video, video_mask)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} in epoch {epoch + 1}, batch {index + 1} of {batches}")
        total_loss += value
        # the last group of an epoch may be smaller than the others
        first_of_group = index - index % accumulate
        (loss / min(accumulate, batches - first_of_group)).backward()
        if (index + 1) % accumulate and index + 1 < batches:
            continue
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        global_step += 1
        if global_step % args.n_display == 0:
            rates = "-".join(f"{rate:.9f}" for rate in sorted(set(optimizer.get_lr())))
            logger.info(
                "Epoch: %d/%s, Step: %d/%d, Lr: %s, Loss: %f, Time/step: %f",
                epoch + 1, args.epochs, index + 1, batches, rates, value,
                (time.perf_counter() - started) / (global_step - steps_before),
            )  # fmt: skip
            started, steps_before = time.perf_counter(), global_step
    return total_loss / batches, global_step
