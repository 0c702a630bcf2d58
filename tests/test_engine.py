"""Small real trainings: what each option of a recipe does to them, and what a run keeps of them."""

import csv
import json
import os
import shutil
import signal
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from mobilenets import Run, tasks
from mobilenets.architecture import MobileNetSpec
from mobilenets.architecture.layers import ConvUnit
from mobilenets.architecture.network import MobileNet
from mobilenets.cli.main import run as cli
from mobilenets.data.loaders import Batch
from mobilenets.data.sources import open_source
from mobilenets.data.splits import Source
from mobilenets.training.curves import read_curves
from mobilenets.training.device import check_compiler, determinism
from mobilenets.training.evaluation import evaluate
from mobilenets.training.interrupt import interrupts
from mobilenets.training.loop import train
from mobilenets.training.processes import ALONE
from mobilenets.training.recipe import GrowthChoice
from mobilenets.training.session import Session, check_recipe
from mobilenets.training.stages import Stages
from test_plan import Clock

CPU = torch.device("cpu")
CLASSIFICATION = tasks.find("classification")
MODEL = "0.25-8-s4"


def start(folder, model=MODEL, images=120, channels=3, **changes):
    """A run on the first digits: two thirds of them to train on, the rest for validation."""
    spec = MobileNetSpec.parse(model)
    spec = MobileNetSpec.from_dict({**spec.to_dict(), "input_channels": channels})
    recipe = CLASSIFICATION.recipes()["digits"].override(
        {"epochs": 1, "held_out": 1 / 3, **changes}
    )
    whole = open_source("digits")
    few = {"train": whole.splits["train"].take(range(images))}
    usual = CLASSIFICATION.from_data("digits", spec, recipe)
    task = CLASSIFICATION(
        whole.labels,
        usual.preprocessing,
        Source(whole.where, whole.labels, few, whole.mirror),
        outputs=recipe.outputs,
    )
    data = task.build_data(recipe, on_bad_image="stop")
    return Run.create(folder, task, spec, recipe, data.record), data, recipe


def trained(folder, **changes):
    run, data, recipe = start(folder, **changes)
    assert train(run, data, recipe, CPU, report=lambda line: None)
    return run, data, recipe


def session_of(folder, **changes):
    run, data, recipe = start(folder, **changes)
    return Session(run, data, recipe, CPU, ALONE, None), data


def without_batch_norm(session, double=True):
    """Batch norm looks at other images of a piece, so that nothing would be exact."""
    for module in session.model.modules():
        if isinstance(module, ConvUnit):
            module.norm = nn.Identity()
    if double:
        session.model.double()


def as_double(batch):
    return Batch(batch.images_NCHW.double(), batch.targets_N, batch.whole)


def weights_of(session):
    return torch.cat([parameter.detach().flatten() for parameter in session.model.parameters()])


# Pieces of even and uneven sizes, of one image each, and a last batch smaller than its pieces.
@pytest.mark.parametrize(("images", "pieces"), [(32, 2), (32, 3), (6, 6), (5, 8)])
@pytest.mark.parametrize("changes", [{}, {"clip_norm": 0.01, "label_smoothing": 0.1}])
def test_gradients_of_pieces_are_those_of_the_whole(tmp_path, images, pieces, changes):
    def after_a_step(accumulate):
        session, data = session_of(
            tmp_path / str(accumulate), accumulate=accumulate, dropout=0.0, **changes
        )
        without_batch_norm(session)
        batch = as_double(next(data.train.batches(1)))
        batch = Batch(batch.images_NCHW[:images], batch.targets_N[:images], images)
        before = weights_of(session)
        session.step(batch, 1.0, Stages())
        return before, weights_of(session), session.standing

    before, whole, standing = after_a_step(1)
    same, parts, others = after_a_step(pieces)
    assert same.equal(before)
    assert (whole - before).abs().max() > 1e-8
    assert torch.allclose(parts, whole, rtol=0, atol=1e-12)
    # Losses are means over images, not over pieces.
    assert others.plain_sums() == pytest.approx(standing.plain_sums(), rel=1e-6)
    assert (others.images, standing.images) == (images, images)


