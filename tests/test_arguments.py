"""Flags: the list of all, the published commands, the error that names each bad value, and flags that nothing reads."""

import os
import re
import subprocess
import sys

import pytest

from engine.arguments import build_parser, get_args
from modules.clip_weights import OPENAI_CLIPS
from modules.configuration import SIM_HEADERS
from tests.conftest import REPOSITORY
from tests.test_util import no_launcher as no_launcher  # a fixture

# name, type (bool: a switch without a value), default
CLIP4CLIP_FLAGS = [
    ("do_pretrain", bool, False),
    ("do_train", bool, False),
    ("do_eval", bool, False),
    ("train_csv", str, "data/.train.csv"),
    ("val_csv", str, "data/.val.csv"),
    ("data_path", str, "data/caption.pickle"),
    ("features_path", str, "data/videos_feature.pickle"),
    ("num_thread_reader", int, 1),
    ("lr", float, 0.0001),
    ("epochs", int, 20),
    ("batch_size", int, 256),
    ("batch_size_val", int, 3500),
    ("lr_decay", float, 0.9),
    ("n_display", int, 100),
    ("video_dim", int, 1024),
    ("seed", int, 42),
    ("max_words", int, 20),
    ("max_frames", int, 100),
    ("feature_framerate", int, 1),
    ("margin", float, 0.1),
    ("hard_negative_rate", float, 0.5),
    ("negative_weighting", int, 1),
    ("n_pair", int, 1),
    ("output_dir", str, None),  # required
    ("cross_model", str, "cross-base"),
    ("init_model", str, None),
    ("resume_model", str, None),
    ("do_lower_case", bool, False),
    ("warmup_proportion", float, 0.1),
    ("gradient_accumulation_steps", int, 1),
    ("n_gpu", int, 1),
    ("cache_dir", str, ""),
    ("fp16", bool, False),
    ("fp16_opt_level", str, "O1"),
    ("task_type", str, "retrieval"),
    ("datatype", str, "msrvtt"),
    ("world_size", int, 0),
    ("local_rank", int, 0),
    ("rank", int, 0),
    ("coef_lr", float, 1.0),
    ("use_mil", bool, False),
    ("sampled_use_mil", bool, False),
    ("text_num_hidden_layers", int, 12),
    ("visual_num_hidden_layers", int, 12),
    ("cross_num_hidden_layers", int, 4),
    ("loose_type", bool, False),
    ("expand_msrvtt_sentences", bool, False),
    ("train_frame_order", int, 0),
    ("eval_frame_order", int, 0),
    ("freeze_layer_num", int, 0),
    ("slice_framepos", int, 0),
    ("linear_patch", str, "2d"),
    ("sim_header", str, "meanP"),
    ("pretrained_clip_name", str, "ViT-B/32"),
]
OUR_FLAGS = [
    ("resume", str, None),
    ("save_steps", int, 0),
    ("accept_changed_data", bool, False),
    ("keep_last", int, 0),
    ("skip_nonfinite", int, 0),
    ("frame_cache", str, None),
    ("frame_sampling", str, None),  # by the data set
    ("frame_cache_format", str, "exact"),
    ("bad_videos", str, "fail"),
    ("exclude", str, None),
    ("agg_module", str, "none"),
    ("wti_arch", int, 2),
    ("wti_padding", str, "zero"),
    ("cdcr", int, 0),
    ("cdcr_alpha1", float, 1.0),
    ("cdcr_alpha2", float, 0.06),
    ("cdcr_lambda", float, 0.001),
    ("precision", str, None),  # by the device
    ("compile", bool, False),
    ("grad_checkpointing", bool, False),
    ("grad_cache_chunk", int, 0),
    ("gather", str, "published"),
    ("similarity_dtype", str, "fp32"),
    ("holdout", int, 0),
    ("post_process", str, "none"),
    ("dsl_temperature", float, 100.0),
    ("qb_norm_beta", float, 20.0),
    ("qb_norm_size", int, 5000),
]
CHOICES = {
    "task_type": ["retrieval"],
    "resume": ["auto"],
    "frame_sampling": ["published", "time"],
    "frame_cache_format": ["exact", "jpeg"],
    "bad_videos": ["fail", "skip"],
    "datatype": ["activity", "custom", "didemo", "lsmdc", "msrvtt", "msvd", "vatex"],
    "train_frame_order": [0, 1, 2],
    "eval_frame_order": [0, 1, 2],
    "slice_framepos": [0, 1, 2],
    "linear_patch": ["2d", "3d"],
    "sim_header": ["meanP", "seqLSTM", "seqTransf", "tightTransf", "xti", "ti", "wti"],
    "agg_module": ["none", "seqLSTM", "seqTransf"],
    "wti_arch": [1, 2, 3],
    "wti_padding": ["zero", "exclude"],
    "cdcr": [0, 1, 2, 3],
    "precision": ["clip_fp16", "fp32", "bf16", "fp16"],
    "gather": ["published", "exact"],
    "similarity_dtype": ["fp32", "bf16"],
    "post_process": ["none", "dsl", "qb_norm"],
}

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


def flag_type(action) -> type:
    return bool if action.nargs == 0 else action.type


def test_list_of_flags():
    """A flag that is added, dropped or changed needs its line in the tables above."""
    actions = [action for action in build_parser()._actions if action.dest != "help"]
    found = {action.dest: (flag_type(action), action.default) for action in actions}
    expected = {name: (kind, default) for name, kind, default in CLIP4CLIP_FLAGS + OUR_FLAGS}
    assert found == expected
    assert {action.dest for action in actions if action.required} == {"output_dir"}
    assert {action.dest: list(action.choices) for action in actions if action.choices} == CHOICES
    assert all(f"--{action.dest}" in action.option_strings for action in actions)
    assert all(action.help for action in actions)


def test_tables_of_flags_have_no_doubles():
    names = [name for name, _, _ in CLIP4CLIP_FLAGS + OUR_FLAGS]
    assert len(names) == len(set(names)) == 54 + 28


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
