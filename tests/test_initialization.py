"""Weights: every form of file, what is loaded or starts fresh, freezing, float16, and the errors on the way."""

import hashlib
import json
import logging
import os
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import main_task_retrieval
import util
from modules import initialization
from modules.initialization import (
    OPENAI_CLIPS,
    convert_clip_to_float16,
    describe_clip,
    freeze_clip_layers,
    locate_clip,
    read_clip_weights,
    read_state_dict,
)
from modules.modeling import CLIP4Clip
from modules.module_clip import CLIP
from scripts.make_tiny_clip import tiny_clip_state_dict

WIDTH, POSITIONS, VOCABULARY = 32, 12, 50
BLOCK_KEYS = (
    "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias",
    "ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias",
    "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias",
)  # fmt: skip
WTI_KEYS = {
    f"{side}_weight_fc.{layer}.{kind}" for side in ("text", "video") for layer in (0, 2) for kind in ("weight", "bias")
}


def tiny_clip(**sizes: int) -> dict[str, torch.Tensor]:
    """OpenAI's keys; two blocks in the vision tower and one in the text tower, whose width is the joint width."""
    defaults = {
        "embed_dim": WIDTH, "vision_width": 64, "vision_layers": 2, "patch_size": 8, "image_size": 16,
        "text_width": WIDTH, "text_layers": 1, "context_length": POSITIONS, "vocabulary_size": VOCABULARY,
    }  # fmt: skip
    return tiny_clip_state_dict(**{**defaults, **sizes})


def task(head: str = "meanP", **flags) -> SimpleNamespace:
    return SimpleNamespace(**{"sim_header": head, "max_words": 9, "max_frames": 5, **flags})


def whole_model(weights: dict, head: str = "meanP", **flags) -> CLIP4Clip:
    return CLIP4Clip.from_pretrained("cross-base", state_dict=weights, task_config=task(head, **flags))


def with_prefix(prefix: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in weights.items()}


def assert_same_weights(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(actual[key], expected[key])] == []
    assert {value.dtype for value in actual.values()} == {torch.float32}


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
    monkeypatch.setattr(initialization, "__file__", str(folders["modules"] / "initialization.py"))
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


# ---- what is loaded, starts fresh, is not used -------------------------------------------------------------------


@pytest.fixture
def clip_weights() -> dict[str, torch.Tensor]:
    return with_prefix("clip.", tiny_clip())


def block_keys(prefix: str, blocks) -> set[str]:
    return {f"{prefix}resblocks.{block}.{key}" for block in blocks for key in BLOCK_KEYS}


def report_of(model: CLIP4Clip) -> dict[str, set[str]]:
    """The report without CLIP's own keys among the loaded ones."""
    report = model.weight_report
    return {
        "loaded": {key for key in report.loaded if not key.startswith("clip.")},
        "from clip": set(report.fresh_from_clip),
        "at random": set(report.fresh_at_random),
        "unused": set(report.unused),
    }


NOTHING = {"loaded": set(), "from clip": set(), "at random": set(), "unused": set()}


def test_meanp_has_nothing_but_clip(clip_weights):
    model = whole_model(clip_weights)
    assert report_of(model) == NOTHING
    assert set(model.weight_report.loaded) == clip_weights.keys()
    assert_same_weights(model.state_dict(), clip_weights)


def test_meanp_checkpoint_into_wti(clip_weights):
    model = whole_model(clip_weights, "wti")
    assert report_of(model) == {**NOTHING, "at random": WTI_KEYS}
    assert set(model.weight_report.untrained_head) == WTI_KEYS


def test_wti_checkpoint_into_meanp(clip_weights):
    checkpoint = whole_model(clip_weights, "wti").state_dict()
    model = whole_model(checkpoint)
    assert report_of(model) == {**NOTHING, "unused": WTI_KEYS}
    assert_same_weights(model.state_dict(), clip_weights)


