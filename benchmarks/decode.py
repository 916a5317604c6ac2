"""What it costs to get 12 evenly spread frames of a video, beside the ways of other projects.

    python -m benchmarks.decode [--clips FOLDER] [--limit N] [--generated 15 30 120] [--repeats 5]
                                [--clock wall] [--output FILE.md]

All contestants take turns on the same file, which is in the page cache; a figure is the median of the repeats.  Each
has one thread, as in a DataLoader worker.

    ours     `RawVideoExtractor.read_frames`: uint8 frames
    seek     CLIP4Clip's way: OpenCV seeks to every second, makes each frame normalised floats, then 12 are chosen
    decord   DRL's way: decord's `get_batch` of the chosen frames, then resized and normalised; `pip install decord`
    grab     OpenCV decodes from the start to the last chosen frame and converts the chosen ones: uint8 frames

The generated clips pan over a textured picture, with noise, at 30 frames a second: 320x240 and 1280x720, a key frame
every second and every 10 seconds, H.264 with B-frames.
"""

import argparse
import importlib
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from tqdm import tqdm

from benchmarks.reporting import header, publish
from dataloaders.rawvideo_util import RawVideoExtractor, SampleGrid, choose_samples

MAX_FRAMES = 12
SIZE = 224
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's pictures
GENERATED_FPS = 30
# How many times faster than another way: on every clip, and in the median.
GOALS = {"seek": (3.5, 5.0), "decord": (1.0, None)}


def read_ours(path: Path) -> np.ndarray:
    """This project's reader."""
    return RawVideoExtractor(1, SIZE).read_frames(path, MAX_FRAMES, 2)


def read_by_seeking(path: Path) -> np.ndarray:
    """Every whole second by a seek, all of them converted and normalised; 12 of them in a float64 array."""
    transform = to_normalised_floats()
    capture = open_capture(path)
    fps, count = int(capture.get(cv2.CAP_PROP_FPS)), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    pictures = []
    for second in range(-(-count // fps) + 1):
        capture.set(cv2.CAP_PROP_POS_FRAMES, second * fps)
        readable, picture = capture.read()
        if not readable:
            break
        pictures.append(transform(Image.fromarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))))
    capture.release()
    frames = torch.stack(pictures)
    chosen = choose_samples(len(frames), MAX_FRAMES, 2)
    video = np.zeros((MAX_FRAMES, 3, SIZE, SIZE), dtype=np.float64)
    video[: len(chosen)] = frames[chosen]
    return video


def read_by_decord(path: Path) -> np.ndarray:
    """decord's decoder for the chosen frames, normalised afterwards."""
    decord = importlib.import_module("decord")
    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    chosen = chosen_positions(reader.get_avg_fps(), len(reader))
    transform = to_normalised_floats()
    return np.stack([transform(Image.fromarray(picture)) for picture in reader.get_batch(chosen).asnumpy()])


def read_by_grabbing(path: Path) -> np.ndarray:
    """Everything decoded from the start by OpenCV, only the chosen frames converted; the same pixels as ours."""
    capture = open_capture(path)
    positions = chosen_positions(capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    resize = Compose([Resize(SIZE, InterpolationMode.BICUBIC), CenterCrop(SIZE)])
    frames = []
    for number in range(positions[-1] + 1):
        if not capture.grab():
            break
        if number == positions[len(frames)]:
            picture = capture.retrieve()[1]
            image = resize(Image.fromarray(np.ascontiguousarray(picture[:, :, ::-1])))
            frames.append(np.asarray(image).transpose(2, 0, 1))
    capture.release()
    return np.stack(frames)


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    "ours": read_ours,
    "seek": read_by_seeking,
    "decord": read_by_decord,
    "grab": read_by_grabbing,
}


def chosen_positions(fps: float, frame_count: int) -> list[int]:
    """The frames that ours chooses, so that all do the same work."""
    grid = SampleGrid(max(1, int(fps)), 1)
    return [grid.position(sample) for sample in choose_samples(grid.count(frame_count), MAX_FRAMES, 2)]


def open_capture(path: Path) -> cv2.VideoCapture:
    return cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])


def to_normalised_floats() -> Compose:
    return Compose([Resize(SIZE, InterpolationMode.BICUBIC), CenterCrop(SIZE), ToTensor(), Normalize(MEAN, DEVIATION)])


