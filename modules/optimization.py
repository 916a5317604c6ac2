"""BertAdam, its learning-rate schedules and CLIP4Clip's parameter groups."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from numbers import Real

import torch
from torch import nn
from torch.optim import Optimizer


def warmup_cosine(progress: float, warmup: float) -> float:
    """Rise linearly from 0 until `warmup`, then follow 0.5 (1 + cos(pi progress)); 0 past the end."""
    if progress < warmup:
        return progress / warmup
    # past the planned end the cosine would rise again; the recipe does not restart
    return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def warmup_constant(progress: float, warmup: float) -> float:
    """Rise linearly from 0 until `warmup`, then stay at 1."""
    if progress < warmup:
        return progress / warmup
    return 1.0


def warmup_linear(progress: float, warmup: float) -> float:
    """Rise linearly from 0 until `warmup`, then fall linearly from 1 to 0 at the end; 0 past the end."""
    if progress < warmup:
        return progress / warmup
    return max((progress - 1.0) / (warmup - 1.0), 0.0)


# (progress = step / t_total, warm-up's share of it) -> factor of the learning rate
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "warmup_cosine": warmup_cosine,
    "warmup_constant": warmup_constant,
    "warmup_linear": warmup_linear,
}

NO_DECAY = ("bias", "LayerNorm.bias", "LayerNorm.weight")

# weights updated together on a CPU, few enough for the temporary copies to stay in its caches
CHUNK_NUMBERS = 1 << 20


class BertAdam(Optimizer):
    """Adam as BERT's pre-training and CLIP4Clip use it (Devlin et al. 2019).

    It has no bias correction, decoupled weight decay inside the update, and clips the gradient norm of each
    parameter by itself. With gradient g, all operations element-wise:

        m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2,
        p = p - lr schedule(step / t_total) (m / (sqrt(v) + e) + weight_decay p)

    `step` counts each parameter's own updates from 0, so that with a warm-up the first one has rate 0. As
    published, moments and update are in the parameter's own type: fp16 for fp16 weights.

    Args:
        params: parameters or groups; a group may set every other argument for itself.
        lr: peak learning rate, >= 0.
        warmup: share of t_total in [0, 1), or -1 for none.
        t_total: updates of the whole run, > 0; -1 keeps the rate at lr, whatever the warm-up and schedule.
        schedule: "warmup_cosine", "warmup_constant" or "warmup_linear".
        b1, b2: decay of the moments, in [0, 1).
        e: added after the square root, >= 0.
        weight_decay: >= 0.
        max_grad_norm: limit of each parameter's gradient norm; 0 or less does not clip.

    Raises:
        ValueError: an argument out of range, in the constructor or in a group.
    """

    def __init__(
        self,
        params,
        lr: float,
        warmup: float = -1,
        t_total: float = -1,
        schedule: str = "warmup_linear",
        b1: float = 0.9,
        b2: float = 0.999,
        e: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
    ):
        defaults = {
            "lr": lr,
            "warmup": warmup,
            "t_total": t_total,
            "schedule": schedule,
            "b1": b1,
            "b2": b2,
            "e": e,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
        }
        check_settings(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict) -> None:
        """Add a group as torch's optimizers do.

        Raises: ValueError for a setting out of range.
        """
        check_settings({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict) -> None:
        """Load moments, steps and settings except `t_total`, which is this run's."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["t_total"] = self.defaults["t_total"]

    def get_lr(self) -> list[float]:
        """Return the rate of the next step for each parameter that has been updated; [0.0] before the first step."""
        rates = [
            scheduled_rate(group, self.state[parameter]["step"])
            for group in self.param_groups
            for parameter in group["params"]
            if parameter in self.state
        ]
        return rates or [0.0]

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """Update every parameter that has a gradient, and clip these gradients in place.

        Args:
            closure: optional; called with gradients enabled, its loss is returned.

        Raises:
            RuntimeError: a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            groups_by_type = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    steps = self._state_of(parameter)["step"]
                    groups_by_type[parameter.device, parameter.dtype, steps].append(parameter)
            for parameters in groups_by_type.values():
                # all in a few launches on a GPU; on a CPU no more than its caches hold
                for chunk in [parameters] if parameters[0].is_cuda else split_into_chunks(parameters):
                    self._update(chunk, group)
        return loss

    def _update(self, parameters: list[nn.Parameter], group: dict) -> None:
        """Update parameters of one device, dtype and step count, without waiting for the device."""
        gradients = [parameter.grad for parameter in parameters]
        states = [self.state[parameter] for parameter in parameters]
        if group["max_grad_norm"] > 0:
            clip_norms(gradients, group["max_grad_norm"])

        first_moments = [state["next_m"] for state in states]
        second_moments = [state["next_v"] for state in states]
        scale_tensors(first_moments, group["b1"])
        torch._foreach_add_(first_moments, gradients, alpha=1.0 - group["b1"])
        scale_tensors(second_moments, group["b2"])
        torch._foreach_addcmul_(second_moments, gradients, gradients, value=1.0 - group["b2"])
        denominators = torch._foreach_sqrt(second_moments)
        torch._foreach_add_(denominators, group["e"])
        updates = torch._foreach_div(first_moments, denominators)
        if group["weight_decay"] > 0:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        # two operations instead of a fused add: the published weights were trained with rate * update rounded to fp16
        scale_tensors(updates, scheduled_rate(group, states[0]["step"]))
        torch._foreach_sub_(parameters, updates)
        for state in states:
            state["step"] += 1

    def _state_of(self, parameter: nn.Parameter) -> dict:
        """Return the parameter's step and moments, initialized with 0."""
        if parameter.grad.is_sparse:
            raise RuntimeError(
                f"BertAdam needs dense gradients, the parameter of shape {tuple(parameter.shape)} has a sparse one; "
                "build its Embedding with sparse=False"
            )
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            # in the parameter's own dtype: the published recipe has fp16 moments for fp16 weights
            state["next_m"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["next_v"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state


def split_into_chunks(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield lists of parameters; a list ends when it reaches `CHUNK_NUMBERS` weights."""
    chunk, numbers = [], 0
    for parameter in parameters:
        chunk.append(parameter)
        numbers += parameter.numel()
        if numbers >= CHUNK_NUMBERS:
            yield chunk
            chunk, numbers = [], 0
    if chunk:
        yield chunk


def scale_tensors(tensors: list[torch.Tensor], factor: float) -> None:
    """Multiply every tensor in place, each product rounded once to the tensor's dtype."""
    # on a CPU a Python number is first rounded to fp16 itself, which makes 0 of a rate of 1e-8
    torch._foreach_mul_(tensors, factor if tensors[0].is_cuda else torch.tensor(factor, dtype=torch.float64))


def clip_norms(gradients: list[torch.Tensor], max_norm: float) -> None:
    """Clip the norm of each gradient by itself at `max_norm`, in place, as `clip_grad_norm_` does for one tensor."""
    norms = torch.stack(torch._foreach_norm(gradients))
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, list(factors.unbind()))


def prepare_optimizer_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], lr: float, coef_lr: float, weight_decay: float = 0.2
) -> list[dict]:
    """Return CLIP4Clip's parameter groups: `clip.*` at lr * coef_lr, the rest at lr.

    Biases and `LayerNorm`s do not decay; CLIP's own norms are named `ln_*`, and their weights do, as published.

    Args:
        named_parameters: of the model, or of its DistributedDataParallel wrapper ("module." is ignored).
        lr: rate of everything that is not CLIP, >= 0.
        coef_lr: factor of CLIP's rate, >= 0.
        weight_decay: of the parameters that decay, >= 0.

    Returns:
        Groups with "params", "weight_decay" and "lr", in CLIP4Clip's order: decayed CLIP, decayed rest, CLIP and
        rest without decay. Frozen parameters and empty groups are left out.

    Raises:
        ValueError: a number out of range.
    """
    for name, value in (("lr", lr), ("coef_lr", coef_lr), ("weight_decay", weight_decay)):
        check_number(name, value, lambda number: number >= 0, "a finite number >= 0")
    keys = [(decays, is_clip) for decays in (True, False) for is_clip in (True, False)]
    members: dict[tuple[bool, bool], list[nn.Parameter]] = {key: [] for key in keys}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            name = name.removeprefix("module.")
            decays = not any(part in name for part in NO_DECAY)
            members[decays, name.startswith("clip.")].append(parameter)
    return [
        {
            "params": members[decays, is_clip],
            "weight_decay": weight_decay if decays else 0.0,
            "lr": lr * coef_lr if is_clip else lr,
        }
        for decays, is_clip in keys
        if members[decays, is_clip]
    ]


