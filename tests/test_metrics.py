"""Figures by hand on tables small enough to count, whatever the batches; and the loss."""

import math
import warnings

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

from mobilenets import tasks
from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.data.loaders import Batch
from mobilenets.tasks.classification.calibration import Reliability
from mobilenets.tasks.classification.metrics import ClassificationMetrics
from mobilenets.tasks.classification.task import class_weights
from mobilenets.training.recipe import Recipe

CLASSIFICATION = tasks.find("classification")
PLAIN = Recipe(name="plain", epochs=1)


def batch_of(targets, channels=3):
    targets = torch.as_tensor(targets)
    return Batch(torch.zeros(len(targets), channels, 1, 1), targets, len(targets))


def measured(logits, targets, labels=None, batch_size=None, outputs=None):
    logits = torch.as_tensor(logits, dtype=torch.float32)
    labels = labels or [f"class {index}" for index in range(logits.shape[1])]
    metrics = ClassificationMetrics(labels, outputs or logits.shape[1])
    targets = torch.as_tensor(targets)
    for start in range(0, len(targets), batch_size or len(targets)):
        part = slice(start, start + (batch_size or len(targets)))
        metrics.update(logits[part], batch_of(targets[part]))
    return metrics.compute(), metrics.details()


def log(*rows):
    """Logits whose softmax are these probabilities."""
    return torch.tensor(rows).log()


# Six images of three classes: two right, one right, none.
#   true  0    0    1    1    2    2
#   guess 0    0    1    0    1    0
THREE = log(
    [0.7, 0.2, 0.1],
    [0.5, 0.3, 0.2],
    [0.2, 0.6, 0.2],
    [0.8, 0.1, 0.1],
    [0.3, 0.4, 0.3],
    [0.6, 0.1, 0.3],
)
TARGETS = [0, 0, 1, 1, 2, 2]


def test_figures_by_hand():
    figures, details = measured(THREE, TARGETS, ["a", "b", "c"])
    assert figures["top1"] == pytest.approx(3 / 6)
    # Three outputs: the true one is always among the best five.
    assert figures["top5"] == 1.0
    nats = -sum(math.log(p) for p in (0.7, 0.5, 0.6, 0.1, 0.3, 0.3)) / 6
    assert figures["loss"] == pytest.approx(nats, rel=1e-6)
    assert figures["class_top1"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert details["confusion"] == [[2, 0, 0], [1, 1, 0], [1, 1, 0]]
    assert details["classes"] == {
        "a": {"images": 2, "top1": 1.0},
        "b": {"images": 2, "top1": 0.5},
        "c": {"images": 2, "top1": 0.0},
    }
    # Fifteen bins: 0.7 right, 0.5 right, 0.6 right and 0.6 wrong, 0.8 wrong, 0.4 wrong.
    apart = (0.3 + 0.5 + abs(1.2 - 1) + 0.8 + 0.4) / 6
    assert figures["calibration_error"] == pytest.approx(apart, abs=1e-6)
    assert tuple(figures) == CLASSIFICATION.figures


def test_top5_of_seven():
    # The true class comes first, fifth, sixth and last.
    ranks = torch.arange(7, 0, -1).float().expand(4, 7)
    figures, _ = measured(ranks, [0, 4, 5, 6])
    assert figures["top1"] == 0.25
    assert figures["top5"] == 0.5


def test_two_classes():
    figures, details = measured(log([0.9, 0.1], [0.4, 0.6], [0.2, 0.8]), [0, 0, 1])
    assert figures["top1"] == pytest.approx(2 / 3)
    assert figures["top5"] == 1.0
    assert figures["class_top1"] == pytest.approx(0.75)
    assert details["confusion"] == [[1, 1], [0, 1]]


def test_a_class_without_images():
    figures, details = measured(log([0.5, 0.3, 0.2], [0.3, 0.5, 0.2]), [0, 0])
    # Only the class that has images has a share of its own.
    assert figures["class_top1"] == figures["top1"] == 0.5
    assert details["classes"]["class 1"] == {"images": 0, "top1": None}
    assert details["classes"]["class 0"] == {"images": 2, "top1": 0.5}


def test_surplus_outputs():
    # Four outputs, two labels: the second image is taken for something that has no name.
    logits = log([0.6, 0.2, 0.1, 0.1], [0.1, 0.2, 0.1, 0.6], [0.2, 0.5, 0.2, 0.1])
    figures, details = measured(logits, [0, 1, 1], ["a", "b"], outputs=4)
    assert figures["top1"] == pytest.approx(2 / 3)
    assert figures["class_top1"] == pytest.approx((1 + 1 / 2) / 2)
    nats = -(math.log(0.6) + math.log(0.2) + math.log(0.5)) / 3
    assert figures["loss"] == pytest.approx(nats, rel=1e-6)
    # Rows need not add up to the images: the guess beyond the labels is in no column.
    assert details["confusion"] == [[1, 0], [0, 1]]
    assert details["classes"]["b"] == {"images": 2, "top1": 0.5}


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64, 256, 300])
def test_batches_do_not_matter(batch_size):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 12, generator=random) * 3
    targets = torch.randint(12, (300,), generator=random)
    whole, parts = measured(logits, targets), measured(logits, targets, batch_size=batch_size)
    assert parts[0] == pytest.approx(whole[0], rel=1e-6)
    assert parts[1] == whole[1]


