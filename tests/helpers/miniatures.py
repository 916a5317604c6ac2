"""Miniatures of all data sets in their own file formats, made from the miniature MSR-VTT."""

import csv
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts.miniature.msrvtt import MiniMsrvtt


@dataclass(frozen=True)
class Clip:
    """One video of the miniature: its file, its captions, and its length in seconds."""

    file: Path
    captions: tuple[str, ...]
    seconds: float


def read_clips(mini: MiniMsrvtt) -> dict[str, list[Clip]]:
    """Read the clips of the training split and of the test split."""
    content = json.loads(mini.data.read_text())
    captions: dict[str, list[str]] = {}
    for sentence in content["sentences"]:
        captions.setdefault(sentence["video_id"], []).append(sentence["caption"])
    clips: dict[str, list[Clip]] = {"train": [], "test": []}
    for video in content["videos"]:
        name = video["video_id"]
        clip = Clip(mini.videos / f"{name}.mp4", tuple(captions[name]), video["end time"])
        clips[video["split"]].append(clip)
    return clips


def write_miniature(data_type: str, mini: MiniMsrvtt, folder: Path) -> list[str]:
    """Write annotations and videos to `folder` in the data set's format; return the flags that read them."""
    clips = read_clips(mini)
    (folder / "videos").mkdir(parents=True)
    data_path = WRITERS[data_type](folder, {**clips, "val": clips["test"]})
    return ["--datatype", data_type, "--data_path", str(data_path), "--features_path", str(folder / "videos")]


def place(clip: Clip, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(clip.file, target)


def write_list(path: Path, names: list[str]) -> None:
    path.write_text("".join(f"{name}\n" for name in names))


def write_msvd(folder: Path, splits: dict[str, list[Clip]]) -> Path:
    captions = {}
    for split, clips in splits.items():
        names = [f"-{clip.file.stem}_5_15" for clip in clips]
        write_list(folder / f"{split}_list.txt", names)
        for name, clip in zip(names, clips, strict=True):
            place(clip, folder / "videos" / f"{name}.avi")
            captions[name] = [caption.split() for caption in clip.captions]
    (folder / "raw-captions.pkl").write_bytes(pickle.dumps(captions, protocol=3))
    return folder


def write_lsmdc(folder: Path, splits: dict[str, list[Clip]]) -> Path:
    names = {"train": "annos_training", "val": "annos_val", "test": "challenge_1000_publictect"}
    for split, clips in splits.items():
        rows = []
        for clip in clips:
            times = ["00.23.23.000", "00.23.28.886"]
            film, name = f"3086_{clip.file.stem}", f"3086_{clip.file.stem}_{'-'.join(times)}"
            place(clip, folder / "videos" / film / f"{name}.avi")
            rows.append("\t".join([name, *times, *times, clip.captions[0]]))
        write_list(folder / f"LSMDC16_{names[split]}.csv", rows)
    return folder


def write_activitynet(folder: Path, splits: dict[str, list[Clip]]) -> Path:
    for split, names in (("train", ("train_ids", "train")), ("val", ("val_ids", "val_1"))):
        entries = {}
        for number, clip in enumerate(splits[split]):
            place(clip, folder / "videos" / f"{'v_' if number % 2 else ''}{clip.file.name}")
            entries[f"v_{clip.file.stem}"] = {
                "duration": clip.seconds - 0.4,
                "timestamps": [[0, clip.seconds]] * len(clip.captions),
                "sentences": [f" {caption}." for caption in clip.captions],
            }
        (folder / f"{names[0]}.json").write_text(json.dumps([*entries, "v_without_captions"]))
        (folder / f"{names[1]}.json").write_text(json.dumps(entries))
    return folder


def write_didemo(folder: Path, splits: dict[str, list[Clip]]) -> Path:
    for split, clips in splits.items():
        names = [f"35034348999@N01_{clip.file.stem}_dc1a90b8ef{extension}" for clip, extension in
                 zip(clips, [".mov", ".3gp", "."] * len(clips), strict=False)]  # fmt: skip
        for name, clip in zip(names, clips, strict=True):
            place(clip, folder / "videos" / name.replace(".3gp", ".mp4"))  # these were compressed
        entries = [
            {"video": name, "description": caption, "times": [[0, 1]], "num_segments": 6}
            for name, clip in zip(names, clips, strict=True)
            for caption in clip.captions
        ]
        (folder / f"{split}_data.json").write_text(json.dumps(entries))
        write_list(folder / f"{split}_list.txt", names)
    return folder


def write_vatex(folder: Path, splits: dict[str, list[Clip]]) -> Path:
    for split, file in (("train", "vatex_training_v1.0.json"), ("test", "vatex_validation_v1.0.json")):
        names = [f"{clip.file.stem}_000001_000011" for clip in splits[split]]
        for name, clip in zip(names, splits[split], strict=True):
            place(clip, folder / "videos" / f"{name}.mp4")
        entries = [
            {"videoID": name, "enCap": clip.captions, "chCap": ["一个视频"]}
            for name, clip in zip(names, splits[split], strict=True)
        ]
        (folder / file).write_text(json.dumps(entries))
        write_list(folder / f"{split}_list.txt", names)
    write_list(folder / "val_list.txt", names)
    return folder


def write_custom(folder: Path, splits: dict[str, list[Clip]]) -> Path:
    with (folder / "clips.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["video", "caption", "start", "end", "split"])
        for split in ("train", "test"):
            for clip in splits[split]:
                place(clip, folder / "videos" / split / clip.file.name)
                for caption in clip.captions:
                    table.writerow([clip.file.stem, caption, 0, clip.seconds, split])
    return folder / "clips.csv"


WRITERS: dict[str, Callable[[Path, dict[str, list[Clip]]], Path]] = {
    "activity": write_activitynet,
    "custom": write_custom,
    "didemo": write_didemo,
    "lsmdc": write_lsmdc,
    "msvd": write_msvd,
    "vatex": write_vatex,
}
