"""A recipe takes what is valid, and says which key, which value and what comes nearest otherwise."""

import ast
import inspect
from itertools import pairwise

import pytest
import torch
import yaml
from pydantic import ValidationError

from mobilenets import tasks
from mobilenets.architecture import MobileNetSpec
from mobilenets.architecture.network import MobileNet
from mobilenets.tasks.classification import recipes as module
from mobilenets.tasks.classification.recipes import ARTICLE, RECIPES
from mobilenets.training.optimizers import build_optimizer
from mobilenets.training.recipe import (
    AugmentationChoice,
    DistillationChoice,
    EarlyStopping,
    EmbeddingChoice,
    FineTuningChoice,
    GeolocationChoice,
    GrowthChoice,
    OptimizerChoice,
    Recipe,
    ScheduleChoice,
    find_recipe,
    parse_seconds,
    read_recipe,
)

CLASSIFICATION = tasks.find("classification")
PLAIN = Recipe(name="plain", epochs=2)
BASE = MobileNetSpec.parse("0.25-8-s4")


def changed(**values):
    return PLAIN.override(values)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        # Keys that do not exist, at the top and below, with the nearest that do.
        ("epoch", "3", r"there is no key 'epoch'; nearest: epochs$"),
        ("batchsize", "3", r"there is no key 'batchsize'; nearest: batch_size$"),
        ("Epochs", "3", r"there is no key 'Epochs'; nearest: epochs$"),
        ("optimiser.lr", "1", r"there is no key 'optimiser.lr'; nearest: optimizer(\.lr)?$"),
        ("optimizer.rl", "1", r"there is no key 'optimizer.rl'; nearest: optimizer.lr$"),
        ("optimizer.", "1", r"there is no key 'optimizer.'; nearest: optimizer\."),
        ("augmentation.mix_up", "1", r"key 'augmentation.mix_up'; nearest: augmentation.mixup$"),
        ("schedule.cosine", "1", r"there is no key 'schedule.cosine'; nearest: schedule\."),
        # Below a choice that is null until it is set.
        ("early_stopping.metrik", "a", r"'early_stopping.metrik'; nearest: early_stopping.metric$"),
        # No key at all, and a key below a plain value.
        ("", "1", r"there is no key ''"),
        ("epochs.first", "3", r"epochs.first does not exist, epochs holds a single value"),
        ("optimizer.lr.peak", "3", r"optimizer.lr.peak does not exist, lr holds a single value"),
        # Wrong words, with the nearest right one.
        ("optimizer.name", "adma", r"optimizer.name is 'adma': .*nearest: adam$"),
        ("optimizer.name", "rms_prop", r"optimizer.name is 'rms_prop': .*nearest: rmsprop$"),
        ("optimizer.name", "SGD", r"optimizer.name is 'SGD': .*'sgd', 'adam', 'adamw'"),
        ("schedule.name", "cosin", r"schedule.name is 'cosin': .*nearest: cosine$"),
        ("precision", "bf32", r"precision is 'bf32': .*nearest: bf16|fp32$"),
        ("precision", "16", r"precision is 16: .*nearest: fp16|bf16$"),
        # Out of range, on either side, at the edges that are not allowed.
        ("epochs", "0", r"epochs is 0: at least 1, unless a classifier is fitted beforehand"),
        ("epochs", "-1", r"epochs is -1: .*greater than or equal to 0"),
        ("batch_size", "1", r"batch_size is 1: .*greater than or equal to 2"),
        ("accumulate", "0", r"accumulate is 0: "),
        ("optimizer.lr", "0", r"optimizer.lr is 0: .*greater than 0"),
        ("optimizer.lr", "-0.1", r"optimizer.lr is -0.1: .*greater than 0"),
        ("optimizer.momentum", "1", r"optimizer.momentum is 1: .*less than 1"),
        ("optimizer.weight_decay", "-5e-4", r"optimizer.weight_decay is '-5e-4': .*equal to 0"),
        ("schedule.warmup", "1.0", r"schedule.warmup is 1.0: .*less than 1"),
        ("schedule.final", "1.5", r"schedule.final is 1.5: .*less than or equal to 1"),
        ("augmentation.min_area", "0", r"augmentation.min_area is 0: .*greater than 0"),
        ("augmentation.randaugment", "31", r"augmentation.randaugment is 31: .*equal to 30"),
        ("label_smoothing", "1", r"label_smoothing is 1: .*less than 1"),
        ("ema_decay", "1", r"ema_decay is 1: .*less than 1"),
        ("clip_norm", "0", r"clip_norm is 0: .*greater than 0"),
        ("held_out", "0", r"held_out is 0: .*greater than 0"),
        ("outputs", "0", r"outputs is 0: .*greater than or equal to 1"),
        ("seed", "-1", r"seed is -1: .*greater than or equal to 0"),
        ("early_stopping.patience", "0", r"early_stopping.patience is 0: .*equal to 1"),
        # Not numbers that could be compared at all: with YAML's spelling and with everyone's.
        ("optimizer.lr", "nan", r"optimizer.lr is 'nan': .*finite number"),
        ("optimizer.lr", ".nan", r"optimizer.lr is nan: .*finite number"),
        ("optimizer.lr", "inf", r"optimizer.lr is 'inf': .*finite number"),
        ("optimizer.lr", ".inf", r"optimizer.lr is inf: .*finite number"),
        ("max_seconds", ".inf", r"max_seconds is inf: .*finite number"),
        ("clip_norm", "1e999", r"clip_norm is '1e999': .*finite number"),
        # Other kinds of values.
        ("epochs", "many", r"epochs is 'many': .*valid integer"),
        ("epochs", "2.5", r"epochs is 2.5: .*fractional part"),
        ("epochs", "[1, 2]", r"epochs is \[1, 2\]: .*valid integer"),
        ("epochs", "", r"epochs is None: .*valid integer"),
        ("epochs", "2026-01-01", r"epochs is datetime.date\(2026, 1, 1\): .*valid integer"),
        ("optimizer.lr", "{peak: 1}", r"optimizer.lr is \{'peak': 1\}: .*valid number"),
        ("optimizer.lr", "null", r"optimizer.lr is None: .*valid number"),
        ("optimizer", "adamw", r"optimizer is 'adamw': "),
        ("optimizer", "null", r"optimizer is None: "),
        ("augmentation.mirror", "maybe", r"augmentation.mirror is 'maybe': .*valid boolean"),
        ("compile", "2", r"compile is 2: .*valid boolean"),
        ("max_seconds", "20m", r"max_seconds is '20m': .*valid number"),
        ("name", "7", r"name is 7: .*valid string"),
        ("optimizer.lr", "[", r"optimizer.lr is '\[', which can't be read as a value"),
        # Two values that are good by themselves.
        ("accumulate", "65", r"^recipe: accumulate is 65: at most batch_size, 64$"),
    ],
)
def test_errors_name_key_value_and_nearest(key, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        changed(**{key: value})
    assert str(caught.value).startswith("recipe: ")
    assert "\n" not in str(caught.value)
    assert type(caught.value) is ValueError


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        # PyYAML reads a number without a point as a string; a recipe takes it for what it is.
        ("optimizer.lr", "1e-4", 1e-4),
        ("optimizer.lr", "1.0e-4", 1e-4),
        ("optimizer.weight_decay", "5E-4", 5e-4),
        # Python values and text are the same.
        ("optimizer.lr", 1, 1.0),
        ("epochs", "3", 3),
        ("epochs", "3.0", 3),
        ("augmentation.mirror", "off", False),
        ("augmentation.mirror", "true", True),
        # The edges that are allowed.
        ("schedule.final", "1", 1.0),
        ("augmentation.min_area", "1", 1.0),
        ("augmentation.randaugment", "30", 30),
        ("batch_norm_momentum", "1", 1.0),
        ("accumulate", "64", 64),
        # What is null by default, set; and set back.
        ("clip_norm", "null", None),
        ("outputs", "1000", 1000),
        ("max_seconds", 90, 90.0),
        # A choice below null comes into being, with defaults for the rest.
        ("early_stopping.metric", "top1", "top1"),
        ("early_stopping.patience", "3", 3),
    ],
)
def test_overrides(key, value, expected):
    seen = changed(**{key: value})
    for step in key.split("."):
        seen = getattr(seen, step)
    assert seen == expected
    assert type(seen) is type(expected)


