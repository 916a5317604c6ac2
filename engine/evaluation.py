"""Evaluate a split: encode and score it, rank both directions, and log them in CLIP4Clip's wording.

No score depends on the true pairs: they enter with `video_index`, when all scores are there.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

import metrics
import util
from dataloaders.annotations import Annotations
from dataloaders.data_dataloaders import DATALOADER_DICT, VideoLoader, evaluation_loaders
from dataloaders.retrieval_dataset import RetrievalDataset
from dataloaders.unreadable import UnreadableVideos
from engine.run_files import Ranking
from modules.distributed import all_gather_objects
from modules.modeling import CLIP4Clip
from modules.post_processing import ASSUMPTIONS, dual_softmax, querybank_normalize
from modules.retrieval import SIMILARITY_DTYPES, similarity_of_split

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scoring:
    """How a similarity is kept and post-processed: the values of the flags of these names."""

    similarity_dtype: str
    post_process: str
    dsl_temperature: float
    qb_norm_beta: float

    @classmethod
    def from_flags(cls, args) -> "Scoring":
        return cls(args.similarity_dtype, args.post_process, args.dsl_temperature, args.qb_norm_beta)


@dataclass(frozen=True)
class Evaluation:
    """The rankings of a split.

    Attributes:
        rankings: text-to-video and video-to-text.
        post_process: the method with its settings and assumption, or None; `processed` are its rankings.
        unreadable: the videos that count as misses because they cannot be read.
        dataset: the split's items; `seconds`: the time that their evaluation took.
    """

    split: str
    rankings: list[Ranking]
    processed: list[Ranking]
    post_process: dict | None
    unreadable: UnreadableVideos
    dataset: RetrievalDataset
    seconds: float


@dataclass
class Gallery:
    """The names behind a similarity: texts (A,), videos (B,), each text's true video (A,), and the readable videos.

    Similarities have a column for each readable video. Unreadable ones score lowest of all, with every text, so that
    they are misses as queries and as answers.
    """

    texts: list[str]
    videos: list[str]
    video_index: np.ndarray
    is_readable: np.ndarray

    @classmethod
    def of(cls, dataset: RetrievalDataset, unreadable_items: Iterable[int]) -> "Gallery":
        """Return the names of a data set; `unreadable_items` are the numbers of its items without frames."""
        is_readable = np.ones(len(dataset.video_ids), dtype=bool)
        is_readable[list(unreadable_items)] = False
        texts = [caption.text for caption in dataset.annotations.captions]
        return cls(texts, dataset.item_names(), dataset.video_index, is_readable)

    def text_to_video(self, similarity: np.ndarray) -> Ranking:
        """Rank the videos for every text."""
        return Ranking.of(
            metrics.TEXT_TO_VIDEO, self._all_columns(similarity), self.video_index, self.texts, self.videos
        )

    def video_to_text(self, similarity: np.ndarray) -> Ranking:
        """Rank the videos, each scored by the best of its captions, for every video."""
        columns, by_group = metrics.video_queries(self._all_columns(similarity), self.video_index)
        names = [self.videos[column] for column in columns]
        return Ranking.of(metrics.VIDEO_TO_TEXT, by_group, np.arange(len(names)), names, names)

    def _all_columns(self, similarity: np.ndarray) -> np.ndarray:
        if self.is_readable.all():
            return similarity
        full = np.full((len(similarity), len(self.videos)), -np.inf, dtype=similarity.dtype)
        full[:, self.is_readable] = similarity
        return full


class Evaluator:
    """The splits that a run is evaluated on, with their loaders, and the model; every process calls `evaluate`.

    Args:
        loaders: by split, "test" and with `--holdout` "holdout".
        bank: the loader of QB-Norm's training captions, or None.
    """

    def __init__(
        self, model: CLIP4Clip, process: util.Process, loaders: dict[str, VideoLoader], scoring: Scoring,
        bank: VideoLoader | None = None,
    ):  # fmt: skip
        self.model, self.process, self.loaders, self.scoring, self.bank = model, process, loaders, scoring, bank

    @classmethod
    def from_flags(cls, args, model: CLIP4Clip, tokenizer, process: util.Process) -> "Evaluator":
        """Read the test split, the `--holdout` videos and QB-Norm's bank, as the flags require."""
        by_split = DATALOADER_DICT[args.datatype]
        build_loader = by_split["test"] or by_split["val"]
        loaders = {}
        for split in ("test", "holdout") if args.holdout else ("test",):
            loader, length = build_loader(args, tokenizer, subset=split, image_resolution=model.input_resolution)
            util.log_split(split, length, loader.batch_size, len(loader))
            loaders[split] = loader
        bank = build_loader(args, tokenizer, subset="bank")[0] if args.post_process == "qb_norm" else None
        return cls(model, process, loaders, Scoring.from_flags(args), bank)

    @property
    def validation_split(self) -> str:
        """The split that picks the epoch."""
        return "holdout" if "holdout" in self.loaders else "test"

    @property
    def holdout(self) -> Annotations | None:
        """The annotations of the held-out videos, if any."""
        return self.loaders["holdout"].dataset.annotations if "holdout" in self.loaders else None

    def evaluate(self, split: str) -> Evaluation | None:
        """Evaluate the model as it is; returns None on processes other than the main one."""
        return evaluate_split(self.model, self.loaders[split], self.process, self.scoring, self.bank, split)


