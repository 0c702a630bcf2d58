"""TensorFlow's RMSprop, who gets weight decay and which rate, and the rate at every step."""

import copy
import math

import pytest
import torch
from torch import nn

from mobilenets.architecture import MobileNetSpec
from mobilenets.architecture.network import MobileNet
from mobilenets.training.optimizers import (
    RMSpropTF,
    build_optimizer,
    lr_factor,
    parameter_groups,
    stair_steps,
)
from mobilenets.training.recipe import OptimizerChoice, ScheduleChoice

# FACTS section 2: constant gradient, w0 = 0, lr 0.045, decay 0.9, momentum 0.9, epsilon 1.
TABLE = {
    1.0: (
        [-0.03181981, -0.09227743, -0.17850911],
        [-0.03418861, -0.09629781, -0.18179013],
    ),
    0.1: (
        [-0.00326378, -0.00954426, -0.01861628],
        [-0.00436206, -0.01259996, -0.02429139],
    ),
}


def weight(*values, gradient=0.0):
    made = nn.Parameter(torch.tensor(values, dtype=torch.float64))
    made.grad = torch.full_like(made, gradient)
    return made


def by_hand(gradients, lrs, decay=0.9, momentum=0.9, epsilon=1.0, weight_decay=0.0, start=0.0):
    """The weight after each step, by the formula that the docstring gives."""
    w, s, m, seen = start, 1.0, 0.0, []
    for g, lr in zip(gradients, lrs, strict=True):
        g = g + weight_decay * w
        s = decay * s + (1 - decay) * g * g
        m = momentum * m + lr * g / math.sqrt(s + epsilon)
        w -= m
        seen.append(w)
    return seen


def after_steps(optimizer, w, count):
    seen = []
    for _ in range(count):
        optimizer.step()
        seen.append(w.item())
    return seen


@pytest.mark.parametrize("gradient", [1.0, 0.1])
def test_tensorflows_rmsprop_is_the_table(gradient):
    w = weight(0.0, gradient=gradient)
    optimizer = RMSpropTF([w], lr=0.045)
    assert after_steps(optimizer, w, 3) == pytest.approx(TABLE[gradient][0], abs=1e-8)


# So that the two columns are known to be of the same experiment, and PyTorch to be the other one.
@pytest.mark.parametrize("gradient", [1.0, 0.1])
def test_torchs_rmsprop_is_the_other_column(gradient):
    w = weight(0.0, gradient=gradient)
    optimizer = torch.optim.RMSprop([w], lr=0.045, alpha=0.9, eps=1.0, momentum=0.9)
    assert after_steps(optimizer, w, 3) == pytest.approx(TABLE[gradient][1], abs=1e-8)


@pytest.mark.parametrize(
    "numbers",
    [
        # No momentum: each step stands alone.
        {"momentum": 0.0},
        # An epsilon that hardly counts, as in Adam's habit.
        {"epsilon": 1e-10},
        {"decay": 0.5, "momentum": 0.5},
        # Decay of the weights is part of the gradient: the squares see it too.
        {"weight_decay": 0.1, "start": 2.0},
        {"weight_decay": 4e-5, "start": -3.0},
    ],
)
def test_rmsprop_by_hand(numbers):
    gradients, lrs = [0.3, -1.2, 0.0, 0.7], [0.045] * 4
    choice = {key: value for key, value in numbers.items() if key != "start"}
    w = weight(numbers.get("start", 0.0))
    optimizer = RMSpropTF([w], lr=0.045, **choice)
    seen = []
    for gradient in gradients:
        w.grad.fill_(gradient)
        optimizer.step()
        seen.append(w.item())
    assert seen == pytest.approx(by_hand(gradients, lrs, **numbers), abs=1e-14)


# The rate is inside the momentum: a drop leaves what has been gathered as large as it was.
def test_a_lower_rate_does_not_shrink_old_momentum():
    w = weight(0.0, gradient=1.0)
    optimizer = RMSpropTF([w], lr=0.045)
    after_steps(optimizer, w, 2)
    before, momentum = w.item(), optimizer.state[w]["momentum"].item()
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert before - w.item() == pytest.approx(0.9 * momentum, abs=1e-15)
    assert w.item() == pytest.approx(by_hand([1, 1, 1], [0.045, 0.045, 0])[-1], abs=1e-15)
    # PyTorch's own stands still at a rate of 0, whatever its momentum.
    other = weight(0.0, gradient=1.0)
    torchs = torch.optim.RMSprop([other], lr=0.045, alpha=0.9, eps=1.0, momentum=0.9)
    before = after_steps(torchs, other, 2)[-1]
    torchs.param_groups[0]["lr"] = 0.0
    assert after_steps(torchs, other, 1) == [before]