def test_early_stopping_comes_and_goes():
    recipe = changed(**{"early_stopping.metric": "top1"})
    assert recipe.early_stopping == EarlyStopping(metric="top1", patience=10)
    assert recipe.override({"early_stopping": "null"}).early_stopping is None
    assert recipe.override({"early_stopping": "{patience: 2}"}).early_stopping == EarlyStopping(
        metric="loss", patience=2
    )


# Later changes win, and a whole choice can be given as one value before a part of it changes.
def test_overrides_in_order():
    recipe = PLAIN.override({"optimizer": "{name: adam, lr: 0.1}", "optimizer.lr": "0.2"})
    assert recipe.optimizer == OptimizerChoice(name="adam", lr=0.2)


def test_override_leaves_the_recipe_alone():
    before = PLAIN.model_dump()
    assert changed(**{"optimizer.lr": "0.3"}) != PLAIN
    assert PLAIN.model_dump() == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", "yes"),
        ("optimizer.lr", "true"),
        ("clip_norm", "on"),
        # Meant to be off, and no magnitude: RandAugment of magnitude 0 still changes images.
        ("augmentation.randaugment", "off"),
    ],
)
def test_yes_and_no_are_no_numbers(key, value):
    with pytest.raises(ValueError, match=rf"{key} is (True|False): "):
        changed(**{key: value})


