"""Scores of wti against the straightforward way: speed, memory and difference as texts, videos, words and frames grow.

    python -m benchmarks.similarity [--sections evaluation rounding training gallery] [--device cuda] [--repeats 3]
                                    [--evaluation 1000x1000x32x12 ...] [--training 512x512x64x64 ...]
                                    [--gallery 59800x2990x32x12] [--output FILE.md]

Shapes are A x B x T x V: texts, videos, words and frames; D is 512. A text has 5 to 17 valid words, 11 in the mean (in
the section training all T), a video all its frames. Contestants take turns; a time is the median of the repeats.

    evaluation  all scores of a gallery from its features. `plain` scores blocks of 32 x 32 by an einsum of all words
                with all frames and computes weights and norms in each block; `weights once` spares it the weights.
                `ours` is `pack_tokens` and `packed_interaction`, in fp32 and in bf16.
    rounding    recall and ranks in fp32 and in half precision, on clustered random features.
    training    forward and backward of the scores of a batch, `plain` by autograd of the same einsum.
    gallery     a large gallery through `encode_texts`, `encode_videos` and `score_in_blocks`, batch by batch, with
                features drawn at random where CLIP's towers would compute them: seconds, and the process's peak.

Memory is what a process of its own holds at its highest above what it held before. Autograd's `plain` takes five times
A B T V floats, 4.3 GB each at 512x512x64x64; it is left out where that is not free.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.memory import available_bytes, forget_peak, held_bytes, in_new_process, peak_bytes
from benchmarks.reporting import header, publish
from metrics import compute_metrics
from modules.modeling import CLIP4Clip, CLIP4ClipConfig
from modules.module_clip import CLIP
from modules.retrieval import encode_texts, encode_videos, score_in_blocks
from modules.token_interaction import (
    masked_softmax,
    pack_tokens,
    packed_interaction,
    token_interaction_in_blocks,
    weight_mlp,
)
from scripts.miniature.tiny_clip import tiny_clip_state_dict

WIDTH = 512
PLAIN_BLOCK, PLAIN_COPIES = 32, 5  # rows and columns of a block; what autograd holds at once of (A,B,T,V)
SHORTEST_TEXT, LONGEST_TEXT = 5, 17
EVALUATION = ("250x250x32x12", "500x500x32x12", "1000x1000x32x12", "500x500x64x12", "500x500x32x64", "2000x500x32x12")
TRAINING = ("128x128x32x12", "64x64x64x64", "128x128x64x64", "256x256x64x64", "512x512x64x64")
GALLERY = "59800x2990x32x12"  # the captions and videos of MSR-VTT's test split of 2,990 videos
EVALUATION_GOAL, DIFFERENCE_GOAL, MEMORY_GOAL, GALLERY_GOAL = 7, 1e-6, 6, 8 << 30


class Shape(NamedTuple):
    texts: int
    videos: int
    words: int
    frames: int

    @classmethod
    def parse(cls, text: str) -> "Shape":
        return cls(*map(int, text.split("x")))

    def __str__(self) -> str:
        return " | ".join(map(str, self))


class Tokens(NamedTuple):
    """Features (N,L,D) with their mask (N,L)."""

    vectors: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Gallery:
    """Features of texts and videos, and the networks of their tokens' weights."""

    texts: Tokens
    videos: Tokens
    text_network: nn.Module
    video_network: nn.Module

    def weights(self, texts: slice, videos: slice) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(
            masked_softmax(network(side.vectors[rows]).squeeze(-1), side.mask[rows])
            for network, side, rows in (
                (self.text_network, self.texts, texts),
                (self.video_network, self.videos, videos),
            )
        )


def text_mask(rows: int, words: int) -> torch.Tensor:
    lengths = torch.randint(min(SHORTEST_TEXT, words), min(LONGEST_TEXT, words) + 1, (rows, 1))
    return (torch.arange(words) < lengths).long()


def random_gallery(shape: Shape, device: str) -> Gallery:
    torch.manual_seed(0)
    texts = Tokens(torch.randn(shape.texts, shape.words, WIDTH), text_mask(shape.texts, shape.words))
    videos = Tokens(torch.randn(shape.videos, shape.frames, WIDTH), torch.ones(shape.videos, shape.frames).long())
    texts, videos = (Tokens(*(tensor.to(device) for tensor in side)) for side in (texts, videos))
    return Gallery(texts, videos, weight_mlp(WIDTH, 2).to(device), weight_mlp(WIDTH, 2).to(device))


