"""Flags: the published commands, an error that names each bad value, and the flags that nothing reads."""

import os
import re
import subprocess
import sys

import pytest

from arguments import get_args
from modules.configuration import SIM_HEADERS
from modules.initialization import OPENAI_CLIPS
from tests.conftest import REPOSITORY
from tests.test_util import no_launcher as no_launcher  # a fixture

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


def parse(*flags: str):
    return get_args(["--do_train", "--output_dir", "runs/test", *flags])


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