def test_wti_checkpoint_into_wti(clip_weights):
    checkpoint = whole_model(clip_weights, "wti").state_dict()
    model = whole_model(with_prefix("module.", checkpoint), "wti")
    assert report_of(model) == {**NOTHING, "loaded": WTI_KEYS}
    assert_same_weights(model.state_dict(), checkpoint)
    assert model.weight_report.untrained_head == []


def test_2d_checkpoint_into_3d(clip_weights):
    model = whole_model(clip_weights, linear_patch="3d")
    assert report_of(model) == {**NOTHING, "from clip": {"clip.visual.conv2.weight"}}
    assert model.weight_report.untrained_head == []  # it computes what conv1 did
    kernel = model.clip.visual.conv2.weight
    assert kernel.shape == (64, 3, 3, 8, 8)
    assert torch.equal(kernel[:, :, 1], clip_weights["clip.visual.conv1.weight"])
    assert not kernel[:, :, 0].any() and not kernel[:, :, 2].any()


def test_3d_checkpoint_into_3d_and_2d(clip_weights):
    checkpoint = whole_model(clip_weights, linear_patch="3d").state_dict()
    checkpoint["clip.visual.conv2.weight"] += 1
    model = whole_model(checkpoint, linear_patch="3d")
    assert report_of(model) == NOTHING
    assert_same_weights(model.state_dict(), checkpoint)
    assert report_of(whole_model(checkpoint)) == {**NOTHING, "unused": {"clip.visual.conv2.weight"}}


def test_seqtransf_starts_from_the_text_tower():
    weights = with_prefix("clip.", tiny_clip(text_layers=3))
    model = whole_model(weights, "seqTransf", cross_num_hidden_layers=2)
    fresh = {"frame_position_embeddings.weight"} | block_keys("transformerClip.", (0, 1))
    assert report_of(model) == {**NOTHING, "from clip": fresh}
    assert set(model.weight_report.untrained_head) == fresh
    started = model.state_dict()
    assert torch.equal(started["frame_position_embeddings.weight"], weights["clip.positional_embedding"])
    for key in block_keys("", (0, 1)):
        assert torch.equal(started[f"transformerClip.{key}"], weights[f"clip.transformer.{key}"])


def test_tighttransf_starts_from_the_text_tower(clip_weights):
    model = whole_model(clip_weights, "tightTransf", cross_num_hidden_layers=1)
    positions = "cross.embeddings.position_embeddings.weight"
    pooler = {f"cross.pooler.{name}.{kind}" for name in ("ln_pool", "dense") for kind in ("weight", "bias")}
    dense = {"similarity_dense.weight", "similarity_dense.bias"}
    assert report_of(model) == {
        **NOTHING,
        "from clip": {positions} | block_keys("cross.transformer.", [0]),
        "at random": pooler | dense,
    }
    started = model.state_dict()
    assert torch.equal(started[positions], clip_weights["clip.positional_embedding"])
    for key in BLOCK_KEYS:
        assert torch.equal(
            started[f"cross.transformer.resblocks.0.{key}"], clip_weights[f"clip.transformer.resblocks.0.{key}"]
        )


def test_more_blocks_than_clip_has(clip_weights):
    model = whole_model(clip_weights, "seqTransf", cross_num_hidden_layers=3)
    assert report_of(model) == {
        **NOTHING,
        "from clip": {"frame_position_embeddings.weight"} | block_keys("transformerClip.", [0]),
        "at random": block_keys("transformerClip.", (1, 2)),
    }


def test_a_joint_width_that_is_not_the_text_towers():
    weights = with_prefix("clip.", tiny_clip(text_width=64))
    model = whole_model(weights, "seqTransf", cross_num_hidden_layers=1)
    fresh = {"frame_position_embeddings.weight"} | block_keys("transformerClip.", [0])
    assert report_of(model) == {**NOTHING, "at random": fresh}
    assert model.frame_position_embeddings.weight.shape == (POSITIONS, WIDTH)


