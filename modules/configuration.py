"""The model's part of the command line as a frozen dataclass, checked once when it is built."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from modules.heads import HEADS, Head
from modules.losses import CDCR_MODES
from modules.module_clip import LINEAR_PATCHES
from modules.token_interaction import WTI_ARCHITECTURES, WTI_PADDINGS

SIM_HEADERS = tuple(HEADS)
AGGREGATING_HEADERS = tuple(sorted(name for name in HEADS if HEADS[name].aggregation is None))
AGG_MODULES = ("none", "seqLSTM", "seqTransf")
CROSS_MODELS = ("cross-base",)
GATHERS = ("published", "exact")


@dataclass(frozen=True)
class CLIP4ClipConfig:
    """Flags that the model reads.

    Raises: ValueError for a value out of range and for contradictions, with the flag, its value and the choices.
    """

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
            "sim_header": HEADS,
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
        if self.agg_module != "none" and self.head.aggregation is not None:
            raise ValueError(
                f"--agg_module {self.agg_module} works with --sim_header {', '.join(AGGREGATING_HEADERS)}; "
                f"{self.sim_header} fixes its own aggregation"
            )
        if self.cdcr and not self.head.supports_cdcr:
            choices = [name for name, head in HEADS.items() if head.supports_cdcr]
            raise ValueError(
                f"--cdcr {self.cdcr} works with --sim_header {', '.join(choices)}; "
                f"{self.sim_header} has no separate vectors of texts and videos to decorrelate"
            )
        for name in ("cdcr_alpha1", "cdcr_alpha2", "cdcr_lambda"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name} {getattr(self, name)} must be a number >= 0")

    def check_lengths(self, positions: int) -> None:
        """Raise ValueError if texts or videos exceed the CLIP's context, whose positions initialize all others."""
        if self.max_words > positions:
            raise ValueError(f"--max_words {self.max_words} exceeds the CLIP's context of {positions} tokens")
        needed = self.head.positions_needed(self.max_frames, self.aggregation)
        if needed > positions:
            raise ValueError(
                f"--max_frames {self.max_frames} needs {needed} positions with --sim_header {self.sim_header} "
                f"--agg_module {self.agg_module}, but the CLIP has {positions}"
            )

    @property
    def head(self) -> Head:
        """The head of `sim_header`."""
        return HEADS[self.sim_header]

    @property
    def aggregation(self) -> str:
        """Temporal aggregation of the frames: "none", "seqLSTM" or "seqTransf"."""
        return self.head.aggregation or self.agg_module

    @property
    def has_exact_gather(self) -> bool:
        """Whether several ranks compute the gradient of one process on the global batch."""
        return self.gather == "exact" or self.head.gather == "exact"

    @property
    def has_local_negatives(self) -> bool:
        """Whether each rank scores its own pairs only."""
        return self.head.gather == "local" and not self.has_exact_gather


def check_cross_model(name: str) -> None:
    """Raise ValueError if `--cross_model` does not name CLIP4Clip's, by name or path."""
    if Path(name).name not in CROSS_MODELS:
        raise ValueError(f"--cross_model {name!r} is unknown; choose from {', '.join(CROSS_MODELS)}")
