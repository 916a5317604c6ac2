"""Write a small CLIP with random weights, in OpenAI's form.

python -m scripts.make_tiny_clip --output data/tiny_clip.pt
"""

import argparse
from pathlib import Path

from scripts.miniature.tiny_clip import check_sizes, save_state_dict, tiny_clip_state_dict


def get_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; sizes that are not valid are argument errors."""
    parser = argparse.ArgumentParser(
        description="Write a small CLIP with random weights, in OpenAI's form.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="file to write; a .safetensors suffix chooses that format"
    )
    parser.add_argument("--embed_dim", type=int, default=128, help="joint width of texts and frames")
    parser.add_argument("--vision_width", type=int, default=128, help="width of the vision tower")
    parser.add_argument("--vision_layers", type=int, default=3, help="blocks of the vision tower")
    parser.add_argument("--patch_size", type=int, default=16, help="side of a patch in pixels")
    parser.add_argument("--image_size", type=int, default=64, help="side of a frame in pixels")
    parser.add_argument("--text_width", type=int, default=128, help="width of the text tower")
    parser.add_argument("--text_layers", type=int, default=2, help="blocks of the text tower")
    parser.add_argument("--context_length", type=int, default=77, help="positions of the text tower")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    args = parser.parse_args(argv)
    if args.output.is_dir():
        parser.error(f"--output {args.output} is a folder, not a file")
    try:
        check_sizes(**{name: value for name, value in vars(args).items() if name != "output"})
    except ValueError as error:
        parser.error(str(error))
    return args


def main(argv: list[str] | None = None) -> None:
    """Write the state dict and print its size."""
    args = get_args(argv)
    weights = tiny_clip_state_dict(**{name: value for name, value in vars(args).items() if name != "output"})
    save_state_dict(weights, args.output)
    parameters = sum(weight.numel() for weight in weights.values())
    print(f"{args.output}: a random CLIP with {parameters / 1e6:.2f} M parameters, {args.image_size} px frames")


if __name__ == "__main__":
    main()
