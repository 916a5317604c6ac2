"""Train and evaluate a tiny model again and again while things go wrong, and watch whether anything piles up.

    python -m benchmarks.soak --minutes 30 [--seed 0] [--output FILE.md]

Two things go on at the same time, on random weights and a few drawn videos, and need no network and no GPU:

-   One process trains epoch after epoch, with loader workers that stay, a frame cache and training checkpoints. Its
    memory, file descriptors and threads are noted all the time; after a warm-up they must not grow.
-   One run after the other meets random faults: it is killed, told to stop, its newest training checkpoint gets a
    wrong bit, or a video is cut in the middle of the run. It goes on by `--resume auto`, and must end with the
    weights of the run that nothing happened to (after a cut video: it must end).
"""

import argparse
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

import main_task_retrieval
from engine.signals import STOPPED_EXIT_CODE
from modules.checkpoint import model_path
from modules.resume import FILES, FOLDER
from scripts.miniature.msrvtt import write_mini_msrvtt
from scripts.miniature.tiny_clip import tiny_clip_state_dict

EPOCHS = 3
TRAIN_VIDEOS = 120  # one bad video is less than the share above which a run stops
FAULTS = ("kill", "stop", "bit flip", "cut video")
TIME_LIMIT = 120  # seconds after which a run of `EPOCHS` epochs counts as lost
ROWS = 10  # the time is divided into so many parts, and the most of each is noted
WARM_UP = 3  # parts in which caches and allocators fill
FLAT = 0.1  # growth after them that counts as none
SECONDS_PER_SAMPLE = 0.25


class Watch(threading.Thread):
    """Notes what a process holds until it ends: memory in bytes, file descriptors, threads, and child processes."""

    NAMES = ("memory MB", "file descriptors", "threads", "child processes")

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.folder, self.samples = Path("/proc") / str(pid), []

    def run(self) -> None:
        started = time.monotonic()
        while True:
            try:
                self.samples.append((time.monotonic() - started, *self.held()))
            except (FileNotFoundError, ProcessLookupError):
                return
            time.sleep(SECONDS_PER_SAMPLE)

    def held(self) -> tuple[float, int, int, int]:
        """The numbers of `NAMES`; raises FileNotFoundError or ProcessLookupError where the process has ended."""
        threads = list((self.folder / "task").iterdir())
        children = [child for thread in threads for child in (thread / "children").read_text().split()]
        pages = int((self.folder / "statm").read_text().split()[1])
        descriptors = list((self.folder / "fd").iterdir())
        return pages * resource.getpagesize() / 1e6, len(descriptors), len(threads), len(children)

    def most(self) -> np.ndarray:
        """Minutes and the most of `NAMES` in each of `ROWS` parts of the time, (ROWS, 5).

        The most, since an evaluation has workers of its own: where a sample falls must not matter.
        """
        parts = np.array_split(np.array(self.samples), ROWS)
        return np.stack([part.max(axis=0) for part in parts]) / (60, 1, 1, 1, 1)


def prepare(folder: Path) -> None:
    """Training and test videos, and a CLIP of width 32."""
    write_mini_msrvtt(folder / "data", train_videos=TRAIN_VIDEOS, test_videos=9, captions_per_video=2)
    weights = tiny_clip_state_dict(
        embed_dim=32, vision_width=32, vision_layers=1, patch_size=16, image_size=32, text_width=32, text_layers=1
    )
    torch.save(weights, folder / "clip.pt")


def flags_of(folder: Path, output: Path, *more: str) -> list[str]:
    data = folder / "data"
    return [
        "--do_train", "--output_dir", str(output), "--train_csv", str(data / "MSRVTT_train.csv"),
        "--val_csv", str(data / "MSRVTT_test.csv"), "--data_path", str(data / "MSRVTT_data.json"),
        "--features_path", str(data / "videos"), "--pretrained_clip_name", str(folder / "clip.pt"),
        "--sim_header", "tightTransf", "--cross_num_hidden_layers", "1", "--max_words", "16", "--max_frames", "3",
        "--num_thread_reader", "2", "--batch_size", "24", "--batch_size_val", "4", "--lr", "1e-3",
        "--epochs", str(EPOCHS), "--save_steps", "1", "--keep_last", "1", "--resume", "auto", *more,
    ]  # fmt: skip


def run_training(flags: list[str], log: str) -> None:
    """A training whose process prints into a file."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    multiprocessing.set_start_method("fork", force=True)  # of loader workers, as in a training started by hand
    main_task_retrieval.main(flags)


def start(flags: list[str], log: Path) -> multiprocessing.Process:
    """The process of a training, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["open_clip.tokenizer", "main_task_retrieval"])
    process = context.Process(target=run_training, args=(flags, str(log)))
    process.start()
    return process


