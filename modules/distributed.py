"""Rank, world size and collectives. Without a process group every gather is the identity."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

BUCKET_BYTES = 1 << 26  # gradients that are copied together for one collective


def is_distributed() -> bool:
    """Return whether a process group is initialized."""
    return dist.is_available() and dist.is_initialized()


def get_rank() -> int:
    """Return the global rank, 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def get_world_size() -> int:
    """Return the number of processes R."""
    return dist.get_world_size() if is_distributed() else 1


@contextmanager
def local_main_process_first() -> Iterator[None]:
    """Run the block in one process of each machine first, so that the others find its downloads in the cache."""
    local_rank = int(os.environ.get("LOCAL_RANK", get_rank()))
    if is_distributed() and local_rank != 0:
        dist.barrier()
    yield
    if is_distributed() and local_rank == 0:
        dist.barrier()


@torch.no_grad()
def broadcast_weights(module: torch.nn.Module) -> None:
    """Copy the weights and buffers of rank 0 to every rank."""
    if is_distributed():
        for tensor in module.state_dict().values():
            values = tensor.contiguous()  # collectives reject transposed views
            dist.broadcast(values, src=0)
            tensor.copy_(values)


class AllGather(torch.autograd.Function):
    """Concatenate the ranks' rows, (N, ...) -> (R N, ...), in the order of the global ranks.

    The backward pass returns this rank's slice of the gradient. By default gradients are not summed over the ranks, as
    in the published recipe (CLIP4Clip, DRL): if every rank computes the loss of the global batch, layers before the
    gather have 1/R of one process's gradient after DDP's mean. With `reduce` the gradients of all ranks are summed
    first. DDP's mean is then the gradient of the mean loss over the ranks, which is that of one process if each rank
    computes its share of the loss, or all compute the same.
    """

    @staticmethod
    def forward(ctx, rows: torch.Tensor, reduce: bool = False) -> torch.Tensor:
        ctx.rows, ctx.reduce = rows.shape[0], reduce
        all_rows = rows.new_empty((get_world_size() * rows.shape[0], *rows.shape[1:]))
        dist.all_gather_into_tensor(all_rows, rows.contiguous())
        return all_rows

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        if ctx.reduce:
            local = gradient.new_empty((ctx.rows, *gradient.shape[1:]))
            dist.reduce_scatter_tensor(local, gradient.contiguous())
            return local, None
        start = ctx.rows * get_rank()
        return gradient[start : start + ctx.rows], None


def all_gather(rows: torch.Tensor, reduce: bool = False) -> torch.Tensor:
    """Gather the rows of all ranks, (N, ...) -> (R N, ...), N equal on all; differentiable as `AllGather`."""
    return AllGather.apply(rows, reduce) if is_distributed() else rows


def gather_features(tensors: Iterable[torch.Tensor], reduce: bool = False) -> tuple[torch.Tensor, ...]:
    """Gather several tensors (N, ...) of at least two axes by `all_gather`, with one collective for each dtype.

    The results are views of the gathered tensors, in the order of `tensors`.
    """
    features = list(tensors)
    if not is_distributed():
        return tuple(features)
    for dtype in dict.fromkeys(tensor.dtype for tensor in features):
        members = [index for index, tensor in enumerate(features) if tensor.dtype == dtype]
        shapes = [features[index].shape[1:] for index in members]
        packed = all_gather(torch.cat([features[index].flatten(1) for index in members], dim=1), reduce)
        parts = packed.split([shape.numel() for shape in shapes], dim=1)
        for index, part, shape in zip(members, parts, shapes, strict=True):
            features[index] = part.unflatten(1, shape)
    return tuple(features)


def row_counts(rows: torch.Tensor) -> list[int]:
    """Return the number of rows of every rank."""
    return all_gather(torch.tensor([rows.shape[0]], device=rows.device)).tolist()


def all_gather_uneven(rows: torch.Tensor) -> torch.Tensor:
    """Gather the rows of all ranks, whose numbers may differ, in the order of the ranks; no gradient."""
    if not is_distributed():
        return rows
    counts = row_counts(rows)
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: rows.shape[0]] = rows
    parts = all_gather(padded).split(max(counts))
    return torch.cat([part[:number] for part, number in zip(parts, counts, strict=True)])


@torch.no_grad()
def gather_rows(rows: torch.Tensor, destination: int = 0) -> torch.Tensor | None:
    """Return `all_gather_uneven` on rank `destination`, None on the others; no gradient.

    Each rank sends its rows to the destination only, so that no other rank holds, and none pads, a large similarity.
    """
    if not is_distributed():
        return rows
    counts = row_counts(rows)
    if get_rank() != destination:
        if rows.shape[0]:
            dist.send(rows.contiguous(), dst=destination)
        return None
    all_rows = rows.new_empty((sum(counts), *rows.shape[1:]))
    for rank, part in enumerate(all_rows.split(counts)):
        if rank == destination:
            part.copy_(rows)
        elif part.shape[0]:
            dist.recv(part, src=rank)
    return all_rows


def all_gather_objects(value) -> list:
    """Gather the small picklable value of every rank, in the order of the ranks."""
    if not is_distributed():
        return [value]
    values = [None] * get_world_size()
    dist.all_gather_object(values, value)
    return values


@torch.no_grad()
def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace the gradients by their means over the ranks, for a backward pass that DDP does not see.

    Every rank passes the same parameters in the same order. A missing gradient counts as zero; it stays missing if no
    rank has one, because weight decay would move a parameter whose gradient is zero.
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
        # divide first, since a sum over ranks may overflow float16
        packed = torch.cat([gradient.flatten() for gradient in bucket]).div_(get_world_size())
        dist.all_reduce(packed)
        means = packed.split([gradient.numel() for gradient in bucket])
        for gradient, mean in zip(bucket, means, strict=True):
            gradient.copy_(mean.view_as(gradient))


def buckets(tensors: list[torch.Tensor], size: int = BUCKET_BYTES) -> Iterator[list[torch.Tensor]]:
    """Yield lists of tensors of one dtype and at most `size` bytes; a larger tensor has its own list."""
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
    """Return the picklable value of rank 0 on every rank."""
    if not is_distributed():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def on_main_process(function, *arguments):
    """Return on every rank what the function returns on rank 0, or raise its error on every rank."""
    result = error = None
    if get_rank() == 0:
        try:
            result = function(*arguments)
        except Exception as caught:  # every kind ends all ranks
            error = caught
    result, error = broadcast_object((result, error))
    if error is not None:
        raise error
    return result


def any_over_ranks(flags: list[bool], device: torch.device) -> list[bool]:
    """Return, for each flag, whether it is set on any rank."""
    if not is_distributed():
        return flags
    counts = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(counts)
    return [count > 0 for count in counts.tolist()]
