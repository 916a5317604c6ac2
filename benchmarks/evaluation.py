"""An evaluation from video files to similarities, beside CLIP4Clip's way.

    python -m benchmarks.evaluation [--videos 40] [--captions 5] [--repeats 3] [--output FILE.md]

Both evaluate the same untrained tiny CLIP with wti and seqTransf on mp4 files of moving shapes with several captions
each, in one process without workers, in turns.

    plain    every pair is read: each caption decodes its video again, by a seek to every second; texts and videos are
             scored batch by batch, and each pair of batches aggregates the frames again
    ours     `similarity_of_split`: each video is decoded, encoded and aggregated once, and scored in blocks
    cached   the same with a frame cache that is full
"""

import argparse
import csv
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from benchmarks.decode import read_by_seeking
from benchmarks.reporting import header, publish
from dataloaders.data_dataloaders import DATALOADER_DICT, evaluation_loaders
from modules.modeling import CLIP4Clip
from modules.retrieval import similarity_of_split
from modules.tokenization_clip import SimpleTokenizer
from scripts.miniature.msrvtt import write_mini_msrvtt
from scripts.miniature.tiny_clip import tiny_clip_state_dict

BATCH_SIZE = 16


def settings(folder: Path, **more) -> SimpleNamespace:
    """The flags of an evaluation of the miniature in `folder`, where every caption counts."""
    return SimpleNamespace(
        datatype="msrvtt", val_csv=str(folder / "test.csv"), data_path=str(folder / "MSRVTT_data.json"),
        features_path=str(folder / "videos"), max_words=32, max_frames=4, feature_framerate=1, slice_framepos=2,
        eval_frame_order=0, seed=0, batch_size_val=BATCH_SIZE, num_thread_reader=0, holdout=0,
        pretrained_clip_name=str(folder / "clip.pt"), sim_header="wti", agg_module="seqTransf", **more,
    )  # fmt: skip


def write_data(folder: Path, videos: int, captions: int) -> None:
    """The miniature, with `captions` rows for each test video, and a tiny CLIP for frames of 224 pixels."""
    write_mini_msrvtt(folder, train_videos=2, test_videos=videos, captions_per_video=2)
    with (folder / "MSRVTT_test.csv").open(newline="", encoding="utf-8") as file:
        header_row, *rows = csv.reader(file)
    with (folder / "test.csv").open("w", newline="", encoding="utf-8") as file:
        again = [[*row[:-1], f"{row[-1]} {number}"] for row in rows for number in range(captions)]
        csv.writer(file).writerows([header_row, *again])
    torch.save(tiny_clip_state_dict(image_size=224, patch_size=32), folder / "clip.pt")


@torch.no_grad()
def plain_evaluation(model: CLIP4Clip, dataset) -> torch.Tensor:
    """Similarity (A,B) in the way of the field's systems, from facts about them."""
    texts, videos, seen = [], [], set()
    views = dataset.captions_only()
    paths = [dataset.annotations.video_paths[name] for name in dataset.video_ids]
    for start in range(0, len(dataset), BATCH_SIZE):
        rows = range(start, min(start + BATCH_SIZE, len(dataset)))
        tokens = [torch.as_tensor(np.stack(part)) for part in zip(*(views[row] for row in rows), strict=True)]
        items = dataset.video_index[rows.start : rows.stop].tolist()
        frames = torch.as_tensor(np.stack([read_by_seeking(paths[item])[: dataset.max_frames] for item in items]))
        mask = (frames != 0).flatten(2).any(dim=2).long()
        texts.append((model.get_sequence_output(tokens[0], tokens[2], tokens[1]), tokens[1].squeeze(1)))
        fresh = [place for place, item in enumerate(items) if item not in seen and items.index(item) == place]
        seen.update(items)
        if fresh:
            videos.append((model.get_visual_output(frames[fresh].float(), mask[fresh]), mask[fresh]))
    rows = []
    for text, text_mask in texts:
        scores = [model.get_similarity_logits(text, frames, text_mask, mask)[0] for frames, mask in videos]
        rows.append(torch.cat(scores, dim=1))
    return torch.cat(rows)


def our_evaluation(model: CLIP4Clip, loader) -> torch.Tensor:
    """Similarity (A,B) as `eval_epoch` computes it."""
    return similarity_of_split(model, *evaluation_loaders(loader), torch.device("cpu"))


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write where `--output` says."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--captions", type=int, default=5, help="captions per video")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="Markdown file to write the report to as well")
    options = parser.parse_args(arguments)
    about = header("evaluation", arguments, f"medians of {options.repeats}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, options.videos, options.captions)
        args, tokenizer = settings(folder), SimpleTokenizer()
        cached_args = settings(folder, frame_cache=str(folder / "cache"))
        torch.manual_seed(0)
        model = CLIP4Clip.from_pretrained("cross-base", task_config=args).eval()
        loader, cached = (DATALOADER_DICT["msrvtt"]["val"](flags, tokenizer)[0] for flags in (args, cached_args))
        contestants = {
            "plain": lambda: plain_evaluation(model, loader.dataset),
            "ours": lambda: our_evaluation(model, loader),
            "cached": lambda: our_evaluation(model, cached),
        }
        seconds, found = {name: [] for name in contestants}, {}
        for turn in range(options.repeats + 1):
            for name, evaluate in contestants.items():
                started = time.perf_counter()
                found[name] = evaluate()
                if turn:  # the first round fills caches
                    seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    clips = options.videos
    lines = [
        about,
        "| evaluation | seconds | videos/s | plain / it | largest difference to plain |", "|---|---:|---:|---:|---:|",
        *(
            f"| {name} | {median:.2f} | {clips / median:.1f} | {medians['plain'] / median:.1f} "
            f"| {(found[name] - found['plain']).abs().max():.1e} |"
            for name, median in medians.items()
        ),
    ]  # fmt: skip
    publish("\n".join(lines), options.output)


if __name__ == "__main__":
    main()
