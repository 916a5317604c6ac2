"""Where CLIP's weights come from: every form of file, the names, and open_clip's own models."""

import hashlib
import json
import os
import urllib.error
import urllib.request
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from modules import clip_weights
from modules.clip_weights import OPENAI_CLIPS, describe_clip, locate_clip, read_clip_weights
from modules.modeling import CLIP4Clip
from modules.state_dicts import read_state_dict
from tests.helpers.clip_cases import POSITIONS, VOCABULARY, WIDTH, assert_same_weights, task, tiny_clip, with_prefix

# ---- forms of files ----------------------------------------------------------------------------------------------


class Archive(nn.Module):
    """A tree of modules with the given weights, as OpenAI's archives hold them: float16, with three sizes beside."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        super().__init__()
        for key, value in weights.items():
            *path, name = key.split(".")
            module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_parameter(name, nn.Parameter(value))
        for name, value in (("input_resolution", 16), ("context_length", POSITIONS), ("vocab_size", VOCABULARY)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def save_torchscript(weights: dict, path: Path) -> None:
    torch.jit.trace(Archive(weights), torch.zeros(1)).save(str(path))


def save_old_torch_format(weights: dict, path: Path) -> None:
    torch.save(weights, path, _use_new_zipfile_serialization=False)


def save_training_state(weights: dict, path: Path) -> None:
    """open_clip's training checkpoints."""
    content = {"epoch": 3, "name": "run", "state_dict": with_prefix("module.", weights), "optimizer": {"state": {}}}
    torch.save(content, path)


def save_whole_checkpoint(weights: dict, path: Path) -> None:
    """`pytorch_model.bin.N` of this project or CLIP4Clip."""
    torch.save({**with_prefix("clip.", weights), "similarity_dense.weight": torch.zeros(1, WIDTH)}, path)


FILE_FORMS = {
    "state dict": ("clip.pt", torch.save),
    "state dict in torch's old format": ("clip.pt", save_old_torch_format),
    "under state_dict": ("clip.pth", lambda weights, path: torch.save({"state_dict": weights}, path)),
    "training checkpoint of open_clip": ("epoch_3.pt", save_training_state),
    "module. prefix": ("clip.bin", lambda weights, path: torch.save(with_prefix("module.", weights), path)),
    "text tower below text.": (
        "custom.pt",
        lambda weights, path: torch.save(
            {k if k.startswith("visual.") or k == "logit_scale" else f"text.{k}": v for k, v in weights.items()}, path
        ),
    ),
    "whole checkpoint": ("pytorch_model.bin.4", save_whole_checkpoint),
    "safetensors": ("clip.safetensors", save_file),
    "TorchScript archive": ("ViT-B-32.pt", save_torchscript),
}


