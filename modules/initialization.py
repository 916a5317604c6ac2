"""Load weights into the model and initialize the layers that they lack; freeze layers; set the precision."""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from modules.module_clip import CLIP, clip_shapes, clip_sizes

logger = logging.getLogger(__name__)

AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

# new layers start from those of CLIP's text tower, as in CLIP4Clip
TEXT_TOWER_SOURCES = {
    "transformerClip.": "transformer.",
    "cross.transformer.": "transformer.",
    "frame_position_embeddings.weight": "positional_embedding",
    "cross.embeddings.position_embeddings.weight": "positional_embedding",
}


@dataclass
class WeightReport:
    """Keys of the model that were loaded or newly initialized, and keys of the file that the model does not have."""

    loaded: list[str] = field(default_factory=list)
    initialized_from_clip: list[str] = field(default_factory=list)
    initialized_randomly: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    @property
    def untrained_head(self) -> list[str]:
        """Keys of newly initialized head layers; not those of a new conv2, which computes the same as conv1."""
        return [key for key in self.initialized_from_clip + self.initialized_randomly if not key.startswith("clip.")]

    def log(self) -> None:
        """Log one line for each list that is not empty."""
        for keys, words in (
            (self.loaded, "weights loaded"),
            (self.initialized_from_clip, "parameters newly initialized from CLIP's layers"),
            (self.initialized_randomly, "parameters newly initialized (random)"),
            (self.unexpected, "unexpected keys in the file"),
        ):
            if keys:
                logger.info("%d %s: %s", len(keys), words, summarize_keys(keys))


def summarize_keys(keys: Iterable[str]) -> str:
    """Return the keys grouped by their first part, such as `clip.* (152), text_weight_fc.* (4)`."""
    groups: dict[str, int] = {}
    for key in keys:
        groups[key.split(".")[0]] = groups.get(key.split(".")[0], 0) + 1
    # keys come from files: ascii() leaves no character that a terminal would interpret
    return ", ".join(f"{ascii(group)[1:-1]:.100}.* ({count})" for group, count in groups.items())


