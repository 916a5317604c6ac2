"""modules/optimization.py against the reference's steps and numbers worked by hand."""

import io
import math

import pytest
import torch
from torch import nn

from modules import optimization
from modules.optimization import BertAdam, prepare_optimizer_groups, warmup_constant, warmup_cosine, warmup_linear


def golden_optimizer(case: dict, parameters: list[nn.Parameter]) -> BertAdam:
    groups = [{"params": [p], **settings} for p, settings in zip(parameters, case["groups"], strict=True)]
    names = ("warmup", "t_total", "schedule", "b1", "b2", "e", "max_grad_norm")
    return BertAdam(groups, lr=0.123, **{name: case[name] for name in names})


def golden_parameters(values: list) -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor(value)) for value in values]


def set_gradients(parameters: list[nn.Parameter], gradients: list) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient, dtype=parameter.dtype)


def run_golden_steps(optimizer: BertAdam, parameters: list[nn.Parameter], case: dict, steps: range) -> None:
    for step in steps:
        assert optimizer.get_lr() == pytest.approx(case["lr_before_step"][step], rel=1e-12, abs=0)
        set_gradients(parameters, case["grads"][step])
        optimizer.step()
        for parameter, expected in zip(parameters, case["params"][step], strict=True):
            torch.testing.assert_close(parameter.detach(), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_golden_steps(golden_small):
    case = golden_small["bertadam"]
    assert len(case["params"]) == 25
    parameters = golden_parameters(case["init"])
    optimizer = golden_optimizer(case, parameters)
    assert optimizer.get_lr() == [0.0]
    run_golden_steps(optimizer, parameters, case, range(25))


def test_state_round_trip_continues_the_golden_steps(golden_small):
    case = golden_small["bertadam"]
    parameters = golden_parameters(case["init"])
    optimizer = golden_optimizer(case, parameters)
    run_golden_steps(optimizer, parameters, case, range(11))
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)

    resumed_parameters = golden_parameters(case["params"][10])
    resumed = golden_optimizer(case, resumed_parameters)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert set(resumed.state[resumed_parameters[0]]) == {"step", "next_m", "next_v"}
    assert resumed.state[resumed_parameters[0]]["step"] == 11
    run_golden_steps(resumed, resumed_parameters, case, range(11, 25))


def test_one_step_by_hand():
    parameter = nn.Parameter(torch.tensor([2.0]))
    optimizer = BertAdam([parameter], lr=0.5, b1=0.75, b2=0.75, e=0.5, weight_decay=0.25, max_grad_norm=1.0)
    parameter.grad = torch.tensor([4.0])  # clipped to 1
    optimizer.step()
    # m = 0.25, v = 0.25; update = 0.25 / (0.5 + 0.5) + 0.25 * 2 = 0.75; p = 2 - 0.5 * 0.75.  The clip's own
    # 1e-6 shows in the sixth digit.
    assert parameter.item() == pytest.approx(1.625, abs=2e-6)
    assert parameter.grad.item() == pytest.approx(1.0, abs=1e-6)
    assert optimizer.get_lr() == [0.5]


def test_two_steps_by_hand_without_clip_and_decay():
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = BertAdam([parameter], lr=1.0, b1=0.5, b2=0.0, e=0.0, weight_decay=0.0, max_grad_norm=-1)
    for gradient in (4.0, -4.0):
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
    # Step 1: m = 2, v = 16, p = 1 - 2/4.  Step 2: m = 1 - 2 = -1, v = 16, p = 0.5 + 1/4.
    assert parameter.item() == 0.75


def test_each_parameter_is_clipped_by_itself():
    small, large = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = BertAdam([small, large], lr=0.1, max_grad_norm=1.0)
    small.grad, large.grad = torch.tensor([0.3, 0.4]), torch.tensor([30.0, 40.0])
    optimizer.step()
    assert small.grad.tolist() == pytest.approx([0.3, 0.4])
    assert large.grad.tolist() == pytest.approx([0.6, 0.8], abs=1e-6)