def test_half_precision_outputs_are_measured_in_full():
    random = torch.Generator().manual_seed(0)
    logits = (torch.randn(300, 12, generator=random) * 3).bfloat16()
    targets = torch.randint(12, (300,), generator=random)
    metrics = ClassificationMetrics([str(index) for index in range(12)])
    metrics.update(logits, batch_of(targets))
    assert metrics.compute() == measured(logits.float(), targets)[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_not_hidden(bad):
    logits = torch.zeros(4, 3)
    logits[1, 2] = bad
    with warnings.catch_warnings(action="ignore"):
        figures, _ = measured(logits, [0, 1, 2, 0])
    assert not math.isfinite(figures["loss"])


def error_of(scores, targets, batch_size=1000):
    metric = Reliability()
    for start in range(0, len(targets), batch_size):
        metric.update(scores[start : start + batch_size], targets[start : start + batch_size])
    return metric.error(metric.compute())


@pytest.mark.parametrize(
    ("scores", "targets", "expected"),
    [
        # All in one bin: 0.8 sure, half of them right.
        ([[0.8, 0.2]] * 4, [0, 0, 1, 1], 0.3),
        # Distances within a bin cancel out, which is what makes it a calibration.
        ([[0.80, 0.20], [0.84, 0.16]], [0, 0], 0.18),
        # Two bins, weighted by their images: 3 at 0.6, 1 at 0.9.
        ([[0.6, 0.4]] * 3 + [[0.9, 0.1]], [0, 0, 1, 1], 3 / 4 * (2 / 3 - 0.6) + 1 / 4 * 0.9),
        # Exactly sure is in the last bin, and not beyond it: right, and wrong.
        ([[1.0, 0.0]], [0], 0.0),
        ([[1.0, 0.0]], [1], 1.0),
        ([[1.0, 0.0], [0.0, 1.0]], [0, 0], 0.5),
        # The least sure that two classes can be.
        ([[0.5, 0.5]], [0], 0.5),
    ],
)
def test_calibration_by_hand(scores, targets, expected):
    scores, targets = torch.tensor(scores, dtype=torch.float64), torch.tensor(targets)
    assert error_of(scores, targets) == pytest.approx(expected, abs=1e-12)
    assert error_of(scores, targets, batch_size=1) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("classes", "spread"), [(2, 1.0), (2, 8.0), (10, 1.0), (10, 4.0), (100, 9)]
)
def test_calibration_is_torchmetrics_own(classes, spread):
    random = torch.Generator().manual_seed(classes)
    scores = (torch.randn(2000, classes, generator=random) * spread).softmax(1)
    targets = torch.randint(classes, (2000,), generator=random)
    # Half of the images are right, so that there is something to be calibrated.
    targets[::2] = scores[::2].argmax(1)
    theirs = MulticlassCalibrationError(classes, n_bins=15, norm="l1")
    expected = theirs(scores, targets).item()
    assert error_of(scores, targets) == pytest.approx(expected, abs=1e-6)
    assert error_of(scores, targets, batch_size=77) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("targets", "outputs", "expected"),
    [
        # Images over classes over the class's own images.
        ([0, 0, 0, 1], 2, [4 / 6, 4 / 2]),
        ([0, 1, 2], 3, [1, 1, 1]),
        ([0] * 6 + [1] * 3 + [2], 3, [10 / 18, 10 / 9, 10 / 3]),
        # A class without images, and surplus outputs, have no part in the mean.
        ([0, 0, 2, 2, 2, 2], 3, [6 / 4, None, 6 / 8]),
        ([0, 0, 1], 5, [3 / 4, 3 / 2, None, None, None]),
    ],
)
def test_class_weights_by_hand(targets, outputs, expected):
    weights = class_weights(np.array(targets), outputs)
    assert weights.shape == (outputs,)
    assert weights.isfinite().all()
    for index, weight in enumerate(expected):
        assert weight is None or weights[index].item() == pytest.approx(weight, rel=1e-6)
    # 1 on average over the images, and every class counts the same in all.
    of_images = weights[torch.tensor(targets)]
    assert of_images.mean().item() == pytest.approx(1, rel=1e-6)
    sums = {round(of_images[torch.tensor(targets) == c].sum().item(), 4) for c in set(targets)}
    assert len(sums) == 1


