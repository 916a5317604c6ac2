"""Flags, the process, and one training epoch."""

import logging
import math
import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import main_task_retrieval
import util
from main_task_retrieval import get_args, train_epoch
from modules.configuration import SIM_HEADERS
from modules.initialization import OPENAI_CLIPS

REPOSITORY = Path(__file__).resolve().parent.parent

# CLIP4Clip's README, MSR-VTT
TRAINING_COMMAND = """
--do_train --num_thread_reader=0 --epochs=5 --batch_size=128 --n_display=50
--train_csv data/MSRVTT_train.9k.csv --val_csv data/MSRVTT_JSFUSION_test.csv --data_path data/MSRVTT_data.json
--features_path data/MSRVTT_Videos --output_dir ckpts/ckpt_msrvtt_retrieval_looseType
--lr 1e-4 --max_words 32 --max_frames 12 --batch_size_val 16 --datatype msrvtt --expand_msrvtt_sentences
--feature_framerate 1 --coef_lr 1e-3 --freeze_layer_num 0 --slice_framepos 2 --loose_type --linear_patch 2d
--sim_header {head} --pretrained_clip_name {clip}
"""
EVALUATION_COMMAND = """
--do_eval --num_thread_reader=2 --val_csv data/MSRVTT_JSFUSION_test.csv --data_path data/MSRVTT_data.json
--features_path data/MSRVTT_Videos --output_dir ckpts/eval --init_model ckpts/pytorch_model.bin.4
--max_words 32 --max_frames 12 --batch_size_val 16 --datatype msrvtt --feature_framerate 1 --slice_framepos 2
--linear_patch 2d --sim_header {head} --pretrained_clip_name {clip}
"""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def parse(*flags: str):
    return get_args(["--do_train", "--output_dir", "runs/test", *flags])


# ---- flags -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", SIM_HEADERS)
@pytest.mark.parametrize("clip", OPENAI_CLIPS)
def test_training_command_of_the_readme(head, clip):
    args = get_args(TRAINING_COMMAND.format(head=head, clip=clip).split())
    expected = {
        "do_train": True, "do_eval": False, "num_thread_reader": 0, "epochs": 5, "batch_size": 128, "n_display": 50,
        "train_csv": "data/MSRVTT_train.9k.csv", "val_csv": "data/MSRVTT_JSFUSION_test.csv",
        "data_path": "data/MSRVTT_data.json", "features_path": "data/MSRVTT_Videos",
        "output_dir": "ckpts/ckpt_msrvtt_retrieval_looseType", "lr": 1e-4, "max_words": 32, "max_frames": 12,
        "batch_size_val": 16, "datatype": "msrvtt", "expand_msrvtt_sentences": True, "feature_framerate": 1,
        "coef_lr": 1e-3, "freeze_layer_num": 0, "slice_framepos": 2, "loose_type": True, "linear_patch": "2d",
        "sim_header": head, "pretrained_clip_name": clip,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in expected} == expected
    assert args.unread_flags == []


@pytest.mark.parametrize("head", SIM_HEADERS)
def test_evaluation_command(head):
    args = get_args(EVALUATION_COMMAND.format(head=head, clip="ViT-B/16").split())
    assert (args.do_train, args.do_eval, args.init_model) == (False, True, "ckpts/pytorch_model.bin.4")


