"""Checkpoints in the form of CLIP4Clip's and DRL's files are evaluated through the flags, and give their logits."""

import json

import pytest
import torch

import main_task_retrieval
import util
from tests.helpers.golden_cases import load_case, load_inputs
from tests.test_modeling import GOLDEN_CASES

# what a checkpoint's keys must say of itself, by hand; meanP and ti, and tightTransf and xti, have the same keys
FITTING = {
    "meanP": ["--sim_header meanP", "--sim_header ti --agg_module none"],
    "meanP_3d": ["--sim_header meanP --linear_patch 3d", "--sim_header ti --agg_module none --linear_patch 3d"],
    "seqLSTM": ["--sim_header seqLSTM", "--sim_header ti --agg_module seqLSTM"],
    "seqTransf": [
        "--sim_header seqTransf --cross_num_hidden_layers 2",
        "--sim_header ti --agg_module seqTransf --cross_num_hidden_layers 2",
    ],
    "tightTransf": [
        "--sim_header tightTransf --cross_num_hidden_layers 2",
        "--sim_header xti --agg_module none --cross_num_hidden_layers 2",
    ],
    "wti": ["--sim_header wti --agg_module none --wti_arch 2"],
    "wti_arch1": ["--sim_header wti --agg_module none --wti_arch 1"],
    "wti_arch3": ["--sim_header wti --agg_module none --wti_arch 3"],
    "wti_seqTransf": ["--sim_header wti --agg_module seqTransf --wti_arch 2 --cross_num_hidden_layers 2"],
    "wti_seqLSTM": ["--sim_header wti --agg_module seqLSTM --wti_arch 2"],
}
OTHER_HEAD = {"wti": "tightTransf"}  # for every other file: wti


def model_from_file(path, flags: list[str], vocabulary: int = 120):
    args = main_task_retrieval.get_args(
        [
            "--do_eval",
            "--output_dir",
            "unused",
            "--init_model",
            str(path),
            "--max_words",
            "9",
            "--max_frames",
            "5",
            *flags,
        ]
    )
    return main_task_retrieval.init_model(args, util.Process(torch.device("cpu")), vocabulary)


@pytest.fixture
def checkpoint(request, golden_parity, tmp_path):
    """The file, and what the reference computed with it."""
    case = load_case(golden_parity, request.param)
    path = tmp_path / "pytorch_model.bin.4"
    torch.save(case.state_dict, path)
    return case, path


@pytest.mark.parametrize("checkpoint", GOLDEN_CASES, indirect=True)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_gives_its_golden_logits(checkpoint, golden_parity, prefix):
    case, path = checkpoint
    torch.save({prefix + key: value for key, value in case.state_dict.items()}, path)
    task = case.task_config
    model = model_from_file(
        path,
        ["--sim_header", task.sim_header, "--agg_module", task.agg_module, "--wti_arch", str(task.wti_arch),
         "--linear_patch", task.linear_patch, "--cross_num_hidden_layers", "2"],
    ).eval()  # fmt: skip
    input_ids, segment_ids, input_mask, video, video_mask = load_inputs(golden_parity)
    with torch.no_grad():
        features = model.get_sequence_visual_output(input_ids, segment_ids, input_mask, video, video_mask)
        (logits,) = model.get_similarity_logits(*features, input_mask, video_mask)
    if case.name.startswith("dp"):  # DRL leaves the scale out
        logits = logits / model.clip.logit_scale.exp()
    assert (logits - case.outputs["eval_logits"]).abs().max().item() <= 1e-5


@pytest.mark.parametrize("checkpoint", FITTING, indirect=True)
def test_flags_that_contradict_the_file_are_told_what_fits(checkpoint):
    case, path = checkpoint
    wrong = OTHER_HEAD.get(case.task_config.sim_header, "wti")
    with pytest.raises(ValueError) as error:
        model_from_file(path, ["--sim_header", wrong, "--cross_num_hidden_layers", "2"])
    assert str(path) in str(error.value)
    assert str(error.value).endswith("what fits: " + " or: ".join(FITTING[case.name]))
    model_from_file(path, FITTING[case.name][0].split())  # and they do


@pytest.mark.parametrize(
    ("checkpoint", "flags"),
    [
        ("wti", ["--sim_header", "meanP"]),
        ("wti_seqTransf", ["--sim_header", "wti"]),
        ("seqTransf", ["--sim_header", "seqTransf", "--cross_num_hidden_layers", "1"]),
        ("meanP_3d", ["--sim_header", "meanP"]),
    ],
    indirect=["checkpoint"],
)
def test_part_of_a_checkpoint_is_not_the_model_that_was_trained(checkpoint, flags):
    with pytest.raises(ValueError, match="also holds .*what fits: --sim_header"):
        model_from_file(checkpoint[1], flags)


def test_every_golden_case_is_among_the_tests(golden_parity):
    assert {case["name"] for case in json.loads(str(golden_parity["cases"]))} == set(GOLDEN_CASES)
