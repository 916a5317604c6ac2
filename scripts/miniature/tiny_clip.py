"""A small CLIP with random weights, as a state dict with OpenAI's key names and CLIP's real vocabulary size.

    python -m scripts.make_tiny_clip --output data/tiny_clip.pt

It replaces `ViT-B-32.pt` (`--pretrained_clip_name data/tiny_clip.pt`): it needs no download, trains on a laptop, and
takes the same path through the code. A name that ends in `.safetensors` is written in that format. The standard
deviations are those of OpenAI's CLIP (github.com/openai/CLIP, `initialize_parameters`).
"""

import math
from pathlib import Path

import torch
from torch import Tensor

VOCABULARY_SIZE = 49408
LARGEST_SEED = 2**63 - 1


def transformer_state_dict(prefix: str, width: int, layers: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return residual attention blocks `{prefix}resblocks.N.*`.

    Output projections are scaled down by the number of residual additions, 2 * layers.
    """
    attention_std = width**-0.5
    projection_std = width**-0.5 * (2 * layers) ** -0.5
    hidden_std = (2 * width) ** -0.5

    def normal(*shape: int, std: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * std

    weights = {}
    for layer in range(layers):
        block = f"{prefix}resblocks.{layer}."
        weights[block + "attn.in_proj_weight"] = normal(3 * width, width, std=attention_std)
        weights[block + "attn.in_proj_bias"] = torch.zeros(3 * width)
        weights[block + "attn.out_proj.weight"] = normal(width, width, std=projection_std)
        weights[block + "attn.out_proj.bias"] = torch.zeros(width)
        weights |= layer_norm_state_dict(block + "ln_1.", width)
        weights[block + "mlp.c_fc.weight"] = normal(4 * width, width, std=hidden_std)
        weights[block + "mlp.c_fc.bias"] = torch.zeros(4 * width)
        weights[block + "mlp.c_proj.weight"] = normal(width, 4 * width, std=projection_std)
        weights[block + "mlp.c_proj.bias"] = torch.zeros(width)
        weights |= layer_norm_state_dict(block + "ln_2.", width)
    return weights


def layer_norm_state_dict(prefix: str, width: int) -> dict[str, Tensor]:
    """Return a LayerNorm with weight 1 and bias 0."""
    return {prefix + "weight": torch.ones(width), prefix + "bias": torch.zeros(width)}


def tiny_clip_state_dict(
    embed_dim: int = 128,
    vision_width: int = 128,
    vision_layers: int = 3,
    patch_size: int = 16,
    image_size: int = 64,
    text_width: int = 128,
    text_layers: int = 2,
    context_length: int = 77,
    vocabulary_size: int = VOCABULARY_SIZE,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return random float32 weights of a ViT CLIP with OpenAI's key names; the same seed gives the same weights.

    `image_size` and `patch_size` are in pixels. Both towers have max(1, width // 64) attention heads: CLIP's rule, not
    stored in the weights.

    Raises:
        ValueError: a size is not valid; the message names it.
    """
    check_sizes(
        embed_dim=embed_dim,
        vision_width=vision_width,
        vision_layers=vision_layers,
        patch_size=patch_size,
        image_size=image_size,
        text_width=text_width,
        text_layers=text_layers,
        context_length=context_length,
        vocabulary_size=vocabulary_size,
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * std

    vision_std = vision_width**-0.5
    patches = (image_size // patch_size) ** 2
    # PyTorch's own initialization of a convolution: uniform within 1 / sqrt(inputs per output)
    patch_bound = (3 * patch_size**2) ** -0.5
    patch_weight = torch.rand(vision_width, 3, patch_size, patch_size, generator=generator)
    return {
        "positional_embedding": normal(context_length, text_width, std=0.01),
        "text_projection": normal(text_width, embed_dim, std=text_width**-0.5),
        "logit_scale": torch.tensor(math.log(1 / 0.07)),
        "visual.class_embedding": normal(vision_width, std=vision_std),
        "visual.positional_embedding": normal(patches + 1, vision_width, std=vision_std),
        "visual.proj": normal(vision_width, embed_dim, std=vision_std),
        "visual.conv1.weight": (2 * patch_weight - 1) * patch_bound,
        **layer_norm_state_dict("visual.ln_pre.", vision_width),
        **transformer_state_dict("visual.transformer.", vision_width, vision_layers, generator),
        **layer_norm_state_dict("visual.ln_post.", vision_width),
        **transformer_state_dict("transformer.", text_width, text_layers, generator),
        "token_embedding.weight": normal(vocabulary_size, text_width, std=0.02),
        **layer_norm_state_dict("ln_final.", text_width),
    }


def check_sizes(**sizes: int) -> None:
    """Raise ValueError that names the first size that is not valid."""
    for name, value in sizes.items():
        if name != "seed" and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if not 0 <= sizes["seed"] <= LARGEST_SEED:
        raise ValueError(f"seed must be from 0 to {LARGEST_SEED}, not {sizes['seed']}")
    if sizes["image_size"] % sizes["patch_size"]:
        raise ValueError(
            f"image_size {sizes['image_size']} is not a multiple of patch_size {sizes['patch_size']}: "
            "a frame must be cut into whole patches"
        )
    for name in ("vision_width", "text_width"):
        heads = max(1, sizes[name] // 64)
        if sizes[name] % heads:
            raise ValueError(f"{name} {sizes[name]} does not divide by its {heads} heads ({name} // 64)")


def save_state_dict(weights: dict[str, Tensor], output: Path) -> None:
    """Write the weights with safetensors if the suffix is `.safetensors`, otherwise with `torch.save`."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(weights, str(output))
    else:
        torch.save(weights, output)