@pytest.mark.parametrize(
    ("clip_norm", "expected"),
    # A bound below the gradient's norm is what is left of it; one above changes nothing.
    [(1e-3, 1e-3), (1e6, None)],
)
def test_clipping(tmp_path, clip_norm, expected):
    plain = {
        "optimizer.momentum": 0.0,
        "optimizer.nesterov": False,
        "optimizer.weight_decay": 0.0,
        "optimizer.lr": 1.0,
        "dropout": 0.0,
    }
    lengths = []
    for name, bound in (("clipped", clip_norm), ("free", None)):
        session, data = session_of(tmp_path / name, clip_norm=bound, **plain)
        before = weights_of(session)
        session.step(next(data.train.batches(1)), 1.0, Stages())
        lengths.append((weights_of(session) - before).double().norm().item())
    assert lengths[0] == pytest.approx(expected or lengths[1], rel=1e-3)
    assert lengths[1] > 1e-2


# A share of the peak scales every group by the same.
def test_the_factor_scales_each_groups_own_peak(tmp_path):
    session, data = session_of(
        tmp_path / "run", **{"optimizer.lr": 0.1, "optimizer.head_lr": 10, "epochs": 2}
    )
    for factor in (0.5, 0.25):
        session.step(next(data.train.batches(1)), factor, Stages())
        rates = {round(group["lr"], 9) for group in session.optimizer.param_groups}
        assert rates == {0.1 * factor, 1.0 * factor}


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"precision": "fp16", "clip_norm": 1.0, "accumulate": 2},
    ],
)
def test_half_precision(tmp_path, changes):
    run, _, _ = trained(tmp_path / "run", images=60, **changes)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    # Weights, averages and figures stay in full precision.
    assert {v.dtype for v in state["model"].values()} == {torch.float32, torch.int64}
    assert all(value.isfinite().all() for value in state["model"].values())
    assert ("scale" in state["scaler"]) == (changes["precision"] == "fp16")
    (row,) = read_curves(tmp_path / "run")
    assert 1.5 < row["train/loss"] < 3.5
    assert np.isfinite(run.config["metrics"]["loss"])


def test_deterministic(tmp_path):
    seen = []

    def report(line):
        seen.append(torch.are_deterministic_algorithms_enabled())

    states = []
    for name in ("a", "b"):
        run, data, recipe = start(tmp_path / name, images=60, deterministic=True)
        train(run, data, recipe, CPU, report=report)
        states.append(load_file(tmp_path / name / "model.safetensors"))
    assert seen == [True, True]
    assert not torch.are_deterministic_algorithms_enabled()
    assert all(value.equal(states[1][key]) for key, value in states[0].items())


def test_determinism_ends_with_an_error_too():
    def fails():
        with determinism(True):
            assert torch.are_deterministic_algorithms_enabled()
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert not torch.are_deterministic_algorithms_enabled()
    with determinism(False):
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    "changes",
    [
        # Targets that are shares of classes, in the loss and in the training accuracy.
        {"augmentation.mixup": 0.2, "augmentation.cutmix": 1.0},
        {"augmentation.mixup": 1.0, "outputs": 12, "class_weights": True},
        {"augmentation.cutout": 0.25, "augmentation.colour": 1.0, "augmentation.randaugment": 9},
        {"drop_last": True, "optimizer.name": "rmsprop", "optimizer.epsilon": 1.0},
        {"whiten": True, "dirac": True, "batch_norm_momentum": 0.4, "optimizer.norm_bias_lr": 64},
        # More outputs than labels, all of them measured and kept.
        {"outputs": 1000},
    ],
)
def test_options_train(tmp_path, changes):
    trained(tmp_path / "run", images=60, **changes)
    (row,) = read_curves(tmp_path / "run")
    assert all(np.isfinite(value) for value in row.values())
    assert 0 <= row["train/top1"] <= 1
    again = Run.load(tmp_path / "run")
    assert again.model.classifier.out_features == changes.get("outputs", 10)
    assert again.predict(np.zeros((8, 8, 3), dtype=np.uint8)).label in again.labels


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_train_and_show_their_predictions(tmp_path, channels):
    trained(tmp_path / "run", images=60, channels=channels)
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert board.Images("val/predictions")