def test_float16_checkpoint_is_loaded_in_float32(clip_weights):
    half = {key: value.half() for key, value in clip_weights.items()}
    assert_same_weights(whole_model(half).state_dict(), {key: value.float() for key, value in half.items()})


def test_log_says_what_was_loaded_fresh_and_unused(clip_weights, caplog):
    checkpoint = {**clip_weights, "similarity_dense.weight": torch.zeros(1, WIDTH)}
    with caplog.at_level(logging.INFO):
        whole_model(checkpoint, "wti", agg_module="seqTransf", cross_num_hidden_layers=1)
    assert caplog.messages == [
        "50 weights loaded: clip.* (50)",  # 3 blocks of 12, and 14 outside the blocks
        "13 weights started fresh from CLIP's layers: frame_position_embeddings.* (1), transformerClip.* (12)",
        "8 weights started fresh at random: text_weight_fc.* (4), video_weight_fc.* (4)",
        "1 weights of the file not used by this model: similarity_dense.* (1)",
        "activation quick_gelu, frames normalised by mean (0.48145466, 0.4578275, 0.40821073), "
        "std (0.26862954, 0.26130258, 0.27577711)",
    ]


@pytest.mark.parametrize(
    ("key", "in_file", "in_model", "flags"),
    [
        ("clip.text_projection", (32, 48), (32, 32), {}),
        ("clip.visual.transformer.resblocks.1.mlp.c_proj.weight", (64, 100), (64, 256), {}),
        ("clip.visual.conv2.weight", (64, 3, 1, 8, 8), (64, 3, 3, 8, 8), {"linear_patch": "3d"}),
        ("text_weight_fc.2.weight", (7, 32), (1, 32), {"head": "wti"}),
        ("frame_position_embeddings.weight", (13, 32), (12, 32), {"head": "seqTransf"}),
    ],
)
def test_another_shape_names_key_and_both_shapes(clip_weights, key, in_file, in_model, flags):
    with pytest.raises(ValueError) as error:
        whole_model({**clip_weights, key: torch.zeros(in_file)}, **flags)
    assert f"{key}: file {in_file}, model {in_model}" in str(error.value)


def test_checkpoint_of_another_weight_network(clip_weights):
    checkpoint = whole_model(clip_weights, "wti", wti_arch=2).state_dict()
    with pytest.raises(ValueError) as error:
        whole_model(checkpoint, "wti", wti_arch=3)
    message = str(error.value)
    assert "text_weight_fc.2.weight: file (1, 32), model (32, 32)" in message and "--wti_arch" in message


@pytest.mark.parametrize(
    "key", ["clip.ln_final.weight", "clip.visual.proj", "clip.transformer.resblocks.0.ln_1.bias", "clip.logit_scale"]
)
def test_missing_weight_of_clip(clip_weights, key):
    del clip_weights[key]
    with pytest.raises(ValueError, match=f"{key.removeprefix('clip.')}.*missing|missing.*{key}"):
        whole_model(clip_weights)


# ---- freezing and float16 ----------------------------------------------------------------------------------------

EMBEDDINGS = {
    "token_embedding.weight", "positional_embedding", "visual.class_embedding", "visual.positional_embedding",
    "visual.conv1.weight", "visual.ln_pre.weight", "visual.ln_pre.bias",
}  # fmt: skip
# the towers have two and one blocks
FROZEN = {
    -1: set(),
    0: EMBEDDINGS,
    1: EMBEDDINGS | block_keys("visual.transformer.", [0]) | block_keys("transformer.", [0]),
    2: EMBEDDINGS | block_keys("visual.transformer.", [0, 1]) | block_keys("transformer.", [0]),
}
ALWAYS_TRAINED = {
    "visual.ln_post.weight", "visual.ln_post.bias", "visual.proj", "ln_final.weight", "ln_final.bias",
    "text_projection", "logit_scale",
}  # fmt: skip