def write_moving_clip(path: Path, seconds: int, width: int, height: int, frames_per_key: int) -> None:
    """Encodes a clip that pans over a textured picture and carries noise of its own in every frame."""
    generator = np.random.default_rng(seconds * width + frames_per_key)
    texture = sum(
        cv2.resize(generator.uniform(0, 60, (size, size, 3)).astype(np.float32), (2 * width, 2 * height))
        for size in (8, 32, 128, 400)
    )
    noise = generator.integers(0, 8, (2 * height, 2 * width, 3))
    texture = np.clip(texture + noise, 0, 255).astype(np.uint8)
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "g": str(frames_per_key), "keyint_min": str(frames_per_key), "bf": "3"}
        stream = container.add_stream("libx264", rate=GENERATED_FPS, options={**options, "sc_threshold": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(seconds * GENERATED_FPS):
            angle = number / (3 * GENERATED_FPS)
            left = round((1 + np.sin(angle)) * width / 2)
            top = round((1 + np.sin(1.7 * angle)) * height / 2)
            view = np.ascontiguousarray(texture[top : top + height, left : left + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        container.mux(stream.encode(None))


def generate_clips(folder: Path, durations: list[int]) -> list[Path]:
    """Clips of every size and distance of key frames, for each duration in seconds."""
    paths = []
    for seconds in durations:
        for width, height in ((320, 240), (1280, 720)):
            for key_seconds in (1, 10):
                path = folder / f"generated_{seconds}s_{width}x{height}_key_every_{key_seconds}s.mp4"
                write_moving_clip(path, seconds, width, height, key_seconds * GENERATED_FPS)
                paths.append(path)
    return paths


def measure(path: Path, contestants: list[str], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each contestant on one file, taken in turns after one round that is not counted."""
    seconds = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name in contestants:
            started = clock()
            READERS[name](path)
            elapsed = clock() - started
            if turn:
                seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown: milliseconds of each contestant per clip, ratios to ours, and the goals beside what was reached."""
    contestants = list(next(iter(results.values())))
    rivals = [name for name in contestants if name != "ours"]
    columns = ["clip", *(f"{name} ms" for name in contestants), *(f"{name} / ours" for name in rivals)]
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    for clip, seconds in results.items():
        times = [f"{1000 * seconds[name]:.1f}" for name in contestants]
        ratios = [f"{seconds[name] / seconds['ours']:.2f}" for name in rivals]
        lines.append("| " + " | ".join([clip, *times, *ratios]) + " |")

    lines += ["", "| beside | least | median | goal on every clip | clips below it | goal in the median |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for name in rivals:
        ratios = [seconds[name] / seconds["ours"] for seconds in results.values()]
        least, median = GOALS.get(name, (None, None))
        below = sum(ratio < least for ratio in ratios) if least else ""
        reached = [f"{min(ratios):.2f}", f"{statistics.median(ratios):.2f}"]
        lines.append("| " + " | ".join([name, *reached, str(least or ""), str(below), str(median or "")]) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the tables, and writes them where `--output` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real_clips = Path(__file__).resolve().parents[2] / "shared" / "data" / "real_clips" / "videos"
    parser.add_argument("--clips", type=Path, default=real_clips, help="folder of clips; may be absent")
    parser.add_argument("--limit", type=int, help="only so many of the real clips")
    parser.add_argument("--generated", type=int, nargs="*", default=[15, 30, 120], help="seconds of generated clips")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: seconds of all threads")
    parser.add_argument("--output", type=Path, help="Markdown file to write, beside printing")
    args = parser.parse_args(argv)

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    lines = [header("decode", sys.argv[1:] if argv is None else argv, f"{args.clock} clock")]
    contestants = list(READERS)
    if importlib.util.find_spec("decord") is None:
        contestants.remove("decord")
        lines.append("decord: left out, it is not installed (`pip install decord`)")
    clips = sorted(args.clips.iterdir())[: args.limit] if args.clips.is_dir() else []
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    with tempfile.TemporaryDirectory() as folder:
        clips += generate_clips(Path(folder), args.generated)
        results = {
            clip.name: measure(clip, contestants, args.repeats, clock)
            for clip in tqdm(clips, unit="clip", disable=None)
        }
    publish("\n".join([*lines, "", table(results)]), args.output)


if __name__ == "__main__":
    main()
