"""How a run came to its numbers: the flags that decide them and their hash, and the version of the code."""

import json
import re
import subprocess
from pathlib import Path

import torch

from engine.flags import FLAGS
from modules.clip_weights import is_file_name
from modules.whole_files import text_sha256

REPOSITORY = Path(__file__).parent.parent


def provenance(args, processes: int) -> dict:
    """Return the entries of `metrics.json` that name a run: seed, processes, hashes and versions.

    `args` are the flags with `precision` resolved; the number of processes R decides the gradients of a training.
    """
    # each seed has a checkpoint of its own, which an evaluation receives by --init_model
    per_seed = ("seed",) if args.do_train else ("seed", "init_model")
    return {
        "seed": args.seed,
        "processes": processes,
        "configuration_sha256": configuration_hash(args, processes),
        "configuration_sha256_without_seed": configuration_hash(args, processes, without=per_seed),
        "code_version": code_version(),
        "torch_version": torch.__version__,
    }


def decisive_flags(args, processes: int) -> dict:
    """Return the flags that decide the numbers, with the number of processes in training, as plain values.

    Data files and a file of CLIP weights count by their names, so that they may lie anywhere.
    """
    no_numbers = {"unread_flags", *(flag.name for flag in FLAGS.values() if not flag.decides_numbers)}
    flags = {name: value for name, value in vars(args).items() if name not in no_numbers}
    data_paths = [flag.name for flag in FLAGS.values() if flag.names_data and flags.get(flag.name)]
    flags |= {name: Path(flags[name]).name for name in data_paths}
    if is_file_name(args.pretrained_clip_name) or Path(args.pretrained_clip_name).is_file():
        flags["pretrained_clip_name"] = Path(args.pretrained_clip_name).name
    if args.do_train:
        flags["processes"] = processes
    if flags.get("frame_sampling") == "published":  # so that published runs keep the hash that they had without it
        del flags["frame_sampling"]
    return flags


def configuration_hash(args, processes: int, without: tuple[str, ...] = ()) -> str:
    """Return the sha256 of the `decisive_flags`, but for the flags named in `without`.

    A resumed run repeats the uninterrupted one: `--init_model` and `--resume_model` of a resumption do not count.
    """
    flags = decisive_flags(args, processes)
    if flags.pop("resume_model", None):
        flags["init_model"] = None
    counted = {name: value for name, value in flags.items() if name not in without}
    return text_sha256(json.dumps(counted, sort_keys=True))


def code_version() -> str:
    """Return `git COMMIT`, with ` dirty` if tracked files differ; `version N` or `unknown` outside a clone."""
    try:
        top, commit, changes = (
            subprocess.run(
                ["git", *command], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=30
            ).stdout.strip()
            for command in (
                ["rev-parse", "--show-toplevel"],
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no"],
            )
        )
        if Path(top).resolve() == REPOSITORY.resolve():  # else the files lie inside another project's clone
            return f"git {commit}{' dirty' if changes else ''}"
    except (OSError, subprocess.SubprocessError):
        return package_version()
    return package_version()


def package_version() -> str:
    """Return `version N` from pyproject.toml, `unknown` without it."""
    file = REPOSITORY / "pyproject.toml"
    found = re.search(r'^version = "(.+)"$', file.read_text(encoding="utf-8"), re.M) if file.is_file() else None
    return f"version {found[1]}" if found else "unknown"
