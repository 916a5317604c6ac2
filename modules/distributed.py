"""Rank, world size and gathers. On one process, with no process group, every gather is the identity."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


def is_distributed() -> bool:
    """True where a process group is up."""
    return dist.is_available() and dist.is_initialized()


def get_rank() -> int:
    """Global rank, 0 on one process."""
    return dist.get_rank() if is_distributed() else 0


def get_world_size() -> int:
    """Number of processes R."""
    return dist.get_world_size() if is_distributed() else 1


@contextmanager
def local_main_process_first() -> Iterator[None]:
    """One process of each machine runs the block before the others do: it fetches what they then find in the cache."""
    local_rank = int(os.environ.get("LOCAL_RANK", get_rank()))
    if is_distributed() and local_rank != 0:
        dist.barrier()
    yield
    if is_distributed() and local_rank == 0:
        dist.barrier()


@torch.no_grad()
def broadcast_weights(module: torch.nn.Module) -> None:
    """Gives every rank the weights and buffers of rank 0."""
    if is_distributed():
        for tensor in module.state_dict().values():
            values = tensor.contiguous()  # a collective takes no transposed view
            dist.broadcast(values, src=0)
            tensor.copy_(values)


class AllGather(torch.autograd.Function):
    """Concatenates the ranks' rows: (N, ...) -> (R N, ...), in the order of the global ranks.

    The backward returns this rank's slice of the gradient. By default it adds nothing over the ranks, which is the
    published recipe (CLIP4Clip, DRL): where every rank computes the loss of the whole batch, DDP's mean then leaves
    everything before the gather 1/R of the gradient that a single process would compute. With `reduce` the ranks'
    gradients are added first, which is exact where each rank computes its own part of the loss.
    """

    @staticmethod
    def forward(ctx, rows: torch.Tensor, reduce: bool = False) -> torch.Tensor:
        ctx.rows, ctx.reduce = rows.shape[0], reduce
        rows = rows.contiguous()
        gathered = [torch.empty_like(rows) for _ in range(get_world_size())]
        dist.all_gather(gathered, rows)
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        if ctx.reduce:
            gradient = gradient.clone(memory_format=torch.contiguous_format)  # autograd may still need its own
            dist.all_reduce(gradient)
        start = ctx.rows * get_rank()
        return gradient[start : start + ctx.rows], None


def all_gather(rows: torch.Tensor, reduce: bool = False) -> torch.Tensor:
    """Rows of all ranks, (N, ...) -> (R N, ...); every rank gives the same number. Differentiable as `AllGather`."""
    return AllGather.apply(rows, reduce) if is_distributed() else rows


def all_gather_uneven(rows: torch.Tensor) -> torch.Tensor:
    """Rows of all ranks in the order of the ranks, where each may give another number of them; no gradient."""
    if not is_distributed():
        return rows
    count = torch.tensor([rows.shape[0]], device=rows.device)
    counts = all_gather(count).tolist()
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: rows.shape[0]] = rows
    gathered = all_gather(padded).split(max(counts))
    return torch.cat([part[:number] for part, number in zip(gathered, counts, strict=True)])