class Fixed(torch.nn.Module):
    """A network that says the same whatever it sees."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.as_tensor(logits, dtype=torch.float32))

    def forward(self, images):
        return self.logits[: len(images)]


def task_of(classes, weights=None):
    labels = [str(index) for index in range(classes)]
    return CLASSIFICATION(labels, Preprocessing(1, 1), class_weights_K=weights)


def test_plain_loss_by_hand():
    logits = log([0.5, 0.3, 0.2], [0.1, 0.7, 0.2], [0.2, 0.2, 0.6])
    losses = task_of(3).loss(Fixed(logits), batch_of([0, 1, 1]), PLAIN)
    nats = -(math.log(0.5) + math.log(0.7) + math.log(0.2)) / 3
    assert losses["loss"].item() == pytest.approx(nats, rel=1e-6)
    assert losses["top1"].item() == pytest.approx(2 / 3)
    assert not losses["top1"].requires_grad


# Ten classes, smoothing 0.1: the target is 0.91 at the true class and 0.01 elsewhere. The true class
# has probability 0.55, the others 0.05: -(0.91 ln 0.55 + 9 * 0.01 ln 0.05) = 0.813648
def test_label_smoothing_by_hand():
    logits = torch.full((1, 10), math.log(0.05))
    logits[0, 4] = math.log(0.55)
    recipe = PLAIN.override({"label_smoothing": 0.1})
    loss = task_of(10).loss(Fixed(logits), batch_of([4]), recipe)["loss"].item()
    assert loss == pytest.approx(-(0.91 * math.log(0.55) + 0.09 * math.log(0.05)), rel=1e-6)
    assert loss == pytest.approx(0.813648, abs=1e-6)
    # The figures of an evaluation are not smoothed.
    assert measured(logits, [4])[0]["loss"] == pytest.approx(-math.log(0.55), rel=1e-6)


def test_class_weights_in_the_loss():
    logits = log([0.5, 0.5], [0.25, 0.75], [0.25, 0.75], [0.25, 0.75])
    task = task_of(2, torch.tensor([2.0, 2 / 3]))
    losses = task.loss(Fixed(logits), batch_of([0, 1, 1, 1]), PLAIN)
    nats = -(2.0 * math.log(0.5) + 2 / 3 * 3 * math.log(0.75)) / 4
    assert losses["loss"].item() == pytest.approx(nats, rel=1e-6)
    # The share of right images is not weighted.
    assert losses["top1"].item() == 1.0


@pytest.mark.parametrize("weights", [None, torch.tensor([2.0, 0.5])])
def test_soft_targets(weights):
    logits = log([0.5, 0.5], [0.25, 0.75])
    shares = torch.tensor([[0.3, 0.7], [1.0, 0.0]])
    losses = task_of(2, weights).loss(Fixed(logits), batch_of(shares), PLAIN)
    of_images = [-math.log(0.5), -math.log(0.25)]
    if weights is not None:
        of_images = [of_images[0] * (0.3 * 2 + 0.7 * 0.5), of_images[1] * 2]
    assert losses["loss"].item() == pytest.approx(sum(of_images) / 2, rel=1e-6)
    # The class with the larger share is the one to guess; 0.5 against 0.5 is a guess of the first.
    assert losses["top1"].item() == 0.0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([2.0, 0.5, 0.5])])
def test_hard_targets_as_shares_have_the_same_loss(weights, smoothing):
    random = torch.Generator().manual_seed(3)
    logits, targets = torch.randn(8, 3, generator=random), torch.arange(8) % 3
    recipe, task = PLAIN.override({"label_smoothing": smoothing}), task_of(3, weights)
    hard = task.loss(Fixed(logits), batch_of(targets), recipe)
    shares = torch.nn.functional.one_hot(targets, 3).float()
    soft = task.loss(Fixed(logits), batch_of(shares), recipe)
    assert hard["loss"].item() == pytest.approx(soft["loss"].item(), rel=1e-6)
    assert hard["top1"].item() == soft["top1"].item()


# One of several processes may have no image of a small last batch.
@pytest.mark.parametrize("targets", [torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3)])
@pytest.mark.parametrize("weights", [None, torch.ones(3)])
def test_an_empty_batch_has_no_loss_and_a_gradient(targets, weights):
    model = Fixed(torch.randn(4, 3))
    losses = task_of(3, weights).loss(model, batch_of(targets), PLAIN)
    assert {name: value.item() for name, value in losses.items()} == {"loss": 0.0, "top1": 0.0}
    losses["loss"].backward()
    assert model.logits.grad.equal(torch.zeros(4, 3))


# Row 7 of section 6: a network that knows nothing starts at ln K, and not below it.
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_no_knowledge_costs_the_logarithm_of_the_classes(classes):
    model = Fixed(torch.zeros(3, classes))
    loss = task_of(classes).loss(model, batch_of([0, 1, 1]), PLAIN)["loss"].item()
    assert loss == pytest.approx(math.log(classes), rel=1e-6)
    figures, _ = measured(torch.zeros(3, classes), [0, 1, 1])
    assert figures["loss"] == pytest.approx(math.log(classes), rel=1e-6)


def test_the_bins_of_a_reliability_diagram_by_hand():
    """Three at 0.5 or a little more, one of them right, and one right at 0.99; empty bins are left out."""
    logits = torch.tensor([[0.0, 0.01], [0.01, 0.0], [0.01, 0.0], [5.0, 0.0]])
    _, details = measured(logits, [1, 1, 1, 0])
    low, high = details["reliability"]
    assert (low["images"], high["images"]) == (3, 1)
    assert low["top1"] == pytest.approx(1 / 3)
    assert low["confidence"] == pytest.approx(0.5025, abs=1e-4)
    assert high["top1"] == 1
    assert high["confidence"] == pytest.approx(1 / (1 + math.exp(-5)), abs=1e-6)