def scheduled_rate(group: dict, step: int) -> float:
    """Return the group's learning rate for a parameter that has been updated `step` times."""
    if group["t_total"] == -1:
        return group["lr"]
    return group["lr"] * SCHEDULES[group["schedule"]](step / group["t_total"], group["warmup"])


def check_settings(settings: dict) -> None:
    """Raise ValueError for the first setting of a group that is out of range."""
    ranges: dict[str, tuple[Callable[[float], bool], str]] = {
        "lr": (lambda value: value >= 0, "a finite number >= 0"),
        "warmup": (lambda value: value == -1 or 0 <= value < 1, "in [0, 1), or -1 for none"),
        "t_total": (lambda value: value == -1 or value > 0, "> 0, or -1 for a constant rate"),
        "b1": (lambda value: 0 <= value < 1, "in [0, 1)"),
        "b2": (lambda value: 0 <= value < 1, "in [0, 1)"),
        "e": (lambda value: value >= 0, "a finite number >= 0"),
        "weight_decay": (lambda value: value >= 0, "a finite number >= 0"),
        "max_grad_norm": (lambda value: True, "a finite number; 0 or less does not clip"),
    }
    for name, (is_valid, choices) in ranges.items():
        check_number(name, settings[name], is_valid, choices)
    if settings["schedule"] not in tuple(SCHEDULES):
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {settings['schedule']!r}")


def check_number(name: str, value, is_valid: Callable[[float], bool], choices: str) -> None:
    if not isinstance(value, Real) or not math.isfinite(value) or not is_valid(value):
        raise ValueError(f"{name} must be {choices}, got {value!r}")
