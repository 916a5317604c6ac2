"""Milliseconds of a training step beside a plain one, its share of the hardware's floor, clips per second and memory.

    python -m benchmarks.step [--device cuda] [--clip ViT-B/32 ...] [--head wti ...] [--precision bf16 ...]
                              [--batch_size 128] [--repeats 20] [--compile] [--profile] [--output FILE.md]

A step is forward, backward, the clip of the global norm, BertAdam and the clamp of logit_scale, from a batch on the
device. All contestants of one CLIP, head and precision start from the same random weights and take turns; a figure is
the median of its repeats. `plain` is `benchmarks.plain_step`, which reads float64 frames; `ours` reads uint8 ones and
texts cut to the longest; `compiled` is ours with a compiled vision tower. Loss and gradients of plain and ours are
compared before the first step.

Without flags: on a GPU ViT-B/32 and ViT-B/16 at 128 x 12 frames in every precision, compiled too, with a profile; on
the CPU a tiny CLIP, and a few blocks of ViT-B/32's widths, in fp32.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.plain_step import PlainBertAdam, PlainModel
from benchmarks.reporting import header, publish
from modules.initialization import convert_clip_to_float16
from modules.modeling import CLIP4Clip
from modules.module_clip import trim_padding
from modules.optimization import BertAdam, prepare_optimizer_groups
from scripts.miniature.tiny_clip import tiny_clip_state_dict

WORDS, FRAMES = 32, 12
VIT_B = {"embed_dim": 512, "vision_width": 768, "image_size": 224, "text_width": 512}
CLIPS = {
    "tiny": {"vision_layers": 4, "text_layers": 4},  # 128 wide, 64 x 64 pixels in patches of 16
    "blocks": {**VIT_B, "patch_size": 32, "vision_layers": 2, "text_layers": 2},
    "ViT-B/32": {**VIT_B, "patch_size": 32, "vision_layers": 12, "text_layers": 12},
    "ViT-B/16": {**VIT_B, "patch_size": 16, "vision_layers": 12, "text_layers": 12},
}
BATCH_SIZES = {"tiny": 16, "blocks": 4, "ViT-B/32": 128, "ViT-B/16": 128}
HEADS = ("meanP", "wti")
PRECISIONS = ("clip_fp16", "fp32", "bf16", "fp16")
MAX_LOGIT_SCALE = math.log(100)
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Dense bf16 that large matrix products reach, in FLOP/s, by a part of the device's name
REACHABLE_FLOPS = {"H100": 790e12, "H200": 790e12}


@dataclass(frozen=True)
class Batch:
    """One batch on the device, in the form that each side reads."""

    input_ids: torch.Tensor  # (G, T)
    cut_ids: torch.Tensor  # the same without the padding that all texts share
    attention_mask: torch.Tensor
    pixels: torch.Tensor  # (G, V, 3, H, W) uint8
    frames: torch.Tensor  # the same, float64 and normalised
    video_mask: torch.Tensor


@dataclass
class Contestant:
    """A model with its optimizer; `loss` computes a batch's loss."""

    name: str
    model: torch.nn.Module
    optimizer: BertAdam | PlainBertAdam
    loss: Callable[[Batch], torch.Tensor]


@dataclass(frozen=True)
class Measured:
    """Seconds of each step's parts, and the bytes that a step holds above what lies between the steps (GPU only)."""

    forward: list[float]
    backward: list[float]
    update: list[float]
    peak_bytes: list[int]

    def milliseconds(self) -> tuple[float, float, float, float]:
        """Medians of the whole step, forward, backward, update."""
        whole = map(sum, zip(self.forward, self.backward, self.update, strict=True))
        return tuple(1e3 * statistics.median(part) for part in (whole, self.forward, self.backward, self.update))