def test_first_step_of_a_warmup_moves_nothing_but_counts():
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = BertAdam([parameter], lr=0.1, warmup=0.5, t_total=4, schedule="warmup_constant")
    parameter.grad = torch.tensor([1.0])
    optimizer.step()
    assert parameter.item() == 1.0
    assert optimizer.get_lr() == pytest.approx([0.05])


def test_schedules_by_hand():
    assert [warmup_cosine(x, 0.1) for x in (0.0, 0.05, 0.1)] == pytest.approx([0.0, 0.5, 0.9755282581475768])
    assert [warmup_cosine(x, 0.1) for x in (0.5, 1.0, 1.5, 2.0)] == pytest.approx([0.5, 0.0, 0.0, 0.0])
    assert warmup_cosine(1 / 3, -1) == pytest.approx(0.75)
    assert [warmup_constant(x, 0.2) for x in (0.0, 0.1, 0.2, 2.0)] == pytest.approx([0.0, 0.5, 1.0, 1.0])
    assert [warmup_linear(x, 0.2) for x in (0.0, 0.1, 0.2, 0.6, 1.0, 2.0)] == pytest.approx([0, 0.5, 1, 0.5, 0, 0])
    assert warmup_linear(0.0, -1) == 0.5
    assert warmup_linear(0.25, 0.0) == 0.75


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("warmup_cosine", [0.0, 1.0, 1.0, 0.5 * (1 + math.cos(0.75 * math.pi)) * 2, 0.0, 0.0]),
        ("warmup_constant", [0.0, 1.0, 2.0, 2.0, 2.0, 2.0]),
        ("warmup_linear", [0.0, 1.0, 2.0, 1.0, 0.0, 0.0]),
    ],
)
def test_get_lr_follows_the_schedule(schedule, rates):
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = BertAdam([parameter], lr=2.0, warmup=0.5, t_total=4, schedule=schedule)
    seen = []
    for _ in rates:
        seen += optimizer.get_lr()
        parameter.grad = torch.ones(1)
        optimizer.step()
        optimizer.zero_grad()
    assert seen == pytest.approx(rates)


def test_parameters_without_gradient_stay():
    used, unused = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = BertAdam([used, unused], lr=0.5)
    used.grad = torch.ones(1)
    optimizer.step()
    assert used.item() != 1.0
    assert unused.item() == 1.0
    assert optimizer.get_lr() == [0.5]


def test_closure_runs_with_gradients_and_returns_its_loss():
    parameter = nn.Parameter(torch.tensor([3.0]))
    optimizer = BertAdam([parameter], lr=0.1)

    def closure():
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    assert parameter.item() < 3.0


def test_fp16_parameter_keeps_fp16_moments():
    parameter = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float16))
    settings = {"lr": 0.5, "b1": 0.75, "b2": 0.75, "e": 0.5, "weight_decay": 0.25, "max_grad_norm": 0}
    optimizer = BertAdam([parameter], **settings)
    parameter.grad = torch.ones(2, dtype=torch.float16)
    optimizer.step()
    # Each number is exact in fp16: update = 0.25 / (0.5 + 0.5) + 0.25 p.
    assert parameter.tolist() == [1.0 - 0.5 * 0.5, -2.0 + 0.5 * 0.25]
    resumed = BertAdam([parameter], **settings)
    resumed.load_state_dict(optimizer.state_dict())
    for owner in (optimizer, resumed):
        state = owner.state[parameter]
        assert state["next_m"].dtype == state["next_v"].dtype == parameter.dtype == torch.float16
        assert state["next_m"].tolist() == state["next_v"].tolist() == [0.25, 0.25]


def test_fp16_update_is_rounded_before_it_is_applied():
    # v = 1/16, so update = 1 / (1/4) = 4, and lr * update = 4e-8 rounds up to fp16's smallest number, 2^-24.  Here
    # that is half the distance of two fp16 numbers, and the tie goes to the even one, 2^-13; 4e-8 unrounded would
    # leave the weight as it is.
    parameter = nn.Parameter(torch.tensor([2.0**-13 + 2.0**-23], dtype=torch.float16))
    optimizer = BertAdam([parameter], lr=1e-8, b1=0.0, b2=0.9375, e=0.0, weight_decay=0.0)
    parameter.grad = torch.ones(1, dtype=torch.float16)
    optimizer.step()
    assert parameter.item() == 2.0**-13


