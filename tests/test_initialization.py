"""Weights: what is loaded or starts fresh, freezing, float16, and the errors on the way."""

import logging

import pytest
import torch

from modules.initialization import convert_clip_to_float16, freeze_clip_layers
from modules.modeling import CLIP4Clip
from modules.module_clip import CLIP
from tests.helpers.clip_cases import (
    BLOCK_KEYS,
    FROZEN,
    POSITIONS,
    WIDTH,
    assert_same_weights,
    block_keys,
    task,
    tiny_clip,
    with_prefix,
)

WTI_KEYS = {
    f"{side}_weight_fc.{layer}.{kind}" for side in ("text", "video") for layer in (0, 2) for kind in ("weight", "bias")
}


def whole_model(weights: dict, head: str = "meanP", **flags) -> CLIP4Clip:
    return CLIP4Clip.from_pretrained("cross-base", state_dict=weights, task_config=task(head, **flags))


# ---- what is loaded, starts fresh, is not used -------------------------------------------------------------------


@pytest.fixture
def clip_weights() -> dict[str, torch.Tensor]:
    return with_prefix("clip.", tiny_clip())


def report_of(model: CLIP4Clip) -> dict[str, set[str]]:
    """The report without CLIP's own keys among the loaded ones."""
    report = model.weight_report
    return {
        "loaded": {key for key in report.loaded if not key.startswith("clip.")},
        "from clip": set(report.initialized_from_clip),
        "at random": set(report.initialized_randomly),
        "unused": set(report.unexpected),
    }


NOTHING = {"loaded": set(), "from clip": set(), "at random": set(), "unused": set()}


def test_meanp_has_nothing_but_clip(clip_weights):
    model = whole_model(clip_weights)
    assert report_of(model) == NOTHING
    assert set(model.weight_report.loaded) == clip_weights.keys()
    assert_same_weights(model.state_dict(), clip_weights)


def test_meanp_checkpoint_into_wti(clip_weights):
    model = whole_model(clip_weights, "wti")
    assert report_of(model) == {**NOTHING, "at random": WTI_KEYS}
    assert set(model.weight_report.untrained_head) == WTI_KEYS


def test_wti_checkpoint_into_meanp(clip_weights):
    checkpoint = whole_model(clip_weights, "wti").state_dict()
    model = whole_model(checkpoint)
    assert report_of(model) == {**NOTHING, "unused": WTI_KEYS}
    assert_same_weights(model.state_dict(), clip_weights)


def test_wti_checkpoint_into_wti(clip_weights):
    checkpoint = whole_model(clip_weights, "wti").state_dict()
    model = whole_model(with_prefix("module.", checkpoint), "wti")
    assert report_of(model) == {**NOTHING, "loaded": WTI_KEYS}
    assert_same_weights(model.state_dict(), checkpoint)
    assert model.weight_report.untrained_head == []


def test_2d_checkpoint_into_3d(clip_weights):
    model = whole_model(clip_weights, linear_patch="3d")
    assert report_of(model) == {**NOTHING, "from clip": {"clip.visual.conv2.weight"}}
    assert model.weight_report.untrained_head == []  # it computes what conv1 did
    kernel = model.clip.visual.conv2.weight
    assert kernel.shape == (64, 3, 3, 8, 8)
    assert torch.equal(kernel[:, :, 1], clip_weights["clip.visual.conv1.weight"])
    assert not kernel[:, :, 0].any() and not kernel[:, :, 2].any()


def test_3d_checkpoint_into_3d_and_2d(clip_weights):
    checkpoint = whole_model(clip_weights, linear_patch="3d").state_dict()
    checkpoint["clip.visual.conv2.weight"] += 1
    model = whole_model(checkpoint, linear_patch="3d")
    assert report_of(model) == NOTHING
    assert_same_weights(model.state_dict(), checkpoint)
    assert report_of(whole_model(checkpoint)) == {**NOTHING, "unused": {"clip.visual.conv2.weight"}}