def random_batch(size: int, model: CLIP4Clip, device: torch.device) -> Batch:
    """Captions of about 11 tokens, as MSR-VTT's are, and videos of which every fourth is shorter than V."""
    generator = torch.Generator().manual_seed(1)
    lengths = (11 + 3.5 * torch.randn(size, generator=generator)).round().clamp(4, WORDS).long()
    attention_mask = (torch.arange(WORDS) < lengths[:, None]).long()
    input_ids = torch.randint(1, 49000, (size, WORDS), generator=generator) * attention_mask
    input_ids[torch.arange(size), lengths - 1] = 49407
    video_mask = torch.ones(size, FRAMES, dtype=torch.long)
    video_mask[::4, FRAMES // 2 :] = 0
    shape = (size, FRAMES, 3, model.input_resolution, model.input_resolution)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(device)
    mean, std = torch.tensor(model.frame_statistics, dtype=torch.float64, device=device).T.reshape(2, 3, 1, 1)
    return Batch(
        input_ids.to(device), trim_padding(input_ids).to(device), attention_mask.to(device),
        pixels, (pixels.double() / 255 - mean) / std, video_mask.to(device),
    )  # fmt: skip


def optimizer_groups(model: torch.nn.Module) -> list[dict]:
    return prepare_optimizer_groups(model.named_parameters(), lr=1e-4, coef_lr=1e-3)


def build_contestants(clip: str, head: str, precision: str, compiled: bool, device: torch.device) -> list[Contestant]:
    """plain, ours and, if asked for, compiled, all from the same weights."""

    def ours(name: str) -> Contestant:
        weights = {f"clip.{key}": value for key, value in tiny_clip_state_dict(**CLIPS[clip]).items()}
        flags = SimpleNamespace(max_words=WORDS, max_frames=FRAMES, sim_header=head)
        torch.manual_seed(0)
        model = CLIP4Clip.from_pretrained("cross-base", state_dict=weights, task_config=flags)
        model = prepared(model, precision, device)
        model.autocast_dtype = AUTOCAST.get(precision)  # as a training sets it: scores and loss stay in float32

        def loss(batch: Batch) -> torch.Tensor:
            return model(batch.cut_ids, None, batch.attention_mask, batch.pixels, batch.video_mask)

        optimizer = BertAdam(optimizer_groups(model), lr=1e-4, b1=0.9, b2=0.98, max_grad_norm=1.0)
        return Contestant(name, model, optimizer, loss)

    first = ours("ours")
    plain = prepared(PlainModel(first.model.state_dict(), head), precision, device)

    def plain_loss(batch: Batch) -> torch.Tensor:
        return plain(batch.input_ids, batch.attention_mask, batch.frames, batch.video_mask)

    contestants = [Contestant("plain", plain, PlainBertAdam(optimizer_groups(plain)), plain_loss), first]
    if compiled:
        contestants.append(ours("compiled"))
        contestants[-1].model.clip.visual.compile()
        contestants[-1].model.clip.transformer.compile()
    return contestants


def prepared(model: torch.nn.Module, precision: str, device: torch.device) -> torch.nn.Module:
    if precision == "clip_fp16":
        convert_clip_to_float16(model.clip)
    return model.to(device).train()


def loss_in(precision: str, contestant: Contestant, batch: Batch) -> torch.Tensor:
    """The loss; plain computes all of it under autocast, ours knows its own precision."""
    dtype = AUTOCAST.get(precision) if contestant.name == "plain" else None
    with torch.autocast(batch.pixels.device.type, dtype=dtype, enabled=dtype is not None):
        return contestant.loss(batch)


def largest_difference(first: Contestant, second: Contestant, precision: str, batch: Batch) -> tuple[float, float]:
    """Difference of the losses relative to the loss, and the largest one of the gradients relative to their largest."""
    losses, gradients = [], []
    for contestant in (first, second):
        loss = loss_in(precision, contestant, batch)
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: p.grad.float() for name, p in contestant.model.named_parameters()})
        contestant.model.zero_grad()
    largest = max(gradient.abs().max().item() for gradient in gradients[0].values())
    difference = max((gradients[0][name] - gradients[1][name]).abs().max().item() for name in gradients[0])
    return abs(losses[0] - losses[1]) / abs(losses[0]), difference / largest


def run_step(contestant: Contestant, precision: str, batch: Batch, scaler: torch.amp.GradScaler, measured: Measured):
    """One step, whose parts are timed by waiting for the device between them."""
    on_gpu = batch.pixels.is_cuda
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    times = [clock(on_gpu)]
    loss = loss_in(precision, contestant, batch)
    times.append(clock(on_gpu))
    scaler.scale(loss).backward()
    times.append(clock(on_gpu))
    update(contestant, scaler)
    times.append(clock(on_gpu))
    for part, start, end in zip(
        (measured.forward, measured.backward, measured.update), times[:-1], times[1:], strict=True
    ):
        part.append(end - start)
    if on_gpu:
        measured.peak_bytes.append(torch.cuda.max_memory_allocated() - held)


def update(contestant: Contestant, scaler: torch.amp.GradScaler) -> None:
    """What follows the backward."""
    scaler.unscale_(contestant.optimizer)
    torch.nn.utils.clip_grad_norm_(contestant.model.parameters(), 1.0)
    scaler.step(contestant.optimizer)
    scaler.update()
    contestant.optimizer.zero_grad()
    with torch.no_grad():
        contestant.model.clip.logit_scale.clamp_(max=MAX_LOGIT_SCALE)


def clock(on_gpu: bool) -> float:
    """Seconds, read when the device has done all that it was given."""
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(
    contestants: list[Contestant], precision: str, batch: Batch, repeats: int, warm_up: int = 3
) -> dict[str, Measured]:
    """Steps of all contestants in turn; the first rounds compile, choose kernels and allocate, and do not count."""
    results = {contestant.name: Measured([], [], [], []) for contestant in contestants}
    device_type = batch.pixels.device.type
    scalers = {name: torch.amp.GradScaler(device_type, enabled=precision == "fp16") for name in results}
    unmeasured = Measured([], [], [], [])
    for repeat in tqdm(range(warm_up + repeats), desc=precision, leave=False):
        for contestant in contestants:
            measured = results[contestant.name] if repeat >= warm_up else unmeasured
            run_step(contestant, precision, batch, scalers[contestant.name], measured)
    return results


