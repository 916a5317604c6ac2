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


# ---- named files of which nothing can be used --------------------------------------------------------------------

HEAD = {"frame_position_embeddings.weight": torch.ones(12, 32)}
STRANGE = {
    "another model": ({"fc.weight": torch.zeros(3, 3)}, "none of its 1 weights", "begin with clip."),
    "unknown prefix": (with_prefix("net.clip.", tiny_clip()), "none of its 50 weights", "net.clip."),
    "a CLIP alone": (tiny_clip(), "none of its 50 weights", "give the file by --pretrained_clip_name"),
    "a head, and more": ({**HEAD, "fc.weight": torch.zeros(3)}, "1 of its 2 weights", "begin with clip."),
}


@pytest.mark.parametrize(("weights", "used", "advice"), STRANGE.values(), ids=STRANGE)
def test_a_named_file_that_would_not_be_used(clip_file, tmp_path, caplog, weights, used, advice):
    torch.save(weights, tmp_path / "strange.bin")
    flags = ["--init_model", str(tmp_path / "strange.bin")]
    with pytest.raises(ValueError) as error:
        init_model(clip_file, *flags)
    words = (f"--init_model {tmp_path / 'strange.bin'} would not be evaluated", used, advice)
    assert [word for word in words if word not in str(error.value)] == []
    model = init_model(clip_file, "--do_train", *flags)
    assert_same_weights(model.clip.state_dict(), tiny_clip())
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "strange.bin" in warning and used in warning and str(clip_file) in warning


@pytest.mark.parametrize("run", ["--do_train", "--do_eval"])
def test_half_of_a_clip_is_not_completed(clip_file, tmp_path, run):
    whole = with_prefix("clip.", tiny_clip())
    torch.save({key: value for key, value in whole.items() if "visual" in key}, tmp_path / "half.bin")
    with pytest.raises(
        ValueError, match=r"--init_model .*half\.bin: .*positional_embedding, token_embedding.* missing"
    ):
        init_model(clip_file, run, "--init_model", str(tmp_path / "half.bin"))


@pytest.mark.parametrize("run", ["--do_train", "--do_eval"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([torch.nan] * 32), "1 weights are not finite"),
        (torch.tensor([0.0] * 31 + [torch.inf]), "1 weights are not finite"),
        (torch.full((32,), 1e300, dtype=torch.float64), "1 weights are not finite"),
        (torch.ones(32, dtype=torch.int8), "1 weights are not floating-point numbers"),
        (torch.ones(32, dtype=torch.complex64), "1 weights are not floating-point numbers"),
    ],
)
def test_weights_that_are_not_numbers(clip_file, tmp_path, run, value, message):
    for name, weights, flag in (
        ("a.bin", with_prefix("clip.", {**tiny_clip(), "ln_final.weight": value}), "--init_model"),
        ("clip.bin", {**tiny_clip(), "ln_final.weight": value}, "--pretrained_clip_name"),
    ):
        torch.save(weights, tmp_path / name)
        with pytest.raises(ValueError) as error:
            init_model(clip_file, run, flag, str(tmp_path / name))
        assert f"{flag} {tmp_path / name}: {message}" in str(error.value)
        assert str(error.value).endswith(": clip.ln_final.weight")


def test_weights_beyond_float16(clip_file, tmp_path):
    torch.save({**tiny_clip(), "visual.proj": torch.full((64, 32), 1e6)}, tmp_path / "large.pt")
    large = ["--pretrained_clip_name", str(tmp_path / "large.pt"), "--precision"]
    with pytest.raises(ValueError, match=r"clip_fp16: 1 weights are not finite .*: clip\.visual\.proj in float16"):
        init_model(clip_file, *large, "clip_fp16")
    init_model(clip_file, *large, "fp32")


def test_a_folder_is_told_its_files(tmp_path):
    for epoch in (2, 10):
        (tmp_path / f"pytorch_model.bin.{epoch}").touch()
    flags = ["--do_eval", "--output_dir", str(tmp_path / "out"), "--init_model"]
    with pytest.raises(FileNotFoundError, match=r"is a folder; give a file in it, such as .*/pytorch_model\.bin\.10$"):
        main_task_retrieval.main([*flags, str(tmp_path)])
    step = tmp_path / "resume" / "step-00000012"
    step.mkdir(parents=True)
    (step / "model.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"is a folder; give a file in it, such as .*-00000012/model\.bin$"):
        main_task_retrieval.main([*flags, str(step)])


def test_a_checkpoint_whose_starting_weights_are_elsewhere(clip_file, tmp_path):
    torch.save(with_prefix("clip.", tiny_clip(seed=1)), tmp_path / "pytorch_model.bin.0")
    checkpoint = ["--init_model", str(tmp_path / "pytorch_model.bin.0")]
    for name in ("/gone/clip.pt", "gone/clip.safetensors", "ViT-B-32:/gone/weights.pt"):
        model = init_model(clip_file, *checkpoint, "--pretrained_clip_name", name)
        assert_same_weights(model.clip.state_dict(), tiny_clip(seed=1))
