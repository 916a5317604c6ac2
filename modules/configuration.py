"""What the model reads of the command line, checked once at the door."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from modules.losses import CDCR_MODES
from modules.module_clip import LINEAR_PATCHES
from modules.token_interaction import WTI_ARCHITECTURES, WTI_PADDINGS

POOLED_HEADERS = ("meanP", "seqLSTM", "seqTransf")  # one vector a text, one a video
TIGHT_HEADERS = ("tightTransf", "xti")  # a cross encoder reads every pair
TOKEN_HEADERS = ("ti", "wti")  # every word against every frame
SIM_HEADERS = POOLED_HEADERS + TIGHT_HEADERS + TOKEN_HEADERS
AGG_MODULES = ("none", "seqLSTM", "seqTransf")
AGGREGATING_HEADERS = (*TOKEN_HEADERS, "xti")  # the others fix their own aggregation
CROSS_MODELS = ("cross-base",)
GATHERS = ("published", "exact")


@dataclass(frozen=True)
class CLIP4ClipConfig:
    """All that the model reads of the command line. Raises ValueError for contradictions, naming values and choices."""

    pretrained_clip_name: str = "ViT-B/32"
    max_words: int = 20
    max_frames: int = 100
    sim_header: str = "meanP"
    linear_patch: str = "2d"
    cross_num_hidden_layers: int = 4
    agg_module: str = "none"
    wti_arch: int = 2
    wti_padding: str = "zero"
    cdcr: int = 0
    cdcr_alpha1: float = 1.0
    cdcr_alpha2: float = 0.06
    cdcr_lambda: float = 0.001
    gather: str = "published"

    @classmethod
    def from_namespace(cls, namespace) -> "CLIP4ClipConfig":
        """Read the fields from any object with attributes; a missing one, or None, takes the flag's default."""
        given = {field.name: getattr(namespace, field.name, None) for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in given.items() if value is not None})

    def __post_init__(self):
        choices = {
            "sim_header": SIM_HEADERS,
            "linear_patch": LINEAR_PATCHES,
            "agg_module": AGG_MODULES,
            "wti_arch": WTI_ARCHITECTURES,
            "wti_padding": WTI_PADDINGS,
            "cdcr": CDCR_MODES,
            "gather": GATHERS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"--{name} {getattr(self, name)!r} is unknown; choose from {', '.join(map(str, allowed))}"
                )
        for name in ("max_words", "max_frames", "cross_num_hidden_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)} must be at least 1")
        if self.max_words < 2:
            raise ValueError(f"--max_words {self.max_words} leaves no room for the start and the end token")
        if self.agg_module != "none" and self.sim_header not in AGGREGATING_HEADERS:
            raise ValueError(
                f"--agg_module {self.agg_module} belongs to the heads {', '.join(AGGREGATING_HEADERS)}; "
                f"--sim_header {self.sim_header} fixes its own aggregation"
            )
        if self.cdcr and self.sim_header in TIGHT_HEADERS:
            raise ValueError(
                f"--cdcr {self.cdcr} needs vectors of texts and videos to decorrelate; --sim_header {self.sim_header} "
                f"reads pairs (it works with {', '.join(POOLED_HEADERS + TOKEN_HEADERS)})"
            )
        for name in ("cdcr_alpha1", "cdcr_alpha2", "cdcr_lambda"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name} {getattr(self, name)} must be a number >= 0")

    def check_lengths(self, positions: int) -> None:
        """Raise ValueError where texts or videos are longer than the CLIP's context: all positions start from there."""
        if self.max_words > positions:
            raise ValueError(f"--max_words {self.max_words} exceeds the CLIP's context of {positions} tokens")
        needed = self.max_frames if self.aggregation == "seqTransf" else 0
        if self.sim_header in TIGHT_HEADERS:
            needed = 1 + self.max_frames  # the sentence vector takes the first position
        if needed > positions:
            raise ValueError(
                f"--max_frames {self.max_frames} needs {needed} positions with --sim_header {self.sim_header} "
                f"--agg_module {self.agg_module}, but the CLIP has {positions}"
            )

    @property
    def aggregation(self) -> str:
        """Temporal aggregation of the frames: "none", "seqLSTM" or "seqTransf"."""
        return self.sim_header if self.sim_header in AGG_MODULES else self.agg_module

    @property
    def has_exact_gather(self) -> bool:
        """True where several ranks have one process's gradient on their global batch: DRL publishes xti so."""
        return self.gather == "exact" or self.sim_header == "xti"

    @property
    def has_local_negatives(self) -> bool:
        """True where each rank scores its own pairs alone, as CLIP4Clip publishes tightTransf."""
        return self.sim_header == "tightTransf" and not self.has_exact_gather


def check_cross_model(name: str) -> None:
    """Raise ValueError for another `--cross_model` than CLIP4Clip's, by its name or its path."""
    if Path(name).name not in CROSS_MODELS:
        raise ValueError(f"--cross_model {name!r} is unknown; choose from {', '.join(CROSS_MODELS)}")
