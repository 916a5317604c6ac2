"""The cases of golden/peer_parity.npz as flags and weights of this project."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from modules.modeling import CLIP4Clip

INTERACTION_HEADS = {"ti": "ti", "wti": "wti", "xti": "xti"}
POOLED_HEAD_OF = {"none": "meanP", "seqLSTM": "seqLSTM", "seqTransf": "seqTransf"}  # DRL's "dp" with its agg_module


@dataclass(frozen=True)
class GoldenCase:
    """One reference model: its flags, weights, outputs and norms of the gradients of its training loss."""

    name: str
    peer: str
    task_config: SimpleNamespace
    state_dict: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    gradient_norms: dict[str, float]

    def model(self) -> CLIP4Clip:
        """Return the model with the case's weights, without dropout: the reference numbers are computed without it."""
        model = CLIP4Clip.from_pretrained("cross-base", state_dict=self.state_dict, task_config=self.task_config)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return model


def load_case(archive: dict[str, np.ndarray], name: str) -> GoldenCase:
    """Return the case `name` of the archive."""
    flags = next(case for case in json.loads(str(archive["cases"])) if case["name"] == name)
    is_drl = flags["peer"] == "DRL"
    agg_module = flags.get("agg_module", "none")
    head = flags.get("sim_header", "meanP")
    if is_drl and flags.get("interaction") == "dp":
        head, agg_module = POOLED_HEAD_OF[agg_module], "none"
    elif is_drl:
        head = INTERACTION_HEADS[flags.get("interaction", "wti")]
    task_config = SimpleNamespace(
        pretrained_clip_name="ViT-B/32",
        max_words=9,
        max_frames=5,
        cross_num_hidden_layers=2,
        sim_header=head,
        linear_patch=flags.get("linear_patch", "2d"),
        agg_module=agg_module,
        wti_arch=flags.get("wti_arch", 2),
        cdcr=flags.get("cdcr", 0),
        cdcr_alpha1=0.11,
    )
    clip = {f"clip.{key}": value for key, value in tensors_below(archive, "clip/").items()}
    return GoldenCase(
        name=name,
        peer=flags["peer"],
        task_config=task_config,
        state_dict={**clip, **tensors_below(archive, f"case/{name}/state/")},
        outputs=tensors_below(archive, f"case/{name}/out/"),
        gradient_norms={key: value.item() for key, value in tensors_below(archive, f"case/{name}/gradnorm/").items()},
    )


def load_inputs(archive: dict[str, np.ndarray]) -> tuple[torch.Tensor, ...]:
    """Return input_ids, segment_ids, attention_mask, video, video_mask, in the order of `CLIP4Clip.forward`."""
    inputs = tensors_below(archive, "in/")
    return tuple(inputs[key] for key in ("input_ids", "segment_ids", "attention_mask", "video", "video_mask"))


def tensors_below(archive: dict[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): torch.tensor(value) for key, value in archive.items() if key.startswith(prefix)}
