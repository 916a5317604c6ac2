"""The masked Transformer and the cross encoder: masks in every precision, and the one position that is used."""

import pytest
import torch

from modules.module_clip import LayerNorm, set_grad_checkpointing
from modules.module_cross import CrossModel, TransformerClip

MASK = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def features(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1)).to(dtype)


def transformer(dtype: torch.dtype = torch.float32) -> TransformerClip:
    torch.manual_seed(0)
    model = TransformerClip(64, 2).to(dtype)
    for layer in model.modules():
        if isinstance(layer, LayerNorm):
            layer.float()
    return model


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_has_no_influence_in_any_precision(dtype):
    model, x = transformer(dtype), features(dtype)
    scribbled = torch.where(MASK[:, :, None].bool(), x, 9 * x + 3)
    with torch.no_grad():
        mixed, mixed_scribbled = model(x, MASK), model(scribbled, MASK)
    assert mixed.dtype == dtype
    assert torch.equal(mixed[MASK.bool()], mixed_scribbled[MASK.bool()])
    assert not torch.equal(model(x, torch.ones_like(MASK))[0], mixed[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_padding_alone_stays_finite(dtype):
    model, x = transformer(dtype), features(dtype).requires_grad_()
    mixed = model(x, MASK)
    mixed.float().square().sum().backward()
    assert mixed.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    # a mask of -inf, which -1e6 is in float16, would drop the keys altogether instead of weighing them alike
    difference = (mixed.float() - transformer()(features(), MASK)).abs().max()
    assert difference < 0.2


@pytest.mark.parametrize("position", [0, 3])
def test_one_position_is_what_it_is_among_all(position):
    model = transformer()
    with torch.no_grad():
        everything = model(features(), MASK)
        alone = model(features(), MASK, torch.full((3,), position))
    assert alone.shape == (3, 1, 64)
    assert torch.allclose(alone[:, 0], everything[:, position], atol=1e-5)


def cross_encoder() -> CrossModel:
    torch.manual_seed(0)
    return CrossModel(64, 2, positions=8)


def test_cross_encoder_pools_the_first_position_of_all():
    model = cross_encoder().eval()
    with torch.no_grad():
        everything = model.transformer(model.embeddings(features()), MASK)
        assert torch.allclose(model(features(), MASK), model.pooler(everything), atol=1e-6)


def test_grad_checkpointing_repeats_the_dropout():
    gradients = []
    for enabled in (False, True):
        model = cross_encoder().train()
        set_grad_checkpointing(model, enabled)
        assert model.transformer.grad_checkpointing is enabled
        torch.manual_seed(4)
        model(features(), MASK).square().sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert torch.equal(*gradients)
