"""CLIP's weights: from a `--pretrained_clip_name` to a file, and from a file to a state dict in OpenAI's names."""

import difflib
import logging
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from modules.distributed import local_main_process_first
from modules.file_utils import cached_path
from modules.state_dicts import clip_part, read_state_dict

logger = logging.getLogger(__name__)

# OpenAI's names, with the file name that CLIP4Clip's users keep and the name that open_clip gives the same model
OPENAI_CLIPS = {
    "ViT-B/32": ("ViT-B-32.pt", "ViT-B-32"),
    "ViT-B/16": ("ViT-B-16.pt", "ViT-B-16"),
    "ViT-L/14": ("ViT-L-14.pt", "ViT-L-14"),
    "ViT-L/14@336px": ("ViT-L-14-336px.pt", "ViT-L-14-336"),
}
OPENAI_CONTEXT_LENGTH = 77
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of RGB in [0, 1]; from CLIP's repository
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
HUB_PREFIX, FOLDER_PREFIX = "hf-hub:", "local-dir:"  # open_clip's names of models on the Hugging Face hub, in a folder
WEIGHTS_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
HUB_NAMES_OF_OPENAI = {
    "openai/clip-vit-base-patch32": "ViT-B/32",
    "openai/clip-vit-base-patch16": "ViT-B/16",
    "openai/clip-vit-large-patch14": "ViT-L/14",
    "openai/clip-vit-large-patch14-336": "ViT-L/14@336px",
}
CLIP_CACHE = Path("~/.cache/clip")  # where OpenAI's package and open_clip keep their downloads

# options of open_clip configurations that change only sizes, which are read from the weights, or only training
NEUTRAL_VISION_OPTIONS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "patch_dropout"}
NEUTRAL_TEXT_OPTIONS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
OPEN_CLIP_TEXT_HEADS = 8  # open_clip's default


@dataclass(frozen=True)
class ClipSource:
    """Where the weights of a `--pretrained_clip_name` are, and the properties of the model that weights do not hold."""

    name: str
    path: str | None = None  # a file named by the user
    openai_file: str | None = None
    open_clip_model: str | None = None
    open_clip_tag: str | None = None
    context_length: int | None = None  # None: known once the file is read
    activation: str = "quick_gelu"
    vision_heads: int | None = None  # None: CLIP's rule, width / 64
    transformer_heads: int | None = None
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    @property
    def is_missing(self) -> bool:
        """Whether the source is a local file that is not found."""
        return self.path is not None and "://" not in self.path and not Path(self.path).is_file()


def describe_clip(name: str, is_needed: bool = True) -> ClipSource:
    """Return the source for a `--pretrained_clip_name`, without network access and without reading weights.

    With `is_needed` False a checkpoint holds all of CLIP, and a file that is not found is described as any other: a
    file says nothing beyond its weights.

    Raises ValueError with the choices for a name that is not OpenAI's, open_clip's `MODEL:TAG` or an existing file.
    """
    if name in OPENAI_CLIPS:
        file_name, open_clip_model = OPENAI_CLIPS[name]
        return ClipSource(name, None, file_name, open_clip_model, "openai", OPENAI_CONTEXT_LENGTH)
    if re.match(r"(https?|s3)://", name):
        return ClipSource(name, path=name)
    if Path(name).expanduser().is_file():
        return ClipSource(name, path=str(Path(name).expanduser()))
    check_hub_name(name)
    if not is_needed and is_file_name(name):
        return ClipSource(name, path=name)
    if ":" in name:
        return describe_open_clip(name, is_needed)
    raise ValueError(
        f"--pretrained_clip_name {name!r} is unknown: give one of {', '.join(OPENAI_CLIPS)}, open_clip's MODEL:TAG "
        f"(such as ViT-B-32:laion2b_s34b_b79k), or an existing file (TorchScript, state dict or .safetensors)"
    )


def is_file_name(name: str) -> bool:
    """Return whether a CLIP's name can be that of a file: an absolute path, or a name with a suffix."""
    is_absolute = Path(name).expanduser().is_absolute() or re.match(r"[A-Za-z]:[\\/]", name) is not None
    return is_absolute or (":" not in name and re.search(r"\.\w+$", name) is not None)


def is_missing_file(name: str) -> bool:
    """Return whether a CLIP's name is not OpenAI's, open_clip's or an address: it is a file, and not found here."""
    return name not in OPENAI_CLIPS and ":" not in name and not Path(name).expanduser().is_file()


def check_hub_name(name: str) -> None:
    """Raise ValueError for the name of a model on the Hugging Face hub or of a folder, with the form to give."""
    if name.startswith(FOLDER_PREFIX) or Path(name).expanduser().is_dir():
        folder = name.removeprefix(FOLDER_PREFIX)
        raise ValueError(
            f"--pretrained_clip_name {name!r} is a folder: give open_clip's MODEL and the file of weights in it, such "
            f"as ViT-B-32:{os.path.join(folder, 'open_clip_model.safetensors')}"
        )
    repository = name.removeprefix(HUB_PREFIX)
    is_path = Path(name).suffix in WEIGHTS_SUFFIXES or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", repository)
    same = [] if is_path else models_of_repository(repository)
    if not same and not name.startswith(HUB_PREFIX):
        return
    advice = f"the same weights are {' or '.join(same)}" if same else "give open_clip's MODEL:TAG, or MODEL:FILE"
    raise ValueError(
        f"--pretrained_clip_name {name!r} is the name of a repository on the Hugging Face hub, a form that is not "
        f"supported: {advice}"
    )


