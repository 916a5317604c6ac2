"""Two and three real processes: losses and gradients beside a single process's, and the gathers by hand."""

import dataclasses
import json

import pytest
import torch

from modules import heads
from modules.distributed import (
    all_gather,
    all_gather_objects,
    all_gather_uneven,
    average_gradients,
    buckets,
    gather_features,
    gather_rows,
    get_rank,
    get_world_size,
    local_main_process_first,
)
from tests.helpers.gather_worker import Run, double_inputs
from tests.helpers.golden_cases import load_case, load_inputs
from tests.helpers.launch import launcher, run_python

# computed after the gather, on the whole batch in every rank: the mean over ranks is the whole gradient
AFTER_THE_GATHER = ("clip.logit_scale", "text_weight_fc.", "video_weight_fc.")
RANDOM_MATCHES = Run("wti_seqTransf", "published", cdcr=1)
PUBLISHED = [Run("wti_seqTransf"), Run("wti_seqTransf_cdcr3"), Run("meanP_3d"), Run("wti")]
# every head, every kind of CDCR, every aggregation
EXACT_CASES = (
    "meanP", "seqLSTM", "seqTransf", "tightTransf", "xti", "ti", "wti", "wti_seqLSTM",
    "wti_seqTransf_cdcr3", "wti_cdcr2", "dp_seqTransf_cdcr1",
)  # fmt: skip
EXACT = [
    Run("xti"),
    *(Run(case, "exact") for case in EXACT_CASES),
    *(Run(case, "exact", 2) for case in ("seqLSTM", "tightTransf", "wti_seqTransf_cdcr3")),
    *(Run("wti_seqTransf", "exact", chunk, cdcr=1) for chunk in (0, 2)),
]
CACHED = [Run("wti_seqTransf_cdcr3", chunk=2), Run("meanP_3d", chunk=2), Run("tightTransf", chunk=2)]
RUNS = {
    2: [RANDOM_MATCHES, Run("tightTransf"), *PUBLISHED, *EXACT, *CACHED],
    3: [
        *PUBLISHED, Run("xti"), Run("xti", "exact", 1), Run("tightTransf", "exact"), Run("seqLSTM", "exact"),
        Run("wti_seqTransf_cdcr3", "exact"),
    ],
}  # fmt: skip
EXACT_OVER = [(2, run) for run in EXACT] + [(3, run) for run in RUNS[3] if run not in PUBLISHED]


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Number of processes -> what each rank found: all its runs in one launch."""
    results = {}

    def launch(processes: int) -> list[dict]:
        if processes not in results:
            folder = tmp_path_factory.mktemp("ranks")
            runs = json.dumps([dataclasses.asdict(run) for run in RUNS[processes]])
            finished = run_python(*launcher("torchrun", processes), "tests/helpers/gather_worker.py", folder, runs)
            assert finished.returncode == 0, finished.stderr
            results[processes] = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]
        return results[processes]

    return launch


def steps_of(launched, processes: int, run: Run) -> list[dict]:
    """What each rank found in one of its runs."""
    return [rank["steps"][RUNS[processes].index(run)] for rank in launched(processes)]


def assert_gradients(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Equal to 1e-9 of the largest entry of all; double precision leaves about 1e-14."""
    assert actual.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (actual[name] - gradient).abs().max() <= 1e-9 * largest, name


def gradients_of_one_process(run: Run, golden, steps: list[dict], monkeypatch) -> dict[str, torch.Tensor]:
    """Those of the whole batch, where CDCR decorrelates the tokens that the ranks drew."""
    drawn = [torch.cat(masks) for masks in zip(*(step["drawn"] for step in steps), strict=True)]
    monkeypatch.setattr(heads, "one_random_token", lambda mask: drawn.pop(0))
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    model = run.model(golden)
    loss = model(*double_inputs(golden))
    loss.backward()
    assert sum(step["loss"] for step in steps).item() / len(steps) == pytest.approx(loss.item(), abs=1e-12)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "run"), [(count, run) for count in (2, 3) for run in PUBLISHED], ids=str)
