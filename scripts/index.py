"""Make videos searchable: `python -m scripts.index FOLDER --index DIR [--init_model CKPT]`

Encodes the videos below FOLDER. Further runs encode only new and changed videos, remove deleted ones from the index,
and continue after an interruption. Videos whose folder is missing, empty or unreadable, as on a disk that is unplugged,
are kept. Unreadable files are listed at the end, and in DIR/bad_videos.csv; damaged videos, which are indexed without
what is lost, in DIR/damaged_videos.csv.
"""

# ruff: noqa: E402

import argparse
from itertools import islice
from pathlib import Path

from modules.interrupts import exit_on_interrupt, interrupted, raise_on_interrupt

INTERRUPTED = "index: interrupted; the same command continues from here"

if __name__ == "__main__":
    exit_on_interrupt(INTERRUPTED)  # the imports below take seconds

from dataloaders.unreadable import read_reasons, write_reasons
from dataloaders.video_files import EXCLUDE_HELP, describe_passed_over, first_names
from modules.standard_streams import open_standard_streams, printable
from video_search.encoder import Encoder
from video_search.encoder_flags import ENCODER_FLAGS, add_encoder_flags, default_of, given_flags
from video_search.index_writer import DAMAGED_FILE, UNREADABLE_FILE
from video_search.indexing import Summary, update
from video_search.reading import UnreadableFile, add_num_workers, check_num_workers
from video_search.store_flags import add_store_flags, open_store_for_writing
from video_search.stores import WritableStore

UNREADABLE_FILES_SHOWN = 20


def describe(summary: Summary, store: WritableStore) -> str:
    """Return one line on the update and on the store after it."""
    videos = len(store)
    text = (
        f"{videos} videos: {summary.added} new, {summary.changed} changed, {summary.removed} removed, "
        f"{summary.unchanged} unchanged; {len(summary.unreadable)} unreadable files; "
        f"{summary.frames} frames encoded in {summary.seconds:.1f} s"
    )
    if store.directory is not None and videos:
        size = sum(file.stat().st_size for file in store.directory.iterdir())
        text += f"; {size / 1e6:.3g} MB, {size / videos:.0f} bytes per video"
    return text


def print_unreadable_files(files: list[UnreadableFile]) -> None:
    """Print a line with path and reason for the first of the files."""
    for file in files[:UNREADABLE_FILES_SHOWN]:
        print(printable(f"unreadable: {file.path}: {file.reason}"))
    if len(files) > UNREADABLE_FILES_SHOWN:
        print(f"... and {len(files) - UNREADABLE_FILES_SHOWN} more unreadable files")


def print_losses(losses: dict[str, str]) -> None:
    """Print a line with path and loss for the first damaged videos, and their number."""
    for path, loss in islice(losses.items(), UNREADABLE_FILES_SHOWN):
        print(printable(f"damaged: {path}: {loss}"))
    if losses:
        print(f"{len(losses)} damaged videos are indexed without what is lost")


def print_checks(summary: Summary) -> None:
    """Print which vectors of the index were damaged, and whether it had checksums."""
    if summary.damaged:
        names = ", ".join(map(repr, summary.damaged[:UNREADABLE_FILES_SHOWN]))
        print(
            f"damaged vectors of {len(summary.damaged)} videos were dropped, and readable files encoded again: {names}"
        )
    if summary.unchecked:
        print(f"checksums added to {summary.unchecked} videos, whose vectors were taken as they were")


def describe_out_of_reach(paths: list[str]) -> str:
    """Return one line on the videos that were kept without their files; "" without any."""
    if not paths:
        return ""
    return (
        f"kept: {len(paths)} videos whose folder is missing, empty or unreadable, or whose link has lost its target "
        f"({first_names(paths)}); --remove_missing removes them"
    )


def sampling_notice(rule: str, args: argparse.Namespace) -> str:
    """Return a line on an index that is updated with another rule of sampling than the default's, else ""."""
    default = default_of(ENCODER_FLAGS["frame_sampling"])
    if rule == default or args.frame_sampling is not None:
        return ""
    return (
        f"this index was made with --frame_sampling {rule} and is updated with it; for the default, {default}, make a "
        "new index"
    )


def write_losses(path: Path, losses: dict[str, str]) -> None:
    """Write what is lost of damaged videos, or remove the file if there are none."""
    if losses:
        write_reasons(path, sorted(losses.items()))
    else:
        path.unlink(missing_ok=True)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", help="folder of videos, subfolders included")
    add_store_flags(parser)
    add_num_workers(parser)
    parser.add_argument("--moved", action="store_true", help="the videos of the index are now below FOLDER")
    parser.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help=EXCLUDE_HELP)
    parser.add_argument(
        "--remove_missing", action="store_true",
        help="remove videos whose folder is missing, empty or unreadable, or whose link has lost its target",
    )  # fmt: skip
    parser.add_argument("--retry_bad", action="store_true", help="read unchanged unreadable files again")
    add_encoder_flags(parser)
    return parser


def index(args: argparse.Namespace) -> None:
    """Update the index that the flags name, and print a summary."""
    check_num_workers(args.num_workers)
    if not Path(args.folder).is_dir():  # before a store is created and weights are downloaded
        raise NotADirectoryError(f"{args.folder} is not a folder")
    store = open_store_for_writing(args)
    try:
        encoder = Encoder.load(settings=store.settings, **given_flags(args))
        notice = sampling_notice(encoder.settings["frame_sampling"], args)
        losses = {} if store.directory is None else read_reasons(store.directory / DAMAGED_FILE)
        try:
            summary = update(
                store, args.folder, encoder, args.num_workers, args.moved, args.retry_bad, progress=True,
                exclude=args.exclude, remove_missing=args.remove_missing, losses=losses,
            )  # fmt: skip
        finally:  # an interrupted update keeps its videos, too
            if store.directory is not None:
                write_losses(store.directory / DAMAGED_FILE, losses)
        store.compact()
        if store.directory is not None:
            write_reasons(store.directory / UNREADABLE_FILE, [(one.path, one.reason) for one in summary.unreadable])
        print_checks(summary)
        print_losses(losses)
        print_unreadable_files(summary.unreadable)
        for line in (describe_passed_over(summary.passed_over), describe_out_of_reach(summary.out_of_reach)):
            if line:
                print(printable(line))
        print(describe(summary, store))
        if notice:
            print(notice)
    finally:
        store.close()


def main(argv: list[str] | None = None) -> None:
    try:
        raise_on_interrupt()
        open_standard_streams()
        args = build_parser().parse_args(argv)
        index(args)
    except (OSError, ValueError) as error:
        raise SystemExit(printable(f"index: {error}")) from error
    except KeyboardInterrupt as error:
        raise interrupted(INTERRUPTED) from error


if __name__ == "__main__":
    main()
