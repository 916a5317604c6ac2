"""Train and evaluate text-video retrieval: CLIP4Clip's heads and weighted token-wise interaction (WTI).

    python main_task_retrieval.py --do_train --sim_header wti --output_dir runs/wti ...        one process
    torchrun --nproc_per_node=4 main_task_retrieval.py --do_train ...                          several
    python main_task_retrieval.py --do_eval --init_model runs/wti/pytorch_model.bin.4 ...      evaluation only

Flags keep CLIP4Clip's names, types and defaults; `--help` lists them with what differs.
"""

import argparse
import logging
import os
import socket

from torch.distributed.elastic.multiprocessing.errors import record
from tqdm.contrib.logging import logging_redirect_tqdm

import util
from dataloaders.data_dataloaders import DATALOADER_DICT
from dataloaders.worker_failures import explain_worker_ends
from engine.arguments import get_args, log_recorded_flags
from engine.evaluation import Evaluator
from engine.evaluation import eval_epoch as eval_epoch  # CLIP4Clip's users look for it here
from engine.output_folder import check_output_folder, output_folder
from engine.provenance import decisive_flags
from engine.record import RunRecord
from engine.resumption import weight_files
from engine.run import Run
from engine.run_files import write_flags
from engine.training import evaluate_picked, train
from engine.training import train_epoch as train_epoch  # and this
from modules.checkpoint import checkpoint_epoch, locate_weights, open_model
from modules.configuration import CLIP4ClipConfig
from modules.initialization import freeze_clip_layers, set_precision
from modules.modeling import CLIP4Clip
from modules.module_clip import set_grad_checkpointing
from modules.standard_streams import open_standard_streams
from modules.tokenization_clip import SimpleTokenizer

logger = logging.getLogger(__name__)


def check_files(args: argparse.Namespace) -> None:
    """Raise FileNotFoundError naming the flag if a checkpoint is missing."""
    for flag in ("init_model", "resume_model"):
        path = getattr(args, flag)
        if path and "://" not in path:
            locate_weights(path, f"--{flag}")


@record  # the launcher's closing summary then shows the first error of any process
def main(argv: list[str] | None = None) -> None:
    """Train or evaluate, as the flags say."""
    open_standard_streams()
    args = get_args(argv)
    with output_folder(args.output_dir):
        check_files(args)
        if util.launched_rank() == 0:
            check_output_folder(args)
        with (
            util.distributed_process(args.local_rank) as process,
            logging_redirect_tqdm(),
            explain_worker_ends(),
        ):
            train_or_evaluate(args, process)


def train_or_evaluate(args: argparse.Namespace, process: util.Process) -> None:
    """Wire everything together: data, model, optimizer; then train or evaluate."""
    util.set_seed(args.seed)
    if args.precision is None:
        args.precision = "clip_fp16" if process.device.type == "cuda" else "fp32"
    log_parameters(args, process)
    log_recorded_flags(args)

    tokenizer = SimpleTokenizer()
    model = init_model(args, process, tokenizer.vocab_size)
    evaluator = Evaluator.from_flags(args, model, tokenizer, process)
    results = RunRecord.from_flags(args, process.world_size, evaluator.holdout) if process.is_main else None
    run = Run(
        args.output_dir, process, results, decisive_flags(args, process.world_size), args.save_steps, weight_files(args)
    )  # fmt: skip
    if not args.do_train:
        run.begin()
        if process.is_main:
            write_flags(run.folder, args)
        run.add_evaluation(evaluator.evaluate("test"), checkpoint_epoch(args.init_model), args.init_model)
        return
    train_loader, train_length, sampler = DATALOADER_DICT[args.datatype]["train"](
        args, tokenizer, image_resolution=model.input_resolution
    )
    steps = len(train_loader) * args.epochs
    util.log_split("training", train_length, args.batch_size // args.gradient_accumulation_steps, steps)
    train(args, model, train_loader, sampler, evaluator, run)
    if args.holdout:
        evaluate_picked(evaluator, run)


def log_parameters(args: argparse.Namespace, process: util.Process) -> None:
    """Log the flags in force, and the batch that follows from them."""
    logger.info("Effective parameters:")
    for name, value in sorted(vars(args).items()):
        logger.info("  <<< %s: %s", name, value)
    logger.info("process %d on %s", os.getpid(), socket.gethostname())  # for a run that finds the folder locked
    logger.info("device: %s, processes: %d, precision: %s", process.device, process.world_size, args.precision)
    if args.do_train:
        ranks, accumulated = process.world_size, args.gradient_accumulation_steps
        candidates = args.batch_size // accumulated
        if CLIP4ClipConfig.from_namespace(args).has_local_negatives:
            candidates //= ranks
        logger.info(
            "global batch: %d pairs per optimizer step (%d processes x %d accumulation steps x %d pairs), "
            "each scored against %d candidates",
            args.batch_size, ranks, accumulated, args.batch_size // (ranks * accumulated), candidates,
        )  # fmt: skip
        if accumulated > 1:
            logger.warning(
                "--gradient_accumulation_steps %d leaves each pair 1/%d of the candidates; --grad_cache_chunk %d takes "
                "about the same memory and leaves all", accumulated, accumulated,
                args.batch_size // (ranks * accumulated),
            )  # fmt: skip


def init_model(args: argparse.Namespace, process: util.Process, vocabulary: int) -> CLIP4Clip:
    """Return the model with its weights, on the device, in the precision of `args`, with frozen layers frozen."""
    model = open_model(args, vocabulary, for_training=args.do_train)
    if args.do_train:
        frozen = freeze_clip_layers(model.clip, args.freeze_layer_num)
        logger.info("%d of CLIP's weights are frozen (--freeze_layer_num %d)", len(frozen), args.freeze_layer_num)
    set_precision(model, args.precision)
    set_grad_checkpointing(model, args.grad_checkpointing)
    if args.compile:
        model.clip.visual.compile()
        model.clip.transformer.compile()
    return model.to(process.device)


if __name__ == "__main__":
    main()