def check_clip_weights(weights: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError unless the weights (OpenAI's names) are a whole CLIP whose shapes fit each other."""
    expected = {"clip." + key: shape for key, shape in clip_shapes(clip_sizes(weights)).items()}
    found = {"clip." + key: tuple(weight.shape) for key, weight in weights.items()}
    missing = [key for key in expected if key not in found]
    if missing:
        raise ValueError(f"{len(missing)} weights of CLIP are missing in the file: {', '.join(missing[:5])}")
    check_shapes(found, expected)


def check_shapes(found: Mapping[str, tuple], expected: Mapping[str, tuple]) -> None:
    """Raise ValueError naming keys and both shapes where those of the file differ from the model's."""
    different = [
        f"{key}: file {found[key]}, model {shape}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    if different:
        raise ValueError(
            f"{len(different)} weights differ in shape from the model (check --cross_num_hidden_layers, --wti_arch, "
            f"--linear_patch and --pretrained_clip_name): {'; '.join(different[:5])}"
        )


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> WeightReport:
    """Load `weights` (keys of the whole model) and initialize the layers that they lack, from CLIP's where possible.

    Those of CLIP are complete (`check_clip_weights`).

    Raises ValueError for shapes that differ, naming keys and both shapes, and for weights that are not finite numbers.
    """
    wanted = model.state_dict()
    report = WeightReport(
        loaded=[key for key in wanted if key in weights],
        unexpected=[key for key in weights if key not in wanted],
    )
    check_shapes(
        {key: tuple(weights[key].shape) for key in report.loaded},
        {key: tuple(value.shape) for key, value in wanted.items()},
    )
    complete = {key: weights[key] for key in report.loaded}
    check_finite(complete)
    for key in wanted:
        if key in weights:
            continue
        initial = value_from_clip(key, weights)
        if initial is not None and initial.shape == wanted[key].shape:
            complete[key] = initial
            report.initialized_from_clip.append(key)
        else:
            complete[key] = wanted[key]
            report.initialized_randomly.append(key)
    model.load_state_dict(complete)
    return report


def check_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError naming the weights that are not floating point, or not finite in float32."""
    for words, is_valid in (
        ("are not floating-point numbers", torch.Tensor.is_floating_point),
        ("are not finite (NaN or infinite)", lambda weight: bool(weight.float().isfinite().all())),
    ):
        invalid = [key for key, weight in weights.items() if not is_valid(weight)]
        if invalid:
            raise ValueError(f"{len(invalid)} weights {words}: {', '.join(invalid[:5])}")


def value_from_clip(key: str, weights: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """Return the initial value of a new weight from CLIP's layers, None if CLIP has no corresponding one."""
    if key == "clip.visual.conv2.weight":
        # Conv3d that computes what the 2d one does: its kernel in the middle slice, zeros around it
        kernel = weights["clip.visual.conv1.weight"]
        return torch.stack([torch.zeros_like(kernel), kernel, torch.zeros_like(kernel)], dim=2)
    for prefix, source in TEXT_TOWER_SOURCES.items():
        if key.startswith(prefix):
            return weights.get("clip." + source + key.removeprefix(prefix))
    return None


def freeze_clip_layers(clip: CLIP, freeze_layer_num: int) -> list[str]:
    """Freeze CLIP below block `freeze_layer_num` of both towers and return the frozen names; -1 freezes nothing.

    Frozen are the embeddings, positions, class embedding, patch convolution, `ln_pre` and blocks below the number.
    conv2 (linear_patch 3d) is always trained, because it is new.
    Raises ValueError for a number below -1 or above the number of blocks.
    """
    deepest = max(len(clip.transformer.resblocks), len(clip.visual.transformer.resblocks))
    if not -1 <= freeze_layer_num <= deepest:
        raise ValueError(
            f"--freeze_layer_num {freeze_layer_num} is not between -1 (freeze nothing) and {deepest} blocks"
        )
    if freeze_layer_num == -1:
        return []
    frozen_parts = (
        "token_embedding.",
        "positional_embedding",
        "visual.class_embedding",
        "visual.positional_embedding",
        "visual.conv1.",
        "visual.ln_pre.",
    )
    frozen = []
    for name, parameter in clip.named_parameters():
        block = re.match(r"(?:visual\.)?transformer\.resblocks\.(\d+)\.", name)
        if name.startswith(frozen_parts) or (block and int(block.group(1)) < freeze_layer_num):
            parameter.requires_grad_(False)
            frozen.append(name)
    return frozen


def check_vocabulary(clip: CLIP, vocabulary: int, clip_name: str) -> None:
    """Raise ValueError if the tokenizer has more tokens than the CLIP of `--pretrained_clip_name` embeds."""
    if clip.vocab_size < vocabulary:
        raise ValueError(
            f"the CLIP of --pretrained_clip_name {clip_name} has a vocabulary of {clip.vocab_size} tokens, the "
            f"tokenizer one of {vocabulary}"
        )


def set_precision(model, precision: str) -> None:
    """Apply `--precision` to a `CLIP4Clip`: CLIP's matrices in float16, or autocast of the encoders, or neither."""
    if precision == "clip_fp16":
        convert_clip_to_float16(model.clip)
    model.autocast_dtype = AUTOCAST_TYPES.get(precision)


def convert_clip_to_float16(clip: CLIP) -> None:
    """Convert CLIP's convolutions, matrices and projections to float16, as in the published runs.

    LayerNorm, embeddings and everything outside CLIP stay float32. The optimizer's moments follow the weights' dtype.
    Raises ValueError for weights beyond float16.
    """
    converted = {}
    for name, parameter in clip.named_parameters():
        is_embedding = name.endswith(("embedding", "token_embedding.weight", "logit_scale"))
        if not is_embedding and not re.search(r"\bln_\w+\.", name):
            parameter.data = converted[f"clip.{name}"] = parameter.data.half()
    try:
        check_finite(converted)
    except ValueError as error:
        raise ValueError(f"--precision clip_fp16: {error} in float16; choose another --precision") from error
