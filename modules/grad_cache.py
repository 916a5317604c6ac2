"""Gradient cache: loss and gradients of a large batch in the memory of one chunk, at the cost of one forward pass more.

The contrastive loss needs the features of the whole batch, but not all activations of their encoders at once. The batch
is encoded chunk by chunk without a graph, the loss is back-propagated to the features, and each chunk is encoded again
with a graph, through which its features' gradients reach the encoders.
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
    """Add the gradients of `scale(model(*batch))` to the parameters; return the loss, unscaled and detached.

    `batch` is that of `CLIP4Clip.forward`, on any device; `chunk` pairs at a time are moved to the model's. `scale`
    gives the scalar to back-propagate, such as `GradScaler.scale` or a share of accumulated steps. Autocast around the
    call covers the forward passes only. Over several ranks call `average_gradients` next, since no DDP wraps the model.

    Raises: ValueError in evaluation mode, or for a chunk below 1.
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
    # autocast may have cached weights that were cast without a graph; they would block gradients
    torch.clear_autocast_cache()
    features = [torch.cat(parts).requires_grad_() for parts in zip(*encoded, strict=True)]
    del encoded
    _, _, attention_mask, _, video_mask = batch
    masks = (drop_pair_axis(mask).to(device) for mask in (attention_mask, video_mask))
    loss = model.loss_of_features(*features, *masks)
    backward([scale(loss)])
    gradients = zip(*(feature.grad.split(chunk) for feature in features), strict=True)
    for part, state, gradient in zip(chunks, states, gradients, strict=True):
        with replay_random_states(state, device):
            outputs = encode(model, part, device)
        backward(outputs, gradient)
    return loss.detach()


def encode(model: CLIP4Clip, part: Sequence[torch.Tensor], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode a chunk that may be on the host: moving its frames twice takes less memory than keeping all on a GPU."""
    return model.encode(*(tensor.to(device, non_blocking=True) for tensor in part))


def backward(outputs: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor] | None = None) -> None:
    """Back-propagate outside of autocast, which would round the products of a backward pass too."""
    with torch.autocast(outputs[0].device.type, enabled=False):
        torch.autograd.backward(outputs, gradients)


def random_states(device: torch.device) -> list[torch.Tensor]:
    """Return the states of the CPU's random generator and, if the device is a GPU, of the device's."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


@contextmanager
def replay_random_states(states: list[torch.Tensor], device: torch.device) -> Iterator[None]:
    """Repeat in the block the random numbers drawn after `random_states`, so that dropout drops the same units."""
    on_cpu, *on_gpu = states
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.set_rng_state(on_cpu)
        for state in on_gpu:
            torch.cuda.set_rng_state(state, device)
        yield
