"""The moving average of weights: its ramp, its buffers, its counters."""

import pytest
import torch
from torch import nn

from mobilenets.architecture import MobileNetSpec
from mobilenets.architecture.network import MobileNet
from mobilenets.training.averaging import average_of


class Holder(nn.Module):
    """One of each: a parameter, a running statistic, a counter, a flag."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("counter", torch.tensor(0))
        self.register_buffer("flag", torch.tensor(False))

    def set(self, value):
        with torch.no_grad():
            self.weight.fill_(value)
            self.mean.fill_(-2.0 * value)
            self.counter.fill_(int(value))
            self.flag.fill_(value > 2)


def averages(decay, values):
    holder = Holder()
    holder.set(100.0)
    average = average_of(holder, decay)
    seen = []
    for value in values:
        holder.set(value)
        average.update_parameters(holder)
        seen.append(average.module.weight.item())
    return average.module, seen


def by_hand(decay, values):
    """The first update copies; then min(decay, (1 + n) / (10 + n)) of what was, n updates on."""
    mean, seen = values[0], [values[0]]
    for n, value in enumerate(values[1:], start=1):
        kept = min(decay, (1 + n) / (10 + n))
        mean = kept * mean + (1 - kept) * value
        seen.append(mean)
    return seen


VALUES = [1.0, 2.0, 5.0, 3.0]


def test_ramp_by_hand():
    _, seen = averages(0.9999, VALUES)
    first = 1.0
    second = 2 / 11 * first + 9 / 11 * 2.0
    third = 3 / 12 * second + 9 / 12 * 5.0
    fourth = 4 / 13 * third + 9 / 13 * 3.0
    assert seen == pytest.approx([first, second, third, fourth], abs=1e-14)
    assert seen == pytest.approx(by_hand(0.9999, VALUES), abs=1e-14)


# The start itself, random weights, is in the average of no run.
def test_the_start_is_forgotten_at_once():
    assert averages(0.5, [1.0])[1] == [1.0]


@pytest.mark.parametrize(
    "decay",
    [
        # Below the ramp's first value, so that it is the decay from the beginning.
        0.1,
        # The ramp meets it after 8 updates: (1 + 8) / (10 + 8).
        0.5,
        # Beyond what 200 updates come to, 0.957.
        0.999,
    ],
)
def test_the_decay_is_a_cap(decay):
    values = [float(value % 7) for value in range(200)]
    _, seen = averages(decay, values)
    assert seen == pytest.approx(by_hand(decay, values), abs=1e-9)


def test_running_statistics_are_averaged_and_counters_copied():
    module, seen = averages(0.9, VALUES)
    assert module.mean.item() == pytest.approx(-2 * seen[-1], abs=1e-14)
    assert module.counter.item() == 3
    assert module.counter.dtype == torch.int64
    assert module.flag.item() is True


def test_the_average_is_apart_from_the_model():
    holder = Holder()
    average = average_of(holder, 0.9)
    holder.set(1.0)
    average.update_parameters(holder)
    holder.set(7.0)
    assert average.module.weight.item() == 1.0
    assert not average.module.weight.requires_grad or average.module.weight is not holder.weight


def test_the_average_of_a_network_goes_on_from_its_state():
    def train(model, average, seeds):
        for seed in seeds:
            torch.manual_seed(seed)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.01)
            model(torch.rand(2, 3, 32, 32))
            average.update_parameters(model)

    def made():
        torch.manual_seed(0)
        model = MobileNet(MobileNetSpec.parse("0.25-32-s8"), 3).train()
        return model, average_of(model, 0.99)

    model, average = made()
    train(model, average, range(3))
    again, other = made()
    again.load_state_dict(model.state_dict())
    other.load_state_dict(average.state_dict())
    train(model, average, range(3, 5))
    train(again, other, range(3, 5))
    for key, value in average.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    # What is kept has the network's own names, and its counters.
    assert set(average.module.state_dict()) == set(model.state_dict())
    counters = {
        int(value) for key, value in average.module.state_dict().items() if "num_batches" in key
    }
    assert counters == {5}
