"""Two and three real processes: the loss is the single process's, the gradient has the documented scale."""

import pytest
import torch

from modules.distributed import all_gather, all_gather_uneven, get_rank, get_world_size, local_main_process_first
from tests.golden_cases import load_case, load_inputs
from tests.launch import launcher, run_python

# computed after the gather, on the whole batch in every rank: the mean over ranks is the whole gradient
AFTER_THE_GATHER = ("clip.logit_scale", "text_weight_fc.", "video_weight_fc.")


def run_ranks(folder, case_name: str, processes: int) -> list[dict]:
    finished = run_python(*launcher("torchrun", processes), "tests/gather_worker.py", folder, case_name)
    assert finished.returncode == 0, finished.stderr
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case_name", "processes"), [("wti_seqTransf", 2), ("wti_seqTransf_cdcr3", 2), ("meanP_3d", 2), ("wti", 3)]
)
def test_loss_and_gradient_scale(tmp_path, golden_parity, case_name, processes):
    case = load_case(golden_parity, case_name)
    ranks = run_ranks(tmp_path, case_name, processes)
    model = case.model().train()
    model(*load_inputs(golden_parity)).backward()
    for rank in ranks:
        assert rank["loss"].item() == pytest.approx(case.outputs["train_loss"].item(), abs=1e-5)
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                assert name not in rank["gradients"]
                continue
            share = 1 if name.startswith(AFTER_THE_GATHER) else 1 / processes
            largest = parameter.grad.abs().max().item()
            assert torch.allclose(
                rank["gradients"][name], parameter.grad * share, rtol=1e-3, atol=2e-5 * largest + 1e-8
            ), name


@pytest.mark.slow
def test_gathers_by_hand(tmp_path):
    first, second = run_ranks(tmp_path, "meanP", 2)
    for rank in (first, second):
        assert rank["gathered"].flatten().tolist() == [0, 0, 1, 1]
        assert rank["uneven"].tolist() == [[1, 1, 1]] * 2
        assert rank["broadcast"]["weight"].tolist() == [[5, 5, 5]] * 2  # rank 0's, in half precision and transposed
        assert torch.equal(rank["broadcast"]["bias"], first["broadcast"]["bias"])
    # the gradient of row k is k; each rank gets its own rows and adds nothing over the ranks
    assert first["slice_gradient"].flatten().tolist() == [1, 2]
    assert second["slice_gradient"].flatten().tolist() == [3, 4]


@pytest.mark.slow
def test_the_cross_encoder_takes_local_negatives(tmp_path, golden_parity):
    """tightTransf: each rank's loss is that of its own pairs alone."""
    case = load_case(golden_parity, "tightTransf")
    inputs = load_inputs(golden_parity)
    for rank, result in enumerate(run_ranks(tmp_path, "tightTransf", 2)):
        alone = case.model().train()(*(tensor[3 * rank : 3 * rank + 3] for tensor in inputs))
        assert result["loss"].item() == pytest.approx(alone.item(), abs=1e-6)


def test_one_process_needs_no_group():
    rows = torch.randn(3, 2, requires_grad=True)
    assert all_gather(rows) is rows
    assert all_gather_uneven(rows) is rows
    assert (get_rank(), get_world_size()) == (0, 1)
    with local_main_process_first():
        pass


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_xti_has_the_gradient_of_one_process(tmp_path, golden_parity, processes):
    """Each rank computes its own rows and columns of the loss; the means over the ranks are the whole batch's."""
    case = load_case(golden_parity, "xti")
    ranks = run_ranks(tmp_path, "xti", processes)
    mean_loss = sum(rank["loss"].item() for rank in ranks) / processes
    assert mean_loss == pytest.approx(case.outputs["train_loss"].item(), abs=1e-5)
    model = case.model().train()
    model(*load_inputs(golden_parity)).backward()
    for rank in ranks:
        for name, parameter in model.named_parameters():
            tolerance = 2e-5 * parameter.grad.abs().max().item() + 5e-7
            assert torch.allclose(rank["gradients"][name], parameter.grad, rtol=1e-3, atol=tolerance), name