@pytest.mark.parametrize(("file_name", "save"), FILE_FORMS.values(), ids=FILE_FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_form_gives_clips_weights(tmp_path, file_name, save, dtype):
    weights = {key: value.to(dtype) for key, value in tiny_clip().items()}
    save(weights, tmp_path / file_name)
    read = read_clip_weights(describe_clip(str(tmp_path / file_name)))
    assert_same_weights(read, {key: value.float() for key, value in weights.items()})


@pytest.mark.parametrize("prefix", ["", "module."])
def test_whole_checkpoint_keeps_its_heads_as_init_model(tmp_path, prefix):
    weights = {**with_prefix("clip.", tiny_clip()), "similarity_dense.weight": torch.ones(1, WIDTH)}
    torch.save(with_prefix(prefix, weights), tmp_path / "pytorch_model.bin.0")
    assert_same_weights(read_state_dict(tmp_path / "pytorch_model.bin.0"), weights)


def test_a_file_is_found_from_the_home_folder(tmp_path, monkeypatch):
    """A shell leaves the ~ of `--pretrained_clip_name=~/clip.pt` to us."""
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(tiny_clip(), tmp_path / "clip.pt")
    assert_same_weights(read_clip_weights(describe_clip("~/clip.pt")), tiny_clip())


class RunsCode:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def write_truncated(path: Path) -> None:
    torch.save(tiny_clip(), path)
    path.write_bytes(path.read_bytes()[:-5000])


def write_truncated_archive(path: Path) -> None:
    save_torchscript(tiny_clip(), path)
    path.write_bytes(path.read_bytes()[:-5000])


BAD_FILES = {
    "garbage": ("clip.pt", lambda path: path.write_bytes(b"<html>404: not found</html>" * 100)),
    "empty": ("clip.pt", lambda path: path.write_bytes(b"")),
    "truncated": ("clip.pt", write_truncated),
    "truncated archive": ("ViT-B-32.pt", write_truncated_archive),
    "garbage safetensors": ("clip.safetensors", lambda path: path.write_bytes(b"garbage" * 100)),
    "empty safetensors": ("clip.safetensors", lambda path: path.write_bytes(b"")),
    "whole pickled module": ("clip.pt", lambda path: torch.save(nn.Linear(2, 2), path)),
    "dict without tensors": ("clip.pt", lambda path: torch.save({"epoch": 3, "loss": 0.5}, path)),
    "dict with one number": ("clip.pt", lambda path: torch.save({**tiny_clip(), "epoch": 3}, path)),
    "empty dict": ("clip.pt", lambda path: torch.save({}, path)),
    "list": ("clip.pt", lambda path: torch.save([torch.ones(2)], path)),
    "one tensor": ("clip.pt", lambda path: torch.save(torch.ones(2), path)),
}


@pytest.mark.parametrize(("file_name", "write"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_named(tmp_path, file_name, write):
    path = tmp_path / file_name
    write(path)
    with pytest.raises(ValueError) as error:
        read_state_dict(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_dict_without_tensors_says_what_it_holds(tmp_path):
    torch.save({"epoch": 3, "loss": 0.5}, tmp_path / "pytorch_opt.bin.3")
    with pytest.raises(ValueError, match=r"keys such as \['epoch', 'loss'\]"):
        read_state_dict(tmp_path / "pytorch_opt.bin.3")


def test_code_in_a_file_does_not_run(tmp_path):
    path, folder = tmp_path / "clip.pt", tmp_path / "made by the file"
    torch.save({**tiny_clip(), "extra": RunsCode(folder)}, path)
    with pytest.raises(ValueError, match=r"clip\.pt"):
        read_state_dict(path)
    assert not folder.exists()


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_state_dict(tmp_path / "nowhere.pt")


def test_resnet_is_a_clear_error(tmp_path):
    torch.save({**tiny_clip(), "visual.layer1.0.conv1.weight": torch.ones(1)}, tmp_path / "RN50.pt")
    with pytest.raises(ValueError, match=r"ResNet.*ViT-B/32"):
        CLIP4Clip.from_pretrained("cross-base", task_config=task(pretrained_clip_name=str(tmp_path / "RN50.pt")))


# ---- names -------------------------------------------------------------------------------------------------------


@pytest.fixture
def three_folders(tmp_path, monkeypatch):
    """modules/, --cache_dir and ~/.cache/clip, all empty."""
    folders = {name: tmp_path / name for name in ("modules", "cache")} | {"home": tmp_path / "home/.cache/clip"}
    for folder in folders.values():
        folder.mkdir(parents=True)
    monkeypatch.setattr(clip_weights, "__file__", str(folders["modules"] / "clip_weights.py"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return folders


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(open_clip.pretrained, "hf_hub_download", refuse)


OPENAI_FILES = {
    "ViT-B/32": "ViT-B-32.pt",
    "ViT-B/16": "ViT-B-16.pt",
    "ViT-L/14": "ViT-L-14.pt",
    "ViT-L/14@336px": "ViT-L-14-336px.pt",
}


def test_openai_names():
    assert OPENAI_CLIPS.keys() == OPENAI_FILES.keys()


@pytest.mark.parametrize(("name", "file_name"), OPENAI_FILES.items())
@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (("modules", "cache", "home"), "modules"),
        (("cache", "home"), "cache"),
        (("home",), "home"),
    ],
)
def test_openai_names_are_found_in_the_usual_folders(three_folders, no_network, name, file_name, present, expected):
    for folder in present:
        (three_folders[folder] / file_name).touch()
    source = describe_clip(name)
    assert locate_clip(source, str(three_folders["cache"])) == str(three_folders[expected] / file_name)
    assert (source.context_length, source.activation) == (77, "quick_gelu")


def test_no_cache_dir_leaves_two_folders(three_folders, no_network):
    (three_folders["cache"] / "ViT-B-32.pt").touch()
    with pytest.raises(FileNotFoundError):
        locate_clip(describe_clip("ViT-B/32"))


def test_weights_in_modules_are_read(three_folders):
    save_torchscript(tiny_clip(), three_folders["modules"] / "ViT-B-32.pt")
    assert_same_weights(read_clip_weights(describe_clip("ViT-B/32")), tiny_clip())


def test_failed_download_says_where_a_file_may_be_put(three_folders, no_network):
    with pytest.raises(FileNotFoundError) as error:
        read_clip_weights(describe_clip("ViT-B/16"), str(three_folders["cache"]))
    words = ("ViT-B/16", "ViT-B-16.pt", "no route to host", *map(str, three_folders.values()))
    assert [word for word in words if word not in str(error.value)] == []
    assert [list(folder.iterdir()) for folder in three_folders.values()] == [[], [], []]


def test_failed_download_of_a_tag_says_how_to_name_a_file(three_folders, no_network):
    with pytest.raises(FileNotFoundError) as error:
        locate_clip(describe_clip("ViT-B-32:laion2b_s34b_b79k"))
    words = ("ViT-B-32:laion2b_s34b_b79k", "no route to host", "ViT-B-32:FILE")
    assert [word for word in words if word not in str(error.value)] == []


def serve_openai_file(monkeypatch, folder: Path, content: bytes, announced: bytes) -> None:
    """OpenAI's address of ViT-B/32 leads to a local file with `content`, and names the sha256 of `announced`."""
    served = folder / "openaipublic" / hashlib.sha256(announced).hexdigest() / "ViT-B-32.pt"
    served.parent.mkdir(parents=True)
    served.write_bytes(content)
    monkeypatch.setattr(open_clip.pretrained, "get_pretrained_cfg", lambda model, tag: {"url": served.as_uri()})


@pytest.mark.parametrize("folder", ["cache", "home"])
def test_download_is_kept_for_the_next_run(three_folders, tmp_path, monkeypatch, capsys, folder):
    cache_dir = str(three_folders["cache"]) if folder == "cache" else None
    with monkeypatch.context() as server:
        serve_openai_file(server, tmp_path, b"weights", b"weights")
        path = locate_clip(describe_clip("ViT-B/32"), cache_dir)
    assert path == str(three_folders[folder] / "ViT-B-32.pt")
    assert Path(path).read_bytes() == b"weights"
    assert [file.name for file in three_folders[folder].iterdir()] == ["ViT-B-32.pt"]
    assert "100%" in capsys.readouterr().err  # progress
    monkeypatch.setattr(urllib.request, "urlopen", None)
    assert locate_clip(describe_clip("ViT-B/32"), cache_dir) == path


def test_broken_download_is_not_taken_by_the_next_run(three_folders, tmp_path, monkeypatch):
    serve_openai_file(monkeypatch, tmp_path, b"half of the wei", b"half of the weights")
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="SHA256"):
            locate_clip(describe_clip("ViT-B/32"))
    assert list(three_folders["home"].iterdir()) == []


def test_unknown_names_give_the_choices():
    with pytest.raises(ValueError) as error:
        describe_clip("ViT-B-32.pt")  # a file that is not there
    words = ("'ViT-B-32.pt'", *OPENAI_FILES, "MODEL:TAG", ".safetensors")
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", ["Hugging Face", "ViT-B-32:laion2b_s34b_b79k"]),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", ["Hugging Face", "ViT-B-32:laion2b_s34b_b79k"]),
        ("openai/clip-vit-base-patch32", ["Hugging Face", "the same weights are ViT-B/32"]),
        ("hf-hub:openai/clip-vit-large-patch14-336", ["Hugging Face", "the same weights are ViT-L/14@336px"]),
        ("hf-hub:someone/their-clip", ["Hugging Face", "MODEL:TAG, or MODEL:FILE"]),
        ("hf-hub:", ["Hugging Face", "MODEL:TAG, or MODEL:FILE"]),
        ("local-dir:/models/clip", ["is a folder", "ViT-B-32:/models/clip/open_clip_model.safetensors"]),
        ("local-dir:", ["is a folder"]),
        ("models/clip", ["is unknown", "ViT-B/32", "MODEL:TAG"]),
    ],
)
@pytest.mark.parametrize("is_needed", [True, False])
def test_forms_of_names_that_are_not_supported(name, words, is_needed):
    with pytest.raises(ValueError) as error:
        describe_clip(name, is_needed)
    assert [word for word in (repr(name), *words) if word not in str(error.value)] == []


