"""CLIP's two towers (Radford et al., 2021) with OpenAI's names of weights.

All sizes are read from the weights: `CLIP.from_state_dict(state_dict)` builds the model that fits them. The vision
tower reads single frames (`linear_patch="2d"`) or each frame with its two neighbours (`"3d"`, CLIP4Clip's Conv3d).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

LINEAR_PATCHES = ("2d", "3d")
MAX_WIDENING = 4  # joint width over that of a tower, at most 1 in CLIP: layers of the joint width take bounded memory

# the weights that determine the sizes of a CLIP, and the number of their dimensions
DIMENSIONS = {
    "visual.conv1.weight": 4,
    "visual.positional_embedding": 2,
    "visual.proj": 2,
    "positional_embedding": 2,
    "token_embedding.weight": 2,
    "visual.transformer.resblocks.0.mlp.c_fc.weight": 2,
    "transformer.resblocks.0.mlp.c_fc.weight": 2,
}


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that OpenAI's weights were trained with."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # SiLU, y * sigmoid(y), keeps one tensor of the hidden layer's size for the backward pass instead of two
        return F.silu(1.702 * x) / 1.702


ACTIVATIONS = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


class LayerNorm(nn.LayerNorm):
    """LayerNorm in float32, the dtype of its weights in every precision; the output has the input's dtype."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float()).to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention with the parameter names of `nn.MultiheadAttention`, batch first."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.normal_(self.in_proj_weight, std=width**-0.5)
        nn.init.normal_(self.out_proj.weight, std=width**-0.5)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        x: torch.Tensor,
        additive_mask: torch.Tensor | None = None,
        causal: bool = False,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend within (N, L, width): all queries, or with `positions` (N,) one query per row, (N, 1, width).

        `additive_mask` broadcasts to (N, heads, L, L) and excludes `causal`.
        """
        if positions is None:
            query, key, value = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            width = x.shape[-1]
            weight_query, weight_key_value = self.in_proj_weight.split((width, 2 * width))
            bias_query, bias_key_value = self.in_proj_bias.split((width, 2 * width))
            query = F.linear(gather_tokens(x, positions), weight_query, bias_query)
            key, value = F.linear(x, weight_key_value, bias_key_value).chunk(2, dim=-1)
        mask = None if additive_mask is None else clamp_to_dtype(additive_mask, query.dtype)
        if causal and positions is not None:
            mask = torch.arange(x.shape[1], device=x.device) <= positions[:, None, None, None]
        mixed = F.scaled_dot_product_attention(
            self.split_heads(query), self.split_heads(key), self.split_heads(value),
            attn_mask=mask, is_causal=causal and positions is None,
        )  # fmt: skip
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def split_heads(self, x: torch.Tensor) -> torch.Tensor:
        """Reshape (N, L, width) to (N, heads, L, width / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Two linear layers, width -> `hidden_width` (4 width by default) -> width, with CLIP's names."""

    def __init__(self, width: int, activation: str, hidden_width: int | None = None):
        super().__init__()
        hidden_width = hidden_width or 4 * width
        self.add_module("c_fc", nn.Linear(width, hidden_width))
        self.add_module("gelu", ACTIVATIONS[activation]())
        self.add_module("c_proj", nn.Linear(hidden_width, width))


class ResidualAttentionBlock(nn.Module):
    """Pre-norm Transformer block of CLIP."""

    def __init__(
        self,
        width: int,
        heads: int,
        activation: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        hidden_width: int | None = None,
    ):
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = LayerNorm(width, eps=layer_norm_eps)
        self.mlp = FeedForward(width, activation, hidden_width)
        self.ln_2 = LayerNorm(width, eps=layer_norm_eps)

    def forward(
        self,
        x: torch.Tensor,
        additive_mask: torch.Tensor | None = None,
        causal: bool = False,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Transform tokens (N, L, width); with `positions` (N,) return only the tokens there, (N, 1, width)."""
        mixed = self.attn(self.ln_1(x), additive_mask, causal, positions)
        x = (x if positions is None else gather_tokens(x, positions)) + mixed
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of residual attention blocks, `resblocks.N` in the state dict.

    With `grad_checkpointing` the backward pass recomputes each block instead of keeping its activations.
    """

    def __init__(self, width: int, layers: int, heads: int, **block_options):
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(width, heads, **block_options) for _ in range(layers))
        self.grad_checkpointing = False

    def forward(
        self,
        x: torch.Tensor,
        additive_mask: torch.Tensor | None = None,
        causal: bool = False,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Transform tokens (N, L, width); with `positions` (N,) return only the tokens there, (N, 1, width).

        The last block then reads all tokens and computes only those, for a class token a sixth of its work.
        """
        last = len(self.resblocks) - 1
        for index, block in enumerate(self.resblocks):
            arguments = (x, additive_mask, causal, positions if index == last else None)
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x = block(*arguments)
        return x


class VisionTransformer(nn.Module):
    """CLIP's vision tower: frames to projected class tokens."""

    def __init__(
        self,
        input_resolution: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        output_dim: int,
        linear_patch: str = "2d",
        **block_options,
    ):
        super().__init__()
        self.input_resolution = input_resolution
        self.linear_patch = linear_patch
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        if linear_patch == "3d":
            self.conv2 = nn.Conv3d(
                3, width, kernel_size=(3, patch_size, patch_size), stride=(1, patch_size, patch_size),
                padding=(1, 0, 0), bias=False,
            )  # fmt: skip
            # conv2 replaces conv1, which stays in the state dict since CLIP4Clip's checkpoints hold both
            self.conv1.requires_grad_(False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        positions = (input_resolution // patch_size) ** 2 + 1
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(positions, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, **block_options)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, output_dim))

    def embed_patches(self, frames: torch.Tensor, video_frame: int) -> torch.Tensor:
        """Embed the patches of frames (N, 3, H, W), `video_frame` consecutive ones a video: (N, patches, width)."""
        if self.linear_patch == "2d":
            # a convolution whose stride equals its kernel size is one matrix product over the pixels of each patch
            kernel = self.conv1.weight
            return F.linear(patchify(frames.to(kernel.dtype), kernel.shape[-1]), kernel.flatten(1))
        if video_frame < 1 or frames.shape[0] % video_frame:
            raise ValueError(
                f"linear_patch 3d needs the number of frames per video: video_frame={video_frame} "
                f"does not divide the {frames.shape[0]} frames"
            )
        clips = frames.to(self.conv2.weight.dtype).unflatten(0, (-1, video_frame)).transpose(1, 2)
        grid = self.conv2(clips).transpose(1, 2).flatten(0, 1)
        return grid.flatten(2).transpose(1, 2)

    def forward(self, frames: torch.Tensor, video_frame: int = -1) -> torch.Tensor:
        """Encode normalised frames (N, 3, H, W) as (N, D).

        Raises: ValueError if the frames have another size than the CLIP's.
        """
        if tuple(frames.shape[-2:]) != (self.input_resolution, self.input_resolution):
            raise ValueError(
                f"frames of {frames.shape[-2]}x{frames.shape[-1]} pixels, "
                f"but this CLIP takes {self.input_resolution}x{self.input_resolution}"
            )
        x = self.embed_patches(frames, video_frame)
        class_token = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([class_token, x], dim=1) + self.positional_embedding.to(x.dtype)
        class_positions = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        x = self.transformer(self.ln_pre(x), positions=class_positions)
        return self.ln_post(x.squeeze(1)) @ self.proj


class CLIP(nn.Module):
    """CLIP's vision tower, text tower and logit scale."""

    def __init__(
        self,
        embed_dim: int,
        image_resolution: int,
        vision_layers: int,
        vision_width: int,
        vision_patch_size: int,
        context_length: int,
        vocab_size: int,
        transformer_width: int,
        transformer_layers: int,
        vision_hidden_width: int | None = None,
        transformer_hidden_width: int | None = None,
        linear_patch: str = "2d",
        activation: str = "quick_gelu",
        vision_heads: int | None = None,
        transformer_heads: int | None = None,
    ):
        super().__init__()
        if linear_patch not in LINEAR_PATCHES:
            raise ValueError(f"linear_patch {linear_patch!r} is unknown; choose from {', '.join(LINEAR_PATCHES)}")
        self.embed_dim = embed_dim
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.visual = VisionTransformer(
            image_resolution, vision_patch_size, vision_width, vision_layers,
            vision_heads or attention_heads(vision_width), embed_dim, linear_patch,
            activation=activation, hidden_width=vision_hidden_width,
        )  # fmt: skip
        self.transformer = Transformer(
            transformer_width,
            transformer_layers,
            transformer_heads or attention_heads(transformer_width),
            activation=activation,
            hidden_width=transformer_hidden_width,
        )
        self.token_embedding = nn.Embedding(vocab_size, transformer_width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(context_length, transformer_width))
        self.ln_final = LayerNorm(transformer_width)
        self.text_projection = nn.Parameter(transformer_width**-0.5 * torch.randn(transformer_width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @classmethod
    def from_state_dict(cls, state_dict: dict[str, torch.Tensor], **options) -> "CLIP":
        """Build the model whose sizes fit `state_dict` (OpenAI's names), without loading the weights.

        `options` cannot be read from weights: linear_patch, activation, vision_heads, transformer_heads.

        Raises: ValueError for a ResNet CLIP, or if a weight that determines a size is missing.
        """
        return cls(**clip_sizes(state_dict), **options)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the towers compute: that of their matrices (float16 in the published recipe)."""
        return self.visual.proj.dtype

    def encode_image(self, frames: torch.Tensor, video_frame: int = -1) -> torch.Tensor:
        """Encode normalised frames (N, 3, H, W) as (N, D)."""
        return self.visual(frames, video_frame)

    def encode_text(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Encode ids (A, T) as sentence vectors (A, D): the projected end token, whose id is the largest.

        Raises: ValueError if T exceeds the context.
        """
        x = self.transformer(self.embed_words(input_ids), causal=True, positions=input_ids.argmax(dim=-1))
        return self.ln_final(x.squeeze(1)) @ self.text_projection

    def encode_words(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Encode ids (A, T) as projected tokens (A, T, D).

        Raises: ValueError if T exceeds the context.
        """
        return self.ln_final(self.transformer(self.embed_words(input_ids), causal=True)) @ self.text_projection

    def embed_words(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embed ids (A, T) with their positions: (A, T, width)."""
        length = input_ids.shape[1]
        if length > self.context_length:
            raise ValueError(f"texts of {length} tokens, but this CLIP reads at most {self.context_length}")
        return self.token_embedding(input_ids).to(self.dtype) + self.positional_embedding[:length].to(self.dtype)


def gather_tokens(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return one token of each row of (N, L, width), at positions (N,): (N, 1, width)."""
    return x[torch.arange(x.shape[0], device=x.device), positions].unsqueeze(1)


def clamp_to_dtype(additive_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert a mask to `dtype`, clamped at half its lowest number, since a row of -inf only has no softmax."""
    return additive_mask.clamp(min=torch.finfo(dtype).min / 2).to(dtype)


def patchify(frames: torch.Tensor, size: int) -> torch.Tensor:
    """Split frames (N, 3, H, W) into patches in the order of a convolution's kernel: (N, patches, 3 size size)."""
    rows = frames.unflatten(3, (-1, size)).unflatten(2, (-1, size))
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def trim_padding(input_ids: torch.Tensor, multiple: int = 8) -> torch.Tensor:
    """Remove trailing columns of ids (..., T) that are padding (id 0) in every text, down to a multiple of `multiple`.

    The text tower is causal, so trimming changes no valid token. The multiple keeps the number of shapes small. Call it
    while the ids are on the host: on a GPU it would wait for the device.
    """
    used = input_ids.flatten(0, -2).any(dim=0).nonzero()
    longest = 1 + int(used[-1]) if len(used) else 1
    return input_ids[..., : -(-longest // multiple) * multiple]


def set_grad_checkpointing(model: nn.Module, enabled: bool = True) -> None:
    """Set `grad_checkpointing` of every Transformer: CLIP's towers, the frame Transformer and the cross encoder."""
    for module in model.modules():
        if isinstance(module, Transformer):
            module.grad_checkpointing = enabled


def attention_heads(width: int) -> int:
    """Return CLIP's number of heads, width / 64, or the largest smaller number that divides the width."""
    heads = max(1, width // 64)
    while width % heads:
        heads -= 1
    return heads


def clip_sizes(state_dict: dict[str, torch.Tensor]) -> dict[str, int]:
    """Return the sizes of the ViT CLIP with these weights (OpenAI's names) as keyword arguments of `CLIP`.

    Raises: ValueError for a ResNet CLIP, missing weights, sizes of 0, or patches that do not form a square.
    """
    if "visual.layer1.0.conv1.weight" in state_dict:
        raise ValueError(
            "these are weights of a ResNet CLIP; only the ViT models are supported (ViT-B/32, ViT-B/16, ...)"
        )
    missing = [key for key in DIMENSIONS if key not in state_dict]
    if missing:
        raise ValueError(
            f"these are not weights of a ViT CLIP in OpenAI's form: {', '.join(missing)} missing "
            f"among {len(state_dict)} keys such as {sorted(state_dict)[:3]!a}"
        )
    shapes = {key: tuple(state_dict[key].shape) for key in DIMENSIONS}
    for key, dimensions in DIMENSIONS.items():
        if len(shapes[key]) != dimensions or 0 in shapes[key]:
            raise ValueError(f"{key} has the shape {shapes[key]}, not {dimensions} sizes of at least 1")
    vision_width, _, patch_size, _ = shapes["visual.conv1.weight"]
    patches = shapes["visual.positional_embedding"][0] - 1
    side = math.isqrt(patches)
    if side * side != patches or not patches:
        raise ValueError(f"visual.positional_embedding has {patches} patches, which is not a square grid")
    context_length, transformer_width = shapes["positional_embedding"]
    embed_dim = shapes["visual.proj"][1]
    if embed_dim > MAX_WIDENING * min(vision_width, transformer_width):
        raise ValueError(
            f"the joint width is {embed_dim}, more than {MAX_WIDENING} times the smaller of the towers' widths, "
            f"{vision_width} and {transformer_width}"
        )
    return {
        "embed_dim": embed_dim,
        "image_resolution": side * patch_size,
        "vision_layers": count_blocks(state_dict, "visual.transformer.resblocks."),
        "vision_width": vision_width,
        "vision_patch_size": patch_size,
        "context_length": context_length,
        "vocab_size": shapes["token_embedding.weight"][0],
        "transformer_width": transformer_width,
        "transformer_layers": count_blocks(state_dict, "transformer.resblocks."),
        "vision_hidden_width": shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
        "transformer_hidden_width": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
    }


def clip_shapes(sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of a CLIP of these `clip_sizes` by OpenAI's names, without building it."""
    vision, text, joint = sizes["vision_width"], sizes["transformer_width"], sizes["embed_dim"]
    patch = sizes["vision_patch_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (sizes["context_length"], text),
        "text_projection": (text, joint),
        "logit_scale": (),
        "token_embedding.weight": (sizes["vocab_size"], text),
        "visual.class_embedding": (vision,),
        "visual.positional_embedding": ((sizes["image_resolution"] // patch) ** 2 + 1, vision),
        "visual.proj": (vision, joint),
        "visual.conv1.weight": (vision, 3, patch, patch),
    }
    for name, width in (("visual.ln_pre", vision), ("visual.ln_post", vision), ("ln_final", text)):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for prefix, width, hidden, layers in (
        ("visual.", vision, sizes["vision_hidden_width"], sizes["vision_layers"]),
        ("", text, sizes["transformer_hidden_width"], sizes["transformer_layers"]),
    ):
        for layer in range(layers):
            block = f"{prefix}transformer.resblocks.{layer}."
            shapes |= {
                f"{block}attn.in_proj_weight": (3 * width, width), f"{block}attn.in_proj_bias": (3 * width,),
                f"{block}attn.out_proj.weight": (width, width), f"{block}attn.out_proj.bias": (width,),
                f"{block}mlp.c_fc.weight": (hidden, width), f"{block}mlp.c_fc.bias": (hidden,),
                f"{block}mlp.c_proj.weight": (width, hidden), f"{block}mlp.c_proj.bias": (width,),
                f"{block}ln_1.weight": (width,), f"{block}ln_1.bias": (width,),
                f"{block}ln_2.weight": (width,), f"{block}ln_2.bias": (width,),
            }  # fmt: skip
    return shapes


def count_blocks(state_dict: dict[str, torch.Tensor], prefix: str) -> int:
    """Return the number of Transformer blocks whose keys start with `prefix`."""
    return len({key[len(prefix) :].split(".")[0] for key in state_dict if key.startswith(prefix)})