class Faults:
    """Runs that meet random faults, and how many of them were lost."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.random = folder, random.Random(seed)
        self.tried: Counter = Counter()
        self.runs, self.lost = 0, []
        output, started = folder / "undisturbed", time.monotonic()
        process = start(flags_of(folder, output), folder / "undisturbed.txt")
        process.join(TIME_LIMIT)
        if process.exitcode != 0:
            raise RuntimeError(f"a run without faults failed: {(folder / 'undisturbed.txt').read_text()}")
        self.seconds = time.monotonic() - started
        self.expected = self.weights(output)

    def weights(self, output: Path) -> dict[str, torch.Tensor]:
        return torch.load(model_path(output, EPOCHS - 1), weights_only=True)

    def disturb_one_run(self) -> None:
        """Up to three faults, then the run goes to its end."""
        self.runs += 1
        output, log = self.folder / f"run{self.runs}", self.folder / f"run{self.runs}.txt"
        faults = self.random.sample(FAULTS, k=self.random.randint(1, 3))
        videos = shutil.copytree(self.folder / "data" / "videos", self.folder / "videos")
        flags = flags_of(self.folder, output, "--features_path", str(videos), "--bad_videos", "skip")
        for fault in faults:
            process = start(flags, log)
            process.join(self.random.uniform(0, self.seconds))
            self.tried[fault] += 1
            self.act(fault, process, output, videos)
        process = start(flags, log)
        process.join(TIME_LIMIT)
        process.kill()
        process.join()
        is_same = process.exitcode == 0 and (
            "cut video" in faults
            or all(torch.equal(value, self.expected[name]) for name, value in self.weights(output).items())
        )
        if not is_same:
            self.lost.append(f"run {self.runs} ({', '.join(faults)}): exit code {process.exitcode}, see {log}")
        else:
            shutil.rmtree(output)
        shutil.rmtree(videos)

    def act(self, fault: str, process: multiprocessing.Process, output: Path, videos: Path) -> None:
        if fault == "cut video":
            names = (self.folder / "data" / "MSRVTT_train.csv").read_text().split()[1:]
            video = videos / f"{self.random.choice(names)}.mp4"
            os.truncate(video, video.stat().st_size // 3)
            process.join(self.seconds / 2)
        if fault == "stop" and process.is_alive():
            os.kill(process.pid, signal.SIGTERM)
            process.join(TIME_LIMIT)
        process.kill()
        process.join()
        points = sorted((output / FOLDER).glob("step-*"))
        if fault == "bit flip" and points:
            file = points[-1] / self.random.choice(FILES)
            content = bytearray(file.read_bytes())
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
            file.write_bytes(content)


def growth(most: np.ndarray) -> dict[str, float]:
    """What a line through the parts after the warm-up gains over them, as a share of its start."""
    minutes, *columns = most[WARM_UP:].T
    gained = {}
    for name, values in zip(Watch.NAMES, columns, strict=True):
        slope, start_value = np.polyfit(minutes - minutes[0], values, 1)
        gained[name] = float(slope * (minutes[-1] - minutes[0]) / start_value)
    return gained


def report(most: np.ndarray, epochs: int, faults: Faults, arguments: list[str]) -> tuple[str, bool]:
    """The figures in Markdown, and whether all is well."""
    gained = growth(most)
    is_flat = all(value <= FLAT for value in gained.values())
    lines = [
        f"`python -m benchmarks.soak {' '.join(arguments)}`", "",
        f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, torch {torch.__version__}; one process of {epochs} "
        "epochs, the most in each part of the time:", "",
        f"| minute | {' | '.join(Watch.NAMES)} |", "|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    lines += [f"| {row[0]:.1f} | {row[1]:.1f} | {row[2]:.0f} | {row[3]:.0f} | {row[4]:.0f} |" for row in most]
    growths = ", ".join(f"{name} {100 * value:+.1f} %" for name, value in gained.items())
    kinds = ", ".join(f"{count} x {name}" for name, count in sorted(faults.tried.items()))
    lines += [
        "", f"Growth after the first {WARM_UP} parts: {growths}: {'flat' if is_flat else 'NOT FLAT'}.", "",
        f"{faults.runs} runs met {faults.tried.total()} faults ({kinds}); runs lost: {len(faults.lost)}.", *faults.lost,
    ]  # fmt: skip
    return "\n".join(lines), is_flat and not faults.lost


def soak(folder: Path, minutes: float, seed: int, arguments: list[str]) -> tuple[str, bool]:
    """Train and disturb for so long; the report, and whether all is well."""
    prepare(folder)
    faults = Faults(folder, seed)
    steady = folder / "steady"
    cache = ("--frame_cache", str(folder / "cache"))
    process = start(flags_of(folder, steady, *cache, "--epochs", "1000000", "--n_display", "1000"), folder / "log.txt")
    watch, started = Watch(process.pid), time.monotonic()
    watch.start()
    while time.monotonic() - started < 60 * minutes:
        faults.disturb_one_run()
        if not process.is_alive():
            raise RuntimeError(f"the steady process ended: {(folder / 'log.txt').read_text()[-4000:]}")
    most = watch.most()
    os.kill(process.pid, signal.SIGTERM)
    process.join(TIME_LIMIT)
    if process.exitcode != STOPPED_EXIT_CODE:
        faults.lost.append(f"the steady process ended with exit code {process.exitcode}")
    epochs = (steady / "log.txt").read_text().count("Finished, Train Loss")
    return report(most, epochs, faults, arguments)


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0, help="decides which faults come, and when")
    parser.add_argument("--output", type=Path, default=None, help="write the report to this file too")
    options = parser.parse_args(arguments)
    if not sys.platform.startswith("linux"):
        parser.error(f"the figures come from /proc, which {sys.platform} has not")
    with tempfile.TemporaryDirectory() as folder:
        text, is_well = soak(Path(folder), options.minutes, options.seed, arguments)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n", encoding="utf-8")
    if not is_well:
        raise SystemExit("something was lost, or grew")


if __name__ == "__main__":
    main()
