"""Several processes that `torchrun` starts train as one would, and count every image once."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from mobilenets.cli.main import run as cli
from mobilenets.training.curves import read_curves

SETTINGS = [
    "batch_size=128",
    # Masks are drawn by each process for its own images.
    "dropout=0",
    "ema_decay=0.9",
    "augmentation.cutout=0.25",
    # Sides follow the share of the epochs that is done.
    "growth=null",
    "optimizer.lr=0.001",
    # The same rate at each step, whatever the number of epochs.
    "schedule.name=constant",
    "schedule.warmup=0",
]


def torchrun(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory):
    """Three classes: 151 images to train on in each, so that the last batch is uneven; 7 for val."""
    folder, seen = tmp_path_factory.mktemp("digits"), [0, 0, 0]
    digits = load_digits()
    for pixels, target in zip(digits.images, digits.target, strict=True):
        if target > 2 or seen[target] == 158:
            continue
        place = folder / ("train" if seen[target] < 151 else "val") / str(target)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype("uint8")).save(place / f"{seen[target]}.png")
        seen[target] += 1
    return folder


def arguments(data, folder, epochs):
    changes = [part for setting in SETTINGS for part in ("--set", setting)]
    model = ["--model", "0.25-8-s4-shallow", "--device", "cpu", "--json"]
    return ["train", str(data), *model, *changes, "--epochs", str(epochs), "--output", str(folder)]


@pytest.fixture(scope="module")
def runs(digits_folder, tmp_path_factory):
    """`one`: three epochs in one process. `two`: two epochs in two. `first`: two epochs in one."""
    folder = tmp_path_factory.mktemp("runs")
    for name, epochs in (("one", 3), ("first", 2)):
        assert cli(arguments(digits_folder, folder / name, epochs)) == 0
    code, output, errors = torchrun(
        "-m", "mobilenets", *arguments(digits_folder, folder / "two", 2)
    )
    assert code == 0, errors
    # One of the two writes, and what it writes is one document.
    assert json.loads(output)["images"] == 21
    assert errors.count("epoch 1/2") == 1
    assert "2 processes" in errors
    return folder


# A new network with batch norm magnifies rounding at each step: one process on one thread and on two
# ends as far apart. `test_gradients_...` below compares in double precision, to 1e-8.
TOLERANCE = 0.005


def distance(folder, other):
    """The largest relative distance of a weight between two runs."""
    one, two = (load_file(f / "last" / "model.safetensors") for f in (folder, other))
    assert one.keys() == two.keys()
    return max(
        float((value - two[key]).norm() / value.norm())
        for key, value in one.items()
        if key.endswith("weight")
    )


# Case 15: 21 validation images on two processes are 21, not 22 or 20.
def test_two_processes_match_one(runs):
    assert distance(runs / "first", runs / "two") < TOLERANCE
    for one, two in zip(read_curves(runs / "first"), read_curves(runs / "two"), strict=True):
        assert one["val/images"] == two["val/images"] == 21
        for name in ("train/loss", "val/loss", "val_raw/loss"):
            assert one[name] == pytest.approx(two[name], rel=TOLERANCE), name
        # So early, an image may be told one way or the other.
        for name in ("train/top1", "val/top1", "val/class_top1"):
            assert one[name] == pytest.approx(two[name], abs=0.05), name


def test_another_epoch_would_not_match(runs):
    assert distance(runs / "one", runs / "two") > 3 * TOLERANCE


def test_two_processes_go_on_as_one(runs):
    assert cli(["train", "--resume", str(runs / "two"), "--epochs", "3", "--device", "cpu"]) == 0
    assert distance(runs / "one", runs / "two") < TOLERANCE


def test_one_process_goes_on_as_two(runs):
    resume = ["train", "--resume", str(runs / "first"), "--epochs", "3", "--device", "cpu"]
    code, _, errors = torchrun("-m", "mobilenets", *resume)
    assert code == 0, errors
    assert distance(runs / "one", runs / "first") < TOLERANCE


EXACT = """
import sys
import torch
from mobilenets import tasks
from mobilenets.architecture import MobileNetSpec
from mobilenets.data.loaders import Batch
from mobilenets.training.processes import processes, synchronise_batch_norm

torch.set_default_dtype(torch.float64)
with processes(torch.device("cpu")) as (mine, device):
    torch.manual_seed(0)
    kind, spec = tasks.find("classification"), MobileNetSpec.parse("0.25-16-s8")
    recipe = kind.recipes()["cifar"]
    task = kind.from_data("digits", spec)
    model = task.build_model(spec, recipe)
    if mine.count > 1:
        model = synchronise_batch_norm(model, device)
    shared = mine.share(model, device).train()
    # Five images, and in the second step one: a process without any takes part all the same.
    for count in (5, 1):
        images, targets = torch.randn(count, 3, 16, 16), torch.arange(count)
        batch = Batch(mine.shard.of(images), mine.shard.of(targets), count)
        loss = task.loss(shared, batch, recipe)["loss"] * (len(batch) * mine.count / count)
        loss.backward()
    if mine.first:
        gradients = {name: value.grad for name, value in model.named_parameters()}
        torch.save([gradients, dict(model.named_buffers())], sys.argv[1])
"""


def test_gradients_and_statistics_are_those_of_one_process(tmp_path):
    script = tmp_path / "exact.py"
    script.write_text(EXACT)
    subprocess.run([sys.executable, script, tmp_path / "one.pt"], check=True, timeout=120)
    code, _, errors = torchrun(script, tmp_path / "two.pt")
    assert code == 0, errors
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    for mine, theirs in zip(one, two, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            torch.testing.assert_close(value, theirs[key], rtol=1e-8, atol=1e-10)


def test_bad_input_in_several_processes_is_said_once(tmp_path):
    code, _, errors = torchrun("-m", "mobilenets", "train", tmp_path / "nothing", "--device", "cpu")
    assert code != 0
    assert errors.count("there is no such folder") == 1
    assert "site-packages/mobilenets" not in errors
