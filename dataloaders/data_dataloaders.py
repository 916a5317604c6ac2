"""Build the loaders of every data set: `DATALOADER_DICT[data set][split]`, and those of an evaluation.

To add a data set, write its reader, `read_split(config, subset) -> Annotations`, and add it to both tables at the end.
"""

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset

from dataloaders import (
    dataloader_activitynet_retrieval,
    dataloader_custom_retrieval,
    dataloader_didemo_retrieval,
    dataloader_lsmdc_retrieval,
    dataloader_msrvtt_retrieval,
    dataloader_msvd_retrieval,
    dataloader_vatex_retrieval,
)
from dataloaders.annotations import Annotations
from dataloaders.data_config import DataConfig
from dataloaders.frame_cache import FrameCache
from dataloaders.rawvideo_util import RawVideoExtractor
from dataloaders.retrieval_dataset import RetrievalDataset
from dataloaders.subsets import ReadSplit, read_subset
from dataloaders.unreadable import UnreadableVideos
from dataloaders.video_loader import EpochSampler, VideoLoader, build_loader

logger = logging.getLogger(__name__)


def build_train_loader(
    read_split: ReadSplit, every_caption: Callable[[DataConfig], bool], args, tokenizer, image_resolution: int = 224
) -> tuple[VideoLoader, int, EpochSampler]:
    """Return the shuffled loader of this process, the number of samples of all processes, and the sampler.

    The sampler drops samples that do not divide by the number of processes, and the loader an incomplete batch, so
    that no sample occurs twice in an epoch: a repeated video would be its own negative.

    Raises:
        ValueError: a flag is not valid, `--batch_size` is not divisible by the processes and accumulation steps, or
            the split has fewer samples than one batch.
        FileNotFoundError: as the reader.
    """
    config = DataConfig.from_namespace(args)
    rank, world_size = rank_and_world_size()
    batch_size = config.samples_per_step(world_size)
    annotations = read_subset(read_split, config, "train")
    dataset = build_dataset(
        annotations, config, tokenizer, image_resolution, config.train_frame_order, every_caption(config)
    )
    log_counts("train", dataset, rank)
    if len(dataset) < config.batch_size:
        raise ValueError(
            f"the training split has {len(dataset)} samples, fewer than one batch (--batch_size {config.batch_size}): "
            "an epoch would have no steps"
        )
    sampler = EpochSampler(dataset, num_replicas=world_size, rank=rank, shuffle=True, seed=config.seed, drop_last=True)
    loader = VideoLoader(
        dataset, dataset.samples(replace_unreadable=config.bad_videos == "skip"),
        record_maker("train", config.bad_videos, dataset), batch_size=batch_size, num_workers=config.num_thread_reader,
        sampler=sampler, drop_last=True, keep_workers=True, frame_cache=frame_cache(dataset),
    )  # fmt: skip
    return loader, len(dataset), sampler


def build_evaluation_loader(
    read_split: ReadSplit, args, tokenizer, subset: str = "test", image_resolution: int = 224
) -> tuple[VideoLoader, int]:
    """Return a loader of all (caption, video) pairs in order, the same in every process, and their number.

    `subset` is a split of the data set, "holdout" or "bank" (see `read_subset`). A bank has captions only: its pairs
    cannot be read.

    Raises:
        ValueError: a flag is not valid, or as the reader.
        FileNotFoundError: as the reader.
    """
    config = DataConfig.from_namespace(args)
    annotations = read_subset(read_split, config, subset)
    dataset = build_dataset(annotations, config, tokenizer, image_resolution, config.eval_frame_order, True)
    log_counts(subset, dataset, rank_and_world_size()[0])
    loader = evaluation_loader(dataset, subset, config.bad_videos, config.batch_size_val, config.num_thread_reader)
    return loader, len(dataset)


def evaluation_loader(
    dataset: RetrievalDataset, split: str = "test", policy: str = "fail", batch_size: int = 64, num_workers: int = 0
) -> VideoLoader:
    """Return a loader of all pairs in order; with the policy "skip" an unreadable video has no frames."""
    samples, new_record = dataset.samples(replace_unreadable=False), record_maker(split, policy, dataset)
    return VideoLoader(
        dataset, samples, new_record, batch_size=batch_size, num_workers=num_workers, frame_cache=frame_cache(dataset)
    )