# Pieces of two images are what batch norm needs where one pixel is left; a last batch is smaller.
def test_the_last_batch_is_not_cut_into_single_images(tmp_path):
    # 16 pieces of two images; then 8 images, of which each would be a piece.
    trained(tmp_path / "run", model="0.25-32", images=60, accumulate=16)


def judged(folder, values, metric, patience):
    """Epochs until a run stops whose figure takes these values."""
    session, _ = session_of(
        folder,
        epochs=100,
        **{"early_stopping.metric": metric, "early_stopping.patience": patience},
    )
    for epoch, value in enumerate(values, start=1):
        figures = {"val/top1": 0.5, "val/loss": 1.0, "val/calibration_error": 0.1}
        session.judge({**figures, f"val/{metric}": value, "val_raw/loss": 0.0})
        if session.stale():
            return epoch
        session.standing.next_epoch()
    return None


@pytest.mark.parametrize(
    ("metric", "patience", "values", "stops"),
    [
        # Less is better for a loss, more for a share.
        ("loss", 1, [1.0, 0.9, 0.95, 0.1], 3),
        ("top1", 1, [0.1, 0.2, 0.15, 0.9], 3),
        ("calibration_error", 1, [0.1, 0.05, 0.06], 3),
        # As good as before is not better.
        ("loss", 1, [1.0, 1.0], 2),
        ("top1", 1, [0.1, 0.1], 2),
        # Patience starts again after a better epoch, measured from the best.
        ("loss", 2, [1.0, 1.1, 0.9, 1.0, 0.95], 5),
        ("loss", 2, [1.0, 1.2, 1.1, 0.5], 3),
        ("top1", 3, [0.5, 0.4, 0.45, 0.6, 0.1, 0.2], None),
        # No image may be right for a while.
        ("top1", 2, [0.0, 0.0, 0.1, 0.2], None),
    ],
)
def test_patience(tmp_path, metric, patience, values, stops):
    assert judged(tmp_path / "run", values, metric, patience) == stops