@pytest.mark.parametrize("linear_patch", ["2d", "3d"])
@pytest.mark.parametrize("number", FROZEN)
def test_frozen_layers(linear_patch, number):
    clip = CLIP.from_state_dict(tiny_clip(), linear_patch=linear_patch)
    assert set(freeze_clip_layers(clip, number)) == FROZEN[number]
    without_gradient = {name for name, weight in clip.named_parameters() if not weight.requires_grad}
    idle = {"visual.conv1.weight"} if linear_patch == "3d" else set()  # conv2 does its work
    assert without_gradient == FROZEN[number] | idle


@pytest.mark.parametrize("linear_patch", ["2d", "3d"])
def test_what_trains_when_all_is_frozen(linear_patch):
    clip = CLIP.from_state_dict(tiny_clip(), linear_patch=linear_patch)
    freeze_clip_layers(clip, 2)
    trained = {name for name, weight in clip.named_parameters() if weight.requires_grad}
    assert trained == ALWAYS_TRAINED | ({"visual.conv2.weight"} if linear_patch == "3d" else set())


@pytest.mark.parametrize("number", [-2, 3])
def test_freezing_beyond_the_blocks(number):
    with pytest.raises(ValueError, match=rf"--freeze_layer_num {number} .*-1 .* 2 blocks"):
        freeze_clip_layers(CLIP.from_state_dict(tiny_clip()), number)


FLOAT32 = {
    "token_embedding.weight", "positional_embedding", "visual.class_embedding", "visual.positional_embedding",
    "logit_scale", "visual.ln_pre.weight", "visual.ln_pre.bias", "visual.ln_post.weight", "visual.ln_post.bias",
    "ln_final.weight", "ln_final.bias",
}  # fmt: skip
FLOAT32_IN_BLOCKS = {"ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"}


@pytest.mark.parametrize("linear_patch", ["2d", "3d"])
def test_float16_weights(linear_patch):
    """Convolutions, matrices, attention with biases, and projections; the lists are those of OpenAI's own rule."""
    clip = CLIP.from_state_dict(tiny_clip(), linear_patch=linear_patch)
    convert_clip_to_float16(clip)
    half = {"visual.conv1.weight", "visual.proj", "text_projection"}
    half |= {"visual.conv2.weight"} if linear_patch == "3d" else set()
    single = set(FLOAT32)
    for block in ("visual.transformer.resblocks.0.", "visual.transformer.resblocks.1.", "transformer.resblocks.0."):
        half |= {block + key for key in BLOCK_KEYS if key not in FLOAT32_IN_BLOCKS}
        single |= {block + key for key in FLOAT32_IN_BLOCKS}
    dtypes = {name: weight.dtype for name, weight in clip.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float16} == half
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == single
    assert clip.dtype == torch.float16


# ---- init_model of the main file ---------------------------------------------------------------------------------


@pytest.fixture
def clip_file(tmp_path) -> Path:
    torch.save(tiny_clip(), tmp_path / "clip.pt")
    return tmp_path / "clip.pt"


def init_model(clip_file: Path, *flags: str, vocabulary: int = VOCABULARY) -> CLIP4Clip:
    """The model for these flags; evaluation unless they say otherwise."""
    run = [] if "--do_train" in flags else ["--do_eval"]
    sizes = ["--max_words", "9", "--max_frames", "5", "--cross_num_hidden_layers", "1"]
    args = main_task_retrieval.get_args(
        [*run, "--output_dir", "runs/test", "--pretrained_clip_name", str(clip_file), *sizes, *flags]
    )
    return main_task_retrieval.init_model(args, util.Process(torch.device("cpu")), vocabulary)


