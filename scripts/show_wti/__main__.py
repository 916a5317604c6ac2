"""Shows what a token-wise head looks at: words and frames with their weights, and the best matches between them.

    python -m scripts.show_wti --init_model runs/wti/pytorch_model.bin.4 --video dog.mp4 --text "a dog runs"

Prints a table of the words and one of the frames, and writes the picture as PNG and as SVG. The model's flags are those
of the training, read from the flags.json beside the checkpoint; flags on the command line win, and what neither says
has the training's default. The encoders compute in float32 on the processor.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

import main_task_retrieval
from dataloaders.rawvideo_util import RawVideoExtractor, VideoReadError
from dataloaders.retrieval_dataset import pad_frames, pad_ids, with_special_tokens
from engine.arguments import build_parser
from engine.run_files import FLAGS_FILE
from modules.explanation import Explanation, by_whole_words, whole_words
from modules.heads import check_explainable
from modules.modeling import CLIP4Clip
from modules.retrieval import encode_texts, encode_videos
from modules.token_interaction import PackedTokens
from modules.tokenization_clip import SimpleTokenizer
from scripts.show_wti.drawing import draw_explanation
from util import Process

# what decides how a checkpoint reads texts and videos
MODEL_FLAGS = {
    "pretrained_clip_name": str, "sim_header": str, "agg_module": str, "wti_arch": int, "wti_padding": str,
    "linear_patch": str, "cross_num_hidden_layers": int, "max_words": int, "max_frames": int,
    "feature_framerate": int, "slice_framepos": int,
}  # fmt: skip


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--init_model` and the model's flags; those of the model that are not given set no attribute."""
    parser.add_argument("--init_model", required=True, help="checkpoint of a training with --sim_header ti or wti")
    group = parser.add_argument_group(
        "the model", f"as in main_task_retrieval.py; what is not given comes from {FLAGS_FILE} beside the checkpoint"
    )
    for name, kind in MODEL_FLAGS.items():
        group.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS)


def given_model_flags(args: argparse.Namespace) -> dict:
    """Those of the model's flags that the command line gave."""
    return {name: value for name, value in vars(args).items() if name in MODEL_FLAGS}


def load_model(init_model: str, given: Mapping[str, object]) -> tuple[CLIP4Clip, argparse.Namespace]:
    """The model of a checkpoint, in evaluation mode, and its flags: `given`, else recorded beside it, else the default.

    Raises OSError or ValueError naming the file or the flag for what is missing, damaged or no token-wise head.
    """
    if "://" not in init_model and not Path(init_model).is_file():
        raise FileNotFoundError(f"--init_model: no file at {init_model}")
    defaults = vars(build_parser().parse_args(["--do_eval", "--output_dir", ""]))
    recorded = recorded_flags(Path(init_model).with_name(FLAGS_FILE))
    chosen = {name: recorded[name] for name in (*MODEL_FLAGS, "cross_model", "cache_dir") if name in recorded}
    flags = argparse.Namespace(**{**defaults, **chosen, **given, "init_model": init_model, "precision": "fp32"})
    check_explainable(flags.sim_header)
    process = Process(torch.device("cpu"))
    return main_task_retrieval.init_model(flags, process, SimpleTokenizer().vocab_size).eval(), flags


def recorded_flags(record: Path) -> dict:
    """The flags of the run that wrote this file; none where there is no such file."""
    if not record.is_file():
        return {}
    try:
        return dict(json.loads(record.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{record} holds no flags: {error}") from error


def read_text(model: CLIP4Clip, tokenizer: SimpleTokenizer, text: str) -> tuple[list[str], PackedTokens]:
    """The tokens that the model reads of a text, with start and end token T at most, and what it makes of them."""
    length = model.config.max_words
    tokens = with_special_tokens(tokenizer.tokenize(text), length)
    input_ids, mask = map(torch.from_numpy, pad_ids(tokenizer, tokens, length))
    return tokens, encode_texts(model, [(input_ids, mask, torch.zeros_like(mask))], torch.device("cpu"))


def read_video(model: CLIP4Clip, flags: argparse.Namespace, path: Path) -> tuple[np.ndarray, np.ndarray, PackedTokens]:
    """Frames uint8 (V,3,H,W) of a video, the seconds (V,) at which they are shown, and what the model makes of them."""
    length = model.config.max_frames
    extractor = RawVideoExtractor(flags.feature_framerate, model.input_resolution)
    frames, seconds = extractor.read_frames_with_times(path, length, flags.slice_framepos)
    video, mask = map(torch.from_numpy, pad_frames(frames, length))
    return frames, seconds, encode_videos(model, [(video, mask)], torch.device("cpu"))


def text_left_out(tokenizer: SimpleTokenizer, text: str, length: int) -> str:
    """The words of a text that are behind the `length` tokens which the model reads, of which two are start and end."""
    return " ".join(word for word, _ in whole_words(tokenizer.tokenize(text)[length - 2 :]))


def tables(words: Sequence[str], seconds: np.ndarray, parts: Explanation) -> str:
    """Words and frames with their weights, their best matches, and what these add to the score."""
    lines = [f"{'word':<24}{'weight':>8}{'adds':>9}   best frame"]
    rows = zip(words, parts.text_weights.tolist(), parts.word_parts.tolist(), parts.best_frame.tolist(), strict=True)
    lines += [f"{word:<24}{weight:>8.1%}{part:>9.4f}   {seconds[frame]:.1f} s" for word, weight, part, frame in rows]
    lines.append(f"\n{'frame':<24}{'weight':>8}{'adds':>9}   best word")
    times = [f"{second:.1f} s" for second in seconds]
    rows = zip(times, parts.video_weights.tolist(), parts.frame_parts.tolist(), parts.best_word.tolist(), strict=True)
    lines += [f"{time:<24}{weight:>8.1%}{part:>9.4f}   {words[word]}" for time, weight, part, word in rows]
    return "\n".join([*lines, "", f"score {parts.score:.4f}, the sum of what all add"])


def get_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The parsed command line; what makes no sense is an argument error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video", type=Path, required=True, help="video file")
    parser.add_argument("--text", required=True, help="the words to compare with it")
    parser.add_argument("--output", type=Path, default=Path("wti.png"), help="picture; an SVG of that name beside it")
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
    model, flags = load_model(args.init_model, given_model_flags(args))
    frames, seconds, video = read_video(model, flags, args.video)
    tokens, text = read_text(model, tokenizer, args.text)
    if left_out := text_left_out(tokenizer, args.text, flags.max_words):
        print(f"show_wti: --max_words {flags.max_words} cuts the text; left out: {left_out}", file=sys.stderr)
    places = whole_words(tokens)
    words, parts = [word for word, _ in places], by_whole_words(model.head.explain(text, video), places)
    print(tables(words, seconds, parts))
    figure = draw_explanation(words, frames, seconds, parts)
    for suffix in (".png", ".svg"):
        figure.savefig(args.output.with_suffix(suffix))
    print(f"written: {args.output.with_suffix('.png')} and {args.output.with_suffix('.svg').name}")


def main(argv: list[str] | None = None) -> None:
    """Show what the command line asks for; an error is one line on stderr, and exit code 1."""
    args = get_args(argv)
    try:
        show(args)
    except (OSError, ValueError, VideoReadError) as error:
        sys.exit(f"show_wti: {error}")


if __name__ == "__main__":
    main()