# At a rate that changes nothing, and with batch norm that forgets, figures only go up and down.
@pytest.mark.parametrize("metric", ["loss", "top1"])
def test_training_stops_early(tmp_path, metric):
    run, data, recipe = start(
        tmp_path / "run",
        epochs=40,
        batch_norm_momentum=1.0,
        **{
            "early_stopping.metric": metric,
            "early_stopping.patience": 1,
            "optimizer.lr": 1e-9,
            "optimizer.weight_decay": 0.0,
        },
    )
    assert train(run, data, recipe, CPU, report=lambda line: None)
    sign = -1 if metric == "loss" else 1
    values = [sign * row[f"val/{metric}"] for row in read_curves(tmp_path / "run")]
    assert 2 <= len(values) < 40
    assert values[-1] <= values[-2]
    assert all(after > before for before, after in pairwise(values[:-1]))
    # There is nothing to go on with, and the run says so.
    lines = []
    assert train(run, data, recipe, CPU, resume=True, report=lines.append)
    assert lines == ["nothing is left to train: the plan is done (--epochs N goes on)"]
    assert len(read_curves(tmp_path / "run")) == len(values)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """Two epochs with an average beside the raw weights."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    run, data, _ = trained(folder, epochs=2, ema_decay=0.9)
    return run, data


FIGURES = ("top1", "top5", "loss", "class_top1", "calibration_error")


def test_raw_figures_stand_beside_those_of_the_average(averaged):
    run, data = averaged
    rows = read_curves(run.folder)
    assert len(rows) == 2
    for row in rows:
        assert {f"{kind}/{name}" for kind in ("val", "val_raw") for name in FIGURES} <= set(row)
        assert row["val/loss"] != row["val_raw/loss"]
    # They are what an evaluation of both gives.
    state = torch.load(run.folder / "state.pt", weights_only=True)
    model = run.task.build_model(run.spec)
    for kind, weights in (
        ("val_raw", state["model"]),
        ("val", load_file(run.folder / "last" / "model.safetensors")),
    ):
        model.load_state_dict(weights)
        figures = evaluate(run.task, model, data.val, CPU)
        for name in FIGURES:
            assert rows[-1][f"{kind}/{name}"] == pytest.approx(figures[name], rel=1e-5), name


def test_validation_details_are_those_of_the_best_weights(averaged):
    run, data = averaged
    details = json.loads((run.folder / "validation.json").read_text())
    figures = evaluate(run.task, Run.load(run.folder).model, data.val, CPU)
    confusion = np.array(details["confusion"])
    assert confusion.shape == (10, 10)
    assert confusion.sum() == figures["images"] == data.val.images
    assert np.trace(confusion) / confusion.sum() == pytest.approx(figures["top1"])
    assert list(details["classes"]) == list(run.labels)
    for index, of_class in enumerate(details["classes"].values()):
        assert of_class["images"] == confusion[index].sum()
        assert of_class["top1"] == pytest.approx(confusion[index, index] / of_class["images"])
    saved = json.loads((run.folder / "config.json").read_text())["metrics"]
    assert saved == pytest.approx({"epoch": saved["epoch"], **figures}, rel=1e-5)


# Section 6 of FACTS, fault 7: both losses under one tag overwrite each other.
def test_tensorboard_tells_training_from_validation(averaged):
    run, _ = averaged
    board = EventAccumulator(str(run.folder / "tensorboard"))
    board.Reload()
    rows = read_curves(run.folder)
    for tag in ("train/loss", "val/loss", "val_raw/loss", "train/top1", "val/top1", "time/forward"):
        events = board.Scalars(tag)
        assert [event.step for event in events] == [1, 2]
        assert [event.value for event in events] == pytest.approx([row[tag] for row in rows])
    assert "loss" not in board.Tags()["scalars"]
    assert board.Images("val/predictions")
    assert "_hparams_/session_start_info" in board.summary_metadata
    assert [event.value for event in board.Scalars("best/top1")] == pytest.approx(
        [run.config["metrics"]["top1"]]
    )


def test_stages_share_the_time_out(averaged):
    run, _ = averaged
    for row in read_curves(run.folder):
        shares = {key: value for key, value in row.items() if key.startswith("time/")}
        assert set(shares) == {"time/data", "time/forward", "time/backward", "time/step"}
        assert sum(shares.values()) == pytest.approx(1.0)
        assert min(shares.values()) > 0
        assert row["train/images_per_second"] > 0
    seconds = [row["seconds"] for row in read_curves(run.folder)]
    assert seconds == sorted(seconds)


def test_the_train_figures_are_means_over_the_epoch(tmp_path):
    # At a rate of next to nothing the mean is that of the batches as the first weights see them.
    run, data, recipe = start(tmp_path / "run", dropout=0.0, **{"optimizer.lr": 1e-12})
    expected, images = 0.0, 0
    model = Session(run, data, recipe, CPU, ALONE, None).model.train()
    for batch in data.train.batches(1):
        with torch.no_grad():
            losses = run.task.loss(model, batch, recipe)
        expected += losses["loss"].item() * len(batch)
        images += len(batch)
    train(run, data, recipe, CPU, report=lambda line: None)
    (row,) = read_curves(tmp_path / "run")
    assert row["train/loss"] == pytest.approx(expected / images, rel=1e-4)
    assert row["step"] == len(data.train)


def test_mirror_images_are_averaged(tmp_path):
    run, data, _ = start(tmp_path / "run")

    class LeftHalf(nn.Module):
        def forward(self, images):
            left = images[..., :4].mean((1, 2, 3))
            return torch.stack([left * (digit + 1) for digit in range(10)], 1)

    class Both(nn.Module):
        def forward(self, images):
            return (LeftHalf()(images) + LeftHalf()(images.flip(-1))) / 2

    mirrored = evaluate(run.task, LeftHalf(), data.val, CPU, mirror=True)
    assert mirrored == pytest.approx(evaluate(run.task, Both(), data.val, CPU))
    assert mirrored["loss"] != evaluate(run.task, LeftHalf(), data.val, CPU)["loss"]


def test_evaluating_by_epochs_ends_what_was_asked(tmp_path):
    lines = []
    run, data, recipe = start(tmp_path / "run", epochs=2, images=60)
    assert train(run, data, recipe, CPU, report=lines.append)
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert lines[-1].endswith("0:00 left")
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["standing"]["share"] == 1.0


def test_a_wish_to_stop_is_heard_after_the_step(tmp_path):
    run, data, recipe = start(tmp_path / "run", epochs=2)
    wishes = iter([False, True])
    over = train(run, data, recipe, CPU, stop=lambda: next(wishes), report=lambda line: None)
    assert over is False
    standing = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["standing"]
    assert (standing["epoch"], standing["position"], standing["step"]) == (1, 2, 2)
    assert not (tmp_path / "run" / "metrics.csv").exists()
    assert train(run, data, recipe, CPU, resume=True, report=lambda line: None)
    assert [row["epoch"] for row in read_curves(tmp_path / "run")] == [1, 2]


# A save falls on the last batch of an epoch now and then; the process dies in the evaluation.
def test_killed_in_an_evaluation_the_curves_go_on(tmp_path):
    run, data, recipe = start(tmp_path / "run", epochs=3, images=60)
    metrics, count = run.task.metrics, 0

    def dies_in_the_second():
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return metrics()

    run.task.metrics = dies_in_the_second
    with pytest.raises(KeyboardInterrupt):
        train(run, data, recipe, CPU, save_every=0.0, report=lambda line: None)
    run.task.metrics = metrics
    assert train(run, data, recipe, CPU, resume=True, report=lambda line: None)
    assert [row["epoch"] for row in read_curves(tmp_path / "run")] == [1, 2, 3]


def test_evaluations_count_as_time_spent(tmp_path):
    run, data, recipe = start(tmp_path / "run", images=60)
    metrics = run.task.metrics

    def slow():
        time.sleep(0.3)
        return metrics()

    run.task.metrics = slow
    train(run, data, recipe, CPU, report=lambda line: None)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["standing"]["seconds"] >= read_curves(tmp_path / "run")[-1]["seconds"] - 0.05


# An epoch of one step at an absurd rate: the loss was good before it, and nothing is after it.
@pytest.mark.filterwarnings("ignore:Encountered `nan` values in tensor")
def test_weights_that_give_no_numbers_are_not_kept(tmp_path):
    wild = {"optimizer.lr": 1e30, "schedule.warmup": 0}
    run, data, recipe = start(tmp_path / "run", images=60, batch_size=64, **wild)
    with pytest.raises(ValueError, match="no longer a number"):
        train(run, data, recipe, CPU, report=lambda line: None)
    assert "NaN" not in (tmp_path / "run" / "config.json").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts(number, capsys):
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with interrupts() as interrupt:
        assert not interrupt()
        os.kill(os.getpid(), number)
        # Python handles signals between two of its own steps.
        for _ in range(100):
            if interrupt():
                break
        assert interrupt()
        assert interrupt.signal == number
        assert interrupt.exit_code == 128 + number
        # The next one ends the program as it always would.
        assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    assert capsys.readouterr().err == "stopping after this step; once more to stop at once\n"
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


# From here on through the command line.
@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three classes of a few pictures; the same under other names."""
    place = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name, labels in (("fruit", ("apple", "pear", "plum")), ("trees", ("ash", "oak"))):
        for number, label in enumerate(labels):
            (place / name / label).mkdir(parents=True)
            for image in range(12):
                pixels = random.integers(0, 60, (8, 8, 3)) + 80 * number
                picture = Image.fromarray(pixels.astype(np.uint8))
                picture.save(place / name / label / f"{image}.png")
    return place


