"""Run by test_distributed under a real launcher: one training step of golden weights on this rank's share of the batch.

Writes loss, gradients after DDP's mean, and what the gathers return, to FOLDER/rank{rank}.pt.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

import util
from modules.distributed import all_gather, all_gather_uneven, broadcast_weights
from tests.golden_cases import load_case, load_inputs


def main(folder: str, case_name: str) -> None:
    torch.set_num_threads(1)
    with np.load(Path(__file__).parent / "golden" / "peer_parity.npz") as archive:
        golden = {name: archive[name] for name in archive.files}
    with util.distributed_process() as process:
        model = load_case(golden, case_name).model().train()
        share = 6 // process.world_size
        rows = slice(process.rank * share, (process.rank + 1) * share)
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        loss = wrapped(*(tensor[rows] for tensor in load_inputs(golden)))
        loss.backward()

        number = torch.full((2, 1), float(process.rank), requires_grad=True)
        gathered = all_gather(number)
        (gathered * torch.arange(1.0, len(gathered) + 1)[:, None]).sum().backward()
        uneven = torch.full((process.rank * 2, 3), process.rank)
        layer = torch.nn.Linear(3, 2).half()
        layer.weight = torch.nn.Parameter(torch.full((3, 2), 5.0 + process.rank, dtype=torch.float16).T)
        broadcast_weights(layer)
        torch.save(
            {
                "broadcast": layer.state_dict(),
                "loss": loss.detach(),
                "gradients": {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
                "gathered": gathered.detach(),
                "slice_gradient": number.grad,
                "uneven": all_gather_uneven(uneven),
            },
            Path(folder) / f"rank{process.rank}.pt",
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