def models_of_repository(repository: str) -> list[str]:
    """Return the names by which `describe_clip` knows the weights of a repository on the Hugging Face hub."""
    if repository in HUB_NAMES_OF_OPENAI:
        return [HUB_NAMES_OF_OPENAI[repository]]
    import open_clip  # takes seconds; only an error needs it here

    return [
        f"{model}:{tag}"
        for model, tag in open_clip.list_pretrained()
        if (open_clip.get_pretrained_cfg(model, tag).get("hf_hub") or "").split("/")[:2] == repository.split("/")[:2]
    ]


def describe_open_clip(name: str, is_needed: bool = True) -> ClipSource:
    """Return the source for open_clip's `MODEL:TAG`, or for weights of that model in a file (`MODEL:FILE`).

    The file may be missing unless it `is_needed`.
    """
    import open_clip  # takes seconds; only runs that name an open_clip model need it

    model, tag = name.split(":", 1)
    config = open_clip.get_model_config(model)
    if config is None:
        close = difflib.get_close_matches(model, open_clip.list_models(), n=5, cutoff=0.3)
        raise ValueError(f"--pretrained_clip_name {name!r}: open_clip has no model {model!r}; close names: {close}")
    is_file = Path(tag).expanduser().is_file()
    tags = open_clip.list_pretrained_tags_by_model(model)
    is_file = is_file or (not is_needed and tag not in tags and is_file_name(tag))
    if not is_file and tag not in tags:
        raise ValueError(f"--pretrained_clip_name {name!r}: {tag!r} is neither a file nor a tag of {model}: {tags}")
    vision, text = config["vision_cfg"], config["text_cfg"]
    unsupported = sorted((set(vision) - NEUTRAL_VISION_OPTIONS) | (set(text) - NEUTRAL_TEXT_OPTIONS))
    if unsupported:
        raise ValueError(
            f"--pretrained_clip_name {name!r} is not a plain ViT CLIP: unsupported options {', '.join(unsupported)}"
        )
    if isinstance(vision["layers"], list):
        raise ValueError(f"--pretrained_clip_name {name!r} is a ResNet CLIP; only the ViT models are supported")
    pretrained = {} if is_file else open_clip.get_pretrained_cfg(model, tag)
    quick = bool(config.get("quick_gelu") or pretrained.get("quick_gelu"))
    return ClipSource(
        name,
        path=str(Path(tag).expanduser()) if is_file else None,
        open_clip_model=model,
        open_clip_tag=None if is_file else tag,
        context_length=text.get("context_length", OPENAI_CONTEXT_LENGTH),
        activation="quick_gelu" if quick else "gelu",
        vision_heads=vision["width"] // vision.get("head_width", 64),
        transformer_heads=text.get("heads", OPEN_CLIP_TEXT_HEADS),
        mean=tuple(pretrained.get("mean", OPENAI_MEAN)),
        std=tuple(pretrained.get("std", OPENAI_STD)),
    )


def locate_clip(source: ClipSource, cache_dir: str | None = None) -> str:
    """Return a local file with the weights of `source`, downloaded by open_clip if necessary.

    OpenAI's files are first searched in `modules/`, `cache_dir` and `~/.cache/clip`.
    Raises FileNotFoundError if the download fails; the message names the folders in which a file is found.
    """
    if source.path is not None:
        return cached_path(source.path, cache_dir or None)
    download_folder = Path(cache_dir).expanduser() if cache_dir else CLIP_CACHE.expanduser()
    folders = list(dict.fromkeys([Path(__file__).parent, download_folder, CLIP_CACHE.expanduser()]))
    if source.openai_file is not None:
        for folder in folders:
            if (folder / source.openai_file).is_file():
                return str(folder / source.openai_file)
    from open_clip import pretrained

    config = pretrained.get_pretrained_cfg(source.open_clip_model, source.open_clip_tag)
    try:
        if source.openai_file is not None and config.get("url"):
            return download_openai_file(config["url"], download_folder, source.openai_file)
        return pretrained.download_pretrained(config, cache_dir=cache_dir or None)
    except Exception as error:  # the libraries below raise many kinds of errors; all mean a failed download
        hint = (
            f"put {source.openai_file} into one of {', '.join(map(str, folders))}"
            if source.openai_file
            else f"name a file: --pretrained_clip_name {source.open_clip_model}:FILE"
        )
        raise FileNotFoundError(
            f"weights of --pretrained_clip_name {source.name} could not be downloaded "
            f"({type(error).__name__}: {error}); {hint}"
        ) from error


def download_openai_file(url: str, folder: Path, file_name: str) -> str:
    """Download OpenAI's file into `folder` and return its path; open_clip checks the sha256 in the address."""
    from open_clip.pretrained import download_pretrained_from_url

    folder.mkdir(parents=True, exist_ok=True)
    # in a temporary folder until the file is whole: the next run would use the remains of an interrupted download
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        os.replace(download_pretrained_from_url(url, cache_dir=unfinished), folder / file_name)
    return str(folder / file_name)


def read_clip_weights(source: ClipSource, cache_dir: str | None = None) -> dict[str, torch.Tensor]:
    """Return the state dict of CLIP in OpenAI's names, in float32; numbers of other kinds stay as they are."""
    with local_main_process_first():
        path = locate_clip(source, cache_dir)
    weights = read_state_dict(path)
    weights = clip_part(weights) or weights  # a checkpoint of this project contains a CLIP
    # open_clip's models with a separate text class have the text tower under `text.`
    weights = {key.removeprefix("text."): value for key, value in weights.items()}
    # sizes that OpenAI stores beside the weights, and the causal mask, are not weights
    for key in ("input_resolution", "context_length", "vocab_size", "attn_mask"):
        weights.pop(key, None)
    logger.info("CLIP weights: %s from %s (%s)", source.name, path, source.activation)
    return {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
