"""`metrics.json` of a run: the numbers of its last evaluation read, and a file with given numbers written."""

import json
from pathlib import Path

from engine.run_files import read_metrics

MEASURES = ("R1", "R5", "R10", "R50", "MdR", "MnR")


def results_of(folder: Path) -> tuple[dict, dict]:
    """Return text-to-video and video-to-text: recalls, intervals, ranks and numbers of queries."""
    content = read_metrics(folder)
    return content["text_to_video"], content["video_to_text"]


def write_results(folder: Path, text_to_video, video_to_text, best: dict | None = None) -> Path:
    """Write `metrics.json` as an evaluation does, with these R@1, 5, 10, 50, median and mean rank; return its path."""
    directions = {
        name: {**dict(zip(MEASURES, numbers, strict=True)), "intervals_95": {"R1": [1.0, 99.0]}, "queries": 1000}
        for name, numbers in (("text_to_video", text_to_video), ("video_to_text", video_to_text))
    }
    content = {
        "split": "test", "epoch": 1, **directions, "protocol": {"epoch_picked_on": best and "test"}, "best": best,
        "seed": 42, "configuration_sha256_without_seed": "0", "holdout": None, "history": [],
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "metrics.json"
