"""Show what a token-wise head looks at: words and frames with their weights, and the best matches between them.

    python -m scripts.show_wti --init_model runs/wti/pytorch_model.bin.4 --video dog.mp4 --text "a dog runs"

Print a table of the words and one of the frames, and write the picture as PNG and as SVG. The model's flags are those
of the training, read from flags.json beside the checkpoint; flags on the command line take precedence, and a flag in
neither has the default of scripts.index. The encoders compute in float32 on the CPU.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataloaders.rawvideo_util import VideoReadError
from modules.explanation import Explanation, merge_tokens, whole_words
from modules.standard_streams import open_standard_streams, printable
from modules.tokenization_clip import SimpleTokenizer
from scripts.show_wti.drawing import draw_explanation
from scripts.show_wti.encoding import add_model_flags, load_model, read_text, read_video
from video_search.encoder_flags import given_flags


def text_left_out(tokenizer: SimpleTokenizer, text: str, length: int) -> str:
    """Return the words of a text beyond the `length` tokens that the model reads, start and end token included."""
    return " ".join(word for word, _ in whole_words(tokenizer.tokenize(text)[length - 2 :]))


def tables(words: Sequence[str], seconds: np.ndarray, parts: Explanation) -> str:
    """Return tables of words and frames with their weights, their best matches, and their parts of the score."""
    lines = [f"{'word':<24}{'weight':>8}{'adds':>9}   best frame"]
    rows = zip(words, parts.text_weights.tolist(), parts.word_parts.tolist(), parts.best_frame.tolist(), strict=True)
    lines += [f"{word:<24}{weight:>8.1%}{part:>9.4f}   {seconds[frame]:.1f} s" for word, weight, part, frame in rows]
    lines.append(f"\n{'frame':<24}{'weight':>8}{'adds':>9}   best word")
    times = [f"{second:.1f} s" for second in seconds]
    rows = zip(times, parts.video_weights.tolist(), parts.frame_parts.tolist(), parts.best_word.tolist(), strict=True)
    lines += [f"{time:<24}{weight:>8.1%}{part:>9.4f}   {words[word]}" for time, weight, part, word in rows]
    return "\n".join([*lines, "", f"score {parts.score:.4f}, the sum of what all add"])


def get_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line; a value that is not valid is an argument error."""
    parser = argparse.ArgumentParser("show_wti", description=__doc__.splitlines()[0])
    parser.add_argument("--video", type=Path, required=True, help="video file")
    parser.add_argument("--text", required=True, help="text to compare with the video")
    parser.add_argument(
        "--output", type=Path, default=Path("wti.png"), help="picture, written as PNG and as SVG (default: wti.png)"
    )
    add_model_flags(parser)
    args = parser.parse_args(argv)
    if args.output.suffix not in (".png", ".svg"):
        parser.error(f"--output {args.output} must end in .png or .svg; both are written")
    return args


def show(args: argparse.Namespace) -> None:
    """Print the tables and write the pictures; raises OSError, ValueError or VideoReadError."""
    tokenizer = SimpleTokenizer()
    if not tokenizer.tokenize(args.text):
        raise ValueError("--text has no words")
    model, flags = load_model(args.init_model, given_flags(args))
    frames, seconds, video = read_video(model, flags, args.video)
    tokens, text = read_text(model, tokenizer, args.text)
    if left_out := text_left_out(tokenizer, args.text, flags.max_words):
        print(f"show_wti: --max_words {flags.max_words} cuts the text; left out: {left_out}", file=sys.stderr)
    places = whole_words(tokens)
    words, parts = [word for word, _ in places], merge_tokens(model.head.explain(text, video), places)
    print(tables(words, seconds, parts))
    figure = draw_explanation(words, frames, seconds, parts)
    for suffix in (".png", ".svg"):
        figure.savefig(args.output.with_suffix(suffix))
    print(f"written: {args.output.with_suffix('.png')} and {args.output.with_suffix('.svg').name}")


def main(argv: list[str] | None = None) -> None:
    """Run the command; an error is one line on stderr, with exit code 1."""
    open_standard_streams()
    args = get_args(argv)
    try:
        show(args)
    except (OSError, ValueError, VideoReadError) as error:
        sys.exit(printable(f"show_wti: {error}"))


if __name__ == "__main__":
    main()
