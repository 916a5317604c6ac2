"""Evaluate a split: encode and score it, rank, log in CLIP4Clip's wording, and leave the result files.

No score depends on which pairs are true: they enter with `video_index`, after all scores are there.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

import metrics
import util
from dataloaders.data_dataloaders import DATALOADER_DICT, evaluation_loaders
from engine.run_files import DIRECTIONS, NUMBERS, Ranking, RunRecord
from engine.run_log import RunLog
from modules.checkpoint import load_checkpoint
from modules.distributed import all_gather_objects
from modules.modeling import CLIP4Clip
from modules.post_processing import ASSUMPTIONS, dual_softmax, querybank_normalize
from modules.retrieval import SIMILARITY_DTYPES, similarity_of_split

logger = logging.getLogger(__name__)


@dataclass
class Gallery:
    """The names behind a similarity: texts (A,), videos (B,), each text's true video (A,), and the readable videos.

    Similarities have a column for each readable video. The others score lowest of all, with every text, so that they
    are misses as queries and as answers.
    """

    texts: list[str]
    videos: list[str]
    video_index: np.ndarray
    is_readable: np.ndarray

    @classmethod
    def of(cls, dataset, bad_items: Iterable[int]) -> "Gallery":
        """The names of a `RetrievalDataset`; `bad_items` are the numbers of its items without frames."""
        is_readable = np.ones(len(dataset.video_ids), dtype=bool)
        is_readable[list(bad_items)] = False
        texts = [caption.text for caption in dataset.annotations.captions]
        return cls(texts, dataset.item_names(), dataset.video_index, is_readable)

    def text_to_video(self, similarity: np.ndarray) -> Ranking:
        """Every text ranks the videos."""
        return Ranking.of(
            metrics.TEXT_TO_VIDEO, self._all_columns(similarity), self.video_index, self.texts, self.videos
        )

    def video_to_text(self, similarity: np.ndarray) -> Ranking:
        """Every video ranks the videos by the best of their captions."""
        columns, by_group = metrics.video_queries(self._all_columns(similarity), self.video_index)
        names = [self.videos[column] for column in columns]
        return Ranking.of(metrics.VIDEO_TO_TEXT, by_group, np.arange(len(names)), names, names)

    def _all_columns(self, similarity: np.ndarray) -> np.ndarray:
        if self.is_readable.all():
            return similarity
        of_all = np.full((len(similarity), len(self.videos)), -np.inf, dtype=similarity.dtype)
        of_all[:, self.is_readable] = similarity
        return of_all


class Evaluator:
    """The evaluations of one run: its splits, who picks the epoch, and the record of the results.

    Every method must be called by every process; the main one alone ranks, logs and writes.
    """

    def __init__(self, args, model: CLIP4Clip, tokenizer, process: util.Process):
        """Reads the test split, the `--holdout` videos and QB-Norm's bank, as far as `args` ask for them."""
        self.args, self.model, self.process = args, model, process
        loaders = DATALOADER_DICT[args.datatype]
        build_loader = loaders["test"] or loaders["val"]
        self.loaders = {}
        for split in ("test", "holdout") if args.holdout else ("test",):
            loader, length = build_loader(args, tokenizer, subset=split, image_resolution=model.input_resolution)
            util.log_split(split, length, loader.batch_size, len(loader))
            self.loaders[split] = loader
        self.bank = build_loader(args, tokenizer, subset="bank")[0] if args.post_process == "qb_norm" else None
        self.validation_split = "holdout" if args.holdout else "test"
        holdout = self.loaders["holdout"].dataset.annotations if args.holdout else None
        self.record = RunRecord(args, process.world_size, holdout) if process.is_main else None
        self.run_log = RunLog(args.output_dir) if process.is_main else None

    def evaluate(self, split: str, epoch: int | None, checkpoint, step: int | None = None) -> None:
        """Evaluate the model as it is, which is that of `epoch` and `checkpoint` (None where there is none).

        In a training, `step` is the number of optimizer steps so far.
        """
        loader = self.loaders[split]
        eval_epoch(self.args, self.model, loader, self.process, self.record, self.bank, split, epoch, checkpoint)
        if self.process.is_main:
            entry = self.record.history[-1]
            summaries = {key: {name: entry[key][name] for name in NUMBERS} for key in DIRECTIONS.values()}
            self.run_log.add("evaluation", epoch, step, split=split, **summaries)

    def after_epoch(self, epoch: int, checkpoint, step: int | None = None) -> None:
        """Evaluate on the split that picks the epoch, and say which is the best so far."""
        self.evaluate(self.validation_split, epoch, checkpoint, step)
        if self.process.is_main:
            best = self.record.best()
            picked_on = "the test split, the published protocol"
            if self.args.holdout:
                picked_on = f"the holdout of {self.args.holdout} training videos"
            logger.info(
                "The best model is: %s, the R1 is: %.4f (epoch picked on %s)",
                best["checkpoint"], best["text_to_video"]["R1"], picked_on,
            )  # fmt: skip

    def report_bad_videos(self, loader, epoch: int) -> None:
        """What `loader` met of bad videos in an epoch, on all ranks: logged, counted and listed."""
        bad_videos = loader.unreadable
        bad_videos.merge(all_gather_objects(bad_videos))
        if self.process.is_main and bad_videos.by_item:
            logger.warning(
                "%d of %d video files cannot be read; other samples took the place of %d: %s",
                len(bad_videos.paths()), bad_videos.files, bad_videos.samples, bad_videos.listing(),
            )  # fmt: skip
            self.record.list_bad_videos(loader.dataset, bad_videos, epoch)

    def finish(self) -> None:
        """With `--holdout`: evaluate the picked checkpoint on the test split, once."""
        if not self.args.holdout:
            return
        best = self.record.best() if self.process.is_main else {"epoch": None, "checkpoint": None}
        load_checkpoint(best["checkpoint"], self.model)
        self.evaluate("test", best["epoch"], best["checkpoint"])
        if self.process.is_main:
            logger.info(
                "The picked model is: %s, the R1 is: %.4f (on the test split, evaluated once; epoch picked on the "
                "holdout of %d training videos)",
                best["checkpoint"], self.record.history[-1]["text_to_video"]["R1"], self.args.holdout,
            )  # fmt: skip

    def resume(self, first_epoch: int) -> None:
        """Go on with the history of `--resume_model`'s run; ValueError where it held out other videos."""
        if self.process.is_main:
            self.record.resume(self.args.resume_model, first_epoch)