def command(*arguments):
    return cli(["train", *map(str, arguments), "--device", "cpu"])


STILL = (
    "--set",
    "optimizer.lr=1e-12",
    "--set",
    "optimizer.weight_decay=0",
    "--set",
    "ema_decay=null",
)


@pytest.fixture(scope="module")
def fruit(folders):
    """A run on the fruit, to start others from."""
    run = folders / "run"
    assert command(folders / "fruit", "--model", MODEL, "--epochs", 1, "--output", run) == 0
    return run


def body_of(run):
    state = load_file(run / "model.safetensors")
    return {key: value for key, value in state.items() if key.endswith(".conv.weight")}


@pytest.mark.parametrize("same", [True, False])
def test_weights_of_another_run(tmp_path, folders, fruit, same):
    data, run = folders / ("fruit" if same else "trees"), tmp_path / "run"
    assert command(data, "--weights", fruit, "--epochs", 1, "--output", run, *STILL) == 0
    # The model and the preprocessing are those of the weights.
    opened, first = Run.load(run), Run.load(fruit)
    assert opened.spec == first.spec
    assert opened.preprocessing == first.preprocessing
    assert opened.config["recipe"] == "finetune"
    for key, value in body_of(run).items():
        assert torch.allclose(value, body_of(fruit)[key], atol=1e-7), key
    classifier = load_file(run / "model.safetensors")["classifier.weight"]
    before = load_file(fruit / "model.safetensors")["classifier.weight"]
    assert len(classifier) == (3 if same else 2)
    # The classifier comes along for the same classes only.
    assert torch.allclose(classifier[:2], before[:2], atol=1e-7) is same