def test_published_loss_and_gradient_scale(launched, golden_parity, processes, run, monkeypatch):
    """Every rank has the loss of the whole batch; what comes before the gather has 1/R of its gradient."""
    steps = steps_of(launched, processes, run)
    expected = {
        name: gradient * (1 if name.startswith(AFTER_THE_GATHER) else 1 / processes)
        for name, gradient in gradients_of_one_process(run, golden_parity, steps, monkeypatch).items()
    }
    golden_loss = load_case(golden_parity, run.case).outputs["train_loss"].item()
    for step in steps:
        assert step["loss"].item() == pytest.approx(golden_loss, abs=1e-5)
        assert_gradients(step["gradients"], expected)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "run"), EXACT_OVER, ids=str)
def test_exact_gradients_are_those_of_one_process(launched, golden_parity, processes, run, monkeypatch):
    """Each rank computes its own rows and columns of the loss; the means over the ranks are the whole batch's."""
    steps = steps_of(launched, processes, run)
    expected = gradients_of_one_process(run, golden_parity, steps, monkeypatch)
    for step in steps:
        assert_gradients(step["gradients"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("run", CACHED, ids=str)
def test_the_gradient_cache_has_the_gradients_of_ddp(launched, run):
    runs = (run, dataclasses.replace(run, chunk=0))
    for cached, plain in zip(*(steps_of(launched, 2, one) for one in runs), strict=True):
        assert cached["loss"].item() == pytest.approx(plain["loss"].item(), abs=1e-12)
        assert_gradients(cached["gradients"], plain["gradients"])


@pytest.mark.slow
def test_tightTransf_takes_local_negatives(launched, golden_parity):
    """As published each rank's loss is that of its own pairs alone."""
    case = load_case(golden_parity, "tightTransf")
    inputs = load_inputs(golden_parity)
    for rank, step in enumerate(steps_of(launched, 2, Run("tightTransf"))):
        alone = case.model().train()(*(tensor[3 * rank : 3 * rank + 3] for tensor in inputs))
        assert step["loss"].item() == pytest.approx(alone.item(), abs=1e-6)


@pytest.mark.slow
def test_all_ranks_decorrelate_the_same_random_matches(launched, golden_parity):
    """Their seeds differ; that each returns the same loss of the whole batch says that the matches are the same."""
    first, second = steps_of(launched, 2, RANDOM_MATCHES)
    assert first["loss"].item() == second["loss"].item()
    assert not all(torch.equal(*masks) for masks in zip(first["drawn"], second["drawn"], strict=True))
    _, _, text_mask, _, video_mask = load_inputs(golden_parity)
    for rank, step in enumerate((first, second)):
        for drawn, mask in zip(step["drawn"], (text_mask, video_mask), strict=True):
            valid = mask.squeeze(1)[3 * rank : 3 * rank + 3]
            assert drawn.sum(dim=1).tolist() == [1, 1, 1]
            assert torch.equal(drawn * valid, drawn)


def test_one_random_token():
    """Of each row one valid token, all equally often; of a row without any, none."""
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]])
    counts = sum(heads.one_random_token(mask) for _ in range(600))
    assert counts.sum(dim=1).tolist() == [600, 600, 0]
    assert counts[1].tolist() == [0, 0, 600, 0]
    assert counts[0, 2] == 0
    assert counts[0, [0, 1, 3]].tolist() == pytest.approx([200, 200, 200], abs=50)  # four standard deviations


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (Run("wti_seqTransf_cdcr3", chunk=2), {"_allgather_base_": 2}),
        (Run("meanP_3d", chunk=2), {"_allgather_base_": 2}),
        (Run("tightTransf", chunk=2), {}),
        (Run("wti_seqTransf", "exact", 2, cdcr=1), {"_allgather_base_": 2, "_reduce_scatter_base_": 1}),
        (Run("tightTransf", "exact", 2), {"_allgather_base_": 2, "_reduce_scatter_base_": 1}),
    ],
    ids=str,
)
def test_collectives_of_a_step(launched, run, expected):
    """One for the floats, one for the masks, one for the backward; the mean of the gradients is one bucket here."""
    for step in steps_of(launched, 2, run):
        assert step["step"] == expected
        assert step["mean"] == {"allreduce_": 2}