def plain_bertadam_step(parameters: list[nn.Parameter], moments: dict, steps: dict, group: dict, rate) -> None:
    """One parameter and one operation after the other, from the formulas of Devlin et al.'s optimizer."""
    for parameter in parameters:
        if parameter.grad is None:
            continue
        nn.utils.clip_grad_norm_(parameter, 0.5)
        first, second = moments.setdefault(parameter, (torch.zeros_like(parameter), torch.zeros_like(parameter)))
        first.copy_(first * 0.9 + parameter.grad * (1 - 0.9))
        second.copy_(second * 0.98 + (1 - 0.98) * parameter.grad * parameter.grad)
        update = first / (second.sqrt() + group["e"])
        if group["weight_decay"]:
            update = update + group["weight_decay"] * parameter
        step = steps.get(parameter, 0)
        parameter.sub_(update * (group["lr"] * rate(step / 50, 0.1)))
        steps[parameter] = step + 1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12), (torch.float16, 4e-3)])
@pytest.mark.parametrize("numbers_at_once", [1, 40, 1 << 20])
def test_fifty_steps_equal_a_plain_loop(dtype, tolerance, numbers_at_once, monkeypatch):
    """Parameters of several shapes, types and groups; some have no gradient at times, so that their clocks differ."""
    monkeypatch.setattr(optimization, "CHUNK_NUMBERS", numbers_at_once)
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator) for shape in [(3, 5), (7,), (2, 3, 2), (), (40,), (6, 4)]]
    # the second and third are of another type than the rest of their groups
    types = [dtype, torch.float32, torch.float32, dtype, dtype, dtype]
    ours, plain = (
        [nn.Parameter(value.to(kind, copy=True)) for value, kind in zip(values, types, strict=True)] for _ in range(2)
    )
    settings = [{"lr": 0.01, "weight_decay": 0.2, "e": 1e-4}, {"lr": 0.002, "weight_decay": 0.0, "e": 1e-4}]
    groups = [{"params": ours[:3], **settings[0]}, {"params": ours[3:], **settings[1]}]
    optimizer = BertAdam(
        groups, lr=1.0, warmup=0.1, t_total=50, schedule="warmup_cosine", b1=0.9, b2=0.98, max_grad_norm=0.5
    )
    moments, steps = {}, {}
    for step in range(50):
        for index, (mine, theirs) in enumerate(zip(ours, plain, strict=True)):
            # norms on both sides of the limit
            gradient = torch.randn(mine.shape, generator=generator) * (0.05 if step % 3 else 1.0)
            mine.grad = None if index in (1, 4) and step % 7 == 2 else gradient.to(mine.dtype)
            theirs.grad = None if mine.grad is None else mine.grad.clone()
        optimizer.step()
        with torch.no_grad():
            plain_bertadam_step(plain[:3], moments, steps, settings[0], warmup_cosine)
            plain_bertadam_step(plain[3:], moments, steps, settings[1], warmup_cosine)
    for mine, theirs, value in zip(ours, plain, values, strict=True):
        own_tolerance = tolerance if mine.dtype == dtype else 1e-6
        assert (mine - theirs).abs().max() <= own_tolerance
        assert (mine - value.to(mine.dtype)).abs().max() > 1e-2
        assert optimizer.state[mine]["step"] == steps[theirs]


def test_fp16_rate_is_not_rounded_before_the_product():
    # 1e-8 is 0 in fp16, and 4 * 1e-8 rounds to its smallest number, 2^-24
    tensor = torch.tensor([4.0, 0.25], dtype=torch.float16)
    optimization.scale_tensors([tensor], 1e-8)
    assert tensor.tolist() == [2.0**-24, 0.0]


def test_sparse_gradient_is_a_clear_error():
    embedding = nn.Embedding(3, 2, sparse=True)
    embedding(torch.tensor([0, 2])).sum().backward()
    with pytest.raises(RuntimeError, match=r"dense.*\(3, 2\).*sparse=False"):
        BertAdam(embedding.parameters(), lr=0.1).step()