def plain_interaction(texts: Tokens, videos: Tokens, text_weights, video_weights) -> torch.Tensor:
    """The baseline: all cosines (A,B,T,V) at once, 0 where either side is padding."""
    words = texts.vectors / texts.vectors.norm(dim=-1, keepdim=True)
    frames = videos.vectors / videos.vectors.norm(dim=-1, keepdim=True)
    cosine = torch.einsum("atd,bvd->abtv", words, frames)
    cosine = cosine * (texts.mask.bool()[:, None, :, None] & videos.mask.bool()[None, :, None, :])
    text_to_video = (cosine.amax(dim=3) * text_weights[:, None]).sum(dim=2)
    return (text_to_video + (cosine.amax(dim=2) * video_weights).sum(dim=2)) / 2


@torch.no_grad()
def plain_evaluation(gallery: Gallery, weights_once: bool = False) -> torch.Tensor:
    texts, videos = gallery.texts, gallery.videos
    similarity = torch.empty(len(texts.mask), len(videos.mask))
    everything = slice(None)
    all_weights = gallery.weights(everything, everything) if weights_once else None
    for first_text in range(0, similarity.shape[0], PLAIN_BLOCK):
        for first_video in range(0, similarity.shape[1], PLAIN_BLOCK):
            rows = slice(first_text, first_text + PLAIN_BLOCK)
            columns = slice(first_video, first_video + PLAIN_BLOCK)
            if weights_once:
                weights = all_weights[0][rows], all_weights[1][columns]
            else:
                weights = gallery.weights(rows, columns)
            some_texts, some_videos = Tokens(*(x[rows] for x in texts)), Tokens(*(x[columns] for x in videos))
            similarity[rows, columns] = plain_interaction(some_texts, some_videos, *weights).cpu()
    return similarity


