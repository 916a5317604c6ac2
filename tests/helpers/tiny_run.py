"""The smallest data set and model that every part of a run works with, and the flags that name them."""

from pathlib import Path

import torch

from scripts.miniature.msrvtt import write_mini_msrvtt
from scripts.miniature.tiny_clip import tiny_clip_state_dict


def write_tiny_run(folder: Path, train_videos: int = 24, test_videos: int = 9, captions_per_video: int = 3) -> Path:
    """Write a miniature MSR-VTT with mp4 files to `data/` and a CLIP of width 32 to `clip.pt`; return the folder."""
    write_mini_msrvtt(
        folder / "data", train_videos=train_videos, test_videos=test_videos, captions_per_video=captions_per_video
    )
    weights = tiny_clip_state_dict(
        embed_dim=32, vision_width=32, vision_layers=1, patch_size=16, image_size=32, text_width=32, text_layers=1
    )
    torch.save(weights, folder / "clip.pt")
    return folder


def data_flags(folder: Path) -> list[str]:
    """Return the flags that training and evaluation on this data have in common."""
    data = folder / "data"
    return [
        "--train_csv", str(data / "MSRVTT_train.csv"), "--val_csv", str(data / "MSRVTT_test.csv"),
        "--data_path", str(data / "MSRVTT_data.json"), "--features_path", str(data / "videos"),
        "--pretrained_clip_name", str(folder / "clip.pt"), "--max_words", "16", "--max_frames", "3",
        "--slice_framepos", "2", "--num_thread_reader", "0", "--batch_size_val", "4", "--n_display", "1",
        "--cross_num_hidden_layers", "1",
    ]  # fmt: skip
