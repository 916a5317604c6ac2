"""Read a whole data set once, before training does: `python -m scripts.check_data --output_dir DIR` and data flags

The flags are those of training. `data_problems.csv` and `data_histograms.png` are written to the folder, and a table to
stdout; with `--frame_cache` all frames are cached. The exit code is 1 if the test split cannot be evaluated.
"""

import argparse
import contextlib
import dataclasses
import logging
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from dataloaders.annotations import Annotations, CaptionsOnly, MissingVideosError
from dataloaders.data_config import DataConfig
from dataloaders.data_dataloaders import DATALOADER_DICT, READERS
from dataloaders.frame_cache import FrameCache
from dataloaders.rawvideo_util import RawVideoExtractor
from dataloaders.subsets import ReadSplit
from dataloaders.worker_pool import ProcessDied, available_cores, run_tasks
from engine.arguments import DefaultsHelpFormatter, add_flags
from engine.flags import DATA_FLAGS
from modules.standard_streams import open_standard_streams, printable
from modules.tokenization_clip import SimpleTokenizer
from scripts.check_data.data_files import hash_file, read_file
from scripts.check_data.data_report import FileFacts, Report, Span, Split, evaluation_failure, write_problems

PRELOAD = ("engine.arguments", "modules.tokenization_clip")  # the slow imports of this file
PROBLEMS_FILE = "data_problems.csv"
HISTOGRAMS_FILE = "data_histograms.png"


def read_split(read: ReadSplit, config: DataConfig, name: str) -> Split:
    """Return the split with the list of its missing videos; raise the other errors of the data set's reader."""
    try:
        return Split(name, read(config, name))
    except MissingVideosError as error:
        texts = read(dataclasses.replace(config, features_path=CaptionsOnly), name)
        return Split(name, Annotations(texts.captions, error.found, texts.notes), tuple(error.missing))


def read_splits(args: argparse.Namespace) -> tuple[list[Split], dict[str, str]]:
    """Return the splits of the data set that can be read, and the reason for each of the others."""
    config, splits, unread = DataConfig.from_namespace(args), [], {}
    # Without a "test" split, the reader returns the split for evaluation for every name but "train".
    for name in ("train", "val", "test") if DATALOADER_DICT[args.datatype]["test"] else ("train", "test"):
        try:
            splits.append(read_split(READERS[args.datatype], config, name))
        except (OSError, ValueError) as error:
            unread[name] = str(error)
    return splits, unread


def read_files(splits: list[Split], extractor, args: argparse.Namespace) -> dict[Path, FileFacts]:
    """Return the facts of every file; each file and each span of it is read once for all splits."""
    spans: dict[Path, dict[Span, None]] = {}
    for split in splits:
        for path, span in split.spans_of_files():
            spans.setdefault(path, {})[span] = None
    read = partial(read_file, extractor=extractor, max_frames=args.max_frames, slice_framepos=args.slice_framepos)
    tasks = [(path, list(wanted)) for path, wanted in spans.items()]
    facts = {}
    results = run_tasks(read, tasks, args.num_thread_reader, PRELOAD)
    for (path, wanted), result in tqdm(results, total=len(tasks), unit="video", desc="videos"):
        if isinstance(result, ProcessDied):
            result = FileFacts(0.0, dict.fromkeys(wanted, f"the process that read it was {result.reason}"))
        facts[path] = result
    return facts


def find_same_content(paths: list[Path], processes: int) -> dict[Path, str]:
    """Return the SHA-256 of every readable file that has the size of another one."""
    of_size: dict[int, list[Path]] = {}
    for path in paths:
        # A file that was removed after it was read has no content to compare.
        with contextlib.suppress(OSError):
            if path.is_file():
                of_size.setdefault(path.stat().st_size, []).append(path)
    twins = [path for same in of_size.values() if len(same) > 1 for path in same]
    results = run_tasks(hash_file, twins, processes, PRELOAD)
    bar = tqdm(results, total=len(twins), unit="file", desc="files of one size", disable=not twins)
    return {path: digest for path, digest in bar if isinstance(digest, str)}


