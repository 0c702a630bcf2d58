"""When a run ends, by epochs or by time, and which learning rate it has on the way."""

import random
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from mobilenets.training import loop, plan
from mobilenets.training.plan import Plan, Standing
from mobilenets.training.recipe import Recipe


class Clock:
    """Stands in for `time` in the plan and the verb; goes on when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        for module in (plan, loop, import_module("mobilenets.cli.train")):
            monkeypatch.setattr(
                module,
                "time",
                SimpleNamespace(monotonic=lambda: self.now, perf_counter=lambda: self.now),
            )


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def recipe(**changes):
    return Recipe(name="plan", epochs=3, batch_size=10).override(changes)


def run(clock, plan, standing, seconds, evaluation=0.0, steps_per_epoch=10, limit=100_000):
    """Train by the fake clock; `seconds` gives a step's time. Returns one entry a step."""
    log = []
    while not plan.finished(standing):
        factor = plan.factor(standing)
        spent = seconds(standing.step)
        clock.now += spent
        plan.stepped(standing, spent)
        log.append(SimpleNamespace(factor=factor, share=standing.share, now=clock.now, spent=spent))
        assert len(log) < limit, "the plan never ends"
        if standing.position == steps_per_epoch or plan.finished(standing):
            clock.now += evaluation
            plan.evaluated(evaluation)
            standing.next_epoch()
    return log


@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch"),
    # A single step; thirds, which do not add up exactly; many.
    [(1, 1), (3, 1), (3, 7), (7, 3), (90, 11)],
)
def test_epochs_end_after_exactly_their_steps(clock, epochs, steps_per_epoch):
    made = Plan(recipe(epochs=epochs), steps_per_epoch * 10, steps_per_epoch)
    standing = Standing()
    made.start(standing)
    log = run(clock, made, standing, lambda step: 0.1, steps_per_epoch=steps_per_epoch)
    assert len(log) == standing.step == epochs * steps_per_epoch
    assert standing.epoch == epochs + 1
    assert standing.share == 1.0
    shares = [entry.share for entry in log]
    assert shares == sorted(shares)


def test_epochs_do_not_look_at_the_clock(clock):
    logs = []
    for seconds in (0.001, 50.0):
        made, standing = Plan(recipe(), 100, 10), Standing()
        made.start(standing)
        log = run(clock, made, standing, lambda step, seconds=seconds: seconds)
        logs.append([(entry.factor, entry.share) for entry in log])
    assert logs[0] == logs[1]


def test_epochs_go_on_from_any_step(clock):
    whole, standing = Plan(recipe(), 100, 10), Standing()
    whole.start(standing)
    factors = [entry.factor for entry in run(clock, whole, standing, lambda step: 1.0)]
    half, standing = Plan(recipe(), 100, 10), Standing(epoch=2, position=3, step=13)
    half.start(standing)
    assert [entry.factor for entry in run(clock, half, standing, lambda step: 1.0)] == factors[13:]


@pytest.mark.parametrize(
    ("epochs", "finished"),
    # More epochs than were planned go on; as many, or fewer, have nothing left.
    [(4, False), (3, True), (2, True)],
)
def test_other_numbers_of_epochs_after_the_end(clock, epochs, finished):
    made = Plan(recipe(epochs=epochs), 100, 10)
    standing = Standing(epoch=4, step=30, share=1.0)
    made.start(standing)
    assert made.finished(standing) is finished


MACHINES = {
    "constant": lambda step: 0.1,
    # Twice as slow in the end, twice as fast in the end.
    "slowing": lambda step: 0.1 * (1 + min(1.0, step / 500)),
    "speeding": lambda step: 0.2 / (1 + min(1.0, step / 500)),
    "noisy": lambda step: 0.1 * random.Random(step).uniform(0.5, 1.5),
    # Something else ran for a while.
    "disturbed": lambda step: 0.3 if 200 < step < 300 else 0.1,
}


@pytest.mark.parametrize("evaluation", [0.0, 0.5])
@pytest.mark.parametrize("machine", MACHINES)
def test_time_is_kept(clock, machine, evaluation):
    made, standing = Plan(recipe(max_seconds=100), 100, 10), Standing()
    started = clock.now
    made.start(standing)
    log = run(clock, made, standing, MACHINES[machine], evaluation)
    took = clock.now - started
    # Within a few percent before the end; late by a step at most, and what an evaluation takes.
    assert 97 <= took <= 100 + max(entry.spent for entry in log) + evaluation
    shares = [entry.share for entry in log]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    # The schedule is all but over when it ends: no jump at the last step.
    assert shares[-2] > 0.97
    # The default schedule: a tenth of warm-up, then down, and never up again.
    peak = max(range(len(log)), key=lambda position: log[position].factor)
    down = [entry.factor for entry in log[peak:]]
    assert down == sorted(down, reverse=True)
    assert log[peak].factor > 0.95
    assert log[-1].factor < 0.01


