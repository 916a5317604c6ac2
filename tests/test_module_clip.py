"""CLIP's towers equal open_clip's own model built from the same weights."""

import open_clip
import pytest
import torch

from modules.module_clip import CLIP, attention_heads
from scripts.make_tiny_clip import tiny_clip_state_dict


def tiny_weights(**sizes) -> dict[str, torch.Tensor]:
    """Random weights without symmetry: LayerNorms and biases are shaken too."""
    defaults = {
        "embed_dim": 48, "vision_width": 128, "vision_layers": 2, "patch_size": 8, "image_size": 32,
        "text_width": 64, "text_layers": 3, "context_length": 20, "seed": 3,
    }  # fmt: skip
    weights = tiny_clip_state_dict(**{**defaults, **sizes})
    generator = torch.Generator().manual_seed(5)
    return {key: value + 0.05 * torch.randn(value.shape, generator=generator) for key, value in weights.items()}


def open_clip_model(weights: dict[str, torch.Tensor], quick_gelu: bool) -> open_clip.CLIP:
    model = open_clip.CLIP(
        embed_dim=48,
        vision_cfg={"image_size": 32, "layers": 2, "width": 128, "patch_size": 8},
        text_cfg={"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 3},
        quick_gelu=quick_gelu,
    )
    model.load_state_dict(weights, strict=True)
    return model.eval()


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_towers_equal_open_clips(activation):
    weights = tiny_weights()
    ours = CLIP.from_state_dict(weights, activation=activation).eval()
    ours.load_state_dict(weights, strict=True)
    theirs = open_clip_model(weights, quick_gelu=activation == "quick_gelu")
    generator = torch.Generator().manual_seed(7)
    frames = torch.randn(5, 3, 32, 32, generator=generator)
    input_ids = torch.randint(1, 49000, (4, 20), generator=generator)
    input_ids[torch.arange(4), torch.tensor([2, 19, 7, 11])] = 49407
    with torch.no_grad():
        assert torch.allclose(ours.encode_image(frames), theirs.encode_image(frames), atol=1e-5)
        assert torch.allclose(ours.encode_text(input_ids)[0], theirs.encode_text(input_ids), atol=1e-5)
        assert not torch.allclose(ours.encode_text(input_ids)[0][0], ours.encode_text(input_ids)[0][1], atol=1e-2)


def test_a_short_text_uses_the_first_positions():
    """Cutting the padding off changes nothing before the cut: the mask is causal."""
    weights = tiny_weights()
    clip = CLIP.from_state_dict(weights).eval()
    clip.load_state_dict(weights)
    input_ids = torch.tensor([[49406, 5, 9, 49407, 0, 0, 0, 0]])
    with torch.no_grad():
        sentence, tokens = clip.encode_text(input_ids)
        short_sentence, short_tokens = clip.encode_text(input_ids[:, :4])
    assert torch.allclose(sentence, short_sentence, atol=1e-6)
    assert torch.allclose(tokens[:, :4], short_tokens, atol=1e-6)
    assert torch.equal(sentence[0], tokens[0, 3])


def test_3d_patch_with_the_kernel_in_the_middle_is_the_2d_patch():
    weights = tiny_weights()
    flat = CLIP.from_state_dict(weights).eval()
    flat.load_state_dict(weights)
    deep = CLIP.from_state_dict(weights, linear_patch="3d").eval()
    kernel = torch.zeros(128, 3, 3, 8, 8)
    kernel[:, :, 1] = weights["visual.conv1.weight"]
    deep.load_state_dict({**weights, "visual.conv2.weight": kernel})
    frames = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.allclose(flat.encode_image(frames), deep.encode_image(frames, video_frame=3), atol=1e-5)


def test_3d_patch_looks_at_the_neighbouring_frames_of_its_own_video():
    weights = tiny_weights()
    clip = CLIP.from_state_dict(weights, linear_patch="3d").eval()
    frames = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    changed = frames.clone()
    changed[3] += 1  # the last frame of the first of two videos of four
    with torch.no_grad():
        moved = (clip.encode_image(frames, 4) - clip.encode_image(changed, 4)).abs().amax(dim=1) > 1e-6
    assert moved.tolist() == [False, False, True, True, False, False, False, False]


@pytest.mark.parametrize("video_frame", [-1, 0, 4])
def test_3d_patch_needs_the_number_of_frames(video_frame):
    clip = CLIP.from_state_dict(tiny_weights(), linear_patch="3d")
    with pytest.raises(ValueError, match=f"video_frame={video_frame}.* 6 frames"):
        clip.encode_image(torch.zeros(6, 3, 32, 32), video_frame)


def test_errors_name_sizes():
    clip = CLIP.from_state_dict(tiny_weights())
    with pytest.raises(ValueError, match="24x32.*32x32"):
        clip.encode_image(torch.zeros(1, 3, 24, 32))
    with pytest.raises(ValueError, match="21 tokens.*at most 20"):
        clip.encode_text(torch.ones(1, 21, dtype=torch.long))


def test_not_a_vit():
    with pytest.raises(ValueError, match="ResNet CLIP.*ViT-B/32"):
        CLIP.from_state_dict({"visual.layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="visual.proj missing"):
        weights = tiny_weights()
        del weights["visual.proj"]
        CLIP.from_state_dict(weights)
    with pytest.raises(ValueError, match="7 patches"):
        CLIP.from_state_dict({**tiny_weights(), "visual.positional_embedding": torch.zeros(8, 128)})


@pytest.mark.parametrize(
    ("width", "heads"), [(768, 12), (512, 8), (64, 1), (32, 1), (96, 1), (160, 2), (200, 2), (224, 2)]
)
def test_attention_heads(width, heads):
    assert attention_heads(width) == heads