def count_tokens(splits: list[Split]) -> dict[str, int]:
    """Return the number of tokens of every text, start and end token included."""
    tokenizer = SimpleTokenizer()
    texts = dict.fromkeys(caption.text for split in splits for caption in split.annotations.captions)
    return {text: len(tokenizer.tokenize(text)) + 2 for text in tqdm(texts, unit="text", desc="captions")}


def build_extractor(args: argparse.Namespace, splits: list[Split]) -> RawVideoExtractor | FrameCache:
    """Return the reader of frames; with `--frame_cache` it caches them, and the space they need is printed."""
    rule = DataConfig.from_namespace(args).frame_sampling
    extractor = RawVideoExtractor(args.feature_framerate, args.image_size, rule)
    if not args.frame_cache:
        return extractor
    cache = FrameCache(args.frame_cache, extractor, args.frame_cache_format)
    items = {item for split in splits for item in split.spans_of_files()}
    most = cache.expected_size(len(items), args.max_frames)
    free = cache.free_bytes()
    print(
        f"{args.frame_cache} will hold at most {most / 1e9:.1f} GB of frames, of {len(items)} videos; "
        f"{free / 1e9:.1f} GB are free\n"
        f"its entries are {args.max_frames} frames of {args.image_size} x {args.image_size} pixels (--image_size): "
        "only runs with that --max_frames and a CLIP of that size read them"
    )
    return cache


def make_folder(folder: Path) -> None:
    """Create the folder of the report; raise OSError, naming the flag, if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--output_dir {folder} cannot be created: {error.strerror}") from error


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ValueError for the first flag whose value is not valid."""
    DataConfig.from_namespace(args)
    for name in ("image_size", "num_thread_reader"):  # no video is read in this process: it may crash its decoder
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)} must be at least 1")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "check_data", description=__doc__.splitlines()[0], formatter_class=DefaultsHelpFormatter
    )
    add_flags(parser.add_argument_group("data"), DATA_FLAGS)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the report")
    parser.add_argument(
        "--image_size", type=int, default=224, help="pixels of the frames in the cache: 336 for ViT-L/14@336px"
    )
    parser.set_defaults(num_thread_reader=available_cores())
    return parser


def check_data(args: argparse.Namespace) -> str:
    """Read everything and write the report; return why the test split cannot be evaluated, "" if it can.

    Raises:
        OSError: no split can be read.
    """
    splits, unread = read_splits(args)
    if not splits:
        raise OSError("; ".join(f"{name}: {reason}" for name, reason in unread.items()))
    make_folder(args.output_dir)
    extractor = build_extractor(args, splits)
    facts = read_files(splits, extractor, args)
    if isinstance(extractor, FrameCache) and not extractor.is_storing:
        print(f"check_data: {args.frame_cache} is NOT complete: not all frames could be stored", file=sys.stderr)
    contents = find_same_content(list(facts), args.num_thread_reader)
    report = Report(splits, facts, contents, count_tokens(splits), args.max_words)
    problems = report.problems()
    write_problems(args.output_dir / PROBLEMS_FILE, problems)
    report.draw(args.output_dir / HISTOGRAMS_FILE, args.max_frames / args.feature_framerate)
    print(report.table(problems))
    for split in splits:
        for note in split.annotations.notes:
            print(printable(f"{split.name}: {note}"))
    for name, reason in unread.items():
        print(printable(f"{name}: not read: {reason}"))
    print(f"details: {args.output_dir / PROBLEMS_FILE}, {args.output_dir / HISTOGRAMS_FILE}")
    return f"the test split cannot be read: {unread['test']}" if "test" in unread else evaluation_failure(problems)


def main(argv: list[str] | None = None) -> None:
    open_standard_streams()
    logging.basicConfig(format="%(message)s")
    args = build_parser().parse_args(argv)
    try:
        check_arguments(args)
        failure = check_data(args)
    except (OSError, ValueError) as error:
        failure = str(error)
    except KeyboardInterrupt:
        failure = "interrupted"
    if failure:
        sys.exit(printable(f"check_data: {failure}"))


if __name__ == "__main__":
    main()
