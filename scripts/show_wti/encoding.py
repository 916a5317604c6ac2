"""A token-wise model from its checkpoint, and the words and frames that it reads of one text and one video."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataloaders.rawvideo_util import RawVideoExtractor
from dataloaders.retrieval_dataset import pad_frames, pad_ids, with_special_tokens
from dataloaders.video_damage import record_damage
from modules.checkpoint import open_model, read_frame_sampling, run_folder
from modules.heads import check_explainable
from modules.modeling import CLIP4Clip
from modules.retrieval import encode_texts, encode_videos
from modules.standard_streams import printable
from modules.token_interaction import PackedTokens
from modules.tokenization_clip import SimpleTokenizer
from video_search.encoder_flags import add_encoder_flags, resolve_flags


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags with which index and search open a checkpoint; here it computes in float32 on the CPU."""
    add_encoder_flags(parser, without=("precision",))


def load_model(init_model: str | None, given: Mapping[str, Any]) -> tuple[CLIP4Clip, argparse.Namespace]:
    """Return the model of a checkpoint, in evaluation mode, and its flags: given, else recorded, else default.

    Raises OSError or ValueError naming the file or the flag: it is missing or damaged, or the head is not token-wise.
    """
    flags = argparse.Namespace(**resolve_flags(init_model, None, {**given, "precision": "fp32"}))
    if given.get("frame_sampling") is None and flags.init_model:
        flags.frame_sampling = read_frame_sampling(run_folder(flags.init_model)) or flags.frame_sampling
    check_explainable(flags.sim_header)
    return open_model(flags, SimpleTokenizer().vocab_size).eval(), flags


def read_text(model: CLIP4Clip, tokenizer: SimpleTokenizer, text: str) -> tuple[list[str], PackedTokens]:
    """Return the tokens that the model reads of a text, at most T with start and end token, and their vectors."""
    length = model.config.max_words
    tokens = with_special_tokens(tokenizer.tokenize(text), length)
    input_ids, mask = map(torch.from_numpy, pad_ids(tokenizer, tokens, length))
    return tokens, encode_texts(model, [(input_ids, mask, torch.zeros_like(mask))], torch.device("cpu"))


def read_video(model: CLIP4Clip, flags: argparse.Namespace, path: Path) -> tuple[np.ndarray, np.ndarray, PackedTokens]:
    """Return frames uint8 (V,3,H,W) of a video, the seconds (V,) at which they are shown, and their vectors."""
    length = model.config.max_frames
    extractor = RawVideoExtractor(flags.feature_framerate, model.input_resolution, flags.frame_sampling)
    with record_damage() as notes:
        frames, seconds = extractor.read_frames_with_times(path, length, flags.slice_framepos)
    for note in notes:
        print(printable(f"{path}: {note}"), file=sys.stderr)
    video, mask = map(torch.from_numpy, pad_frames(frames, length))
    return frames, seconds, encode_videos(model, [(video, mask)], torch.device("cpu"))