def test_rmsprop_with_several_groups():
    first, second, idle = weight(0.0, gradient=1.0), weight(2.0, gradient=0.1), weight(5.0)
    idle.grad = None
    optimizer = RMSpropTF(
        [
            {"params": [first, idle]},
            {"params": [second], "lr": 0.01, "weight_decay": 0.1},
        ],
        lr=0.045,
    )
    for _ in range(3):
        optimizer.step()
    assert first.item() == pytest.approx(TABLE[1.0][0][-1], abs=1e-8)
    expected = by_hand([0.1] * 3, [0.01] * 3, weight_decay=0.1, start=2.0)[-1]
    assert second.item() == pytest.approx(expected, abs=1e-14)
    # A weight without a gradient, such as a frozen one, is left alone, and has no state.
    assert idle.item() == 5.0
    assert idle not in optimizer.state
    # Weight decay is not written into the gradient that others may read.
    assert second.grad.item() == 0.1


def test_rmsprop_of_tensors_and_a_group_without_gradients():
    matrix, empty = weight(*range(6)), weight(1.0)
    empty.grad = None
    matrix.grad.copy_(torch.arange(6))
    optimizer = RMSpropTF([{"params": [empty]}, {"params": [matrix]}], lr=0.1)
    optimizer.step()
    for position in range(6):
        expected = by_hand([position], [0.1], start=float(position))[0]
        assert matrix[position].item() == pytest.approx(expected, abs=1e-14)
    assert empty.item() == 1.0


def test_rmsprop_calls_a_closure():
    w = weight(3.0)

    def closure():
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    optimizer = RMSpropTF([w], lr=0.045)
    assert optimizer.step(closure).item() == 9.0
    assert w.item() == pytest.approx(by_hand([6.0], [0.045], start=3.0)[0], abs=1e-14)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_an_optimizer_goes_on_from_its_state(name):
    def steps(model, optimizer, seeds):
        for seed in seeds:
            torch.manual_seed(seed)
            model(torch.rand(4, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    choice = OptimizerChoice(name=name, lr=0.01)
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, choice)
    steps(model, optimizer, range(3))
    again = copy.deepcopy(model)
    other = build_optimizer(again, choice)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(model, optimizer, range(3, 6))
    steps(again, other, range(3, 6))
    assert model.weight.equal(again.weight)
    assert model.bias.equal(again.bias)
    # The peak that schedules scale is part of the state.
    assert [group["peak_lr"] for group in other.param_groups] == [0.01, 0.01]


@pytest.mark.parametrize(
    ("choice", "kind", "expected"),
    [
        # Nesterov needs momentum: without any it is left out, and nothing fails.
        ({"name": "sgd"}, "SGD", {"momentum": 0.9, "nesterov": True}),
        ({"name": "sgd", "momentum": 0.0}, "SGD", {"momentum": 0.0, "nesterov": False}),
        ({"name": "sgd", "nesterov": False}, "SGD", {"momentum": 0.9, "nesterov": False}),
        # `momentum` is the first beta.
        ({"name": "adam", "momentum": 0.6}, "Adam", {"betas": (0.6, 0.999), "eps": 1e-8}),
        ({"name": "adamw", "beta2": 0.99, "epsilon": 1e-6}, "AdamW", {"betas": (0.9, 0.99)}),
        # `beta2` is the decay.
        (
            {"name": "rmsprop", "beta2": 0.8, "epsilon": 1.0},
            "RMSpropTF",
            {"decay": 0.8, "momentum": 0.9, "epsilon": 1.0},
        ),
    ],
)
def test_optimizers_are_what_the_recipe_says(choice, kind, expected):
    optimizer = build_optimizer(nn.Linear(3, 2), OptimizerChoice(lr=0.02, **choice))
    assert type(optimizer).__name__ == kind
    assert {key: optimizer.defaults[key] for key in expected} == expected
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 0.0]
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.02]