def test_weights_with_other_outputs(tmp_path, folders):
    first, second = tmp_path / "first", tmp_path / "second"
    article = ("--recipe", "article", "--set", "batch_size=16")
    assert (
        command(folders / "fruit", "--model", MODEL, "--epochs", 1, *article, "--output", first)
        == 0
    )
    assert command(folders / "fruit", "--weights", first, "--epochs", 1, "--output", second) == 0


def test_weights_from_the_run_that_is_replaced(tmp_path, folders, fruit):
    run = tmp_path / "run"
    shutil.copytree(fruit, run)
    code = command(
        folders / "fruit", "--weights", run, "--output", run, "--overwrite", "--epochs", 1
    )
    # Replaced by a new run that began with its weights, or refused: but never lost.
    assert code in (0, 2)
    assert (run / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "train needs DATA: a folder of images, digits, cifar10 or cifar100"),
        (
            ("FRUIT", "--weights", "RUN", "--model", "0.5-8-s4"),
            "--weights RUN is a 0.25-8-s4, --model asks for 0.5-8-s4",
        ),
        (("FRUIT", "--weights", "FRUIT"), "FRUIT is not a run: it has no config.json"),
        (
            ("--resume", "RUN", "--model", "0.5-8-s4"),
            "--resume goes on as the run began: leave out --model "
            "(--epochs and --max-time may be new)",
        ),
        (
            ("--resume", "RUN", "--set", "epochs=3", "--recipe", "cifar", "--seed", "1"),
            "--resume goes on as the run began: leave out --recipe, --set, --seed "
            "(--epochs and --max-time may be new)",
        ),
        (("--resume", "FRUIT"), "FRUIT is not a run: it has no config.json"),
        (
            ("FRUIT", "--epochs", "3", "--max-time", "20m"),
            "--epochs and --max-time both say when to end: give one of them",
        ),
        (
            ("FRUIT", "--max-time", "soon", "--output", "NEW"),
            "'soon' is not a time: write 90s, 20m or 1h30m",
        ),
        (
            ("FRUIT", "--set", "epochs", "--output", "NEW"),
            "--set epochs: write KEY=VALUE, such as optimizer.lr=0.05",
        ),
        (
            ("FRUIT", "--set", "outputs=2", "--model", MODEL, "--output", "NEW"),
            "recipe: outputs is 2, but FRUIT has 3 classes",
        ),
        (
            ("FRUIT", "--model", MODEL, "--output", "NEW", "--set", "early_stopping.metric=f1"),
            "recipe: early_stopping.metric is 'f1': classification has top1, top5, loss, "
            "class_top1, calibration_error",
        ),
        (
            ("FRUIT", "--recipe", "fruit", "--output", "NEW"),
            "unknown recipe 'fruit': the recipes are digits, article, paper, cifar, modern, "
            "finetune, probe, or a YAML file; nearest: ",
        ),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, folders, fruit, capsys, arguments, message):
    places = {"FRUIT": folders / "fruit", "RUN": fruit, "NEW": tmp_path / "new"}
    assert command(*(places.get(argument, argument) for argument in arguments)) == 2
    for name, place in places.items():
        message = message.replace(name, str(place))
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"mobilenets: {message}")