def plain_flops(weights: dict[str, torch.Tensor], head: str, batch: Batch) -> int:
    """Floating-point operations of the plain forward and backward, counted on shapes alone."""
    plain = PlainModel(weights, head).to("meta")
    with FlopCounterMode(display=False) as counter:
        plain(
            *(tensor.to("meta") for tensor in (batch.input_ids, batch.attention_mask, batch.frames, batch.video_mask))
        ).backward()
    return counter.get_total_flops()


def floor_milliseconds(flops: int, device: torch.device) -> float | None:
    """Time of these operations at the rate that the GPU's large products reach; None where that is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    rates = [rate for part, rate in REACHABLE_FLOPS.items() if part in name]
    return 1e3 * flops / rates[0] if rates else None


def compare(clip: str, head: str, precision: str, options: argparse.Namespace) -> tuple[list[str], str]:
    """Rows of the table, and the line that says how far plain and ours agree (with a profile of ours if asked for)."""
    device = torch.device(options.device)
    contestants = build_contestants(clip, head, precision, options.compile, device)
    plain, ours = contestants[:2]
    size = options.batch_size or BATCH_SIZES[clip]
    batch = random_batch(size, ours.model, device)
    flops = plain_flops(ours.model.state_dict(), head, batch)
    floor = floor_milliseconds(flops, device)
    loss_difference, gradient_difference = largest_difference(plain, ours, precision, batch)
    results = measure(contestants, precision, batch, options.repeats)
    plain_whole = results["plain"].milliseconds()[0]
    rows = []
    for name, measured in results.items():
        whole, forward, backward, updating = measured.milliseconds()
        share = f"{floor / whole:.0%}" if floor else "-"
        peak = f"{max(measured.peak_bytes) / 2**30:.1f}" if measured.peak_bytes else "-"
        figures = (
            f"{clip} | {size} x {FRAMES} | {head} | {precision} | {name}",
            f"{whole:.1f} | {forward:.1f} | {backward:.1f} | {updating:.1f}",
            f"{plain_whole / whole:.2f} | {1e3 * size / whole:.1f} | {share} | {peak}",
        )
        rows.append(f"| {' | '.join(figures)} |")
    note = (
        f"{clip} {head} {precision}: {flops / 1e12:.3g} TFLOP a plain step; plain and ours differ by "
        f"{loss_difference:.1e} in the loss and {gradient_difference:.1e} in the gradients"
    )
    if options.profile:
        note += f"\n\nProfile of `{contestants[-1].name}`:\n\n```\n{profile_of(contestants[-1], precision, batch)}\n```"
    return rows, note


def profile_of(contestant: Contestant, precision: str, batch: Batch) -> str:
    """The operators that take most of a step's time, as torch.profiler's table."""
    on_gpu = batch.pixels.is_cuda
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    scaler = torch.amp.GradScaler(batch.pixels.device.type, enabled=False)
    with profile(activities=activities) as profiler:
        run_step(contestant, precision, batch, scaler, Measured([], [], [], []))
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=60)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if has_gpu else "cpu")
    parser.add_argument("--clip", nargs="+", choices=tuple(CLIPS), help="default: by the device")
    parser.add_argument("--head", nargs="+", choices=HEADS, default=HEADS)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, help="default: all on a GPU, fp32 on the CPU")
    parser.add_argument("--batch_size", type=int, help="default: 128 for the whole models, less for the small ones")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    parser.add_argument("--profile", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    parser.add_argument("--output", type=Path, help="write the report here too")
    options = parser.parse_args(arguments)
    on_gpu = options.device == "cuda"
    options.clip = options.clip or (["ViT-B/32", "ViT-B/16"] if on_gpu else ["tiny", "blocks"])
    options.precision = options.precision or (PRECISIONS if on_gpu else ["fp32"])
    options.compile = on_gpu if options.compile is None else options.compile
    options.profile = on_gpu if options.profile is None else options.profile
    return options


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    columns = (
        "CLIP", "batch", "head", "precision", "step", "ms", "forward", "backward", "update", "x plain", "clips/s",
        "of the floor", "peak GiB",
    )  # fmt: skip
    about = header("step", arguments, f"{torch.get_num_threads()} threads", f"medians of {options.repeats}")
    table = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    notes = []
    for clip in options.clip:
        for head in options.head:
            for precision in options.precision:
                rows, note = compare(clip, head, precision, options)
                table += rows
                notes.append(note)
    publish("\n".join([about, *table, "", *(f"- {note}" for note in notes)]), options.output)


if __name__ == "__main__":
    main()