def test_seqtransf_starts_from_the_text_tower():
    weights = with_prefix("clip.", tiny_clip(text_layers=3))
    model = whole_model(weights, "seqTransf", cross_num_hidden_layers=2)
    fresh = {"frame_position_embeddings.weight"} | block_keys("transformerClip.", (0, 1))
    assert report_of(model) == {**NOTHING, "from clip": fresh}
    assert set(model.weight_report.untrained_head) == fresh
    started = model.state_dict()
    assert torch.equal(started["frame_position_embeddings.weight"], weights["clip.positional_embedding"])
    for key in block_keys("", (0, 1)):
        assert torch.equal(started[f"transformerClip.{key}"], weights[f"clip.transformer.{key}"])


def test_tighttransf_starts_from_the_text_tower(clip_weights):
    model = whole_model(clip_weights, "tightTransf", cross_num_hidden_layers=1)
    positions = "cross.embeddings.position_embeddings.weight"
    pooler = {f"cross.pooler.{name}.{kind}" for name in ("ln_pool", "dense") for kind in ("weight", "bias")}
    dense = {"similarity_dense.weight", "similarity_dense.bias"}
    assert report_of(model) == {
        **NOTHING,
        "from clip": {positions} | block_keys("cross.transformer.", [0]),
        "at random": pooler | dense,
    }
    started = model.state_dict()
    assert torch.equal(started[positions], clip_weights["clip.positional_embedding"])
    for key in BLOCK_KEYS:
        assert torch.equal(
            started[f"cross.transformer.resblocks.0.{key}"], clip_weights[f"clip.transformer.resblocks.0.{key}"]
        )


def test_more_blocks_than_clip_has(clip_weights):
    model = whole_model(clip_weights, "seqTransf", cross_num_hidden_layers=3)
    assert report_of(model) == {
        **NOTHING,
        "from clip": {"frame_position_embeddings.weight"} | block_keys("transformerClip.", [0]),
        "at random": block_keys("transformerClip.", (1, 2)),
    }


def test_a_joint_width_that_is_not_the_text_towers():
    weights = with_prefix("clip.", tiny_clip(text_width=64))
    model = whole_model(weights, "seqTransf", cross_num_hidden_layers=1)
    fresh = {"frame_position_embeddings.weight"} | block_keys("transformerClip.", [0])
    assert report_of(model) == {**NOTHING, "at random": fresh}
    assert model.frame_position_embeddings.weight.shape == (POSITIONS, WIDTH)


def test_float16_checkpoint_is_loaded_in_float32(clip_weights):
    half = {key: value.half() for key, value in clip_weights.items()}
    assert_same_weights(whole_model(half).state_dict(), {key: value.float() for key, value in half.items()})


def test_log_says_what_was_loaded_fresh_and_unused(clip_weights, caplog):
    checkpoint = {**clip_weights, "similarity_dense.weight": torch.zeros(1, WIDTH)}
    with caplog.at_level(logging.INFO):
        whole_model(checkpoint, "wti", agg_module="seqTransf", cross_num_hidden_layers=1)
    assert caplog.messages == [
        "50 weights loaded: clip.* (50)",  # 3 blocks of 12, and 14 outside the blocks
        "13 parameters newly initialized from CLIP's layers: frame_position_embeddings.* (1), transformerClip.* (12)",
        "8 parameters newly initialized (random): text_weight_fc.* (4), video_weight_fc.* (4)",
        "1 unexpected keys in the file: similarity_dense.* (1)",
        "activation quick_gelu, frames normalised by mean (0.48145466, 0.4578275, 0.40821073), "
        "std (0.26862954, 0.26130258, 0.27577711)",
    ]


@pytest.mark.parametrize(
    ("key", "in_file", "in_model", "flags"),
    [
        ("clip.text_projection", (32, 48), (32, 32), {}),
        ("clip.visual.transformer.resblocks.1.mlp.c_proj.weight", (64, 100), (64, 256), {}),
        ("clip.visual.conv2.weight", (64, 3, 1, 8, 8), (64, 3, 3, 8, 8), {"linear_patch": "3d"}),
        ("text_weight_fc.2.weight", (7, 32), (1, 32), {"head": "wti"}),
        ("frame_position_embeddings.weight", (13, 32), (12, 32), {"head": "seqTransf"}),
    ],
)
def test_another_shape_names_key_and_both_shapes(clip_weights, key, in_file, in_model, flags):
    with pytest.raises(ValueError) as error:
        whole_model({**clip_weights, key: torch.zeros(in_file)}, **flags)
    assert f"{key}: file {in_file}, model {in_model}" in str(error.value)


