"""A tiny CLIP with OpenAI's keys: its weights, the names of its layers, and which of them are frozen."""

from types import SimpleNamespace

import torch

from scripts.miniature.tiny_clip import tiny_clip_state_dict

WIDTH, POSITIONS, VOCABULARY = 32, 12, 50
BLOCK_KEYS = (
    "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias",
    "ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias",
    "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias",
)  # fmt: skip


def tiny_clip(**sizes: int) -> dict[str, torch.Tensor]:
    """Return weights with OpenAI's keys: two vision blocks and one text block, whose width is the joint width."""
    defaults = {
        "embed_dim": WIDTH, "vision_width": 64, "vision_layers": 2, "patch_size": 8, "image_size": 16,
        "text_width": WIDTH, "text_layers": 1, "context_length": POSITIONS, "vocabulary_size": VOCABULARY,
    }  # fmt: skip
    return tiny_clip_state_dict(**{**defaults, **sizes})


def task(head: str = "meanP", **flags) -> SimpleNamespace:
    return SimpleNamespace(**{"sim_header": head, "max_words": 9, "max_frames": 5, **flags})


def with_prefix(prefix: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in weights.items()}


def assert_same_weights(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(actual[key], expected[key])] == []
    assert {value.dtype for value in actual.values()} == {torch.float32}


def block_keys(prefix: str, blocks) -> set[str]:
    return {f"{prefix}resblocks.{block}.{key}" for block in blocks for key in BLOCK_KEYS}


EMBEDDINGS = {
    "token_embedding.weight", "positional_embedding", "visual.class_embedding", "visual.positional_embedding",
    "visual.conv1.weight", "visual.ln_pre.weight", "visual.ln_pre.bias",
}  # fmt: skip
# the towers have two and one blocks
FROZEN = {
    -1: set(),
    0: EMBEDDINGS,
    1: EMBEDDINGS | block_keys("visual.transformer.", [0]) | block_keys("transformer.", [0]),
    2: EMBEDDINGS | block_keys("visual.transformer.", [0, 1]) | block_keys("transformer.", [0]),
}
