"""CLIP's towers equal open_clip's own model built from the same weights, in values and gradients."""

import open_clip
import pytest
import torch

from modules.initialization import convert_clip_to_float16
from modules.modeling import CLIP4Clip
from modules.module_clip import CLIP, attention_heads, clip_shapes, clip_sizes, set_grad_checkpointing, trim_padding
from modules.optimization import BertAdam
from scripts.miniature.tiny_clip import tiny_clip_state_dict
from tests.helpers.clip_cases import task
from tests.test_modeling import tiny_batch, tiny_model


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


def tiny_clip(**options) -> CLIP:
    weights = tiny_weights()
    clip = CLIP.from_state_dict(weights, **options)
    clip.load_state_dict(weights, strict=False)
    return clip


def frames_and_ids() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    frames = torch.randn(5, 3, 32, 32, generator=generator)
    input_ids = torch.randint(1, 49000, (4, 20), generator=generator)
    input_ids[torch.arange(4), torch.tensor([2, 19, 7, 11])] = 49407
    return frames, input_ids


def backward_of_both_towers(clip) -> dict[str, torch.Tensor]:
    """Gradients of a sum of all outputs in which each has its own weight."""
    frames, input_ids = frames_and_ids()
    outputs = torch.cat([clip.encode_image(frames), clip.encode_text(input_ids)])
    direction = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(9))
    (outputs.float() * direction).sum().backward()
    return {name: parameter.grad for name, parameter in clip.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_towers_equal_open_clips(activation):
    weights = tiny_weights()
    ours = CLIP.from_state_dict(weights, activation=activation).eval()
    ours.load_state_dict(weights, strict=True)
    theirs = open_clip_model(weights, quick_gelu=activation == "quick_gelu")
    frames, input_ids = frames_and_ids()
    with torch.no_grad():
        assert torch.allclose(ours.encode_image(frames), theirs.encode_image(frames), atol=1e-5)
        sentences = ours.encode_text(input_ids)
        assert torch.allclose(sentences, theirs.encode_text(input_ids), atol=1e-5)
        assert not torch.allclose(sentences[0], sentences[1], atol=1e-2)
        embedded = theirs.token_embedding(input_ids) + theirs.positional_embedding
        words = theirs.ln_final(theirs.transformer(embedded, attn_mask=theirs.attn_mask)) @ theirs.text_projection
        assert torch.allclose(ours.encode_words(input_ids), words, atol=1e-5)


def test_gradients_equal_open_clips():
    weights = tiny_weights()
    theirs = backward_of_both_towers(open_clip_model(weights, quick_gelu=True))
    ours = backward_of_both_towers(tiny_clip())
    assert ours.keys() == theirs.keys() == weights.keys() - {"logit_scale"}
    for name, expected in theirs.items():
        assert (ours[name] - expected).abs().max() <= 2e-6 * max(g.abs().max() for g in theirs.values()), name


def test_only_the_token_that_is_used_passes_the_last_block():
    clip = tiny_clip()
    lengths = []
    for tower in (clip.visual.transformer, clip.transformer):
        for block in tower.resblocks:
            block.mlp.register_forward_hook(lambda layer, inputs, output: lengths.append(output.shape[1]))
    frames, input_ids = frames_and_ids()
    clip.encode_image(frames)
    clip.encode_text(input_ids)
    clip.encode_words(input_ids)
    assert lengths == [17, 1, 20, 20, 1, 20, 20, 20]


def test_grad_checkpointing_keeps_less_and_changes_no_gradient():
    kept, gradients = [], []
    for enabled in (False, True):
        clip = tiny_clip()
        set_grad_checkpointing(clip, enabled)
        kept.append(0)

        def count(tensor):
            kept[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            frames, input_ids = frames_and_ids()
            clip.encode_image(frames), clip.encode_text(input_ids)
        gradients.append(backward_of_both_towers(clip))
    assert kept[1] < kept[0] / 4
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize("precision", ["clip_fp16", torch.bfloat16, torch.float16])
def test_half_precision_gives_about_the_same_gradients(precision):
    expected = backward_of_both_towers(tiny_clip())
    clip = tiny_clip()
    if precision == "clip_fp16":
        convert_clip_to_float16(clip)
        gradients = backward_of_both_towers(clip)
    else:
        with torch.autocast("cpu", dtype=precision):
            gradients = backward_of_both_towers(clip)
    assert {name: g.dtype for name, g in gradients.items()} == {name: p.dtype for name, p in named_trained(clip)}
    difference = sum((gradients[name].float() - expected[name]).square().sum() for name in expected).sqrt()
    size = sum(gradient.square().sum() for gradient in expected.values()).sqrt()
    assert difference < (0.04 if precision == torch.bfloat16 else 0.01) * size


def named_trained(clip: CLIP) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in clip.named_parameters() if name != "logit_scale"]


def test_a_step_never_reads_the_device():
    """On the meta device, where tensors have no values: whatever would make the host wait for one raises."""
    clip = tiny_clip().to("meta")
    frames, input_ids = (tensor.to("meta") for tensor in frames_and_ids())
    for outputs in (clip.encode_image(frames), clip.encode_text(input_ids), clip.encode_words(input_ids)):
        outputs.sum().backward()
    optimizer = BertAdam(clip.parameters(), lr=0.1)
    torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
    optimizer.step()
    assert optimizer.state[clip.text_projection]["next_m"].is_meta
    with pytest.raises(NotImplementedError, match="[Mm]eta"):
        trim_padding(input_ids)


def test_the_towers_compile_as_one_graph():
    clip = tiny_clip()
    frames, _ = frames_and_ids()
    compiled = torch.compile(clip.visual, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(frames), clip.visual(frames), atol=1e-6)


def test_a_short_text_uses_the_first_positions():
    """Cutting the padding off changes nothing before the cut: the mask is causal."""
    clip = tiny_clip().eval()
    input_ids = torch.tensor([[49406, 5, 9, 49407, 0, 0, 0, 0]])
    with torch.no_grad():
        sentence, words = clip.encode_text(input_ids), clip.encode_words(input_ids)
        assert torch.allclose(sentence, clip.encode_text(input_ids[:, :4]), atol=1e-6)
        assert torch.allclose(words[:, :4], clip.encode_words(input_ids[:, :4]), atol=1e-6)
    assert torch.allclose(sentence[0], words[0, 3], atol=1e-6)


@pytest.mark.parametrize(
    ("lengths", "multiple", "kept"),
    [([3, 5], 8, 8), ([8, 1], 8, 8), ([9, 1], 8, 12), ([3, 5], 1, 5), ([3, 5], 4, 8), ([0, 0], 8, 8), ([0], 1, 1)],
)
def test_cut_padding(lengths, multiple, kept):
    input_ids = (torch.arange(12) < torch.tensor(lengths)[:, None]).long() * 7
    assert torch.equal(trim_padding(input_ids, multiple), input_ids[:, :kept])
    assert torch.equal(trim_padding(input_ids[:, None], multiple), input_ids[:, None, :kept])


@pytest.mark.parametrize("head", ["meanP", "wti", "xti"])
def test_cut_texts_train_as_whole_ones(head):
    input_ids, segment_ids, input_mask, video, video_mask = tiny_batch()
    input_ids[:, 5:], input_mask[:, 5:] = 0, 0
    losses, gradients = [], []
    for ids in (input_ids, trim_padding(input_ids, 1)):
        model = tiny_model(head).train()
        torch.manual_seed(3)
        loss = model(ids, segment_ids, input_mask, video, video_mask)
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        assert model.get_sequence_output(ids, None, input_mask).shape[1] == (7 if head == "wti" else 1)
    assert ids.shape == (5, 5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert (gradients[0] - gradients[1]).abs().max() <= 2e-6 * gradients[0].abs().max()


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


def test_shapes_are_those_of_the_model_that_is_built():
    sizes = clip_sizes(tiny_weights(text_layers=1))
    assert clip_shapes(sizes) == {key: tuple(value.shape) for key, value in CLIP(**sizes).state_dict().items()}


HOSTILE_SHAPES = {
    "token_embedding.weight": [(10**9, 0), (10**9,), (), (3, 0)],
    "visual.proj": [(0, 10**9), (), (1, 10**6), (128, 48, 1)],
    "visual.transformer.resblocks.0.mlp.c_fc.weight": [(10**9, 0), (512,), (512, 64)],
    "visual.conv1.weight": [(32, 3, 10**6, 0), (64, 3, 0, 0), (128, 3, 8), (128, 3, 8, 9), (128, 4, 8, 8)],
    "positional_embedding": [(0, 0), (0, 10**9), (20,)],
    "visual.positional_embedding": [(1, 128), (0, 128), (18, 128), (17, 0)],
    "ln_final.weight": [(5,), (), (64, 1)],
    "transformer.resblocks.1.attn.in_proj_weight": [(0, 64), (192,)],
    "transformer.resblocks.7.ln_1.weight": [(64,)],  # a block of one weight
    "logit_scale": [(1,), (0,)],
}


@pytest.mark.parametrize(("key", "shape"), [(key, shape) for key in HOSTILE_SHAPES for shape in HOSTILE_SHAPES[key]])
def test_hostile_shapes_are_refused_before_anything_is_built(tmp_path, monkeypatch, key, shape):
    path = tmp_path / "hostile.pt"
    torch.save({**tiny_weights(), key: torch.zeros(shape)}, path)
    monkeypatch.setattr(CLIP, "__init__", None)
    with pytest.raises(ValueError, match="not 4 sizes|not 2 sizes|missing|differ in shape|not a square|joint") as error:
        CLIP4Clip.from_pretrained("cross-base", task_config=task(pretrained_clip_name=str(path)))
    assert str(path) in str(error.value)


def test_keys_that_are_not_texts_are_refused(tmp_path):
    for key in (5, None, b"x", 1.5, True):
        torch.save({**tiny_weights(), key: torch.zeros(1)}, tmp_path / "hostile.pt")
        with pytest.raises(ValueError, match=r"hostile\.pt"):
            CLIP4Clip.from_pretrained("cross-base", task_config=task(pretrained_clip_name=str(tmp_path / "hostile.pt")))
        with pytest.raises(ValueError, match="not a text"):
            CLIP4Clip.from_pretrained("cross-base", {key: torch.zeros(1)}, task_config=task())
