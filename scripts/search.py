"""Search an index of videos: `python -m scripts.search "a red circle moves to the left" --index DIR`

Prints rank, score and path of each of the best videos, its best-matching moments, and the share of the score of each
word of the query; [sentence] is the share of the tokens that represent the whole sentence. A word below 0 % lowers the
score. `--video FILE` searches for videos similar to one, `--json` prints one JSON document for programs.
"""

# ruff: noqa: E402

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from modules.interrupts import exit_on_interrupt, interrupted, raise_on_interrupt

INTERRUPTED = "search: interrupted"

if __name__ == "__main__":
    exit_on_interrupt(INTERRUPTED)  # the imports below take seconds

from dataloaders.rawvideo_util import VideoReadError
from modules.standard_streams import open_standard_streams, printable
from video_search.search import Results, VideoSearch
from video_search.store_flags import add_store_flags, open_store
from video_search.vectors import Word
from video_search.web.clips import display_path

BEST_SECONDS = 3
SENTENCE_TOKENS = ("[start]", "[end]")


def clock(second: float) -> str:
    """
    >>> clock(3), clock(83.9), clock(3600)
    ('0:03', '1:23', '60:00')
    """
    return f"{int(second) // 60}:{int(second) % 60:02d}"


def word_shares(words: tuple[Word, ...]) -> str:
    """Return the share of each word, in the order of the text, in percent of the absolute shares of all words.

    >>> word_shares((Word("[start]", 0.2, 0.1, 0), Word("red", 0.5, 0.3, 1), Word("[end]", 0.3, 0.1, 0)))
    'red 60 %, [sentence] 40 %'
    >>> word_shares((Word("not", 0.5, -0.1, 0), Word("red", 0.5, 0.4, 1)))
    'not -20 %, red 80 %'
    """
    total = sum(abs(word.share) for word in words) or 1.0
    shares = [(word.text, word.share) for word in words if word.text not in SENTENCE_TOKENS]
    if len(shares) < len(words):
        shares.append(("[sentence]", sum(word.share for word in words if word.text in SENTENCE_TOKENS)))
    return ", ".join(f"{text} {round(100 * share / total)} %" for text, share in shares)


def as_text(results: Results) -> str:
    """Return the results for people."""
    lines = []
    for rank, hit in enumerate(results.hits, start=1):
        moments = ", ".join(map(clock, hit.best_seconds(BEST_SECONDS)))
        lines.append(f"{rank:3}. {hit.score:.3f}  {printable(display_path(hit.path))}  at {moments}")
        if hit.words:
            lines.append(f"           {printable(word_shares(hit.words))}")
    lines.append(f"{results.scanned} videos scored in {results.seconds:.2f} s")
    return "\n".join(lines)


def as_json(results: Results, folder: Path) -> str:
    """Return one document with every field of the hits; `file` is a hit's path below the folder of the index."""
    hits = [{**asdict(hit), "file": str(folder / hit.path)} for hit in results.hits]
    about = {"query": results.asked, "is_video": results.query.is_video, "notice": results.notice}
    return json.dumps(
        {**about, "seconds": results.seconds, "scanned": results.scanned, "hits": hits}, indent=1, allow_nan=False
    )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("text", nargs="?", help="description of the videos")
    asked.add_argument("--video", metavar="FILE", help="an example video instead of a text")
    parser.add_argument("--top", type=int, default=10, help="number of videos to show")
    parser.add_argument(
        "--shortlist",
        type=int,
        help="re-rank only so many candidates, those with the nearest pooled vectors; default: all videos",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_store_flags(parser)
    parser.add_argument("--init_model", help="checkpoint, if it is no longer at the path recorded in the index")
    return parser


def missing_files_notice(results: Results, folder: Path, index: str) -> str:
    """Return a notice if videos that are shown are no longer in the folder of the index, or an empty text."""
    if not folder.is_dir():
        moved = f"python -m scripts.index NEW_FOLDER --index {index} --moved"
        return f"the videos' folder {folder} is missing; if it has moved: {moved}"
    missing = [hit.path for hit in results.hits if not (folder / hit.path).exists()]
    if not missing:
        return ""
    return (
        f"{len(missing)} of the {len(results.hits)} videos shown are no longer in {folder}, such as "
        f"{display_path(missing[0])}; python -m scripts.index {folder} --index {index} updates the index"
    )


def search(args: argparse.Namespace) -> None:
    """Search and print the results; notices go to stderr."""
    store = open_store(args)
    videos = VideoSearch.open(store=store, init_model=args.init_model)
    if args.video is None:
        results = videos.text(args.text, args.top, args.shortlist)
    else:
        results = videos.video(args.video, args.top, args.shortlist)
    folder = Path(videos.store.folder)
    for notice in (missing_files_notice(results, folder, args.index), results.notice):
        if notice:
            print(printable(notice), file=sys.stderr)
    print(as_json(results, folder) if args.json else as_text(results))


def main(argv: list[str] | None = None) -> None:
    try:
        raise_on_interrupt()
        open_standard_streams()
        search(build_parser().parse_args(argv))
    except (OSError, ValueError, VideoReadError) as error:
        raise SystemExit(printable(f"search: {error}")) from error
    except KeyboardInterrupt as error:
        raise interrupted(INTERRUPTED) from error


if __name__ == "__main__":
    main()
