"""Training steps of golden weights on this rank's share of the batch; test_distributed starts it with a launcher.

For every run, FOLDER/rank{rank}.pt receives the loss, the gradients after the mean over the ranks, the collectives,
and the results of the gathers. Everything is computed in double precision: in float32 the order of sums alone changes
these gradients by several 1e-6, which would hide a small mistake.
"""

import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

import util
from modules import distributed, heads, modeling
from modules.grad_cache import grad_cache_backward
from tests.helpers.golden_cases import load_case, load_inputs


@dataclasses.dataclass(frozen=True)
class Run:
    """One training step: a golden case, flags, and the gradient cache's chunk of pairs (0: DDP without the cache)."""

    case: str
    gather: str = "published"
    chunk: int = 0
    cdcr: int | None = None

    def model(self, golden: dict[str, np.ndarray]) -> modeling.CLIP4Clip:
        case = load_case(golden, self.case)
        flags = vars(case.task_config) | {"gather": self.gather}
        if self.cdcr is not None:
            flags["cdcr"] = self.cdcr
        return dataclasses.replace(case, task_config=SimpleNamespace(**flags)).model().train().double()


def double_inputs(golden: dict[str, np.ndarray]) -> list[torch.Tensor]:
    """Return the golden inputs with frames in double precision."""
    return [tensor.double() if tensor.is_floating_point() else tensor for tensor in load_inputs(golden)]


def collectives(recorded: profile) -> dict[str, int]:
    """Count the calls of each c10d operation."""
    names = (event.name for event in recorded.events())
    return dict(Counter(name.removeprefix("c10d::") for name in names if name.startswith("c10d::")))


def training_step(run: Run, golden: dict[str, np.ndarray], process: util.Process) -> dict:
    """Return the loss, the gradients, the collectives, and the tokens that CDCR drew."""
    torch.manual_seed(process.rank)  # what must agree over the ranks must not depend on equal seeds
    model, drawn = run.model(golden), []
    draw = heads.one_random_token
    heads.one_random_token = lambda mask: drawn.append(draw(mask)) or drawn[-1]
    share = 6 // process.world_size
    batch = [tensor[process.rank * share : (process.rank + 1) * share] for tensor in double_inputs(golden)]
    found = {}
    if run.chunk:
        with profile(activities=[ProfilerActivity.CPU]) as step:
            found["loss"] = grad_cache_backward(model, batch, run.chunk)
        with profile(activities=[ProfilerActivity.CPU]) as mean:
            distributed.average_gradients(model.parameters())
        found |= {"step": collectives(step), "mean": collectives(mean)}
    else:
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        loss = wrapped(*batch)
        loss.backward()
        found["loss"] = loss.detach()
    heads.one_random_token = draw
    found["gradients"] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {"drawn": drawn}


def gathers(rank: int, processes: int) -> dict:
    """Return the results of each gather for small numbers."""
    number = torch.full((2, 1), float(rank), requires_grad=True)
    gathered = distributed.all_gather(number)
    (gathered * torch.arange(1.0, len(gathered) + 1)[:, None]).sum().backward()
    one, two = (torch.full(shape, float(rank), requires_grad=True) for shape in ((2, 3, 2), (2, 1)))
    mask = torch.tensor([[rank, 0, 1], [1, 1, rank]])
    together = distributed.gather_features((one, mask, two), reduce=True)
    ((rank + 1) * (together[0].sum() + 10 * together[2][-1].sum())).backward()
    uneven = torch.full((rank * 2, 3), rank)
    layer = torch.nn.Linear(3, 2).half()
    layer.weight = torch.nn.Parameter(torch.full((3, 2), 5.0 + rank, dtype=torch.float16).T)
    distributed.broadcast_weights(layer)
    return {
        "gathered": gathered.detach(),
        "slice_gradient": number.grad,
        "together": [part.detach() for part in together],
        "reduced_gradients": [one.grad, two.grad],
        "uneven": distributed.all_gather_uneven(uneven),
        "rows": distributed.gather_rows(uneven),
        "rows_at_last": distributed.gather_rows(2 - uneven, destination=processes - 1),
        "broadcast": layer.state_dict(),
    }


def averaged(rank: int) -> list[torch.Tensor | None]:
    """Average gradients that differ over the ranks: 2r, missing on rank 0, missing, near the largest float16."""
    parameters = [torch.nn.Parameter(torch.zeros(2, 3, dtype=dtype)) for dtype in 3 * [torch.float32] + [torch.float16]]
    parameters.append(torch.nn.Parameter(torch.zeros(1), requires_grad=False))
    parameters[0].grad = torch.full((3, 2), 2.0 * rank).T
    parameters[1].grad = torch.ones(2, 3) if rank else None
    parameters[3].grad = torch.full((2, 3), 60000.0, dtype=torch.float16)
    distributed.average_gradients(parameters)
    return [parameter.grad for parameter in parameters]


def main(folder: str, runs: str) -> None:
    torch.set_num_threads(1)
    torch.Tensor.float = torch.Tensor.double  # the model otherwise casts features and losses to float32
    with np.load(Path(__file__).parents[1] / "golden" / "peer_parity.npz") as archive:
        golden = {name: archive[name] for name in archive.files}
    with util.distributed_process() as process:
        found = gathers(process.rank, process.world_size)
        found["averaged"] = averaged(process.rank)
        found["steps"] = [training_step(Run(**run), golden, process) for run in json.loads(runs)]
        torch.save(found, Path(folder) / f"rank{process.rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