def test_a_choice_made_a_word_and_then_changed_is_one_sentence():
    with pytest.raises(ValueError, match=r"optimizer is 'adamw'"):
        PLAIN.override({"optimizer": "adamw", "optimizer.lr": "0.1"})


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        # The wrong part comes again, as a part of the right one.
        ("e.epochs", r"nearest: [a-z_]+$"),
        # Left out what it stands under: the most likely slip of all.
        ("lr", r"nearest: optimizer\.lr$"),
        ("mixup", r"nearest: augmentation\.mixup$"),
    ],
)
def test_nearest_looks_at_whole_keys(key, nearest):
    with pytest.raises(ValueError, match=nearest):
        changed(**{key: "1"})


@pytest.mark.parametrize(
    "change",
    [
        lambda recipe: setattr(recipe, "epochs", 3),
        lambda recipe: setattr(recipe.optimizer, "lr", 3),
        lambda recipe: setattr(recipe.schedule, "final", 1),
        lambda recipe: setattr(recipe.augmentation, "mirror", False),
        lambda recipe: setattr(recipe.early_stopping, "patience", 1),
    ],
)
def test_recipes_are_frozen(change):
    recipe = PLAIN.override({"early_stopping.patience": 2})
    with pytest.raises(ValidationError, match="frozen"):
        change(recipe)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("20m", 1200),
        ("1h", 3600),
        ("1h30m", 5400),
        ("1h30m15s", 5415),
        ("1h15s", 3615),
        # Fractions, capitals, and room around it.
        ("1.5h", 5400),
        ("0.5", 0.5),
        ("0h5m", 300),
        (" 20M ", 1200),
    ],
)
def test_seconds(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        # Nothing, no time, no number, a sign, units that are twice there, backwards or unknown.
        *(
            "",
            " ",
            "0",
            "0h0m0s",
            "h",
            "m",
            "s",
            "soon",
            "-5m",
            "+5m",
            "5m5m",
            "5m1h",
            "1d",
            "5min",
        ),
        # Spellings of numbers that people do not use for times.
        *("inf", "nan", "1e3", ".5h", "5.h", "1,5h", "1:30", "1 h", "1h 30m"),
    ],
)
def test_no_seconds(text):
    with pytest.raises(ValueError, match="is not a time: write 90s, 20m or 1h30m") as caught:
        parse_seconds(text)
    assert str(caught.value).startswith(repr(text))


# Whoever leaves the last unit out of 1h30 means minutes, as on a clock: those, or a question back.
@pytest.mark.parametrize(("text", "seconds"), [("1h30", 5400), ("2h5", 7500)])
def test_hours_and_a_number_are_hours_and_minutes(text, seconds):
    try:
        seen = parse_seconds(text)
    except ValueError:
        return
    assert seen == seconds