BAD_FLAGS = {
    "unknown head": (["--sim_header", "maxP"], ["--sim_header", "maxP", *SIM_HEADERS]),
    "unknown data set": (["--datatype", "youcook"], ["--datatype", "youcook", "msrvtt"]),
    "unknown CLIP": (["--pretrained_clip_name", "ViT-B/64"], ["ViT-B/64", *OPENAI_CLIPS, "MODEL:TAG", "file"]),
    "unknown open_clip model": (["--pretrained_clip_name", "ViT-B-33:openai"], ["ViT-B-33", "ViT-B-32"]),
    "unknown open_clip tag": (
        ["--pretrained_clip_name", "ViT-B-32:laion9b"],
        ["laion9b", "ViT-B-32", "laion2b_s34b_b79k"],
    ),
    "ResNet of open_clip": (["--pretrained_clip_name", "RN50:openai"], ["RN50:openai", "ResNet", "ViT"]),
    "CLIP with other layers": (["--pretrained_clip_name", "coca_ViT-B-32:laion2b_s13b_b90k"], ["attentional_pool"]),
    "unknown aggregation": (["--sim_header", "wti", "--agg_module", "mean"], ["mean", "none", "seqLSTM", "seqTransf"]),
    "aggregation of meanP": (["--agg_module", "seqLSTM"], ["--agg_module seqLSTM", "ti, wti", "meanP"]),
    "aggregation of seqTransf": (
        ["--sim_header", "seqTransf", "--agg_module", "seqTransf"],
        ["--agg_module seqTransf", "ti, wti"],
    ),
    "aggregation of tightTransf": (
        ["--sim_header", "tightTransf", "--agg_module", "seqTransf"],
        ["--agg_module seqTransf", "tightTransf"],
    ),
    "batch and accumulation": (
        ["--batch_size", "128", "--gradient_accumulation_steps", "3"],
        ["--batch_size 128", "1 * 3", "--gradient_accumulation_steps"],
    ),
    "too many words": (["--max_words", "78"], ["--max_words 78", "77", "ViT-B/32"]),
    "no words": (["--max_words", "1"], ["--max_words 1"]),
    "no frames": (["--max_frames", "0"], ["--max_frames 0"]),
    "resume without weights": (["--resume_model", "opt.bin.0"], ["--resume_model", "--init_model"]),
    "no batch": (["--batch_size", "0"], ["--batch_size 0"]),
    "no accumulation": (["--gradient_accumulation_steps", "0"], ["--gradient_accumulation_steps 0"]),
    "no evaluation batch": (["--batch_size_val", "0"], ["--batch_size_val 0"]),
    "no epochs": (["--epochs", "0"], ["--epochs 0"]),
    "no display": (["--n_display", "0"], ["--n_display 0"]),
    "no frame rate": (["--feature_framerate", "0"], ["--feature_framerate 0"]),
    "negative workers": (["--num_thread_reader", "-1"], ["--num_thread_reader -1"]),
    "negative seed": (["--seed", "-1"], ["--seed -1"]),
    "seed beyond 32 bits": (["--seed", "4294967296"], ["--seed 4294967296"]),
    "no rate": (["--lr", "0"], ["--lr 0.0"]),
    "rate is no number": (["--lr", "nan"], ["--lr nan"]),
    "infinite rate": (["--lr", "inf"], ["--lr inf"]),
    "negative rate of CLIP": (["--coef_lr", "-1"], ["--coef_lr -1.0"]),
    "all warm-up": (["--warmup_proportion", "1"], ["--warmup_proportion 1.0"]),
    "frozen below -1": (["--freeze_layer_num", "-2"], ["--freeze_layer_num -2", "-1"]),
    "unknown cross model": (["--cross_model", "cross-large"], ["cross-large", "cross-base"]),
    "no cross layers": (["--cross_num_hidden_layers", "0"], ["--cross_num_hidden_layers 0"]),
    "unknown patch": (["--linear_patch", "4d"], ["4d", "2d", "3d"]),
    "unknown frame positions": (["--slice_framepos", "3"], ["--slice_framepos", "3", "0, 1, 2"]),
    "unknown precision": (["--precision", "int8"], ["int8", "clip_fp16", "fp32"]),
    "holdout of one": (["--holdout", "1"], ["--holdout 1", "at least 2"]),
    "negative holdout": (["--holdout", "-3"], ["--holdout -3"]),
    "unknown post-processing": (["--post_process", "dis"], ["dis", "none", "dsl", "qb_norm"]),
    "no temperature": (["--dsl_temperature", "0"], ["--dsl_temperature 0"]),
    "beta is no number": (["--qb_norm_beta", "nan"], ["--qb_norm_beta nan"]),
    "no bank": (["--qb_norm_size", "0"], ["--qb_norm_size 0"]),
    "unknown weight network": (["--sim_header", "wti", "--wti_arch", "4"], ["4", "1, 2, 3"]),
    "unknown padding": (["--sim_header", "wti", "--wti_padding", "minus"], ["minus", "zero", "exclude"]),
    "unknown task": (["--task_type", "caption"], ["caption", "retrieval"]),
    "unknown flag": (["--dual_softmax"], ["--dual_softmax"]),
}


