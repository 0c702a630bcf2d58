"""The loop, the recipe, the optimisers, and what a run folder keeps."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mobilenets import Run, tasks
from mobilenets.architecture import MobileNetSpec
from mobilenets.architecture.network import MobileNet
from mobilenets.cli.main import run as cli
from mobilenets.data.files import write_aside
from mobilenets.training.curves import read_curves
from mobilenets.training.device import find_device
from mobilenets.training.evaluation import evaluate
from mobilenets.training.loop import train
from mobilenets.training.memory import keep_freed_memory
from mobilenets.training.optimizers import build_optimizer, lr_factor, parameter_groups
from mobilenets.training.recipe import (
    OptimizerChoice,
    Recipe,
    ScheduleChoice,
    find_recipe,
)

CPU = torch.device("cpu")
CLASSIFICATION = tasks.find("classification")


def start(folder, model="0.25-8-s4", **changes):
    """A task, its data and a new run on the digits."""
    spec = MobileNetSpec.parse(model)
    recipe = CLASSIFICATION.default_recipe(spec, "digits").override({"epochs": 1, **changes})
    task = CLASSIFICATION.from_data("digits", spec)
    data = task.build_data(recipe, on_bad_image="stop")
    return Run.create(folder, task, spec, recipe, data.record), data, recipe


# Case 8: running statistics move in training and are saved, so evaluation is not at chance (10 %).
def test_evaluation_after_training_is_far_above_chance(digits_run):
    run = Run.load(digits_run)
    state = load_file(digits_run / "model.safetensors")
    means = [value for key, value in state.items() if key.endswith("running_mean")]
    assert len(means) == 27
    assert all(mean.abs().max() > 1e-4 for mean in means)
    name, loader, _ = run.task.open_for_evaluation(
        "digits", None, run.config["data"], on_bad_image="stop"
    )
    figures = evaluate(run.task, run.model, loader, CPU)
    assert name == "test"
    assert figures["images"] == 359
    assert figures["top1"] > 0.6
    assert figures["top5"] >= figures["top1"]


def test_run_folder_holds_what_it_promises(digits_run):
    config = json.loads((digits_run / "config.json").read_text())
    assert config["model"] == "0.25-16-s8"
    assert config["classification"]["labels"] == [str(digit) for digit in range(10)]
    assert config["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert config["metrics"]["images"] == 143
    assert config["versions"]["torch"] == torch.__version__
    recipe = Recipe.model_validate(yaml.safe_load((digits_run / "recipe.yaml").read_text()))
    assert (recipe.name, recipe.epochs) == ("digits", 4)
    rows = read_curves(digits_run)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    best = max(rows, key=lambda row: (row["val/top1"], -row["val/loss"]))
    assert config["metrics"]["epoch"] == best["epoch"]
    assert math.isclose(config["metrics"]["top1"], best["val/top1"])
    card = (digits_run / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: mobilenets\n")
    assert "10 classes: 0, 1, 2" in card


def test_tensorboard_has_the_same_curves(digits_run):
    board = EventAccumulator(str(digits_run / "tensorboard"))
    board.Reload()
    rows = read_curves(digits_run)
    for tag in ("train/loss", "train/lr", "val/loss", "val/top1", "val/top5"):
        logged = [event.value for event in board.Scalars(tag)]
        assert np.allclose(logged, [row[tag] for row in rows], rtol=1e-6), tag
    assert board.Images("val/predictions")
    assert "_hparams_/experiment" in board.summary_metadata


def test_state_loads_without_running_any_code(digits_run):
    state = torch.load(digits_run / "state.pt", weights_only=True)
    assert state["standing"]["epoch"] == 5
    assert state["standing"]["step"] == 4 * 41
    assert set(state) == {"format", "standing", "model", "average", "optimizer", "scaler"}
    last = load_file(digits_run / "last" / "model.safetensors")
    assert all(torch.equal(last[key], value) for key, value in state["model"].items())


def test_same_seed_same_weights_another_seed_others(tmp_path):
    states = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run, data, recipe = start(tmp_path / name, seed=seed)
        train(run, data, recipe, CPU, report=lambda line: None)
        states.append(load_file(tmp_path / name / "model.safetensors"))
    first, again, other = states
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_average_of_weights_is_what_is_kept_and_evaluated(tmp_path):
    run, data, recipe = start(tmp_path / "run", ema_decay=0.9)
    train(run, data, recipe, CPU, report=lambda line: None)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    kept = load_file(tmp_path / "run" / "model.safetensors")
    averaged = state["average"]["module.classifier.weight"]
    assert torch.equal(kept["classifier.weight"], averaged)
    assert not torch.equal(kept["classifier.weight"], state["model"]["classifier.weight"])


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"clip_norm": 0.5}])
def test_precision_and_clipping_train(tmp_path, changes):
    run, data, recipe = start(tmp_path / "run", **changes)
    train(run, data, recipe, CPU, report=lambda line: None)
    assert math.isfinite(read_curves(tmp_path / "run")[0]["train/loss"])


def test_loss_that_is_no_number_ends_with_a_sentence_and_keeps_the_good_epoch(tmp_path):
    run, data, recipe = start(tmp_path / "run", epochs=2)
    good = run.task.loss
    seen = 0

    def breaks_in_the_second_epoch(model, batch, recipe):
        nonlocal seen
        seen += 1
        losses = good(model, batch, recipe)
        return losses if seen <= len(data.train) else {"loss": losses["loss"] * math.nan}

    run.task.loss = breaks_in_the_second_epoch
    with pytest.raises(ValueError, match=r"no longer a number in epoch 2: lower the learning rate"):
        train(run, data, recipe, CPU, report=lambda line: None)
    assert len(read_curves(tmp_path / "run")) == 1
    state = load_file(tmp_path / "run" / "model.safetensors")
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize(
    "text",
    [
        # Cut off in a row, a word for a number, more cells than names, no text at all.
        "epoch,step,val/top1\n1,41,0.5\n2,",
        "epoch,step,val/top1\n1,many,0.5\n",
        "epoch,step,val/top1\n1,41,0.5,7,8\n",
        b"epoch,step\n\xff\xfe,1\n",
    ],
)
def test_damaged_curves_are_one_sentence(tmp_path, text):
    path = tmp_path / "metrics.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"metrics.csv is damaged: put it right"):
        read_curves(tmp_path)


def test_report_says_speed_and_time_left(tmp_path):
    run, data, recipe = start(tmp_path / "run", epochs=2)
    lines = []
    train(run, data, recipe, CPU, report=lines.append)
    assert lines[0].startswith("epoch 1/2  train loss ")
    assert all("images/s" in line and line.endswith(" left") for line in lines)


# FACTS section 5, row 21: decayed are conv0, pointwise and classifier weights; the sum is all.
def test_parameter_groups_of_the_full_network():
    groups = parameter_groups(MobileNet(MobileNetSpec()), OptimizerChoice(weight_decay=4e-5))
    sizes = [sum(p.numel() for p in group["params"]) for group in groups]
    assert sizes == [864 + 3_139_584 + 1_024_000, 44_640 + 21_888 + 1_000]
    assert sum(sizes) == 4_231_976
    assert [group["weight_decay"] for group in groups] == [4e-5, 0.0]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        # Warm-up ends at the peak; the last step is one step above `final`.
        (ScheduleChoice(name="linear", warmup=0.2), [0.5, 1.0, 1.0, 0.875, 0.125]),
        (ScheduleChoice(name="cosine", warmup=0.0), [1.0, 0.97553, 0.90451, 0.79389, 0.02447]),
        (
            ScheduleChoice(name="cosine", warmup=0.0, final=0.5),
            [1, 0.98776, 0.95225, 0.89695, 0.51224],
        ),
        (ScheduleChoice(name="constant", warmup=0.0), [1, 1, 1, 1, 1]),
    ],
)
def test_learning_rate_by_hand(choice, expected):
    steps = [lr_factor(step, 10, choice) for step in (0, 1, 2, 3, 9)]
    assert steps == pytest.approx(expected, abs=1e-5)


def test_optimizers_are_built_as_the_recipe_says():
    model = MobileNet(MobileNetSpec(0.25, 32), 10)
    recipe = Recipe(name="x", epochs=1)
    sgd = build_optimizer(model, recipe.optimizer)
    assert (type(sgd).__name__, sgd.defaults["nesterov"], sgd.defaults["momentum"]) == (
        "SGD",
        True,
        0.9,
    )
    adam = build_optimizer(model, recipe.override({"optimizer.name": "adamw"}).optimizer)
    assert adam.defaults["betas"] == (0.9, 0.999)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.lrr": "0.1"}, r"there is no key 'optimizer.lrr'; nearest: optimizer.lr$"),
        ({"epoch": "3"}, r"there is no key 'epoch'; nearest: epochs"),
        ({"epochs.first": "3"}, r"epochs.first does not exist, epochs holds a single value"),
        ({"epochs": "many"}, r"epochs is 'many': "),
        ({"optimizer.name": "adma"}, r"optimizer.name is 'adma': .*nearest: adam$"),
        ({"optimizer.lr": "-1"}, r"optimizer.lr is -1: .*greater than 0"),
    ],
)
def test_wrong_overrides_name_key_value_and_nearest(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe(name="x", epochs=1).override(changes)


def test_recipes_are_found_by_name_and_by_file(tmp_path):
    recipes = CLASSIFICATION.recipes()
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 2\n")
    assert find_recipe("cifar", recipes) is recipes["cifar"]
    assert find_recipe(str(path), recipes) == Recipe(name="mine", epochs=2)
    with pytest.raises(ValueError, match=r"unknown recipe 'cifra': .*nearest: cifar"):
        find_recipe("cifra", recipes)
    with pytest.raises(ValueError, match="not a recipe"):
        find_recipe(str(tmp_path / "none.yaml"), recipes)


def test_every_recipe_survives_its_yaml():
    for recipe in CLASSIFICATION.recipes().values():
        assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("gpu", "unknown device 'gpu'"),
        pytest.param(
            "cuda",
            "no cuda device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_devices_that_are_not_there(wanted, message):
    with pytest.raises(ValueError, match=message):
        find_device(wanted)


def test_writing_aside_leaves_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    write_aside(path, b"good")
    monkeypatch.setattr("os.fsync", _no_space)
    with pytest.raises(OSError, match="No space left") as caught:
        write_aside(path, b"half")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"good"
    assert list(tmp_path.iterdir()) == [path]


def _no_space(descriptor):
    raise OSError(28, "No space left on device")


def test_keeping_memory_never_fails():
    assert keep_freed_memory() in (True, False)


def test_grey_images_train_with_one_channel(tmp_path):
    spec = MobileNetSpec(0.25, 8, total_stride=4, input_channels=1)
    recipe = CLASSIFICATION.recipes()["digits"].override({"epochs": 1})
    task = CLASSIFICATION.from_data("digits", spec)
    data = task.build_data(recipe, on_bad_image="stop")
    run = Run.create(tmp_path / "run", task, spec, recipe, data.record)
    train(run, data, recipe, CPU, report=lambda line: None)
    again = Run.load(tmp_path / "run")
    assert again.spec.input_channels == 1
    assert again.predict(np.zeros((8, 8, 3), dtype=np.uint8)).label in again.labels


# Case 12: the paper's strides leave one pixel of a 32x32 image.
def test_strides_that_starve_small_images_are_warned_of():
    starved = CLASSIFICATION.from_data("digits", MobileNetSpec.parse("0.25-32"))
    fed = CLASSIFICATION.from_data("digits", MobileNetSpec.parse("0.25-32-s16"))
    recipe = CLASSIFICATION.recipes()["digits"]
    warnings = starved.build_data(recipe, on_bad_image="stop").warnings
    assert any("1x1" in warning and "s16" in warning for warning in warnings)
    assert not fed.build_data(recipe, on_bad_image="stop").warnings


def test_train_never_reads_the_test_split(tmp_path, monkeypatch):
    from mobilenets.data.sources import open_source

    source = open_source("digits")

    class Forbidden:
        def __len__(self):
            return 359

        def __getattr__(self, name):
            raise AssertionError("training looked at the test split")

    object.__setattr__(source.splits["test"], "images", Forbidden())
    monkeypatch.setattr("mobilenets.tasks.classification.task.open_source", lambda where: source)
    arguments = ["train", "digits", "--model", "0.25-8-s4", "--epochs", "1"]
    assert cli([*arguments, "--output", str(tmp_path / "run")]) == 0