@pytest.mark.slow
def test_gathers_by_hand(launched):
    first, second = launched(2)
    for rank in (first, second):
        assert rank["gathered"].flatten().tolist() == [0, 0, 1, 1]
        assert rank["uneven"].tolist() == [[1, 1, 1]] * 2
        assert rank["broadcast"]["weight"].tolist() == [[5, 5, 5]] * 2  # rank 0's, in half precision and transposed
        assert torch.equal(rank["broadcast"]["bias"], first["broadcast"]["bias"])
        floats, masks, more_floats = rank["together"]
        assert floats.tolist() == [[[0, 0]] * 3] * 2 + [[[1, 1]] * 3] * 2
        assert masks.tolist() == [[0, 0, 1], [1, 1, 0], [1, 0, 1], [1, 1, 1]]
        assert more_floats.flatten().tolist() == [0, 0, 1, 1]
        # the ranks' factors 1 and 2 are added
        assert rank["reduced_gradients"][0].flatten().tolist() == [3] * 12
    # ten times the last of all rows
    assert [rank["reduced_gradients"][1].flatten().tolist() for rank in (first, second)] == [[0, 0], [0, 30]]
    # the gradient of row k is k; each rank gets its own rows and adds nothing over the ranks
    assert first["slice_gradient"].flatten().tolist() == [1, 2]
    assert second["slice_gradient"].flatten().tolist() == [3, 4]


@pytest.mark.slow
def test_rows_go_to_one_rank(launched):
    """Rank r gives 2 r rows: of r to rank 0, of 2 - r to the last rank."""
    first, second, third = launched(3)
    assert first["rows"].tolist() == [[1, 1, 1]] * 2 + [[2, 2, 2]] * 4
    assert third["rows_at_last"].tolist() == [[1, 1, 1]] * 2 + [[0, 0, 0]] * 4
    assert second["rows"] is third["rows"] is first["rows_at_last"] is second["rows_at_last"] is None


@pytest.mark.slow
def test_means_of_gradients_by_hand(launched):
    for rank in launched(3):
        differing, missing_on_one, missing, large, frozen = rank["averaged"]
        assert differing.tolist() == [[2, 2, 2]] * 2  # (0 + 2 + 4) / 3
        assert torch.allclose(missing_on_one, torch.full((2, 3), 2 / 3))
        assert missing is frozen is None
        assert large.dtype == torch.float16
        assert torch.allclose(large.float(), torch.full((2, 3), 60000.0), rtol=1e-3)


def test_buckets_are_bounded_and_keep_the_order():
    shapes = [(3, torch.float32), (2, torch.float16), (1, torch.float32), (9, torch.float32), (1, torch.float32)]
    tensors = [torch.full((count,), index, dtype=dtype) for index, (count, dtype) in enumerate(shapes)]
    found = [[int(one[0]) for one in bucket] for bucket in buckets(tensors, size=16)]
    assert found == [[0, 2], [3], [4], [1]]
    assert list(buckets([])) == []


def test_one_process_needs_no_group():
    rows = torch.randn(3, 2, requires_grad=True)
    assert all_gather(rows) is rows
    assert all_gather_uneven(rows) is rows
    assert gather_rows(rows) is rows
    assert gather_features((rows, rows)) == (rows, rows)
    assert all_gather_objects("a") == ["a"]
    assert (get_rank(), get_world_size()) == (0, 1)
    with local_main_process_first():
        pass
    parameter = torch.nn.Parameter(rows.detach())
    parameter.grad = torch.ones(3, 2)
    average_gradients([parameter])
    assert parameter.grad.tolist() == [[1, 1]] * 3