def test_a_seed_of_zero_is_a_seed(fruit, capsys):
    assert command("--resume", fruit, "--seed", 0) == 2
    assert "leave out --seed" in capsys.readouterr().err


NEEDS_COMPILER = (
    "mobilenets: compile=true needs a C++ compiler (g++ or clang++) for the CPU: install one\n"
)


def no_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)


def test_compiling_without_a_compiler_is_one_sentence(tmp_path, folders, capsys, monkeypatch):
    no_compiler(monkeypatch)
    arguments = (folders / "fruit", "--model", MODEL, "--set", "compile=true")
    assert command(*arguments, "--output", tmp_path / "run") == 2
    assert capsys.readouterr().err.endswith(NEEDS_COMPILER)
    # A GPU has its own.
    check_compiler(torch.device("cuda"))


@pytest.mark.parametrize("found", ["g++", "clang++", "my-compiler"])
def test_compilers(monkeypatch, found):
    monkeypatch.setenv("CXX", "my-compiler")
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}" if name == found else None)
    check_compiler(CPU)


@pytest.mark.parametrize("change", ["early_stopping.metric=f1", "compile=true"])
def test_a_recipe_that_can_not_train_replaces_no_run(tmp_path, folders, fruit, monkeypatch, change):
    no_compiler(monkeypatch)
    run = tmp_path / "run"
    shutil.copytree(fruit, run)
    arguments = (folders / "fruit", "--model", MODEL, "--set", change)
    assert command(*arguments, "--output", run, "--overwrite") == 2
    assert (run / "model.safetensors").is_file()
    assert command(*arguments, "--output", tmp_path / "new") == 2
    assert not (tmp_path / "new").exists()