def test_checkpoint_of_another_weight_network(clip_weights):
    checkpoint = whole_model(clip_weights, "wti", wti_arch=2).state_dict()
    with pytest.raises(ValueError) as error:
        whole_model(checkpoint, "wti", wti_arch=3)
    message = str(error.value)
    assert "text_weight_fc.2.weight: file (1, 32), model (32, 32)" in message and "--wti_arch" in message


@pytest.mark.parametrize(
    "key", ["clip.ln_final.weight", "clip.visual.proj", "clip.transformer.resblocks.0.ln_1.bias", "clip.logit_scale"]
)
def test_missing_weight_of_clip(clip_weights, key):
    del clip_weights[key]
    with pytest.raises(ValueError, match=f"{key.removeprefix('clip.')}.*missing|missing.*{key}"):
        whole_model(clip_weights)


# ---- freezing and float16 ----------------------------------------------------------------------------------------

ALWAYS_TRAINED = {
    "visual.ln_post.weight", "visual.ln_post.bias", "visual.proj", "ln_final.weight", "ln_final.bias",
    "text_projection", "logit_scale",
}  # fmt: skip


@pytest.mark.parametrize("linear_patch", ["2d", "3d"])
@pytest.mark.parametrize("number", FROZEN)
def test_frozen_layers(linear_patch, number):
    clip = CLIP.from_state_dict(tiny_clip(), linear_patch=linear_patch)
    assert set(freeze_clip_layers(clip, number)) == FROZEN[number]
    without_gradient = {name for name, weight in clip.named_parameters() if not weight.requires_grad}
    idle = {"visual.conv1.weight"} if linear_patch == "3d" else set()  # conv2 does its work
    assert without_gradient == FROZEN[number] | idle


@pytest.mark.parametrize("linear_patch", ["2d", "3d"])
def test_what_trains_when_all_is_frozen(linear_patch):
    clip = CLIP.from_state_dict(tiny_clip(), linear_patch=linear_patch)
    freeze_clip_layers(clip, 2)
    trained = {name for name, weight in clip.named_parameters() if weight.requires_grad}
    assert trained == ALWAYS_TRAINED | ({"visual.conv2.weight"} if linear_patch == "3d" else set())


@pytest.mark.parametrize("number", [-2, 3])
def test_freezing_beyond_the_blocks(number):
    with pytest.raises(ValueError, match=rf"--freeze_layer_num {number} .*-1 .* 2 blocks"):
        freeze_clip_layers(CLIP.from_state_dict(tiny_clip()), number)


FLOAT32 = {
    "token_embedding.weight", "positional_embedding", "visual.class_embedding", "visual.positional_embedding",
    "logit_scale", "visual.ln_pre.weight", "visual.ln_pre.bias", "visual.ln_post.weight", "visual.ln_post.bias",
    "ln_final.weight", "ln_final.bias",
}  # fmt: skip
FLOAT32_IN_BLOCKS = {"ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"}


@pytest.mark.parametrize("linear_patch", ["2d", "3d"])
def test_float16_weights(linear_patch):
    """Convolutions, matrices, attention with biases, and projections; the lists are those of OpenAI's own rule."""
    clip = CLIP.from_state_dict(tiny_clip(), linear_patch=linear_patch)
    convert_clip_to_float16(clip)
    half = {"visual.conv1.weight", "visual.proj", "text_projection"}
    half |= {"visual.conv2.weight"} if linear_patch == "3d" else set()
    single = set(FLOAT32)
    for block in ("visual.transformer.resblocks.0.", "visual.transformer.resblocks.1.", "transformer.resblocks.0."):
        half |= {block + key for key in BLOCK_KEYS if key not in FLOAT32_IN_BLOCKS}
        single |= {block + key for key in FLOAT32_IN_BLOCKS}
    dtypes = {name: weight.dtype for name, weight in clip.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float16} == half
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == single
    assert clip.dtype == torch.float16
