"""Write a learnable miniature of MSR-VTT: mp4 files of moving shapes, with annotations in MSR-VTT's form.

python -m scripts.make_mini_msrvtt --output data/mini_msrvtt
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from scripts.miniature.msrvtt import Settings, write_mini_msrvtt


def frame_size(text: str) -> tuple[int, int]:
    """Return (64, 48) for `64x48`."""
    width, separator, height = text.partition("x")
    if not (separator and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels, such as 64x64, not {text!r}")
    return int(width), int(height)


def get_args(argv: list[str] | None = None) -> tuple[Path, Settings]:
    """Return the folder and the settings of the command line; values that are not valid are argument errors."""
    default = Settings()
    parser = argparse.ArgumentParser(
        description="Write a learnable miniature of MSR-VTT made of moving shapes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder: new, or of an earlier run",
    )
    parser.add_argument("--train_videos", type=int, default=default.train_videos, help="videos for training")
    parser.add_argument("--test_videos", type=int, default=default.test_videos, help="held-out videos")
    parser.add_argument(
        "--captions_per_video", type=int, default=default.captions_per_video, help="captions in the json"
    )
    parser.add_argument("--size", type=frame_size, default=(default.width, default.height), help="frame WIDTHxHEIGHT")
    parser.add_argument(
        "--seconds_per_segment", type=int, default=default.seconds_per_segment, help="longest segment, in whole seconds"
    )
    parser.add_argument(
        "--max_segments", type=int, default=default.max_segments, help="maximum number of shapes in a video: 2, 3 or 4"
    )
    parser.add_argument("--fps", type=int, default=default.fps, help="frames per second")
    parser.add_argument("--seed", type=int, default=default.seed, help="random seed")
    values = vars(parser.parse_args(argv))
    output = values.pop("output")
    width, height = values.pop("size")
    settings = Settings(width=width, height=height, **values)
    try:
        settings.check()
    except ValueError as error:
        parser.error(str(error))
    return output, settings


def main(argv: list[str] | None = None) -> None:
    """Write the miniature and print its folder."""
    output, settings = get_args(argv)
    try:
        paths = write_mini_msrvtt(output, progress=True, **asdict(settings))
    except (ValueError, FileExistsError) as error:
        raise SystemExit(f"make_mini_msrvtt: {error}") from error
    print(f"{output}: {settings.train_videos} training and {settings.test_videos} test videos in {paths.videos}")


if __name__ == "__main__":
    main()