# Minutes, nearly all of which the compiler takes.
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("default")
def test_compiling_gives_the_same_training(tmp_path):
    losses = []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        trained(folder, images=96, compile=compiled, dropout=0.0, drop_last=True)
        losses.append(read_curves(folder)[0]["train/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_max_time_is_kept(tmp_path, monkeypatch):
    """By a clock on which images take a second to be opened, a step a tenth and an evaluation a half."""
    clock, run = Clock(monkeypatch), tmp_path / "run"
    for owner, name, seconds in (
        (CLASSIFICATION, "build_data", 1.0),
        (Session, "step", 0.1),
        (Session, "evaluate", 0.5),
    ):
        monkeypatch.setattr(owner, name, taking(clock, seconds, getattr(owner, name)))
    started = clock.now
    assert command("digits", "--model", MODEL, "--max-time", "7s", "--output", run) == 0
    took = clock.now - started
    state = torch.load(run / "state.pt", weights_only=True)
    rows = read_curves(run)
    assert state["standing"]["share"] == 1.0
    # Start-up counts, and so do evaluations: late by a step at most.
    assert len(rows) == 2
    assert rows[-1]["seconds"] == pytest.approx(took)
    assert 6.8 < took <= 7.1
    # The schedule is over when the time is: a cosine from 0.05.
    assert rows[-1]["train/lr"] < 0.005
    with (run / "metrics.csv").open() as file:
        assert {len(row) for row in csv.reader(file)} == {len(rows[0])}


def taking(clock, seconds, original):
    """The same, after so many seconds by the clock."""

    def slower(*arguments, **named):
        clock.now += seconds
        return original(*arguments, **named)

    return slower


def test_the_papers_recipe_by_time(tmp_path, folders):
    arguments = (folders / "fruit", "--model", MODEL, "--recipe", "paper", "--max-time", "1s")
    assert command(*arguments, "--output", tmp_path / "run") == 0


# Growing images.


@pytest.mark.parametrize(
    ("start_share", "until", "whole", "sides"),
    [
        # By done share of the schedule: 0, .1, .2, ... 1; eighths of the side.
        (0.75, 0.6, 32, [24, 24, 28, 28, 28, 32, 32, 32, 32, 32, 32]),
        (0.5, 1.0, 32, [16, 16, 20, 20, 24, 24, 24, 28, 28, 32, 32]),
        (0.5, 0.5, 224, [112, 140, 168, 168, 196, 224, 224, 224, 224, 224, 224]),
        (0.01, 1.0, 4, [1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4]),
    ],
)
def test_sides_of_growing_images(start_share, until, whole, sides):
    growth = GrowthChoice(start=start_share, until=until)
    assert [growth.side(whole, tenth / 10) for tenth in range(11)] == sides


def test_images_grow_while_training_and_are_whole_in_evaluation(tmp_path):
    run, data, recipe = start(
        tmp_path / "run", epochs=4, batch_size=20, **{"growth.start": 0.5, "growth.until": 0.75}
    )
    seen = []
    original = MobileNet.forward

    def forward(self, images_NCHW):
        seen.append((self.training, tuple(images_NCHW.shape[-2:])))
        return original(self, images_NCHW)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MobileNet, "forward", forward)
        train(run, data, recipe, CPU, report=str)
    trained_on = [side for training, (side, _) in seen if training]
    assert trained_on == sorted(trained_on)
    assert trained_on[0] == 4
    assert trained_on[-4:] == [8, 8, 8, 8]
    assert {side for training, (side, _) in seen if not training} == {8}


def test_growing_images_are_averages_and_stay_channels_last():
    """Half the side: bilinear with antialias is close to the mean of each 2x2 in a smooth picture."""
    ramp = torch.linspace(-1, 1, 32)[None, None, :, None].expand(2, 3, 32, 32)
    batch = Batch(ramp.contiguous(), torch.tensor([0, 1]), whole=2)
    small = batch.resized([16, 16])
    assert small.images_NCHW.is_contiguous(memory_format=torch.channels_last)
    means = ramp.unflatten(2, (16, 2)).mean(3)[..., ::2]
    torch.testing.assert_close(small.images_NCHW[:, :, 1:-1], means[:, :, 1:-1], atol=1e-5, rtol=0)
    assert batch.resized((32, 32)) is batch


def test_images_too_small_to_start_with_are_one_sentence(tmp_path, capsys):
    """A map of Keras' padding can vanish: 4 pixels at total stride 32."""
    spec = MobileNetSpec(0.25, 32, padding="keras")
    recipe = CLASSIFICATION.recipes()["cifar"].override({"growth.start": 0.1})
    task = CLASSIFICATION.from_data("digits", spec, recipe)
    with pytest.raises(ValueError, match=r"growth.start is 0.1: .* vanishes"):
        check_recipe(task, spec, recipe, CPU)


def test_a_run_of_growing_images_goes_on_to_the_bit(tmp_path):
    changes = {"epochs": 2, "batch_size": 20, "growth.start": 0.5, "growth.until": 1.0}
    straight, *_ = trained(tmp_path / "straight", **changes)
    run, data, recipe = start(tmp_path / "stopped", **changes)
    asked = iter(range(100))
    assert not train(run, data, recipe, CPU, stop=lambda: next(asked) == 2, report=str)
    assert train(run, data, recipe, CPU, resume=True, report=str)
    weights, expected = (load_file(r.folder / "model.safetensors") for r in (run, straight))
    assert all(weights[name].equal(expected[name]) for name in expected)


# A share of the training images.


@pytest.mark.parametrize(("fraction", "images"), [(1.0, 80), (0.5, 40), (0.25, 20), (0.01, 10)])
def test_a_fraction_of_the_images(tmp_path, fraction, images):
    """Class by class, at least one of each, and the validation images are the same."""
    _, data, _ = start(tmp_path / "run", fraction=fraction, batch_size=20)
    _, whole, _ = start(tmp_path / "whole", batch_size=20)
    assert data.train.images == pytest.approx(images, abs=6)
    assert data.record["train_images"] == data.train.images
    targets = torch.cat([batch.targets_N for batch in data.train.batches()])
    assert set(targets.tolist()) == set(range(10))
    assert data.record["held_out_fingerprint"] == whole.record["held_out_fingerprint"]
