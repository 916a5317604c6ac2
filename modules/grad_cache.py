"""Gradient cache: the loss and the gradients of a large batch, in the memory that a chunk of it takes.

The contrastive loss needs the features of the whole batch, but not the activations of their encoders at once. So they
are encoded chunk by chunk without a graph, the loss is back-propagated to them, and each chunk is encoded again, with a
graph that takes its features' gradients on to the encoders. That costs one more forward pass.
From "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (Gao et al., 2021, arXiv:2101.06983).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from modules.modeling import CLIP4Clip, drop_pair_axis


def grad_cache_backward(
    model: CLIP4Clip,
    batch: Sequence[torch.Tensor],
    chunk: int,
    scale: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss,
) -> torch.Tensor:
    """Adds the gradients of `scale(model(*batch))` to the parameters; returns the loss, unscaled and detached.

    `batch` is that of `CLIP4Clip.forward`, on any device: `chunk` pairs at a time are moved to the model's. `scale`
    gives what is back-propagated, such as a `GradScaler.scale` or a share of accumulated steps. A surrounding autocast
    covers the forward passes only. Over several ranks call `average_gradients` next, as the model has no DDP around it.
    Raises ValueError in evaluation mode, or for a chunk below 1.
    """
    if not model.training:
        raise ValueError("the model is in evaluation mode; call model.train() before back-propagating a loss")
    if chunk < 1:
        raise ValueError(f"a chunk of {chunk} pairs must be at least 1")
    device = model.clip.logit_scale.device
    chunks = list(zip(*(tensor.split(chunk) for tensor in batch), strict=True))
    states, encoded = [], []
    with torch.no_grad():
        for part in chunks:
            states.append(random_states(device))
            encoded.append(encode(model, part, device))
    # older PyTorch keeps the weights that autocast cast without a graph, and they would take no gradient further
    torch.clear_autocast_cache()
    features = [torch.cat(parts).requires_grad_() for parts in zip(*encoded, strict=True)]
    del encoded
    _, _, attention_mask, _, video_mask = batch
    masks = (drop_pair_axis(mask).to(device) for mask in (attention_mask, video_mask))
    loss = model.loss_of_features(*features, *masks)
    backward([scale(loss)])
    gradients = zip(*(feature.grad.split(chunk) for feature in features), strict=True)
    for part, state, gradient in zip(chunks, states, gradients, strict=True):
        with same_random_numbers(state, device):
            outputs = encode(model, part, device)
        backward(outputs, gradient)
    return loss.detach()


def encode(model: CLIP4Clip, part: Sequence[torch.Tensor], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """`CLIP4Clip.encode` of tensors that may wait on the host: frames are moved twice rather than held all along."""
    return model.encode(*(tensor.to(device, non_blocking=True) for tensor in part))


def backward(outputs: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor] | None = None) -> None:
    """`torch.autograd.backward` outside of autocast, which would round the products of a backward pass too."""
    with torch.autocast(outputs[0].device.type, enabled=False):
        torch.autograd.backward(outputs, gradients)


def random_states(device: torch.device) -> list[torch.Tensor]:
    """The state of the CPU's random generator, and of the device's where that is a GPU."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


@contextmanager
def same_random_numbers(states: list[torch.Tensor], device: torch.device) -> Iterator[None]:
    """The block draws what was drawn after `random_states`, so that dropout drops the same; then all is as before."""
    on_cpu, *on_gpu = states
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.set_rng_state(on_cpu)
        for state in on_gpu:
            torch.cuda.set_rng_state(state, device)
        yield