def test_minutes_and_a_number_are_minutes_and_seconds():
    assert parse_seconds("2m30") == 150


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 2\noptimiser: {lr: 1}\n", r"there is no key 'optimiser'; nearest: optimizer$"),
        (
            "epochs: 2\noptimizer: {rate: 1}\n",
            r"there is no key 'optimizer.rate'; nearest: optimizer\.",
        ),
        (
            "epochs: 2\nearly_stopping: {metrik: loss}\n",
            r"'early_stopping.metrik'; nearest: early_stopping.metric$",
        ),
        ("epochs: 2\nprecision: fp64\n", r"precision is 'fp64': .*nearest: fp"),
        ("epochs: two\n", r"epochs is 'two': "),
        ("epochs: 2\nbatch_size: 8\naccumulate: 9\n", r"accumulate is 9: at most batch_size, 8"),
        ("batch_size: 8\n", r"epochs is missing"),
        ("", r"a recipe is a list of `key: value` lines"),
        ("[1, 2]", r"a recipe is a list of `key: value` lines"),
        ("epochs: [", r"not a recipe"),
        ("- epochs: 2\n", r"a recipe is a list of `key: value` lines"),
        ("epochs: [\n", r"not a recipe \("),
        ("epochs: 2\n\tname: a\n", r"not a recipe \("),
        ("1: 2\nepochs: 2\n", r"^recipe: 1 is .*Keys should be strings$"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (binary, tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ValueError, match="not a recipe"):
            read_recipe(path)


def test_a_file_as_people_write_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "# PyYAML alone would read both rates as text.\n"
        "epochs: 2\noptimizer: {name: adamw, lr: 1e-4, weight_decay: 5e-2}\n"
    )
    assert read_recipe(path) == Recipe(
        name="mine",
        epochs=2,
        optimizer=OptimizerChoice(name="adamw", lr=1e-4, weight_decay=0.05),
    )


# Every option away from its default, so that none is lost on the way to a file and back.
FULL = Recipe(
    name="full: 'quoted' # and more",
    epochs=3,
    max_seconds=90.5,
    batch_size=8,
    accumulate=2,
    drop_last=True,
    shuffle_shards=4,
    optimizer=OptimizerChoice(
        name="rmsprop",
        lr=1e-7,
        momentum=0.8,
        nesterov=False,
        beta2=0.9,
        epsilon=1e-10,
        weight_decay=4e-5,
        decay_depthwise=True,
        head_lr=10,
        norm_bias_lr=64,
    ),
    schedule=ScheduleChoice(name="exponential", warmup=0.2, final=0.1, factor=0.9, every=1.5),
    augmentation=AugmentationChoice(
        mirror=False,
        alternate=True,
        shift=0.1,
        min_area=0.35,
        cutout=0.25,
        colour=0.5,
        randaugment=9,
        randaugment_share=0.3,
        mixup=0.2,
        cutmix=1.0,
        expand=2.0,
        crop=True,
        mosaic=0.5,
    ),
    growth=GrowthChoice(start=0.5, until=0.3),
    embedding=EmbeddingChoice(size=64, loss="arcface", margin=20.0, scale=16.0, group=2),
    geolocation=GeolocationChoice(max_images=(50, 20), min_images=5, max_level=9, smoothing=75.0),
    label_smoothing=0.1,
    class_weights=True,
    outputs=1000,
    dropout=0.2,
    batch_norm_momentum=0.4,
    dirac=True,
    whiten=True,
    ema_decay=0.9999,
    clip_norm=5.0,
    precision="bf16",
    sync_batch_norm=False,
    reduce_in="bf16",
    scores="softmax",
    compile=True,
    deterministic=True,
    early_stopping=EarlyStopping(metric="top1", patience=3),
    fine_tuning=FineTuningChoice(probe=False, thaw=None, rate_decay=0.5, norm="batch"),
    distillation=DistillationChoice(
        weight=0.5,
        loss="squared",
        temperature=2.0,
        sees="whole",
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.3),
    ),
    folds=4,
    fold=3,
    fraction=0.5,
    held_out=0.2,
    seed=7,
    expected="99.2 %: on a good day",
)


