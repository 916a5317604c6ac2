"""State dicts in files of other tools: outer keys and prefixes are taken off, and what is not a state dict is named."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from modules.checkpoint import optimizer_content
from modules.state_dicts import read_state_dict
from tests.helpers.clip_cases import assert_same_weights, with_prefix

WEIGHTS = {"clip.visual.proj": torch.arange(6.0).view(2, 3), "text_weight_fc.0.bias": torch.ones(2)}
PREFIXES = ["module.", "_orig_mod.", "model.", "model._orig_mod.", "_orig_mod.module.", "module.model.module."]
OUTER_KEYS = ["state_dict", "model_state_dict", "model", "module"]


def read(tmp_path, content) -> dict[str, torch.Tensor]:
    torch.save(content, tmp_path / "weights.pt")
    return read_state_dict(tmp_path / "weights.pt")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_wrappers(tmp_path, prefix):
    assert_same_weights(read(tmp_path, with_prefix(prefix, WEIGHTS)), WEIGHTS)
    save_file(with_prefix(prefix, WEIGHTS), tmp_path / "weights.safetensors")
    assert_same_weights(read_state_dict(tmp_path / "weights.safetensors"), WEIGHTS)


def test_prefixes_differ_and_occur_inside(tmp_path):
    proj, bias = WEIGHTS.values()
    assert_same_weights(
        read(tmp_path, {"clip._orig_mod.visual.proj": proj, "module.text_weight_fc.0.bias": bias}), WEIGHTS
    )


def test_real_wrappers(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2))
    for wrapped in (torch.compile(model), torch.compile(nn.DataParallel(model)), nn.DataParallel(torch.compile(model))):
        assert_same_weights(read(tmp_path, wrapped.state_dict()), model.state_dict())
    averaged = read(tmp_path, AveragedModel(model).state_dict())
    assert averaged.pop("n_averaged").item() == 0
    assert_same_weights(averaged, model.state_dict())


@pytest.mark.parametrize("outer", OUTER_KEYS)
def test_outer_keys(tmp_path, outer):
    beside = {"epoch": 5, "optimizer": {"state": {0: {"step": torch.ones(1)}}}, "best_r1": np.float64(43.1)}
    assert_same_weights(read(tmp_path, {**beside, outer: with_prefix("module.", WEIGHTS)}), WEIGHTS)
    assert_same_weights(read(tmp_path, {outer: {"state_dict": WEIGHTS}, "name": "run"}), WEIGHTS)


def test_an_outer_key_without_weights_is_passed_over(tmp_path):
    assert_same_weights(read(tmp_path, {"state_dict": {}, "module": {"width": 3}, "model": WEIGHTS}), WEIGHTS)


def test_averaged_weights_are_read_only_if_there_are_no_others(tmp_path, caplog):
    averaged = {key: value + 1 for key, value in WEIGHTS.items()}
    assert_same_weights(read(tmp_path, {"model_ema": averaged, "model": WEIGHTS}), WEIGHTS)
    assert caplog.messages == ["averaged weights under 'model_ema' are not read"]
    caplog.clear()
    assert_same_weights(read(tmp_path, {"ema": {"module": averaged}, "decay": 0.99}), averaged)
    assert caplog.messages == ["averaged weights under 'ema' are read"]


NOT_STATE_DICTS = {
    "two keys of one weight": ({"a.b": torch.ones(1), "module.a.b": torch.ones(1)}, "'a.b' and 'module.a.b' name one"),
    "unknown outer key": ({"net": WEIGHTS}, "may be those under 'net'; save them alone"),
    "numpy arrays": ({"a": np.ones(3)}, "'a' is a numpy array; save its torch.from_numpy"),
    "whole module": (
        {"model": nn.Linear(2, 2)},
        r"'model' is an object of torch\.nn.*Linear; save its state_dict",
    ),
    "a number": ({"a": torch.ones(1), "step": 3}, "'step' is of type int"),
    "a key that is a number": ({5: torch.ones(1)}, r"keys such as \[5\]"),
    "terminal codes in a key": ({"\x1b[2J": 1}, r"keys such as \['\\x1b\[2J'\]"),
}


@pytest.mark.parametrize(("content", "message"), NOT_STATE_DICTS.values(), ids=NOT_STATE_DICTS)
def test_other_content_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, content)
    assert str(error.value).startswith(f"{tmp_path / 'weights.pt'}: ")
    assert str(error.value).isprintable()


def test_an_optimizer_file_says_where_the_weights_are(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match=r"holds the optimizer of a training.*pytorch_model\.bin\.N"):
        read(tmp_path, optimizer_content(3, optimizer, 0.5))
