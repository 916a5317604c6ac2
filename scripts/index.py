"""Makes videos searchable: `python -m scripts.index FOLDER --index DIR [--init_model CKPT]`

Encodes the videos below FOLDER once. Run again, it encodes what is new or has changed, forgets what is gone, and goes
on where it was interrupted. Files that cannot be read are listed at the end, and in DIR/bad_videos.csv.
"""

import argparse
from pathlib import Path

from dataloaders.unreadable import write_reasons
from video_search.encoder import Encoder
from video_search.encoder_flags import add_encoder_flags, given_flags
from video_search.index_writer import UNREADABLE_FILE
from video_search.indexing import Summary, update
from video_search.reading import UnreadableFile, add_num_workers, check_num_workers
from video_search.store_flags import add_store_flags, open_store_for_writing
from video_search.stores import WritableStore

BAD_FILES_SHOWN = 20


def describe(summary: Summary, store: WritableStore) -> str:
    """One line: what was done, and what the store holds now."""
    videos = len(store)
    text = (
        f"{videos} videos: {summary.added} new, {summary.changed} changed, {summary.removed} removed, "
        f"{summary.unchanged} unchanged; {len(summary.bad)} bad files; "
        f"{summary.frames} frames encoded in {summary.seconds:.1f} s"
    )
    if store.directory is not None and videos:
        size = sum(file.stat().st_size for file in store.directory.iterdir())
        text += f"; {size / 1e6:.3g} MB, {size / videos:.0f} bytes per video"
    return text


def show_bad_files(bad: list[UnreadableFile]) -> None:
    """The first of them, each with its reason in a line of its own."""
    for one in bad[:BAD_FILES_SHOWN]:
        print(f"bad: {one.path if one.path.isprintable() else ascii(one.path)}: {one.reason}")
    if len(bad) > BAD_FILES_SHOWN:
        print(f"... and {len(bad) - BAD_FILES_SHOWN} more bad files")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", help="videos, in subfolders too")
    add_store_flags(parser)
    add_num_workers(parser)
    parser.add_argument("--moved", action="store_true", help="the videos of the index now lie below FOLDER")
    parser.add_argument("--retry_bad", action="store_true", help="read bad files again that did not change")
    add_encoder_flags(parser)
    return parser


def index(args: argparse.Namespace) -> None:
    """Update the index that the flags name, and say what was done."""
    check_num_workers(args.num_workers)
    if not Path(args.folder).is_dir():  # said before a store is made and weights are fetched
        raise NotADirectoryError(f"{args.folder} is no folder of videos")
    store = open_store_for_writing(args)
    try:
        encoder = Encoder.load(settings=store.settings, **given_flags(args))
        summary = update(store, args.folder, encoder, args.num_workers, args.moved, args.retry_bad, progress=True)
        store.compact()
        if store.directory is not None:
            write_reasons(store.directory / UNREADABLE_FILE, [(one.path, one.reason) for one in summary.bad])
        show_bad_files(summary.bad)
        print(describe(summary, store))
    finally:
        store.close()


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    try:
        index(args)
    except (OSError, ValueError) as error:
        raise SystemExit(f"index: {error}") from error
    except KeyboardInterrupt as error:
        raise SystemExit("index: interrupted; the same command goes on from here") from error


if __name__ == "__main__":
    main()
