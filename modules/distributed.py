"""Rank, world size and gathers. On one process, with no process group, every gather is the identity."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

BUCKET_BYTES = 1 << 26  # of gradients copied together for one collective


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
    gradients are added first. DDP's mean is then the gradient of the ranks' mean loss, and so that of a single process
    where each rank computes its own part of the loss, or all compute the same.
    """

    @staticmethod
    def forward(ctx, rows: torch.Tensor, reduce: bool = False) -> torch.Tensor:
        ctx.rows, ctx.reduce = rows.shape[0], reduce
        gathered = rows.new_empty((get_world_size() * rows.shape[0], *rows.shape[1:]))
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        if ctx.reduce:
            own = gradient.new_empty((ctx.rows, *gradient.shape[1:]))
            dist.reduce_scatter_tensor(own, gradient.contiguous())
            return own, None
        start = ctx.rows * get_rank()
        return gradient[start : start + ctx.rows], None


def all_gather(rows: torch.Tensor, reduce: bool = False) -> torch.Tensor:
    """Rows of all ranks, (N, ...) -> (R N, ...); every rank gives the same number. Differentiable as `AllGather`."""
    return AllGather.apply(rows, reduce) if is_distributed() else rows


def gather_features(tensors: Iterable[torch.Tensor], reduce: bool = False) -> tuple[torch.Tensor, ...]:
    """`all_gather` of several tensors (N, ...) of two axes or more: one collective for each dtype, and in its backward.

    The results are views of what was gathered, in the order of `tensors`.
    """
    gathered = list(tensors)
    if not is_distributed():
        return tuple(gathered)
    for dtype in dict.fromkeys(tensor.dtype for tensor in gathered):
        members = [index for index, tensor in enumerate(gathered) if tensor.dtype == dtype]
        shapes = [gathered[index].shape[1:] for index in members]
        packed = all_gather(torch.cat([gathered[index].flatten(1) for index in members], dim=1), reduce)
        parts = packed.split([shape.numel() for shape in shapes], dim=1)
        for index, part, shape in zip(members, parts, shapes, strict=True):
            gathered[index] = part.unflatten(1, shape)
    return tuple(gathered)


def row_counts(rows: torch.Tensor) -> list[int]:
    """Number of rows of every rank."""
    return all_gather(torch.tensor([rows.shape[0]], device=rows.device)).tolist()


def all_gather_uneven(rows: torch.Tensor) -> torch.Tensor:
    """Rows of all ranks in the order of the ranks, where each may give another number of them; no gradient."""
    if not is_distributed():
        return rows
    counts = row_counts(rows)
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: rows.shape[0]] = rows
    gathered = all_gather(padded).split(max(counts))
    return torch.cat([part[:number] for part, number in zip(gathered, counts, strict=True)])


@torch.no_grad()
def gather_rows(rows: torch.Tensor, destination: int = 0) -> torch.Tensor | None:
    """`all_gather_uneven` on rank `destination` alone, None on the others; no gradient.

    Each rank sends its rows to where they stay, so that no other rank holds, and nobody pads, a large similarity.
    """
    if not is_distributed():
        return rows
    counts = row_counts(rows)
    if get_rank() != destination:
        if rows.shape[0]:
            dist.send(rows.contiguous(), dst=destination)
        return None
    gathered = rows.new_empty((sum(counts), *rows.shape[1:]))
    for rank, part in enumerate(gathered.split(counts)):
        if rank == destination:
            part.copy_(rows)
        elif part.shape[0]:
            dist.recv(part, src=rank)
    return gathered


def all_gather_objects(value) -> list:
    """The small picklable value of every rank, in the order of the ranks."""
    if not is_distributed():
        return [value]
    values = [None] * get_world_size()
    dist.all_gather_object(values, value)
    return values


@torch.no_grad()
def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replaces the gradients by their means over the ranks, as DDP does, for a backward that does not go through DDP.

    Every rank gives the same parameters in the same order. One without a gradient here counts as zero, and stays
    without where no rank has one: an optimizer's weight decay would move what got a zero.
    """
    if not is_distributed():
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    has_gradient = torch.tensor([parameter.grad is not None for parameter in trained], device=trained[0].device).int()
    dist.all_reduce(has_gradient, op=dist.ReduceOp.MAX)
    gradients = []
    for parameter, anywhere in zip(trained, has_gradient.tolist(), strict=True):
        if anywhere:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad)
    for bucket in buckets(gradients):
        # divided first, since a sum over ranks might leave float16's range
        packed = torch.cat([gradient.flatten() for gradient in bucket]).div_(get_world_size())
        dist.all_reduce(packed)
        means = packed.split([gradient.numel() for gradient in bucket])
        for gradient, mean in zip(bucket, means, strict=True):
            gradient.copy_(mean.view_as(gradient))


def buckets(tensors: list[torch.Tensor], size: int = BUCKET_BYTES) -> Iterator[list[torch.Tensor]]:
    """Lists of tensors of one dtype, of `size` bytes at most; a larger tensor has its own."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        bucket, filled = [], 0
        for tensor in (tensor for tensor in tensors if tensor.dtype == dtype):
            if bucket and filled + tensor.nbytes > size:
                yield bucket
                bucket, filled = [], 0
            bucket.append(tensor)
            filled += tensor.nbytes
        if bucket:
            yield bucket


def broadcast_object(value):
    """The picklable value of rank 0, on every rank."""
    if not is_distributed():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def on_any_rank(flags: list[bool], device: torch.device) -> list[bool]:
    """For each flag, whether any rank has set it."""
    if not is_distributed():
        return flags
    counts = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(counts)
    return [count > 0 for count in counts.tolist()]