UNTRAINED = {
    "wti": (["--sim_header", "wti"], "text_weight_fc.0.weight"),
    "seqTransf": (["--sim_header", "seqTransf"], "transformerClip.resblocks.0"),
    "seqLSTM": (["--sim_header", "seqLSTM"], "lstm_visual.weight_ih_l0"),
    "tightTransf": (["--sim_header", "tightTransf"], "cross."),
    "ti with seqTransf": (["--sim_header", "ti", "--agg_module", "seqTransf"], "transformerClip.resblocks.0"),
}
ZERO_SHOT = {
    "meanP": ["--sim_header", "meanP"],
    "ti": ["--sim_header", "ti"],
    "3d": ["--sim_header", "meanP", "--linear_patch", "3d"],
}


@pytest.mark.parametrize(("flags", "missing"), UNTRAINED.values(), ids=UNTRAINED)
def test_evaluating_an_untrained_head_is_an_error(clip_file, flags, missing):
    with pytest.raises(ValueError) as error:
        init_model(clip_file, *flags)
    words = ("never trained", *flags, missing, "--init_model")
    assert [word for word in words if word not in str(error.value)] == []


def test_evaluating_a_checkpoint_of_another_head_names_it(clip_file, tmp_path):
    checkpoint = tmp_path / "pytorch_model.bin.0"
    torch.save(with_prefix("clip.", tiny_clip()), checkpoint)
    with pytest.raises(
        ValueError, match=r"wti .*pytorch_model\.bin\.0.*text_weight_fc.*never trained.*fits: --sim_header meanP"
    ):
        init_model(clip_file, "--sim_header", "wti", "--init_model", str(checkpoint))


@pytest.mark.parametrize("flags", ZERO_SHOT.values(), ids=ZERO_SHOT)
def test_zero_shot_evaluation(clip_file, flags):
    assert_same_weights(
        {key: value for key, value in init_model(clip_file, *flags).clip.state_dict().items() if "conv2" not in key},
        tiny_clip(),
    )


@pytest.mark.parametrize("flags", [flags for flags, _ in UNTRAINED.values()], ids=UNTRAINED)
def test_training_a_fresh_head_and_evaluating_its_checkpoint(clip_file, tmp_path, flags):
    trained = init_model(clip_file, "--do_train", *flags).state_dict()
    torch.save(trained, tmp_path / "pytorch_model.bin.0")
    evaluated = init_model(clip_file, *flags, "--init_model", str(tmp_path / "pytorch_model.bin.0"))
    assert_same_weights(evaluated.state_dict(), trained)


def test_the_checkpoints_clip_goes_before_the_named_one(clip_file, tmp_path):
    torch.save(with_prefix("clip.", tiny_clip(seed=1)), tmp_path / "pytorch_model.bin.0")
    model = init_model(clip_file, "--init_model", str(tmp_path / "pytorch_model.bin.0"))
    assert_same_weights(model.clip.state_dict(), tiny_clip(seed=1))


@pytest.mark.parametrize(("flags", "frozen"), [(["--do_train", "--freeze_layer_num", "1"], FROZEN[1]), ([], set())])
def test_only_training_freezes(clip_file, flags, frozen):
    clip = init_model(clip_file, *flags).clip
    assert {name for name, weight in clip.named_parameters() if not weight.requires_grad} == frozen


@pytest.mark.parametrize(("precision", "dtype"), [("clip_fp16", torch.float16), ("fp32", torch.float32)])
def test_precision_of_the_towers(clip_file, precision, dtype):
    model = init_model(clip_file, "--do_train", "--sim_header", "wti", "--precision", precision)
    assert model.clip.visual.proj.dtype == dtype
    assert model.text_weight_fc[0].weight.dtype == torch.float32


def test_a_clip_with_a_smaller_vocabulary_than_the_tokenizer(clip_file):
    with pytest.raises(ValueError, match="knows 50 tokens, but the tokenizer has 51"):
        init_model(clip_file, vocabulary=51)


def test_a_missing_checkpoint_is_named(clip_file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin\.9"):
        init_model(clip_file, "--init_model", str(tmp_path / "pytorch_model.bin.9"))