# Weight decay is in the gradient for adam, where it is divided away, and beside it for adamw.
@pytest.mark.parametrize(("name", "expected"), [("adam", 0.9), ("adamw", 0.99)])
def test_weight_decay_of_adam_and_adamw(name, expected):
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    model.weight.grad = torch.zeros(1, 1)
    build_optimizer(model, OptimizerChoice(name=name, lr=0.1, weight_decay=0.1)).step()
    assert model.weight.item() == pytest.approx(expected, abs=1e-5)


# FACTS section 2 and section 5, row 22.
@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 0.045),
        (49_653, 0.045),
        (49_654, 0.0423),
        (2 * 49_654 - 1, 0.0423),
        (2 * 49_654, 0.039762),
        (10 * 49_654, 0.045 * 0.94**10),
    ],
)
def test_learning_rate_goes_down_in_tensorflow_slims_stairs(step, lr):
    stair = stair_steps(1_271_167, 64, 2.5)
    choice = ScheduleChoice(name="exponential", warmup=0.0, factor=0.94, every=2.5)
    assert 0.045 * lr_factor(step, 10_000_000, choice, stair) == pytest.approx(lr, abs=1e-12)


@pytest.mark.parametrize(
    ("images", "batch_size", "every", "expected"),
    [
        (1_271_167, 64, 2.5, 49_654),
        # Cut off, not rounded: 19,861.98.
        (1_271_167, 64, 1.0, 19_861),
        # At least one step, however small the data.
        (10, 64, 2.5, 1),
        (100, 10, 0.5, 5),
    ],
)
def test_steps_of_a_stair(images, batch_size, every, expected):
    assert stair_steps(images, batch_size, every) == expected


@pytest.mark.parametrize(
    ("choice", "last"),
    [
        # Ten steps, no warm-up: the last is one step above the end.
        ({"name": "constant"}, 1.0),
        ({"name": "linear"}, 0.1),
        ({"name": "linear", "final": 0.2}, 0.2 + 0.8 * 0.1),
        ({"name": "cosine"}, (1 + math.cos(0.9 * math.pi)) / 2),
        ({"name": "cosine", "final": 0.5}, 0.5 + 0.5 * (1 + math.cos(0.9 * math.pi)) / 2),
        # Stairs of three steps: 0, 3, 6 and 9 go down.
        ({"name": "exponential", "factor": 0.5}, 0.125),
        # Five of ten steps are warm-up, five go down.
        ({"name": "linear", "warmup": 0.5}, 0.2),
        ({"name": "cosine", "warmup": 0.5}, (1 + math.cos(0.8 * math.pi)) / 2),
    ],
)
def test_last_step_by_hand(choice, last):
    schedule = ScheduleChoice(**{"warmup": 0.0, **choice})
    assert lr_factor(9, 10, schedule, stair=3) == pytest.approx(last, abs=1e-12)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "exponential"])
@pytest.mark.parametrize(
    ("warmup", "steps"),
    # From none to all but all of the steps; a single step; a share that rounds to no step.
    [(0.0, 10), (0.1, 10), (0.25, 8), (0.5, 9), (0.99, 100), (0.9, 1), (0.01, 10)],
)
def test_warmup_ends_at_the_peak_and_then_the_rate_never_rises(name, warmup, steps):
    choice = ScheduleChoice(name=name, warmup=warmup)
    rates = [lr_factor(step, steps, choice, stair=steps + 1) for step in range(steps)]
    rising = round(warmup * steps)
    assert rates[:rising] == pytest.approx([(step + 1) / rising for step in range(rising)])
    assert all(0 < rate <= 1 for rate in rates)
    # The step after the warm-up, too, is at the peak.
    assert rates[rising : rising + 1] in ([1.0], [])
    down = rates[max(0, rising - 1) :]
    assert down == sorted(down, reverse=True)


