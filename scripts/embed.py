"""Write vectors of videos or texts to a file, for other programs.

    python -m scripts.embed --init_model CKPT --videos FOLDER_OR_FILES... --output videos.npz
    python -m scripts.embed --init_model CKPT --texts FILE_WITH_ONE_PER_LINE --output texts.npz

Arrays of the file, for N videos or texts with M vectors of width D in all; `numpy.load(FILE)` reads them:

    names    (N,)   str      path of the video, or text
    pooled   (N,D)  float32  one unit vector per row
    counts   (N,)   int64    vectors per row, at least 1; the vectors of all rows are stored in sequence
    vectors  (M,D)  float32  frames, or words (heads ti, wti), or sentences; unit vectors, except for the heads
                             tightTransf and xti, whose cross encoder reads unnormalized vectors
    weights  (M,)   float32  weight of each vector in a score; they sum to 1 in each row
    floors   (N,)   float32  lower bound of MaxSim in a score: 0 if padding counts as cosine 0, else -inf
    seconds  (M,)   float32  videos: time of each frame
    tokens   (M,)   str      texts: token or sentence of each vector
    settings ()     str      the encoder's flags, as JSON
"""

# ruff: noqa: E402

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from modules.interrupts import exit_on_interrupt, interrupted, raise_on_interrupt

INTERRUPTED = "embed: interrupted; nothing was written"

if __name__ == "__main__":
    exit_on_interrupt(INTERRUPTED)  # the imports below take seconds

import numpy as np

from dataloaders.annotation_files import read_text
from dataloaders.annotations import require_path
from dataloaders.video_files import EXCLUDE_HELP, describe_passed_over
from modules.standard_streams import open_standard_streams, printable
from modules.whole_files import atomic_write
from video_search.encoder import Encoder
from video_search.encoder_flags import add_encoder_flags, given_flags
from video_search.indexing import find_files
from video_search.reading import UnreadableFile, add_num_workers, check_num_workers
from video_search.vectors import VideoVectors


def list_videos(
    places: list[str], exclude: Sequence[str] = ()
) -> tuple[list[str], list[UnreadableFile], dict[str, str]]:
    """Return the files among the places and all videos below the folders, each once; unreadable ones; passed over ones.

    The last are paths with one of `video_files.KINDS`. `exclude` are patterns for what is below the folders.
    """
    files, unreadable, passed_over = [], [], {}
    for place in places:
        if Path(place).is_dir():
            listing = find_files(Path(place), exclude)
            files += [str(Path(place) / path) for path in listing.files]
            unreadable += listing.unreadable
            passed_over |= {str(Path(place) / path): kind for path, kind in listing.walk.passed_over.items()}
        else:
            files.append(str(require_path(place, "--videos")))
    return list(dict.fromkeys(files)), unreadable, passed_over


def embed_videos(
    encoder: Encoder, files: list[str], processes: int
) -> tuple[dict[str, np.ndarray], list[UnreadableFile]]:
    """Return the arrays of all readable videos, in the order of the files, and the unreadable ones."""
    results = dict(encoder.videos(files, processes, progress=True, on_read=print_loss))
    unreadable = [results[file] for file in files if isinstance(results[file], UnreadableFile)]
    names = [file for file in files if not isinstance(results[file], UnreadableFile)]
    if not names:
        return {}, unreadable
    videos = VideoVectors.concatenate([results[name] for name in names])
    arrays = {name: getattr(videos, name) for name in ("pooled", "counts", "weights", "floors", "seconds")}
    return {"names": np.array(names), "vectors": videos.frames, **arrays}, unreadable


def print_loss(path: str, loss: str) -> None:
    """Print what is lost of a damaged video."""
    if loss:
        print(printable(f"damaged: {path}: {loss}"), file=sys.stderr)


def embed_texts(encoder: Encoder, texts: list[str]) -> dict[str, np.ndarray]:
    """Return the arrays of all texts."""
    queries = encoder.texts(texts)
    return {
        "names": np.array(texts),
        "pooled": np.stack([query.pooled for query in queries]),
        "counts": np.array([len(query.vectors) for query in queries], dtype=np.int64),
        "vectors": np.concatenate([query.vectors for query in queries]),
        "weights": np.concatenate([query.weights for query in queries]),
        "floors": np.array([query.floor for query in queries], dtype=np.float32),
        "tokens": np.array([name for query in queries for name in query.names]),
    }


def read_texts(path: str) -> list[str]:
    """Return the lines of a file. Raises ValueError if a line is blank, or if there is none."""
    # at line ends only: str.splitlines also splits at characters that may be part of a text
    lines = re.split(r"\r?\n", read_text(path, "--texts").rstrip("\r\n"))
    if lines == [""]:
        raise ValueError(f"--texts {path} is empty")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise ValueError(f"--texts {path}: line {number} is empty")
    return lines


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--videos", nargs="+", metavar="PATH", help="files and folders of videos")
    wanted.add_argument("--texts", metavar="FILE", help="one text per line")
    parser.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help=EXCLUDE_HELP)
    parser.add_argument("--output", type=Path, required=True, help="the .npz file to write")
    add_num_workers(parser)
    add_encoder_flags(parser)
    return parser


def embed(args: argparse.Namespace) -> None:
    """Write the file that the flags name. Raises ValueError if no video can be read."""
    check_num_workers(args.num_workers)
    if args.output.suffix != ".npz":
        raise ValueError(f"--output {args.output} must end in .npz")
    if not args.output.parent.is_dir():
        raise NotADirectoryError(f"--output {args.output}: the folder {args.output.parent} does not exist")
    texts = read_texts(args.texts) if args.texts else []
    files, unreadable, passed_over = list_videos(args.videos or [], args.exclude)
    encoder = Encoder.load(**given_flags(args))
    if texts:
        arrays = embed_texts(encoder, texts)
    else:
        arrays, undecoded = embed_videos(encoder, files, args.num_workers)
        unreadable += undecoded
    if passed_over:
        print(printable(describe_passed_over(passed_over)), file=sys.stderr)
    for file in unreadable:
        print(printable(f"unreadable: {file.path}: {file.reason}"), file=sys.stderr)
    if not arrays:
        raise ValueError(f"none of {len(unreadable)} videos could be read")
    with atomic_write(args.output) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays, settings=np.array(json.dumps(encoder.settings)))
    rows, vectors = len(arrays["names"]), len(arrays["vectors"])
    print(f"{args.output}: {rows} rows, {vectors} vectors; {len(unreadable)} unreadable files")


def main(argv: list[str] | None = None) -> None:
    try:
        raise_on_interrupt()
        open_standard_streams()
        args = build_parser().parse_args(argv)
        embed(args)
    except (OSError, ValueError) as error:
        raise SystemExit(printable(f"embed: {error}")) from error
    except KeyboardInterrupt as error:
        raise interrupted(INTERRUPTED) from error


if __name__ == "__main__":
    main()