def test_a_missing_file_counts_only_if_it_is_needed():
    source = describe_clip("/gone/clip.pt", is_needed=False)
    assert (source.path, source.activation, source.is_missing) == ("/gone/clip.pt", "quick_gelu", True)
    of_model = describe_clip("ViT-L-14:/gone/clip.pt", is_needed=False)
    assert (of_model.activation, of_model.vision_heads, of_model.is_missing) == ("gelu", 16, True)
    for name in ("/gone/clip.pt", "ViT-L-14:/gone/clip.pt", "C:\\gone\\clip.pt"):
        with pytest.raises(ValueError, match="gone"):
            describe_clip(name)
    assert describe_clip("C:\\gone\\clip.pt", is_needed=False).is_missing


def test_a_tag_brings_what_weights_do_not_tell():
    source = describe_clip("ViT-L-14:laion2b_s32b_b82k")
    assert (source.activation, source.vision_heads, source.transformer_heads) == ("gelu", 16, 12)
    assert source.mean == source.std == (0.5, 0.5, 0.5)  # from the model's card
    assert describe_clip("ViT-B-32:openai").activation == "quick_gelu"


# ---- open_clip's own models --------------------------------------------------------------------------------------

TINY_VISION = {"image_size": 16, "layers": 2, "width": 64, "patch_size": 8}
TINY_TEXT = {"context_length": POSITIONS, "vocab_size": VOCABULARY, "width": 64, "heads": 1, "layers": 2}
OPEN_CLIP_CONFIGS = {
    "gelu": {"vision_cfg": TINY_VISION, "text_cfg": TINY_TEXT},
    "quick gelu": {"quick_gelu": True, "vision_cfg": TINY_VISION, "text_cfg": TINY_TEXT},
    "narrow heads": {"vision_cfg": {**TINY_VISION, "head_width": 16}, "text_cfg": {**TINY_TEXT, "heads": 4}},
    "heads not said": {
        "vision_cfg": TINY_VISION,
        "text_cfg": {name: value for name, value in TINY_TEXT.items() if name != "heads"},
    },
    "narrow blocks": {"vision_cfg": {**TINY_VISION, "mlp_ratio": 2.0}, "text_cfg": {**TINY_TEXT, "mlp_ratio": 3.0}},
    "text tower of its own": {"custom_text": True, "vision_cfg": TINY_VISION, "text_cfg": TINY_TEXT},
}


