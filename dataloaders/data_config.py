"""The flags that the loaders read, taken from the namespace once and checked there."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from dataloaders.annotations import CaptionsOnly
from dataloaders.frame_cache import FRAME_FORMATS
from dataloaders.rawvideo_util import FRAME_ORDERS, FRAME_SAMPLINGS, SLICE_FRAMEPOS
from dataloaders.unreadable import UNREADABLE_VIDEO_POLICIES

CHOICES = {
    "slice_framepos": SLICE_FRAMEPOS,
    "frame_sampling": FRAME_SAMPLINGS,
    "train_frame_order": FRAME_ORDERS,
    "eval_frame_order": FRAME_ORDERS,
    "frame_cache_format": FRAME_FORMATS,
    "bad_videos": UNREADABLE_VIDEO_POLICIES,
}
MINIMUMS = {
    "max_words": 1,
    "max_frames": 1,
    "feature_framerate": 1,
    "num_thread_reader": 0,
    "batch_size": 1,
    "batch_size_val": 1,
    "gradient_accumulation_steps": 1,
    "qb_norm_size": 1,
}
MAX_SEED = 2**32 - 1  # numpy's bound


def default_frame_sampling(datatype: str) -> str:
    """Return the rule of `--frame_sampling` for a data set: the numbers of published data sets are by frame numbers."""
    return "time" if datatype == "custom" else "published"


@dataclass(frozen=True)
class DataConfig:
    """All that readers, data sets and loaders read of the command line; names and defaults are those of the flags.

    `features_path` may be `CaptionsOnly`. `frame_sampling` is never None: `from_namespace` takes the data set's rule.

    Raises:
        ValueError: a value is not valid; names the flag, the value and the bound or the choices.
    """

    train_csv: str = "data/.train.csv"
    val_csv: str = "data/.val.csv"
    data_path: str = "data/caption.pickle"
    features_path: str | type[CaptionsOnly] = "data/videos_feature.pickle"
    exclude: Sequence[str] | None = None
    expand_msrvtt_sentences: bool = False
    max_words: int = 20
    max_frames: int = 100
    feature_framerate: int = 1
    slice_framepos: int = 0
    frame_sampling: str | None = None
    train_frame_order: int = 0
    eval_frame_order: int = 0
    num_thread_reader: int = 1
    frame_cache: str | None = None
    frame_cache_format: str = "exact"
    bad_videos: str = "fail"
    batch_size: int = 256
    batch_size_val: int = 3500
    gradient_accumulation_steps: int = 1
    seed: int = 42
    holdout: int = 0
    qb_norm_size: int = 5000

    @classmethod
    def from_namespace(cls, namespace) -> "DataConfig":
        """Read the fields from any object with attributes; a missing one, or None, takes the flag's default."""
        given = {field.name: getattr(namespace, field.name, None) for field in dataclasses.fields(cls)}
        given["frame_sampling"] = given["frame_sampling"] or default_frame_sampling(getattr(namespace, "datatype", ""))
        return cls(**{name: value for name, value in given.items() if value is not None})

    def __post_init__(self):
        if self.frame_sampling is None:
            object.__setattr__(self, "frame_sampling", "published")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"--{name} {getattr(self, name)!r} is unknown; choose from {', '.join(map(str, choices))}"
                )
        for name, minimum in MINIMUMS.items():
            if getattr(self, name) < minimum:
                bound = "must not be negative" if minimum == 0 else f"must be at least {minimum}"
                raise ValueError(f"--{name} {getattr(self, name)} {bound}")
        if self.max_words < 2:
            raise ValueError(f"--max_words {self.max_words} leaves no room for the start and the end token")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"--seed {self.seed} must be in [0, {MAX_SEED}]")
        if self.holdout != 0 and self.holdout < 2:
            raise ValueError(f"--holdout {self.holdout} must be at least 2 videos, or 0 for none")

    def samples_per_step(self, world_size: int) -> int:
        """Return the number of samples of `--batch_size` that one process encodes in one accumulation step.

        Raises:
            ValueError: `--batch_size` is not divisible by the processes and the accumulation steps.
        """
        samples, rest = divmod(self.batch_size, world_size * self.gradient_accumulation_steps)
        if rest:
            raise ValueError(
                f"--batch_size {self.batch_size} is not divisible by processes * --gradient_accumulation_steps "
                f"({world_size} * {self.gradient_accumulation_steps})"
            )
        return samples