# An epoch that ends just before the time does is evaluated; one more step, and it is all evaluated
# again. With 10 steps an epoch, some of these lengths end there.
@pytest.mark.parametrize("machine", ["constant", "slowing", "speeding"])
def test_never_late_by_more_than_a_step(clock, machine):
    for tenths in range(600, 900, 3):
        made, standing = Plan(recipe(max_seconds=tenths / 10), 100, 10), Standing()
        started = clock.now
        made.start(standing)
        log = run(clock, made, standing, MACHINES[machine], evaluation=3.0)
        assert clock.now - started <= tenths / 10 + log[-1].spent


@pytest.mark.parametrize("machine", ["constant", "noisy"])
def test_time_and_share_go_together(clock, machine):
    made, standing = Plan(recipe(max_seconds=100), 100, 10), Standing()
    started = clock.now
    made.start(standing)
    for entry in run(clock, made, standing, MACHINES[machine], 0.5):
        # Until the first evaluation it is not known what one takes.
        assert abs(entry.share - (entry.now - started) / 100) < 0.06


@pytest.mark.parametrize(
    ("seconds", "max_seconds", "steps"),
    [
        # Less time than a step takes: one step, and no more.
        (0.5, 0.01, 1),
        (0.5, 0.5, 1),
        # Time for two steps and a half.
        (0.5, 1.25, 2),
    ],
)
def test_hardly_any_time(clock, seconds, max_seconds, steps):
    made, standing = Plan(recipe(max_seconds=max_seconds), 100, 10), Standing()
    made.start(standing)
    assert abs(len(run(clock, made, standing, lambda step: seconds)) - steps) <= 1
    assert standing.step >= 1


def test_time_spent_before_training_counts(clock):
    made, standing = Plan(recipe(max_seconds=100), 100, 10, already=40.0), Standing()
    made.start(standing)
    assert made.seconds == 40.0
    assert made.seconds_left(standing) == 60.0
    started = clock.now
    run(clock, made, standing, lambda step: 0.1)
    assert 57 <= clock.now - started <= 60.1
    assert standing.seconds == pytest.approx(clock.now - started + 40)


def test_time_of_earlier_sessions_counts(clock):
    made, standing = Plan(recipe(max_seconds=100), 100, 10), Standing()
    made.start(standing)
    for _ in range(300):
        clock.now += 0.1
        made.stepped(standing, 0.1)
    assert standing.seconds == pytest.approx(30)
    share = standing.share
    # A day later, and two seconds of start-up.
    clock.now += 86_400
    kept = Standing.from_dict(standing.to_dict())
    again = Plan(recipe(max_seconds=100), 100, 10, already=2.0)
    again.start(kept)
    assert again.seconds == pytest.approx(32)
    started = clock.now
    log = run(clock, again, kept, lambda step: 0.1)
    assert 65 <= clock.now - started <= 68.1
    assert log[0].share >= share
    assert [entry.share for entry in log] == sorted(entry.share for entry in log)


@pytest.mark.parametrize(
    ("name", "at_half"),
    [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)],
)
def test_schedules_by_time(clock, name, at_half):
    changes = {"max_seconds": 100, "schedule.name": name, "schedule.warmup": 0}
    made = Plan(recipe(**changes), 100, 10)
    assert made.factor(Standing(share=0.5)) == pytest.approx(at_half, abs=1e-5)
    assert made.factor(Standing(share=0.0)) == pytest.approx(1.0, abs=1e-5)


# Stairs are a number of epochs wide: after 2.5 epochs of ten steps, by the default.
@pytest.mark.parametrize(
    ("step", "expected"), [(0, 1.0), (24, 1.0), (25, 0.94), (49, 0.94), (50, 0.94**2)]
)
def test_stairs_by_time(clock, step, expected):
    changes = {"max_seconds": 100, "schedule.name": "exponential", "schedule.warmup": 0}
    made = Plan(recipe(**changes), 100, 10)
    assert made.factor(Standing(step=step, share=0.3)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("made", "standing", "now", "expected"),
    [
        # By time: what is left of it, and never less than none.
        ({"max_seconds": 100}, Standing(), 30.0, 70.0),
        ({"max_seconds": 100}, Standing(), 130.0, 0.0),
        # By epochs: 10 of 30 steps took 30 seconds.
        ({}, Standing(step=10, share=1 / 3), 30.0, 60.0),
        ({}, Standing(step=30, share=1.0), 30.0, 0.0),
    ],
)
def test_seconds_left(clock, made, standing, now, expected):
    made = Plan(recipe(**made), 100, 10)
    clock.now += now
    assert made.seconds_left(standing) == pytest.approx(expected)