class Small(nn.Module):
    """Every kind of parameter that a network of this project has, few enough to count by hand."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict(
            {
                "full": nn.Conv2d(3, 4, 3, bias=False),  # 108
                "norm": nn.BatchNorm2d(4),  # 4 + 4
                "depthwise": nn.Conv2d(4, 4, 3, groups=4, bias=False),  # 36
                "pointwise": nn.Conv2d(4, 5, 1, bias=False),  # 20
            }
        )
        self.classifier = nn.Linear(5, 2)  # 10 + 2


def described(groups, lr=0.1):
    """(weight decay, times lr) -> parameters."""
    return {
        (group["weight_decay"], round(group["lr"] / lr, 6)): sum(p.numel() for p in group["params"])
        for group in groups
    }


@pytest.mark.parametrize(
    ("choice", "frozen", "expected"),
    [
        # Decayed: 108 + 20 + 10; not: norm 8, depthwise 36, bias 2.
        ({}, (), {(0.01, 1): 138, (0, 1): 46}),
        ({"decay_depthwise": True}, (), {(0.01, 1): 174, (0, 1): 10}),
        ({"weight_decay": 0.0}, (), {(0, 1): 184}),
        # The classifier leaves both groups.
        ({"head_lr": 10}, (), {(0.01, 1): 128, (0, 1): 44, (0.01, 10): 10, (0, 10): 2}),
        # Batch norm's shift alone: not its scale, no bias of a linear layer.
        ({"norm_bias_lr": 64}, (), {(0.01, 1): 138, (0, 1): 42, (0, 64): 4}),
        (
            {"head_lr": 10, "norm_bias_lr": 64, "weight_decay": 0.0},
            (),
            {(0, 1): 168, (0, 64): 4, (0, 10): 12},
        ),
        # Frozen parameters are in no group; a group that they empty is left out.
        ({}, ("body.full.weight",), {(0.01, 1): 30, (0, 1): 46}),
        (
            {},
            ("body.full.weight", "body.pointwise.weight", "classifier.weight"),
            {(0, 1): 46},
        ),
        (
            {"head_lr": 10},
            ("body.full.weight", "body.pointwise.weight"),
            {(0, 1): 44, (0.01, 10): 10, (0, 10): 2},
        ),
    ],
)
def test_groups_by_hand(choice, frozen, expected):
    model = Small()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    groups = parameter_groups(model, OptimizerChoice(**{"lr": 0.1, "weight_decay": 0.01, **choice}))
    assert described(groups) == expected
    assert all(group["peak_lr"] == group["lr"] for group in groups)


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"decay_depthwise": True},
        {"head_lr": 3.0, "norm_bias_lr": 7.0},
        # A rate of the head times one of the shifts equals the other: groups meet, none is lost.
        {"head_lr": 2.0, "norm_bias_lr": 2.0, "weight_decay": 0.0},
    ],
)
@pytest.mark.parametrize(
    "spec",
    [
        MobileNetSpec(0.25, 32),
        # No depthwise filters at all; and a first layer of one channel, which is not depthwise.
        MobileNetSpec(0.25, 32, variant="fullconv"),
        MobileNetSpec(0.25, 32, variant="shallow", input_channels=1),
    ],
)
def test_every_parameter_is_in_exactly_one_group(spec, choice):
    model = MobileNet(spec, 10)
    groups = parameter_groups(model, OptimizerChoice(**choice))
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters()}
    keys = [(group["weight_decay"], group["lr"]) for group in groups]
    assert len(keys) == len(set(keys))


# FACTS section 5, row 21.
@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, [864 + 3_139_584 + 1_024_000, 44_640 + 21_888 + 1_000]),
        ({"decay_depthwise": True}, [864 + 3_139_584 + 1_024_000 + 44_640, 21_888 + 1_000]),
    ],
)
def test_groups_of_the_papers_network(choice, expected):
    with torch.device("meta"):
        model = MobileNet(MobileNetSpec())
    groups = parameter_groups(model, OptimizerChoice(weight_decay=4e-5, **choice))
    sizes = [sum(p.numel() for p in group["params"]) for group in groups]
    assert sizes == expected
    assert sum(sizes) == 4_231_976
    assert [group["weight_decay"] for group in groups] == [4e-5, 0.0]


def test_synchronised_batch_norm_keeps_its_own_rate():
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(Small())
    choice = OptimizerChoice(lr=0.1, weight_decay=0.01, norm_bias_lr=64)
    assert described(parameter_groups(synchronised, choice)) == {
        (0.01, 1): 138,
        (0, 1): 42,
        (0, 64): 4,
    }
