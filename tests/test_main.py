"""The main file: files that are missing, and the model that it makes of flags and weights."""

from pathlib import Path

import pytest
import torch

import main_task_retrieval
import util
from modules.modeling import CLIP4Clip
from tests.helpers.clip_cases import FROZEN, VOCABULARY, assert_same_weights, tiny_clip, with_prefix
from tests.test_util import no_launcher as no_launcher  # a fixture


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--init_model", "nowhere.bin"], ["--init_model", "nowhere.bin"]),
        (["--init_model", __file__, "--resume_model", "nowhere.opt"], ["--resume_model", "nowhere.opt"]),
        (["--output_dir", __file__], ["--output_dir", "is a file"]),
    ],
)
def test_missing_files_are_named_before_anything_is_loaded(tmp_path, flags, words):
    with pytest.raises(OSError) as error:
        main_task_retrieval.main(["--do_train", "--output_dir", str(tmp_path / "run"), *flags])
    assert [word for word in words if word not in str(error.value)] == []
    if "--output_dir" not in flags:
        assert "Error: --" + words[0][2:] in (tmp_path / "run" / "log.txt").read_text()


# ---- init_model --------------------------------------------------------------------------------------------------


@pytest.fixture
def clip_file(tmp_path) -> Path:
    torch.save(tiny_clip(), tmp_path / "clip.pt")
    return tmp_path / "clip.pt"


def init_model(clip_file: Path, *flags: str, vocabulary: int = VOCABULARY) -> CLIP4Clip:
    """The model for these flags; evaluation unless they say otherwise."""
    run = [] if "--do_train" in flags else ["--do_eval"]
    sizes = ["--max_words", "9", "--max_frames", "5", "--cross_num_hidden_layers", "1"]
    args = main_task_retrieval.get_args(
        [*run, "--output_dir", "runs/test", "--pretrained_clip_name", str(clip_file), *sizes, *flags]
    )
    return main_task_retrieval.init_model(args, util.Process(torch.device("cpu")), vocabulary)


UNTRAINED = {
    "wti": (["--sim_header", "wti"], "text_weight_fc.0.weight"),
    "seqTransf": (["--sim_header", "seqTransf"], "transformerClip.resblocks.0"),
    "seqLSTM": (["--sim_header", "seqLSTM"], "lstm_visual.weight_ih_l0"),
    "tightTransf": (["--sim_header", "tightTransf"], "cross."),
    "ti with seqTransf": (["--sim_header", "ti", "--agg_module", "seqTransf"], "transformerClip.resblocks.0"),
}
ZERO_SHOT = {
    "meanP": ["--sim_header", "meanP"],
    "ti": ["--sim_header", "ti"],
    "3d": ["--sim_header", "meanP", "--linear_patch", "3d"],
}


@pytest.mark.parametrize(("flags", "missing"), UNTRAINED.values(), ids=UNTRAINED)
def test_evaluating_an_untrained_head_is_an_error(clip_file, flags, missing):
    with pytest.raises(ValueError) as error:
        init_model(clip_file, *flags)
    words = ("never trained", *flags, missing, "--init_model")
    assert [word for word in words if word not in str(error.value)] == []


def test_evaluating_a_checkpoint_of_another_head_names_it(clip_file, tmp_path):
    checkpoint = tmp_path / "pytorch_model.bin.0"
    torch.save(with_prefix("clip.", tiny_clip()), checkpoint)
    with pytest.raises(
        ValueError, match=r"wti .*pytorch_model\.bin\.0.*text_weight_fc.*never trained.*fits: --sim_header meanP"
    ):
        init_model(clip_file, "--sim_header", "wti", "--init_model", str(checkpoint))


@pytest.mark.parametrize("flags", ZERO_SHOT.values(), ids=ZERO_SHOT)
def test_zero_shot_evaluation(clip_file, flags):
    assert_same_weights(
        {key: value for key, value in init_model(clip_file, *flags).clip.state_dict().items() if "conv2" not in key},
        tiny_clip(),
    )


@pytest.mark.parametrize("flags", [flags for flags, _ in UNTRAINED.values()], ids=UNTRAINED)
def test_training_a_fresh_head_and_evaluating_its_checkpoint(clip_file, tmp_path, flags):
    trained = init_model(clip_file, "--do_train", *flags).state_dict()
    torch.save(trained, tmp_path / "pytorch_model.bin.0")
    evaluated = init_model(clip_file, *flags, "--init_model", str(tmp_path / "pytorch_model.bin.0"))
    assert_same_weights(evaluated.state_dict(), trained)


def test_the_checkpoints_clip_goes_before_the_named_one(clip_file, tmp_path):
    torch.save(with_prefix("clip.", tiny_clip(seed=1)), tmp_path / "pytorch_model.bin.0")
    model = init_model(clip_file, "--init_model", str(tmp_path / "pytorch_model.bin.0"))
    assert_same_weights(model.clip.state_dict(), tiny_clip(seed=1))


@pytest.mark.parametrize(("flags", "frozen"), [(["--do_train", "--freeze_layer_num", "1"], FROZEN[1]), ([], set())])
def test_only_training_freezes(clip_file, flags, frozen):
    clip = init_model(clip_file, *flags).clip
    assert {name for name, weight in clip.named_parameters() if not weight.requires_grad} == frozen


@pytest.mark.parametrize(("precision", "dtype"), [("clip_fp16", torch.float16), ("fp32", torch.float32)])
def test_precision_of_the_towers(clip_file, precision, dtype):
    model = init_model(clip_file, "--do_train", "--sim_header", "wti", "--precision", precision)
    assert model.clip.visual.proj.dtype == dtype
    assert model.text_weight_fc[0].weight.dtype == torch.float32


def test_a_clip_with_a_smaller_vocabulary_than_the_tokenizer(clip_file):
    with pytest.raises(ValueError, match="has a vocabulary of 50 tokens, the tokenizer one of 51"):
        init_model(clip_file, vocabulary=51)


def test_a_missing_checkpoint_is_named(clip_file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin\.9"):
        init_model(clip_file, "--init_model", str(tmp_path / "pytorch_model.bin.9"))