@pytest.fixture
def register(tmp_path, monkeypatch):
    """Function that makes a configuration known to open_clip as "tiny", until the test ends."""
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [*open_clip.factory._MODEL_CONFIG_PATHS])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))

    def register_config(config: dict) -> None:
        (tmp_path / "tiny.json").write_text(json.dumps({"embed_dim": WIDTH, **config}))
        open_clip.add_model_config(tmp_path / "tiny.json")

    return register_config


@pytest.mark.parametrize("config", OPEN_CLIP_CONFIGS.values(), ids=OPEN_CLIP_CONFIGS)
def test_model_and_file_equal_open_clip(tmp_path, register, config):
    register(config)
    torch.manual_seed(0)
    theirs = open_clip.create_model("tiny").eval()
    for name, weight in theirs.named_parameters():
        if "ln_" in name or "bias" in name:  # they start as the identity, which would hide a mistake
            nn.init.normal_(weight, mean=float(name.endswith("weight")), std=0.2)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    name = f"tiny:{tmp_path / 'weights.pt'}"
    ours = CLIP4Clip.from_pretrained("cross-base", task_config=task("ti", pretrained_clip_name=name)).clip.eval()
    frames = torch.randn(3, 3, 16, 16)
    texts = torch.randint(1, VOCABULARY - 1, (3, POSITIONS))
    texts[torch.arange(3), torch.tensor([4, 11, 7])] = VOCABULARY - 1  # the end token is the largest id
    with torch.no_grad():
        assert (ours.encode_image(frames) - theirs.encode_image(frames)).abs().max() < 1e-5
        assert (ours.encode_text(texts) - theirs.encode_text(texts)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"vision_cfg": {**TINY_VISION, "ls_init_value": 0.1}, "text_cfg": TINY_TEXT}, ["tiny", "ls_init_value"]),
        ({"vision_cfg": TINY_VISION, "text_cfg": {**TINY_TEXT, "no_causal_mask": True}}, ["tiny", "no_causal_mask"]),
        ({"vision_cfg": {**TINY_VISION, "layers": [1, 1]}, "text_cfg": TINY_TEXT}, ["tiny", "ResNet"]),
    ],
)
def test_other_architectures_are_refused(tmp_path, register, config, words):
    register(config)
    (tmp_path / "weights.pt").touch()
    with pytest.raises(ValueError) as error:
        describe_clip(f"tiny:{tmp_path / 'weights.pt'}")
    assert [word for word in words if word not in str(error.value)] == []