def eval_epoch(args, model: CLIP4Clip, test_loader: VideoLoader, process: util.Process, bank=None) -> float | None:
    """Evaluate a split, log both directions, and return text-to-video R@1, on the main process alone.

    Writes no file. `args` has the flags of `Scoring`; `bank` is the loader of QB-Norm's training captions.
    """
    evaluation = evaluate_split(model, test_loader, process, Scoring.from_flags(args), bank)
    return None if evaluation is None else evaluation.rankings[0].summary()["R1"]


def evaluate_split(
    model: CLIP4Clip, loader: VideoLoader, process: util.Process, scoring: Scoring, bank: VideoLoader | None = None,
    split: str = "test",
) -> Evaluation | None:  # fmt: skip
    """Encode and score a split, and log both directions; every process must call this, the main one gets the rankings.

    Raises:
        ValueError: a similarity is NaN.
    """
    started = time.perf_counter()
    model.eval()
    hidden = None if process.is_main else True
    texts, videos = evaluation_loaders(loader, process.rank, process.world_size, bank)
    similarity = similarity_of_split(
        model, tqdm(texts, desc="texts", disable=hidden), tqdm(videos, desc="videos", disable=hidden), process.device,
        SIMILARITY_DTYPES[scoring.similarity_dtype],
    )  # fmt: skip
    unreadable = videos.unreadable
    unreadable.merge(all_gather_objects(unreadable))
    if not process.is_main:
        return None
    names = Gallery.of(loader.dataset, unreadable.by_item)
    similarity, bank_similarity = np.split(similarity.numpy(), [len(names.texts)])
    logger.info("sim matrix size: %d, %d", *similarity.shape)
    if unreadable.by_item:
        logger.warning(
            "%d of %d video files cannot be read, and their items count as misses: %s",
            len(unreadable.paths()), unreadable.files, unreadable.listing(),
        )  # fmt: skip
        similarity, bank_similarity = similarity[:, names.is_readable], bank_similarity[:, names.is_readable]
    if unreadable.damaged:
        logger.warning(unreadable.damage_listing())
    rankings = [names.text_to_video(similarity), names.video_to_text(similarity)]
    logger.info(
        "\t Length-T: %d, Length-V:%d (%.1f s)", len(names.texts), len(names.videos), time.perf_counter() - started
    )
    for ranking in rankings:
        log_ranking(ranking)
    method, processed = None, []
    if scoring.post_process != "none":
        cosines = similarity / model.score_scale, bank_similarity / model.score_scale
        method, processed = post_process(scoring, names, *cosines)
        logger.info("Post-processed by %s, which assumes: %s", method["method"], method["assumes"])
        for ranking in processed:
            log_ranking(ranking, method["method"])
    seconds = time.perf_counter() - started
    return Evaluation(split, rankings, processed, method, unreadable, loader.dataset, seconds)


def post_process(
    scoring: Scoring, names: Gallery, similarity: np.ndarray, bank_similarity: np.ndarray
) -> tuple[dict, list[Ranking]]:
    """Return the method with its settings and assumption, and its rankings of cosines (A,B), bank (N,B).

    QB-Norm has a bank of captions and no bank of videos, so that it ranks text-to-video only.
    """
    method = {"method": scoring.post_process, "assumes": ASSUMPTIONS[scoring.post_process]}
    if scoring.post_process == "dsl":
        texts = dual_softmax(similarity, scoring.dsl_temperature)
        videos = dual_softmax(similarity.T, scoring.dsl_temperature).T
        method["temperature"] = scoring.dsl_temperature
        return method, [names.text_to_video(texts), names.video_to_text(videos)]
    method |= {"beta": scoring.qb_norm_beta, "bank_captions": len(bank_similarity)}
    return method, [names.text_to_video(querybank_normalize(similarity, bank_similarity, scoring.qb_norm_beta))]


def log_ranking(ranking: Ranking, label: str = "") -> None:
    """Log CLIP4Clip's lines, and one with the intervals; with a label no line has CLIP4Clip's form."""
    prefix = "V2T$" if ranking.direction == metrics.VIDEO_TO_TEXT else ""
    summary = ranking.summary()
    logger.info("%s:", (ranking.direction.title().replace("-To-", "-to-") + f" ({label})" * bool(label)))
    names = {"R1": "R@1", "R5": "R@5", "R10": "R@10", "MdR": "Median R", "MnR": "Mean R"}
    numbers = " - ".join(f"{prefix}{name}: {summary[key]:.1f}" for key, name in names.items())
    logger.info("\t>>>  %s%s", f"{label}: " if label else "", numbers)
    intervals = " - ".join(
        f"R@{key[1:]} [{low:.1f}, {high:.1f}]" for key, (low, high) in summary["intervals_95"].items()
    )
    logger.info("\t95 %% intervals (bootstrap over %d queries): %s", summary["queries"], intervals)