@pytest.mark.parametrize("recipe", [FULL, *RECIPES.values()], ids=lambda recipe: recipe.name)
def test_recipes_survive_their_file(tmp_path, recipe):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert read_recipe(path) == recipe
    assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe


def test_the_full_recipe_is_full():
    plain, full = Recipe(name="plain", epochs=1).model_dump(), FULL.model_dump()
    for part in ("optimizer", "schedule", "augmentation"):
        assert not plain[part].items() & full[part].items()
    same = {key for key in plain if plain[key] == full[key]}
    assert not same


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_build_an_optimizer(name):
    recipe = find_recipe(name, RECIPES)
    assert recipe.name == name
    with torch.device("meta"):
        model = MobileNet(BASE, recipe.outputs or 10)
    optimizer = build_optimizer(model, recipe.optimizer)
    expected = {"rmsprop": "RMSpropTF"}.get(recipe.optimizer.name, recipe.optimizer.name)
    assert type(optimizer).__name__.lower() == expected.lower()
    assert all(group["lr"] > 0 for group in optimizer.param_groups)


# What a recipe is for, and what it reached, stands under its constant.
def test_recipes_are_documented():
    body = ast.parse(inspect.getsource(module)).body
    texts = {}
    for statement, after in pairwise(body):
        if isinstance(statement, ast.Assign) and isinstance(after, ast.Expr):
            assert isinstance(after.value, ast.Constant)
            texts[statement.targets[0].id] = after.value.value
    for recipe in RECIPES.values():
        text = texts[recipe.name.upper()]
        assert isinstance(text, str)
        assert len(text) > 80
        assert text[0].isupper()
        assert isinstance(recipe.expected, str)


@pytest.mark.parametrize(
    ("model", "where", "pretrained", "expected"),
    [
        ("0.25-8-s4", "digits", False, "digits"),
        # Small pictures, up to 96 pixels on the longer side; photos beyond.
        ("0.5-32", "cifar10", False, "cifar"),
        ("0.5-96", "photos", False, "cifar"),
        ("0.5-97", "photos", False, "modern"),
        ("0.5-32x97", "photos", False, "modern"),
        # Trained weights, whatever the data.
        ("0.25-8-s4", "digits", True, "finetune"),
        ("1.0-224", "photos", True, "finetune"),
    ],
)
def test_default_recipe(model, where, pretrained, expected):
    spec = MobileNetSpec.parse(model)
    recipe = CLASSIFICATION.default_recipe(spec, where, pretrained=pretrained)
    assert recipe is RECIPES[expected]


# Section 6 of FACTS: 1,000 outputs for ten classes. The surplus is trained, but never guessed.
def test_the_article_has_a_thousand_outputs_and_predicts_its_labels():
    task = CLASSIFICATION.from_data("digits", BASE, ARTICLE)
    model = task.build_model(BASE, ARTICLE)
    logits = model.eval()(torch.zeros(2, 3, 8, 8)).detach()
    assert logits.shape == (2, 1000)
    # The best output of all has no name: the best label is given, with the share it has.
    logits[:] = 0.0
    logits[:, 999] = 20.0
    logits[0, 3] = 10.0
    first, second = task.decode(logits.numpy())
    assert first.label == "3"
    assert {guess.label for guess in first.guesses} <= set(task.labels)
    assert sum(guess.score for guess in first.guesses) < 1e-3
    assert second.label in task.labels
    assert model.dropout.p == 0.0
    again = CLASSIFICATION.from_dict(task.to_dict(), task.preprocessing)
    assert (again.outputs, again.labels) == (1000, task.labels)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    # As many as classes need no mention in a run.
    [(None, {}), (10, {}), (11, {"outputs": 11})],
)
def test_outputs(outputs, expected):
    recipe = PLAIN.override({"outputs": outputs})
    task = CLASSIFICATION.from_data("digits", BASE, recipe)
    assert task.to_dict() == {"labels": [str(digit) for digit in range(10)], **expected}


def test_fewer_outputs_than_classes_is_one_sentence():
    recipe = PLAIN.override({"outputs": 9})
    with pytest.raises(ValueError, match=r"^recipe: outputs is 9, but digits has 10 classes$"):
        CLASSIFICATION.from_data("digits", BASE, recipe)