@torch.no_grad()
def our_evaluation(gallery: Gallery, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    texts = pack_tokens(*gallery.texts, gallery.text_network, dtype=dtype)
    videos = pack_tokens(*gallery.videos, gallery.video_network, dtype=dtype)
    return packed_interaction(texts, videos)


EVALUATIONS: dict[str, Callable[[Gallery], torch.Tensor]] = {
    "plain": plain_evaluation,
    "weights once": lambda gallery: plain_evaluation(gallery, weights_once=True),
    "ours": our_evaluation,
    "ours bf16": lambda gallery: our_evaluation(gallery, torch.bfloat16),
}


def seconds_of(call: Callable[[], object], device: str) -> tuple[float, object]:
    started = time.perf_counter()
    result = call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def evaluation_memory(name: str, shape: Shape, device: str) -> int:
    gallery = random_gallery(shape, device)
    before = held_bytes(device)
    forget_peak(device)
    EVALUATIONS[name](gallery)
    return peak_bytes(device) - before


def compare_evaluation(shape: Shape, device: str, repeats: int) -> str:
    """One row of the table."""
    gallery = random_gallery(shape, device)
    seconds, results = {name: [] for name in EVALUATIONS}, {}
    for _ in range(repeats):
        for name, call in EVALUATIONS.items():
            taken, results[name] = seconds_of(lambda call=call: call(gallery), device)
            seconds[name].append(taken)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    memory = {name: in_new_process(evaluation_memory, name, shape, device) for name in ("plain", "ours")}
    operations = 2 * WIDTH * gallery.texts.mask.sum().item() * gallery.videos.mask.sum().item()
    difference = {name: (results[name] - results["plain"]).abs().max().item() for name in results}
    return (
        f"| {shape} | {median['plain']:.2f} | {median['weights once']:.2f} | {median['ours']:.2f} "
        f"| **{median['plain'] / median['ours']:.1f}** | {median['weights once'] / median['ours']:.1f} "
        f"| {difference['ours']:.1e} | {operations / median['ours'] / 1e9:.0f} "
        f"| {median['ours bf16']:.2f} | {median['plain'] / median['ours bf16']:.1f} | {difference['ours bf16']:.1e} "
        f"| {memory['plain'] / 2**20:.0f} | {memory['ours'] / 2**20:.0f} |"
    )


def evaluation(options: argparse.Namespace) -> Iterator[str]:
    yield (
        "| A | B | T | V | plain s | weights once s | ours s | plain / ours | once / ours | difference | GFLOP/s "
        "| bf16 s | plain / bf16 | difference | plain MiB | ours MiB |"
    )
    yield "|" + "---:|" * 16
    for shape in options.evaluation:
        yield compare_evaluation(shape, options.device, options.repeats)
    yield f"\nGoal at 1000x1000x32x12: {EVALUATION_GOAL} times, with a difference of at most {DIFFERENCE_GOAL:.0e}."


def clustered_gallery(shape: Shape, device: str) -> Gallery:
    """Videos in clusters of ten, each text near one video: R@1 about a half, as in real galleries."""
    gallery = random_gallery(shape, "cpu")
    centres = torch.randn(-(-shape.videos // 10), WIDTH).repeat_interleave(10, dim=0)[: shape.videos]
    places = centres + 0.4 * torch.randn(shape.videos, WIDTH)
    frames = places.unsqueeze(1) + 3 * gallery.videos.vectors
    words = places[: shape.texts].unsqueeze(1) + 6 * gallery.texts.vectors
    texts, videos = Tokens(words, gallery.texts.mask), Tokens(frames, gallery.videos.mask)
    texts, videos = (Tokens(*(tensor.to(device) for tensor in side)) for side in (texts, videos))
    return Gallery(texts, videos, gallery.text_network.to(device), gallery.video_network.to(device))


def rounding(options: argparse.Namespace) -> Iterator[str]:
    shape = Shape(options.rounding, options.rounding, 32, 12)
    gallery = clustered_gallery(shape, options.device)
    exact = our_evaluation(gallery)
    yield "| dtype | direction | R@1 | R@5 | R@10 | median rank | mean rank | ranks changed | difference |"
    yield "|---|---|" + "---:|" * 7
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        rounded = our_evaluation(gallery, dtype)
        for direction, similarity, reference in (("t2v", rounded, exact), ("v2t", rounded.T, exact.T)):
            found, expected = compute_metrics(similarity.numpy()), compute_metrics(reference.numpy())
            changed = sum(rank != other for rank, other in zip(found["cols"], expected["cols"], strict=True))
            yield (
                f"| {str(dtype).removeprefix('torch.')} | {direction} | {found['R1']:.2f} | {found['R5']:.2f} "
                f"| {found['R10']:.2f} | {found['MedianR']:.1f} | {found['MeanR']:.2f} | {changed} of {len(rounded)} "
                f"| {(similarity - reference).abs().max():.1e} |"
            )


class TrainingResult(NamedTuple):
    seconds: float
    bytes: int
    gradients: tuple[torch.Tensor, ...] = ()


def our_interaction(texts: Tokens, videos: Tokens, text_weights, video_weights) -> torch.Tensor:
    return token_interaction_in_blocks(
        texts.vectors, videos.vectors, texts.mask, videos.mask, text_weights, video_weights
    )


TRAININGS = {"plain": plain_interaction, "ours": our_interaction}


def training_run(name: str, shape: Shape, device: str, with_gradients: bool) -> TrainingResult:
    """Forward and backward of a contrastive loss, after a small one that warms up."""
    torch.manual_seed(0)
    leaves, masks = [], []
    for rows, tokens in ((shape.texts, shape.words), (shape.videos, shape.frames)):
        leaves += [torch.randn(rows, tokens, WIDTH, device=device), torch.rand(rows, tokens, device=device) / tokens]
        masks.append(torch.ones(rows, tokens, device=device))

    def gradients(rows: int) -> tuple[torch.Tensor, ...]:
        words, word_weights, frames, frame_weights = inputs = [leaf[:rows].clone().requires_grad_() for leaf in leaves]
        texts, videos = Tokens(words, masks[0][:rows]), Tokens(frames, masks[1][:rows])
        loss = (100 * TRAININGS[name](texts, videos, word_weights, frame_weights)).logsumexp(dim=1).mean()
        return torch.autograd.grad(loss, inputs)

    # on a GPU all of it, so that no allocation is counted as computing; on a CPU that would hide the peak of memory
    gradients(shape.texts if device == "cuda" else 2)
    before = held_bytes(device)
    forget_peak(device)
    seconds, found = seconds_of(lambda: gradients(shape.texts), device)
    extra = peak_bytes(device) - before
    return TrainingResult(seconds, extra, tuple(tensor.cpu() for tensor in found) if with_gradients else ())


def compare_training(shape: Shape, device: str, repeats: int) -> str:
    has_room = PLAIN_COPIES * 4 * math.prod(shape) < available_bytes(device)
    results = {name: [] for name in (TRAININGS if has_room else ("ours",))}
    for number in range(repeats):
        for name in results:
            results[name].append(in_new_process(training_run, name, shape, device, number == 0))
    seconds = {name: statistics.median(run.seconds for run in runs) for name, runs in results.items()}
    memory = {name: statistics.median(run.bytes for run in runs) for name, runs in results.items()}
    if not has_room:
        return f"| {shape} | no room | {seconds['ours']:.2f} | | no room | {memory['ours'] / 2**20:.0f} | | |"
    difference = max(
        ((found - expected).abs().max() / expected.abs().max()).item()
        for found, expected in zip(results["ours"][0].gradients, results["plain"][0].gradients, strict=True)
    )
    return (
        f"| {shape} | {seconds['plain']:.2f} | {seconds['ours']:.2f} | {seconds['plain'] / seconds['ours']:.2f} "
        f"| {memory['plain'] / 2**20:.0f} | {memory['ours'] / 2**20:.0f} | **{memory['plain'] / memory['ours']:.1f}** "
        f"| {difference:.1e} |"
    )


def training(options: argparse.Namespace) -> Iterator[str]:
    yield "| A | B | T | V | plain s | ours s | plain / ours | plain MiB | ours MiB | plain / ours | difference |"
    yield "|" + "---:|" * 11
    for shape in options.training:
        yield compare_training(shape, options.device, options.repeats)
    yield f"\nGoal at 512x512x64x64: {MEMORY_GOAL}x less memory, not slower. The difference is that of the gradients."


class WithoutTowers(CLIP4Clip):
    """wti whose towers are random numbers, drawn batch by batch."""

    def get_sequence_output(self, input_ids, token_type_ids=None, attention_mask=None, shaped=False) -> torch.Tensor:
        return torch.randn(len(attention_mask), self.config.max_words, WIDTH, device=input_ids.device)

    def get_visual_output(self, video, video_mask, shaped=False, video_frame=-1) -> torch.Tensor:
        return torch.randn(len(video_mask), self.config.max_frames, WIDTH, device=video_mask.device)


def gallery_run(shape: Shape, device: str, batch: int = 256) -> dict[str, float]:
    """Seconds of each stage, and the process's peak bytes after it."""
    torch.manual_seed(0)
    clip = CLIP.from_state_dict(tiny_clip_state_dict(embed_dim=WIDTH, vision_layers=1, text_layers=1))
    config = CLIP4ClipConfig(sim_header="wti", max_words=shape.words, max_frames=shape.frames)
    model = WithoutTowers(config, clip).eval().to(device)
    sizes = [[min(batch, rows - first) for first in range(0, rows, batch)] for rows in (shape.texts, shape.videos)]
    texts = (
        (torch.zeros(rows, 1, 1), text_mask(rows, shape.words).unsqueeze(1), torch.zeros(rows)) for rows in sizes[0]
    )
    videos = ((torch.zeros(rows), torch.ones(rows, 1, shape.frames).long()) for rows in sizes[1])
    result = {"start": peak_bytes(device)}
    result["encode s"], features = seconds_of(
        lambda: (encode_texts(model, texts, device), encode_videos(model, videos, device)), device
    )
    result["encoded"] = peak_bytes(device)
    result["score s"], similarity = seconds_of(lambda: score_in_blocks(model, *features), device)
    result["scored"] = peak_bytes(device)
    return {**result, "pairs": similarity.numel(), "finite": bool(similarity.isfinite().all())}


def gallery(options: argparse.Namespace) -> Iterator[str]:
    yield "| A | B | T | V | encode s | score s | million pairs/s | MiB at the start | encoded | scored | all finite |"
    yield "|" + "---:|" * 11
    for shape in options.gallery:
        run = in_new_process(gallery_run, shape, options.device)
        yield (
            f"| {shape} | {run['encode s']:.1f} | {run['score s']:.1f} | {run['pairs'] / run['score s'] / 1e6:.2f} "
            f"| {run['start'] / 2**20:.0f} | {run['encoded'] / 2**20:.0f} | **{run['scored'] / 2**20:.0f}** "
            f"| {run['finite']} |"
        )
    yield f"\nGoal: {GALLERY_GOAL / 2**20:.0f} MiB in all."


SECTIONS = {"evaluation": evaluation, "rounding": rounding, "training": training, "gallery": gallery}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--evaluation", nargs="+", type=Shape.parse, default=[*map(Shape.parse, EVALUATION)])
    parser.add_argument("--rounding", type=int, default=1000, help="texts, and videos, of that section")
    parser.add_argument("--training", nargs="+", type=Shape.parse, default=[*map(Shape.parse, TRAINING)])
    parser.add_argument("--gallery", nargs="+", type=Shape.parse, default=[Shape.parse(GALLERY)])
    parser.add_argument("--output", type=Path, help="Markdown file to write the report to as well")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    remarks = f"{torch.get_num_threads()} threads", f"D = {WIDTH}", f"medians of {options.repeats}"
    lines = [header("similarity", arguments, *remarks)]
    for section in options.sections:
        lines += ["", f"## {section}", "", *tqdm(SECTIONS[section](options), desc=section, unit="line", disable=None)]
    publish("\n".join(lines), options.output)


if __name__ == "__main__":
    main()