@pytest.mark.parametrize(
    ("name", "value", "choices"),
    [
        ("lr", -0.1, ">= 0"),
        ("lr", float("nan"), ">= 0"),
        ("lr", "0.1", ">= 0"),
        ("warmup", 1.0, r"\[0, 1\)"),
        ("warmup", -0.5, "-1 for none"),
        ("t_total", 0, "> 0"),
        ("t_total", -2, "-1 for a constant"),
        ("schedule", "cosine", "warmup_cosine, warmup_constant, warmup_linear"),
        ("schedule", ["warmup_cosine"], "warmup_cosine, warmup_constant, warmup_linear"),
        ("b1", 1.0, r"\[0, 1\)"),
        ("b2", -0.1, r"\[0, 1\)"),
        ("e", -1e-6, ">= 0"),
        ("weight_decay", -0.2, ">= 0"),
        ("max_grad_norm", float("nan"), "finite"),
        ("max_grad_norm", None, "finite"),
    ],
)
def test_settings_out_of_range_name_value_and_range(name, value, choices):
    parameter = nn.Parameter(torch.zeros(1))
    pattern = rf"{name} must be .*{choices}.*"
    with pytest.raises(ValueError, match=pattern) as error:
        BertAdam([parameter], **{"lr": 0.1, name: value})
    assert repr(value) in str(error.value)
    with pytest.raises(ValueError, match=pattern):
        BertAdam([{"params": [parameter], name: value}], lr=0.1)
    optimizer = BertAdam([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match=pattern):
        optimizer.add_param_group({"params": [parameter], name: value})
    assert len(optimizer.param_groups) == 1


def named(*names: str) -> list[tuple[str, nn.Parameter]]:
    return [(name, nn.Parameter(torch.zeros(1))) for name in names]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_groups(prefix):
    membership = {
        "clip.visual.conv1.weight": 0,
        "clip.visual.ln_pre.weight": 0,  # CLIP's own norms are decayed
        "clip.logit_scale": 0,
        "transformerClip.resblocks.0.mlp.c_fc.weight": 1,
        "frame_position_embeddings.weight": 1,
        "cross.clip.weight": 1,  # only a leading `clip.` is CLIP
        "clip.visual.ln_pre.bias": 2,
        "clip.transformer.resblocks.0.attn.in_proj_bias": 2,
        "cross.embeddings.LayerNorm.weight": 3,
        "cross.embeddings.LayerNorm.bias": 3,
        "text_weight_fc.0.bias": 3,
    }
    parameters = named(*(prefix + name for name in membership))
    groups = prepare_optimizer_groups(parameters, lr=1e-4, coef_lr=1e-3)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (pytest.approx(1e-7), 0.2),
        (1e-4, 0.2),
        (pytest.approx(1e-7), 0.0),
        (1e-4, 0.0),
    ]
    position = {id(parameter): index for index, group in enumerate(groups) for parameter in group["params"]}
    assert {name.removeprefix(prefix): position[id(p)] for name, p in parameters} == membership
    assert sum(len(group["params"]) for group in groups) == len(membership)


def test_groups_leave_out_frozen_parameters_and_empty_groups():
    parameters = named("clip.a.weight", "clip.a.bias", "head.weight")
    parameters[0][1].requires_grad_(False)
    groups = prepare_optimizer_groups(parameters, lr=1.0, coef_lr=0.5, weight_decay=0.3)
    assert groups == [
        {"params": [parameters[2][1]], "weight_decay": 0.3, "lr": 1.0},
        {"params": [parameters[1][1]], "weight_decay": 0.0, "lr": 0.5},
    ]


@pytest.mark.parametrize("name", ["lr", "coef_lr", "weight_decay"])
def test_groups_reject_negative_numbers(name):
    with pytest.raises(ValueError, match=rf"{name} must be a finite number >= 0, got -1"):
        prepare_optimizer_groups(named("a"), **{"lr": 1.0, "coef_lr": 1.0, name: -1})