def eval_epoch(
    args, model: CLIP4Clip, test_loader, process, record: RunRecord | None = None, bank=None,
    split: str = "test", epoch: int | None = None, checkpoint=None,
) -> float | None:  # fmt: skip
    """Encode and score a split, log both directions; returns text-to-video R@1, on the main process only.

    Args:
        args: the flags; `post_process` and its settings are read.
        test_loader: the loader of the split's pairs, `bank` that of QB-Norm's training captions.
        process: the `util.Process`; every process must call this.
        record: writes `metrics.json`, with `split`, `epoch` and `checkpoint`, `ranks.csv` and `gallery.csv`; None
            writes no file.

    Raises ValueError where a similarity is NaN.
    """
    started = time.perf_counter()
    model.eval()
    hidden = None if process.is_main else True
    texts, videos = evaluation_loaders(test_loader, process.rank, process.world_size, bank)
    similarity = similarity_of_split(
        model, tqdm(texts, desc="texts", disable=hidden), tqdm(videos, desc="videos", disable=hidden), process.device,
        SIMILARITY_DTYPES[args.similarity_dtype],
    )  # fmt: skip
    bad_videos = videos.unreadable
    bad_videos.merge(all_gather_objects(bad_videos))
    if not process.is_main:
        return None
    names = Gallery.of(test_loader.dataset, bad_videos.by_item)
    similarity, bank_similarity = np.split(similarity.numpy(), [len(names.texts)])

    logger.info("sim matrix size: %d, %d", *similarity.shape)
    if bad_videos.by_item:
        logger.warning(
            "%d of %d video files cannot be read, and their items count as misses: %s",
            len(bad_videos.paths()), bad_videos.files, bad_videos.listing(),
        )  # fmt: skip
        similarity, bank_similarity = similarity[:, names.is_readable], bank_similarity[:, names.is_readable]
    raw = [names.text_to_video(similarity), names.video_to_text(similarity)]
    logger.info(
        "\t Length-T: %d, Length-V:%d (%.1f s)", len(names.texts), len(names.videos), time.perf_counter() - started
    )
    for ranking in raw:
        log_ranking(ranking)
    method, processed = None, []
    if args.post_process != "none":
        method, processed = post_process(
            args, names, similarity / model.score_scale, bank_similarity / model.score_scale
        )
        logger.info("Post-processed by %s, which assumes: %s", method["method"], method["assumes"])
        for ranking in processed:
            log_ranking(ranking, method["method"])
    if record is not None:
        record.list_bad_videos(test_loader.dataset, bad_videos, epoch)
        record.list_gallery(test_loader.dataset)
        record.add(
            raw, processed, method, split, epoch, checkpoint, time.perf_counter() - started, len(bad_videos.by_item)
        )
    return raw[0].summary()["R1"]


def post_process(
    args, names: Gallery, similarity: np.ndarray, bank_similarity: np.ndarray
) -> tuple[dict, list[Ranking]]:
    """The method with its settings and assumption, and its rankings of cosines (A,B), bank (N,B).

    QB-Norm has a bank of captions and none of videos, so that it ranks text-to-video only.
    """
    about = {"method": args.post_process, "assumes": ASSUMPTIONS[args.post_process]}
    if args.post_process == "dsl":
        texts = dual_softmax(similarity, args.dsl_temperature)
        videos = dual_softmax(similarity.T, args.dsl_temperature).T
        about["temperature"] = args.dsl_temperature
        return about, [names.text_to_video(texts), names.video_to_text(videos)]
    about |= {"beta": args.qb_norm_beta, "bank_captions": len(bank_similarity)}
    return about, [names.text_to_video(querybank_normalize(similarity, bank_similarity, args.qb_norm_beta))]


def log_ranking(ranking: Ranking, label: str = "") -> None:
    """CLIP4Clip's lines, and one with the intervals; with a label no line has CLIP4Clip's form."""
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
