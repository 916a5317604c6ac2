"""The tiny CLIP: OpenAI's key names and sizes, its starting deviations, both file formats, and bad sizes."""

import math

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import load_file

from scripts.make_tiny_clip import main
from scripts.miniature.tiny_clip import tiny_clip_state_dict

SMALL = {"embed_dim": 32, "vision_width": 128, "vision_layers": 1, "patch_size": 8, "image_size": 32, "text_width": 64}


def test_loads_into_open_clip_strictly():
    weights = tiny_clip_state_dict(**SMALL, text_layers=1, context_length=20)
    model = CLIP(
        embed_dim=32,
        vision_cfg=CLIPVisionCfg(layers=1, width=128, head_width=64, patch_size=8, image_size=32),
        text_cfg=CLIPTextCfg(context_length=20, vocab_size=49408, width=64, heads=1, layers=1),
        quick_gelu=True,
    )
    model.load_state_dict(weights, strict=True)
    with torch.no_grad():
        frames = model.encode_image(torch.randn(2, 3, 32, 32))
        texts = model.encode_text(torch.tensor([[49406, 320, 49407] + [0] * 17]))
    assert frames.shape == (2, 32) and texts.shape == (1, 32)
    assert frames.isfinite().all() and texts.isfinite().all()


def test_default_sizes():
    weights = tiny_clip_state_dict()
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    assert shapes["token_embedding.weight"] == (49408, 128)
    assert shapes["positional_embedding"] == (77, 128)
    assert shapes["visual.conv1.weight"] == (128, 3, 16, 16)
    assert shapes["visual.positional_embedding"] == (4 * 4 + 1, 128)
    assert shapes["visual.proj"] == shapes["text_projection"] == (128, 128)
    assert sum(name.endswith("attn.in_proj_weight") for name in shapes if name.startswith("visual.")) == 3
    assert sum(name.endswith("attn.in_proj_weight") for name in shapes if name.startswith("transformer.")) == 2
    assert all(weight.dtype == torch.float32 for weight in weights.values())


def test_starting_deviations_are_clips():
    weights = tiny_clip_state_dict(text_width=64, text_layers=3, vision_width=128, vision_layers=2)
    expected = {
        "token_embedding.weight": 0.02,
        "positional_embedding": 0.01,
        "text_projection": 64**-0.5,
        "transformer.resblocks.2.attn.in_proj_weight": 64**-0.5,
        "transformer.resblocks.0.attn.out_proj.weight": 64**-0.5 * 6**-0.5,
        "transformer.resblocks.1.mlp.c_fc.weight": (2 * 64) ** -0.5,
        "transformer.resblocks.1.mlp.c_proj.weight": 64**-0.5 * 6**-0.5,
        "visual.positional_embedding": 128**-0.5,
        "visual.proj": 128**-0.5,
        "visual.conv1.weight": (3 * 16 * 16) ** -0.5 / 3**0.5,
        "visual.transformer.resblocks.0.attn.out_proj.weight": 128**-0.5 * 4**-0.5,
    }
    for name, deviation in expected.items():
        assert weights[name].std().item() == pytest.approx(deviation, rel=0.06), name
        assert abs(weights[name].mean().item()) < 0.1 * deviation, name
    assert weights["logit_scale"].item() == pytest.approx(math.log(1 / 0.07))
    assert weights["logit_scale"].shape == ()
    for name, weight in weights.items():
        if name.endswith("bias"):
            assert not weight.any(), name
        elif ".ln_" in name or name.startswith("ln_final"):
            assert (weight == 1).all(), name


def test_a_seed_repeats_and_seeds_differ():
    first, again, other = (tiny_clip_state_dict(**SMALL, seed=seed) for seed in (1, 1, 2))
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["visual.proj"], other["visual.proj"])
    assert not torch.equal(first["token_embedding.weight"], other["token_embedding.weight"])


def test_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    tiny_clip_state_dict(**SMALL)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", ["tiny.pt", "deeper/tiny.safetensors"])
def test_both_file_formats_hold_the_same_weights(tmp_path, name):
    path = tmp_path / name
    main(["--output", str(path), "--vision_layers", "1", "--image_size", "32", "--patch_size", "8", "--seed", "3"])
    loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    expected = tiny_clip_state_dict(vision_layers=1, image_size=32, patch_size=8, seed=3)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--image_size", "60"], ["60", "16"]),
        (["--vision_width", "193"], ["vision_width", "193", "3 heads"]),
        (["--text_width", "0"], ["text_width", "0"]),
        (["--text_layers", "-1"], ["text_layers", "-1"]),
        (["--seed", "-5"], ["seed", "-5"]),
    ],
)
def test_bad_sizes_are_argument_errors_that_name_the_value(tmp_path, capsys, arguments, named):
    with pytest.raises(SystemExit) as stopped:
        main(["--output", str(tmp_path / "tiny.pt"), *arguments])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in named), message
    assert not (tmp_path / "tiny.pt").exists()


def test_a_folder_as_output_is_an_argument_error(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path)])
    assert "is a folder" in capsys.readouterr().err


def test_widths_need_not_be_multiples_of_64():
    weights = tiny_clip_state_dict(vision_width=48, text_width=96, vision_layers=1, text_layers=1)
    assert weights["visual.class_embedding"].shape == (48,)
    assert weights["ln_final.weight"].shape == (96,)
    with pytest.raises(ValueError, match="vision_width 197 does not divide by its 3 heads"):
        tiny_clip_state_dict(vision_width=197)