# A run that goes on is as fast as it is now, not as it was, and reading the images is over.
def test_seconds_left_of_a_run_that_goes_on(clock):
    made, standing = Plan(recipe(), 100, 10, already=500.0), Standing(step=15, seconds=9000.0)
    made.start(standing)
    assert standing.share == 0.5
    clock.now += 30.0
    standing.share = 0.75
    assert made.seconds_left(standing) == pytest.approx(30.0)


# Compiling, memory, caches: a first step of a few seconds is usual, of a minute with compile=true.
def test_a_slow_first_step_does_not_use_the_schedule_up(clock):
    made, standing = Plan(recipe(max_seconds=100), 100, 10), Standing()
    started = clock.now
    made.start(standing)
    log = run(clock, made, standing, lambda step: 10.0 if step == 0 else 0.1)
    for entry in log[1:]:
        assert abs(entry.share - (entry.now - started) / 100) < 0.05


class Steps:
    """Batches that take `fetch` seconds to come; a step takes `work` seconds, a save `write`."""

    def __init__(self, clock, fetch, work, write):
        self.clock, self.fetch, self.work, self.write = clock, fetch, work, write
        self.factors = []
        self.images = 100

    def __len__(self):
        return 10

    def batches(self, epoch, start, shard):
        for _ in range(start, 10):
            self.clock.now += self.fetch
            yield SimpleNamespace(whole=10)


def train_by_the_clock(monkeypatch, tmp_path, data, **changes):
    """The loop itself, with everything that is slow taken out of it."""

    class Session:
        def __init__(self, *given):
            self.standing = Standing()

        def step(self, batch, factor, stages):
            data.clock.now += data.work
            data.factors.append(factor)

        def stale(self):
            return False

        def save(self):
            data.clock.now += data.write

    monkeypatch.setattr(loop, "Session", Session)
    monkeypatch.setattr(loop, "_end_epoch", lambda *given: "")
    monkeypatch.setattr(loop, "_curves", lambda *given: loop.nullcontext())
    loop.train(
        SimpleNamespace(folder=tmp_path),
        SimpleNamespace(train=data),
        recipe(**changes),
        torch.device("cpu"),
        report=lambda line: None,
    )


@pytest.mark.parametrize(
    ("fetch", "work", "write"),
    [
        (0.0, 0.1, 0.0),
        # Reading takes half of the time, and most of it, as with photos on two cores.
        (0.05, 0.05, 0.0),
        (0.09, 0.01, 0.0),
        # Short epochs, each of which is written down: weights, pictures, the state.
        (0.0, 0.02, 0.8),
    ],
)
def test_the_rate_comes_down_whatever_takes_the_time(
    monkeypatch, clock, tmp_path, fetch, work, write
):
    started, data = clock.now, Steps(clock, fetch, work, write)
    line = {"schedule.name": "linear", "schedule.warmup": 0}
    train_by_the_clock(monkeypatch, tmp_path, data, max_seconds=30, **line)
    assert 28 <= clock.now - started <= 30.2 + write
    assert data.factors[-1] < 0.03


def test_standing_survives_its_file(tmp_path):
    standing = Standing(
        epoch=3,
        position=4,
        step=45,
        share=0.3,
        seconds=12.5,
        images=130,
        best={"epoch": 2, "top1": 0.5},
        stopping_best=-0.7,
        stale=2,
    )
    standing.count({"loss": torch.tensor(2.0, requires_grad=True), "top1": torch.tensor(0.5)}, 10)
    standing.count({"loss": torch.tensor(1.0), "top1": torch.tensor(1.0)}, 30)
    torch.save(standing.to_dict(), tmp_path / "standing.pt")
    again = Standing.from_dict(torch.load(tmp_path / "standing.pt", weights_only=True))
    assert again.sums == {"loss": 50.0, "top1": 35.0}
    assert again == Standing(**{**vars(standing), "sums": again.sums})
    # Sums go on from numbers as from tensors.
    again.count({"loss": torch.tensor(0.5), "top1": torch.tensor(0.0)}, 20)
    assert again.plain_sums() == {"loss": 60.0, "top1": 35.0}


def test_a_new_epoch_begins_at_nothing_and_keeps_the_rest():
    standing = Standing(epoch=3, position=4, step=45, images=130, sums={"loss": 1.0}, stale=2)
    standing.next_epoch()
    assert standing == Standing(epoch=4, step=45, stale=2)
    assert Standing() == Standing.from_dict(Standing().to_dict())
