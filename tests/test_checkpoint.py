"""Checkpoint files: CLIP4Clip's names and content, and what happens with files that are none."""

import pytest
import torch
from torch import nn

from modules.checkpoint import (
    checkpoint_epoch,
    load_checkpoint,
    load_optimizer,
    model_path,
    optimizer_path,
    save_checkpoint,
    save_whole,
)
from modules.optimization import BertAdam


@pytest.fixture
def trained(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = BertAdam(model.parameters(), lr=0.1, t_total=10, schedule="warmup_constant", weight_decay=0.0)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path, 4, model, optimizer, 1.25)
    return model, optimizer, tmp_path


def test_files_and_content(trained):
    model, _, folder = trained
    assert sorted(path.name for path in folder.iterdir()) == ["pytorch_model.bin.4", "pytorch_opt.bin.4"]
    weights = torch.load(model_path(folder, 4), weights_only=True)
    assert list(weights) == ["weight", "bias"]
    assert torch.equal(weights["weight"], model.weight)
    content = torch.load(optimizer_path(folder, 4), weights_only=True)
    assert (content["epoch"], content["loss"]) == (4, 1.25)
    assert {"epoch", "optimizer_state_dict", "loss"} == set(content)


def test_optimizer_goes_on_as_if_never_stopped(trained):
    model, optimizer, folder = trained
    other = nn.Linear(3, 2)
    other.load_state_dict(torch.load(model_path(folder, 4), weights_only=True))
    resumed = BertAdam(other.parameters(), lr=0.1, t_total=10, schedule="warmup_constant", weight_decay=0.0)
    assert load_optimizer(optimizer_path(folder, 4), resumed) == (5, 1.25)
    for network, stepper in ((model, optimizer), (other, resumed)):
        stepper.zero_grad()
        network(torch.full((1, 3), 2.0)).sum().backward()
        stepper.step()
    assert torch.equal(model.weight, other.weight)


@pytest.mark.parametrize("content", [b"", b"garbage", None], ids=["empty", "garbage", "weights"])
def test_not_an_optimizer_file(trained, content):
    _, optimizer, folder = trained
    path = folder / "pytorch_opt.bin.9"
    path.write_bytes(model_path(folder, 4).read_bytes() if content is None else content)
    with pytest.raises(ValueError, match=r"--resume_model .*pytorch_opt\.bin\.9"):
        load_optimizer(path, optimizer)


def test_missing_optimizer_file(tmp_path, trained):
    with pytest.raises(FileNotFoundError, match=r"--resume_model.*nowhere"):
        load_optimizer(tmp_path / "nowhere", trained[1])


def test_a_failed_write_keeps_the_file_before(tmp_path):
    path = tmp_path / "weights"
    save_whole({"a": torch.ones(2)}, path)
    with pytest.raises(Exception, match="pickle"):
        save_whole({"a": lambda: None}, path)
    assert torch.load(path, weights_only=True)["a"].tolist() == [1, 1]


def test_weights_come_back(trained):
    model, _, folder = trained
    other = nn.Linear(3, 2)
    load_checkpoint(model_path(folder, 4), other)
    assert torch.equal(other.weight, model.weight) and torch.equal(other.bias, model.bias)


def test_epoch_of_a_name():
    assert checkpoint_epoch(model_path("runs/pytorch_model.bin.3", 12)) == 12
    assert checkpoint_epoch("ckpts/wti.bin") is checkpoint_epoch(None) is None
