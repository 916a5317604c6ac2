"""Measure what trained weights look at, on the test videos of a miniature, whose truth is known.

    python -m benchmarks.wti_weights --init_model runs/wti/pytorch_model.bin.19 --data runs/mini_msrvtt

Print a Markdown table: the mean weight of frames with and without a shape, and of the kinds of words in all captions of
these videos. A weight is a multiple of the uniform weight over the frames of the video or the tokens of the caption.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

from dataloaders.rawvideo_util import VideoReadError
from modules.explanation import END_WORD, START_WORD, whole_words
from modules.modeling import CLIP4Clip
from modules.token_interaction import PackedTokens
from modules.tokenization_clip import SimpleTokenizer
from scripts.miniature.moving_shapes import COLOURS, SHAPES
from scripts.miniature.msrvtt import MOTIONS
from scripts.show_wti.encoding import add_model_flags, load_model, read_text, read_video
from video_search.encoder_flags import given_flags

INFORMATIVE, EMPTY = "frames with a shape", "empty frames"
COLOUR, SHAPE, MOTION = "colours", "shapes", "motions"
EARLY_FILLER, LATE_FILLER = "filler words before the first of these", "filler words after it"
KINDS = (INFORMATIVE, EMPTY, COLOUR, SHAPE, MOTION, EARLY_FILLER, LATE_FILLER, START_WORD, END_WORD)

# in the phrases of MOTIONS, but also elsewhere in the captions, or without a motion in their meaning
FUNCTION_WORDS = {"to", "the", "and", "at", "all", "does", "not", "gets", "side", "itself"}

Sample = list[tuple[str, float]]  # kind and weight of each frame of a video, or of each token of a caption


def motion_words() -> set[str]:
    """Return the words that describe motions in captions."""
    return {word for phrases in MOTIONS.values() for phrase in phrases for word in phrase.split()} - FUNCTION_WORDS


def kinds_of_frames(segments: Sequence[dict], seconds: Sequence[float]) -> list[str]:
    """Return the kind of frame at each second of a video with these entries of segments.json.

    Raises ValueError for a second after the end of the video.
    """
    kinds = []
    for second in seconds:
        shown = [part for part in segments if part["start"] <= second < part["end"]]
        if not shown:
            raise ValueError(f"segments.json has no entry for second {second} of a video: it belongs to other videos")
        kinds.append(INFORMATIVE if shown[0]["colour"] else EMPTY)
    return kinds


def kinds_of_tokens(tokens: Sequence[str]) -> list[str]:
    """Return the kind of the word that each token belongs to; punctuation is filler.

    Filler is separated by its place, since a token of CLIP's causal text tower attends only to earlier tokens: early
    filler cannot carry content, late filler can.
    """
    kinds, filler = [], EARLY_FILLER
    for word, places in whole_words(tokens):
        kind = filler
        for name, words in ((COLOUR, COLOURS), (SHAPE, SHAPES), (MOTION, motion_words())):
            if word in words:
                kind, filler = name, LATE_FILLER
        if word in (START_WORD, END_WORD):
            kind = word
        kinds += [kind] * len(places)
    return kinds


def sample_of(packed: PackedTokens, kinds: Sequence[str]) -> Sample:
    """Return the weights of one text or video, as multiples of 1 / their number."""
    return list(zip(kinds, (packed.weights * len(kinds)).tolist(), strict=True))


def video_samples(model: CLIP4Clip, flags: argparse.Namespace, data: Path) -> Iterator[Sample]:
    """Yield one sample per test video of a miniature."""
    segments = read_json(data / "segments.json")
    for video_id in held_out_videos(data):
        _, seconds, packed = read_video(model, flags, data / "videos" / f"{video_id}.mp4")
        yield sample_of(packed, kinds_of_frames(segments[video_id], seconds))


def caption_samples(model: CLIP4Clip, data: Path) -> Iterator[Sample]:
    """Yield one sample per caption of the test videos."""
    tokenizer, videos = SimpleTokenizer(), set(held_out_videos(data))
    for sentence in read_json(data / "MSRVTT_data.json")["sentences"]:
        if sentence["video_id"] in videos:
            tokens, packed = read_text(model, tokenizer, sentence["caption"])
            yield sample_of(packed, kinds_of_tokens(tokens))


def held_out_videos(data: Path) -> list[str]:
    """Return the ids of the test videos."""
    return [video["video_id"] for video in read_json(data / "MSRVTT_data.json")["videos"] if video["split"] == "test"]


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def mean_weights(samples: Sequence[Sample]) -> dict[str, tuple[float, int]]:
    """Return the mean weight and the number of items of each kind, over all samples together."""
    weights = defaultdict(list)
    for kind, weight in (item for sample in samples for item in sample):
        weights[kind].append(weight)
    return {kind: (mean(weights[kind]), len(weights[kind])) for kind in KINDS if kind in weights}


def in_order(samples: Sequence[Sample], heavy: Sequence[str], light: Sequence[str]) -> tuple[int, int]:
    """Return in how many samples the heavy kinds weigh more on average than the light ones, and of how many.

    Samples that lack either do not count.
    """
    pairs = []
    for sample in samples:
        sides = [[weight for kind, weight in sample if kind in kinds] for kinds in (heavy, light)]
        if all(sides):
            pairs.append(mean(sides[0]) > mean(sides[1]))
    return sum(pairs), len(pairs)


def report(videos: Sequence[Sample], captions: Sequence[Sample]) -> str:
    """Return the table, and in how many videos and captions the order is the expected one."""
    lines = ["| what | mean weight, 1.0 = its share | items |", "|---|---|---|"]
    for kind, (weight, count) in mean_weights([*videos, *captions]).items():
        lines.append(f"| {kind} | {weight:.2f} | {count} |")
    frames = in_order(videos, [INFORMATIVE], [EMPTY])
    words = in_order(captions, [COLOUR, SHAPE], [EARLY_FILLER, LATE_FILLER])
    late = in_order(captions, [COLOUR, SHAPE], [LATE_FILLER])
    return "\n".join([
        *lines, "",
        f"{INFORMATIVE} weigh more on average than {EMPTY} in {frames[0]} of {frames[1]} videos;",
        f"{COLOUR} and {SHAPE} weigh more on average than filler words in {words[0]} of {words[1]} captions,",
        f"and more than those after the first of them in {late[0]} of {late[1]}.",
    ])  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Run the command; an error is one line on stderr, with exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that scripts.make_mini_msrvtt wrote")
    add_model_flags(parser)
    args = parser.parse_args(argv)
    try:
        model, flags = load_model(args.init_model, given_flags(args))
        print(report(list(video_samples(model, flags, args.data)), list(caption_samples(model, args.data))))
    except (OSError, ValueError, VideoReadError) as error:
        sys.exit(f"wti_weights: {error}")


if __name__ == "__main__":
    main()