def evaluation_loaders(
    loader: VideoLoader, rank: int = 0, world_size: int = 1, bank: VideoLoader | None = None
) -> tuple[DataLoader, VideoLoader]:
    """Return loaders of this rank's texts and of its distinct videos, from a loader of all pairs.

    Text batches are `(input_ids, input_mask, segment_ids)`, video batches `(video, video_mask)`. Each rank has the
    items of `shard_bounds`, possibly none, so that concatenating the ranks' results restores the order of the captions
    and of `loader.dataset.video_ids`. The captions of a `bank` follow those of the data set, so that one pass encodes
    both.
    """
    captions = loader.dataset.captions_only()
    if bank is not None:
        captions = ConcatDataset([captions, bank.dataset.captions_only()])
    videos = loader.dataset.videos_only()
    captions, videos = (Subset(view, range(*shard_bounds(len(view), rank, world_size))) for view in (captions, videos))
    sizes = {"batch_size": loader.batch_size, "num_workers": loader.num_workers}
    return build_loader(captions, **sizes), VideoLoader(
        videos, videos, loader.new_record, frame_cache=loader.frame_cache, **sizes
    )


def shard_bounds(length: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return first and end of a rank's contiguous share; the first `length % world_size` ranks have one item more."""
    share, extra = divmod(length, world_size)
    first = rank * share + min(rank, extra)
    return first, first + share + (rank < extra)


def build_dataset(
    annotations: Annotations,
    config: DataConfig,
    tokenizer,
    image_resolution: int,
    frame_order: int,
    every_caption: bool,
) -> RetrievalDataset:
    return RetrievalDataset(
        annotations,
        tokenizer,
        build_extractor(config, image_resolution),
        max_words=config.max_words,
        max_frames=config.max_frames,
        slice_framepos=config.slice_framepos,
        frame_order=frame_order,
        every_caption=every_caption,
        seed=config.seed,
    )


def build_extractor(config: DataConfig, image_resolution: int) -> RawVideoExtractor | FrameCache:
    extractor = RawVideoExtractor(config.feature_framerate, image_resolution, config.frame_sampling)
    if not config.frame_cache:
        return extractor
    return FrameCache(config.frame_cache, extractor, config.frame_cache_format)


def record_maker(split: str, policy: str, dataset: RetrievalDataset) -> Callable[[], UnreadableVideos]:
    return partial(UnreadableVideos, split, policy, len(set(dataset.annotations.video_paths.values())))


def log_counts(subset: str, dataset: RetrievalDataset, rank: int) -> None:
    if rank == 0:
        logger.info("%s: %s, %d samples", subset, dataset.annotations.count_line(), len(dataset))
        if isinstance(dataset.extractor, FrameCache):
            cache, videos = dataset.extractor, len(dataset.video_ids)
            logger.info(
                "%s: the frame cache %s takes at most %.1f GB for %d videos, %d frames of %d x %d each; "
                "%.1f GB are free there",
                subset, cache.directory, cache.expected_size(videos, dataset.max_frames) / 1e9, videos,
                dataset.max_frames, cache.size, cache.size, cache.free_bytes() / 1e9,
            )  # fmt: skip


def frame_cache(dataset: RetrievalDataset) -> FrameCache | None:
    return dataset.extractor if isinstance(dataset.extractor, FrameCache) else None


def rank_and_world_size() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def always_every_caption(config: DataConfig) -> bool:
    return True


def msrvtt_every_caption(config: DataConfig) -> bool:
    return config.expand_msrvtt_sentences


def loaders(
    read_split: ReadSplit, every_caption: Callable[[DataConfig], bool] = always_every_caption, has_test: bool = True
) -> dict:
    evaluate = partial(build_evaluation_loader, read_split)
    return {
        "train": partial(build_train_loader, read_split, every_caption),
        "val": evaluate,
        "test": evaluate if has_test else None,
    }


READERS = {
    "activity": dataloader_activitynet_retrieval.read_split,
    "custom": dataloader_custom_retrieval.read_split,
    "didemo": dataloader_didemo_retrieval.read_split,
    "lsmdc": dataloader_lsmdc_retrieval.read_split,
    "msrvtt": dataloader_msrvtt_retrieval.read_split,
    "msvd": dataloader_msvd_retrieval.read_split,
    "vatex": dataloader_vatex_retrieval.read_split,
}
"""Readers by data set: `read_split(config, subset) -> Annotations`."""

DATALOADER_DICT = {
    "activity": loaders(READERS["activity"], has_test=False),
    "custom": loaders(READERS["custom"]),
    "didemo": loaders(READERS["didemo"]),
    "lsmdc": loaders(READERS["lsmdc"]),
    "msrvtt": loaders(READERS["msrvtt"], msrvtt_every_caption, has_test=False),
    "msvd": loaders(READERS["msvd"]),
    "vatex": loaders(READERS["vatex"]),
}
"""Loaders by data set: `train(args, tokenizer, image_resolution=224) -> (loader, length, sampler)`, `val` and `test`
`(args, tokenizer, subset="test", image_resolution=224) -> (loader, length)`. `args` is any object with flags as
attributes; a missing one has the flag's default. A data set whose `test` is None (MSR-VTT's 1k-A, ActivityNet) has its
test split as `val`."""
