"""What an interrupted run and the one that resumes it must have in common: flags, data, and readable states."""

import argparse
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from dataloaders.fingerprint import FileContent, SplitContent, file_content
from dataloaders.rawvideo_util import VideoReadError
from dataloaders.retrieval_dataset import RetrievalDataset
from dataloaders.unreadable import most_unreadable
from engine.flags import FLAGS
from modules.checkpoint import model_path, optimizer_path

SAMPLES = "training samples"
WEIGHT_FILES = ("init_model", "pretrained_clip_name")
POSITION = ("epoch", "batches_done", "global_step", "ranks", "flags", "record")  # what run.bin cannot do without


def weight_files(args: argparse.Namespace) -> dict[str, FileContent]:
    """Return the content of each flag's local file of weights."""
    paths = {name: getattr(args, name) for name in WEIGHT_FILES}
    return {name: file_content(path) for name, path in paths.items() if path and Path(path).is_file()}


def versions() -> dict[str, str]:
    """Return the versions on which the states in a training checkpoint depend."""
    return {"torch": str(torch.__version__), "python": platform.python_version(), "numpy": np.__version__}


@contextmanager
def explain_failure(checkpoint: Path, position: Mapping) -> Iterator[None]:
    """Turn an error of restoring a training checkpoint into one that names it, both versions, and the way out."""
    try:
        yield
    except Exception as error:  # torch, numpy and random raise many kinds for states that they cannot take
        written = position.get("versions", {})
        theirs = ", ".join(f"{name} {written.get(name, 'unknown')}" for name in versions())
        ours = ", ".join(f"{name} {version}" for name, version in versions().items())
        message = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"the training checkpoint {checkpoint} cannot be restored ({message}); it was written by {theirs}, this is "
            f"{ours}; {way_out(checkpoint.parent.parent)}"
        ) from error


def check_position(position: Mapping, processes: int) -> None:
    """Raise ValueError if the content of a training checkpoint's `run.bin` is not complete."""
    missing = [name for name in POSITION if name not in position]
    if missing:
        raise ValueError(f"its run.bin lacks {', '.join(missing)}")
    ranks, expected = len(position["ranks"]), position["flags"].get("processes", processes)
    if ranks != expected:
        raise ValueError(f"its run.bin has the states of {ranks} ranks, and {expected} wrote it")


def way_out(folder: Path) -> str:
    """Return the flags that continue a run without its training checkpoints, from the files of an epoch."""
    epochs = sorted(int(path.suffix[1:]) for path in folder.glob("pytorch_model.bin.*") if path.suffix[1:].isdigit())
    whole = [epoch for epoch in epochs if optimizer_path(folder, epoch).is_file()]
    if not whole:
        return f"{folder} has no files of an epoch to go on from: start anew in another --output_dir"
    return (
        f"instead of --resume auto, go on after epoch {whole[-1] + 1} by --init_model {model_path(folder, whole[-1])} "
        f"--resume_model {optimizer_path(folder, whole[-1])}"
    )


def check_flags(
    saved: Mapping, given: Mapping, folder: Path, same_files: frozenset[str] = frozenset(), has_content: bool = False
) -> dict[str, list]:
    """Return the flags that differ between an interrupted run and its resumption, as [before, now] by name.

    More epochs do not make another run of it, nor do flags that only decide how a fault is survived. `same_files` are
    flags whose files have the same content under both names. With `has_content` the contents of the data are compared,
    and the names of its files do not count. A flag that the checkpoint lacks had its default.

    Raises:
        ValueError: other flags differ.
    """
    saved = {name: FLAGS[name].default for name in given if name in FLAGS} | dict(saved)
    differing = {name for name in saved | given if saved.get(name) != given.get(name)} - same_files
    differing.discard("resume_model")  # its effect is in the checkpoint
    if has_content:
        differing -= {name for name in differing if name in FLAGS and FLAGS[name].names_data}
    survived = {name for name in differing if name in FLAGS and FLAGS[name].survives_faults}
    if "epochs" in differing and given["epochs"] > saved["epochs"]:
        survived.add("epochs")
    differing -= survived
    if differing - ({SAMPLES} if has_content else set()):
        changes = "; ".join(f"{name} was {saved.get(name)}, is {given.get(name)}" for name in sorted(differing))
        raise ValueError(
            f"--resume auto: the run in {folder} had other settings ({changes}); give its flags (--epochs may be "
            "more), or another --output_dir"
        )
    return {name: [saved[name], given[name]] for name in sorted(survived)}


def check_data(
    saved: Mapping[str, SplitContent], now: Mapping[str, SplitContent], datasets: Mapping[str, RetrievalDataset],
    folder: Path, bad_videos: str, accept: bool,
) -> list[str]:  # fmt: skip
    """Return the differences between the data of an interrupted run and of its resumption, in words.

    Files that have become unreadable may differ under `--bad_videos skip`, which counts and lists them.

    Raises:
        ValueError: the data differs otherwise, and `accept` is False.
    """
    found, is_refused = [], False
    for split, content in now.items():
        if split not in saved:
            continue
        before, annotations = saved[split], datasets[split].annotations
        lines = [f"the {split} split: {line}" for line in before.differences(content, annotations)]
        found += lines
        if not lines:
            continue
        unreadable = unreadable_videos(datasets[split], before.changed_videos(content))
        if unreadable:
            found[-1] += f"; unreadable: {', '.join(unreadable)}"
        kept = {name: before.videos[name] for name in unreadable} if bad_videos == "skip" else {}
        is_refused |= bool(before.differences(SplitContent(content.captions, content.videos | kept), annotations))
    if is_refused and not accept:
        raise ValueError(
            f"--resume auto: the data of the run in {folder} has changed: {'; '.join(found)}. Restore it, give "
            "--bad_videos skip if the files are unreadable, --accept_changed_data to go on with the data as it is "
            "(metrics.json then says so), or another --output_dir"
        )
    return found


def unreadable_videos(dataset: RetrievalDataset, video_ids: list[str]) -> list[str]:
    """Return the ids whose files give no frames; an empty list for more ids than a run may skip."""
    paths = dataset.annotations.video_paths
    if len(video_ids) > most_unreadable(len(set(paths.values()))):
        return []
    reader = getattr(dataset.extractor, "extractor", dataset.extractor)  # a frame cache's own
    found = []
    for video_id in video_ids:
        try:
            reader.read_frames(paths[video_id], 1)
        except VideoReadError:
            found.append(video_id)
    return found