def argument_error(capsys, flags: list[str]) -> str:
    """The message on stderr; checks that it is an argument error."""
    with pytest.raises(SystemExit) as error:
        get_args(flags)
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message.split("error: ")[1]


@pytest.mark.parametrize(("flags", "words"), BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_bad_flags(capsys, flags, words):
    message = argument_error(capsys, ["--do_train", "--output_dir", "runs/test", *flags])
    assert [word for word in words if word not in message] == []


def test_something_must_be_asked_for(capsys):
    message = argument_error(capsys, ["--output_dir", "runs/test"])
    assert "--do_train" in message and "--do_eval" in message


def test_a_holdout_belongs_to_training(capsys):
    assert "--do_train" in argument_error(capsys, ["--do_eval", "--output_dir", "x", "--holdout", "5"])
    assert get_args(["--do_train", "--output_dir", "x", "--holdout", "5"]).holdout == 5


def test_output_dir_is_required(capsys):
    assert "--output_dir" in argument_error(capsys, ["--do_train"])


def test_batch_divides_over_the_processes(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    message = argument_error(capsys, ["--do_train", "--output_dir", "x", "--batch_size", "128"])
    assert "--batch_size 128" in message and "3 * 1" in message
    # only training cuts the batch into parts
    assert get_args(["--do_eval", "--output_dir", "x", "--batch_size", "128"]).batch_size == 128


def test_batch_divides_over_processes_and_accumulation(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    flags = ["--do_train", "--output_dir", "x", "--gradient_accumulation_steps", "4", "--batch_size"]
    assert "2 * 4" in argument_error(capsys, [*flags, "12"])  # divides by either, not by both
    assert get_args([*flags, "16"]).batch_size == 16


def test_errors_come_before_anything_is_loaded(capsys, tmp_path):
    """Nothing of the data exists, and still it is the flag that is named; no folder is made."""
    folder = tmp_path / "out"
    flags = ["--do_train", "--output_dir", str(folder), "--train_csv", "/nowhere.csv", "--sim_header", "maxP"]
    assert "maxP" in argument_error(capsys, flags)
    assert not folder.exists()


def test_a_file_is_a_clip_name(tmp_path):
    weights = tmp_path / "clip.pt"
    weights.touch()
    # its context is known only once it is read
    assert parse("--pretrained_clip_name", str(weights), "--max_words", "78").max_words == 78


def test_loose_type_is_ignored_by_tight_heads_with_one_line(caplog):
    assert parse("--loose_type", "--sim_header", "tightTransf").loose_type
    assert len(caplog.messages) == 1
    assert "--loose_type" in caplog.messages[0] and "tightTransf" in caplog.messages[0]


@pytest.mark.parametrize("head", ["meanP", "seqLSTM", "seqTransf", "ti", "wti"])
def test_loose_type_with_loose_heads_says_nothing(caplog, head):
    parse("--loose_type", "--sim_header", head)
    assert caplog.messages == []


UNREAD_FLAGS = {
    "--lr_decay": "0.9", "--video_dim": "1024", "--margin": "0.1", "--hard_negative_rate": "0.5",
    "--negative_weighting": "1", "--n_pair": "1", "--n_gpu": "1", "--world_size": "0", "--rank": "0",
    "--text_num_hidden_layers": "12", "--visual_num_hidden_layers": "12", "--fp16_opt_level": "O1",
    "--do_pretrain": None, "--do_lower_case": None, "--use_mil": None, "--sampled_use_mil": None, "--fp16": None,
}  # fmt: skip


@pytest.mark.parametrize(("flag", "value"), UNREAD_FLAGS.items())
def test_an_unread_flag_is_said_even_with_its_default(caplog, flag, value):
    parse(flag if value is None else f"{flag}={value}")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert flag in caplog.messages[0]


def test_all_unread_flags_make_one_line(caplog):
    args = parse(*(word for flag, value in UNREAD_FLAGS.items() for word in (flag, value) if word is not None))
    assert len(caplog.messages) == 1
    assert [flag for flag in UNREAD_FLAGS if flag not in caplog.messages[0]] == []
    assert args.fp16 is True and args.do_pretrain is True
    assert (args.lr_decay, args.n_pair, args.fp16_opt_level) == (0.9, 1, "O1")


def test_no_unread_flag_no_line(caplog):
    parse("--lr", "1e-4", "--seed", "42")
    assert caplog.messages == []


def test_only_the_main_process_warns(caplog, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    parse("--n_gpu", "1", "--loose_type", "--sim_header", "tightTransf")
    assert caplog.messages == []


@pytest.mark.parametrize("flags", [["--local_rank", "1"], ["--local-rank", "1"], ["--local-rank=1"]])
def test_both_spellings_of_local_rank(caplog, flags):
    assert parse(*flags).local_rank == 1
    assert caplog.messages == []


def test_help_needs_no_gpu(tmp_path):
    result = subprocess.run(
        [sys.executable, str(REPOSITORY / "main_task_retrieval.py"), "--help"],
        cwd=tmp_path, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    flags = ("--do_train", "--sim_header", "--local_rank", "--wti_arch", "--agg_module", "--precision", *UNREAD_FLAGS)
    assert [flag for flag in flags if not re.search(rf"^  {flag}\b", result.stdout, re.MULTILINE)] == []
    assert list(tmp_path.iterdir()) == []


# ---- the process -------------------------------------------------------------------------------------------------


@pytest.fixture
def root_logger():
    """The root logger without pytest's handlers, put back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    yield root
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_logging_goes_to_file_and_terminal(root_logger, tmp_path, capsys):
    util.setup_logging(tmp_path / "log.txt")
    logging.getLogger("a.module").info("Größe: %d", 3)
    line = r"\d\d/\d\d/\d{4} \d\d:\d\d:\d\d - INFO -   Größe: 3\n"
    assert re.fullmatch(line, (tmp_path / "log.txt").read_text(encoding="utf-8"))
    assert re.fullmatch(line, capsys.readouterr().err)


def test_logging_again_doubles_no_line(root_logger, tmp_path):
    util.setup_logging(tmp_path / "first.txt")
    util.setup_logging(tmp_path / "second.txt")
    logging.getLogger().info("once")
    assert (tmp_path / "first.txt").read_text() == ""
    assert (tmp_path / "second.txt").read_text().count("once") == 1


def test_other_processes_log_errors_to_the_terminal_only(root_logger, tmp_path, capsys):
    util.setup_logging(tmp_path / "log.txt", is_main=False)
    logging.getLogger("a.module").warning("a warning")
    logging.getLogger("a.module").error("an error")
    assert not (tmp_path / "log.txt").exists()
    message = capsys.readouterr().err
    assert "an error" in message and "a warning" not in message


def test_seed_holds_every_generator():
    draws = []
    for seed in (7, 7, 8):
        util.set_seed(seed)
        draws.append((random.random(), float(np.random.rand()), torch.rand(1).item()))
    assert draws[0] == draws[1]
    assert all(first != other for first, other in zip(draws[0], draws[2], strict=True))


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_one_process_needs_no_group(no_gpu):
    with util.distributed_process() as process:
        assert process == util.Process(torch.device("cpu"), rank=0, local_rank=0, world_size=1)
        assert process.is_main
        assert not dist.is_initialized()


def set_launcher(monkeypatch, **environment: str) -> None:
    """The environment that torchrun gives the only process of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    values = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in {**values, **environment}.items():
        monkeypatch.setenv(name, value)


def test_a_launched_process_joins_a_group_and_leaves_it(no_gpu, monkeypatch):
    set_launcher(monkeypatch)
    with util.distributed_process() as process:
        assert dist.is_initialized() and dist.get_backend() == "gloo"
        assert (process.rank, process.world_size) == (0, 1)
    assert not dist.is_initialized()


def test_the_group_is_not_waited_for_after_an_error(no_gpu, monkeypatch):
    """Leaving it waits for the other ranks, which may sit in a collective: the error has to get out first."""
    set_launcher(monkeypatch)
    with pytest.raises(RuntimeError, match="out of memory"), util.distributed_process():
        raise RuntimeError("out of memory")
    assert dist.is_initialized()
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--init_model", "nowhere.bin"], ["--init_model", "nowhere.bin"]),
        (["--init_model", __file__, "--resume_model", "nowhere.opt"], ["--resume_model", "nowhere.opt"]),
        (["--output_dir", __file__], ["--output_dir", "is a file"]),
    ],
)
def test_missing_files_are_named_before_anything_is_loaded(flags, words):
    with pytest.raises(OSError) as error:
        main_task_retrieval.main(["--do_train", "--output_dir", "unused", *flags])
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize("from_environment", [True, False])
def test_more_processes_than_gpus(monkeypatch, from_environment):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if from_environment:
        monkeypatch.setenv("LOCAL_RANK", "2")
    flag = 0 if from_environment else 2
    with pytest.raises(ValueError, match=r"local rank 2 .* 2 visible"), util.distributed_process(flag):
        pass


# ---- one epoch ---------------------------------------------------------------------------------------------------


class Weights(nn.Module):
    """A model whose loss is the mean over the batch of weight * x, so that the gradient is the mean of x."""

    def __init__(self, weight: float = 1.0, logit_scale: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.clip = nn.Module()
        self.clip.logit_scale = nn.Parameter(torch.tensor(logit_scale))

    def forward(self, input_ids, segment_ids, input_mask, video, video_mask):
        assert segment_ids[0, 0] == 2 and input_mask[0, 0] == 1  # the loader's order, not the model's
        return (self.weight * video).mean()


class RecordingSGD(torch.optim.SGD):
    """Plain gradient descent with rate 1 that keeps the weight after each step."""

    def __init__(self, model):
        super().__init__(model.parameters(), lr=1.0)
        self.model, self.weights = model, []

    def step(self, closure=None):
        super().step(closure)
        self.weights.append(self.model.weight.item())

    def get_lr(self):
        return [1e-4, 1e-7, 1e-4, 1e-7]


def batch(*values: float) -> tuple[torch.Tensor, ...]:
    """input_ids, input_mask, segment_ids, video, video_mask with `values` for a video."""
    rows = len(values)
    return torch.zeros(rows, 1), torch.ones(rows, 1), torch.full((rows, 1), 2), torch.tensor(values), torch.ones(rows)


def run_epoch(model, batches, accumulation=1, n_display=100, global_step=0):
    optimizer = RecordingSGD(model)
    args = SimpleNamespace(
        gradient_accumulation_steps=accumulation, grad_cache_chunk=0, skip_nonfinite=0, n_display=n_display, epochs=5
    )
    process = util.Process(torch.device("cpu"), rank=1)  # another rank shows no progress bar
    loss, steps = train_epoch(0, args, model, batches, process, optimizer, global_step)
    return loss, steps, optimizer


def test_an_epoch_steps_after_every_batch():
    model = Weights(1.0)
    loss, steps, optimizer = run_epoch(model, [batch(0.1, 0.3), batch(0.5)], global_step=7)
    assert optimizer.weights == pytest.approx([1 - 0.2, 0.8 - 0.5])
    assert loss == pytest.approx((1 * 0.2 + 0.8 * 0.5) / 2)
    assert steps == 9
    assert model.weight.grad is None
    assert model.training


def test_accumulation_steps_on_the_mean_of_its_parts():
    """Five batches in groups of two; the last group has one and is not made smaller for that."""
    batches = [batch(0.1), batch(0.3), batch(0.2), batch(0.6), batch(0.25)]
    loss, steps, optimizer = run_epoch(Weights(1.0), batches, accumulation=2)
    assert optimizer.weights == pytest.approx([1 - (0.1 + 0.3) / 2, 0.8 - (0.2 + 0.6) / 2, 0.4 - 0.25])
    assert loss == pytest.approx((0.1 + 0.3 + 0.8 * 0.2 + 0.8 * 0.6 + 0.4 * 0.25) / 5)
    assert steps == 3


def test_accumulation_equals_the_whole_batch():
    _, _, halves = run_epoch(Weights(1.0), [batch(0.1, 0.4), batch(0.3, 0.8)], accumulation=2)
    _, _, whole = run_epoch(Weights(1.0), [batch(0.1, 0.4, 0.3, 0.8)])
    assert halves.weights == pytest.approx([0.6])
    assert whole.weights == pytest.approx([0.6])


def test_accumulation_longer_than_the_epoch():
    _, steps, optimizer = run_epoch(Weights(1.0), [batch(0.1), batch(0.3), batch(0.2)], accumulation=8)
    assert steps == 1
    assert optimizer.weights == pytest.approx([1 - 0.2])


def test_gradient_norm_is_cut_to_one():
    _, _, optimizer = run_epoch(Weights(2.0), [batch(5.0), batch(-30.0)])
    assert optimizer.weights == pytest.approx([1.0, 2.0], abs=1e-5)


@pytest.mark.parametrize(("start", "end"), [(9.0, math.log(100)), (4.0, 4.0)])
def test_logit_scale_stays_within_its_bound(start, end):
    model = Weights(logit_scale=start)
    run_epoch(model, [batch(0.1)])
    assert model.clip.logit_scale.item() == pytest.approx(end)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_not_finite_stops_before_the_step(value, accumulation):
    model = Weights(1.0)
    optimizer = RecordingSGD(model)
    args = SimpleNamespace(
        gradient_accumulation_steps=accumulation, grad_cache_chunk=0, skip_nonfinite=0, n_display=100, epochs=5
    )
    batches = [batch(0.1), batch(0.1), batch(0.1), batch(value), batch(0.1)]
    with pytest.raises(FloatingPointError, match=r"the loss is -?(nan|inf) in epoch 3, batch 4 of 5"):
        train_epoch(2, args, model, batches, util.Process(torch.device("cpu"), rank=1), optimizer, 0)
    assert len(optimizer.weights) == 3 // accumulation
    assert model.weight.item() == optimizer.weights[-1]


def test_progress_lines(caplog):
    """Every `n_display` steps of the whole run, in CLIP4Clip's wording."""
    with caplog.at_level(logging.INFO):
        run_epoch(Weights(1.0), [batch(0.0625)] * 6, accumulation=2, n_display=2, global_step=3)
    expected = (("2/6", "0.062500"), ("6/6", "0.054688"))  # the second is 0.0625 (1 - 2 * 0.0625)
    for message, (step, loss) in zip(caplog.messages, expected, strict=True):
        start = f"Epoch: 1/5, Step: {step}, Lr: 0.000000100-0.000100000, Loss: {loss}, Time/step: "
        rest = (
            r"\d+\.\d{6} \(data 0\.000000, compute \d+\.\d{6}\), Clips/s: [\d.]+, Logit scale: 1\.00, "
            r"Gradient norm: 0\.\d{3}, Peak memory: \d+\.\d\d GB, Eta: 0:00:00"
        )
        assert re.fullmatch(re.escape(start) + rest, message), message
