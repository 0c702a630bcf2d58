"""A run that is killed, stopped, moved or out of disk goes on as if nothing had happened."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from mobilenets.cli.main import run as cli
from mobilenets.training.curves import read_curves

# Every part of the state that could be lost: momentum, average, dropout's random numbers, order and
# distortions, a schedule that changes at each step.
ARGUMENTS = [
    "digits",
    "--model",
    "0.25-8-s4",
    "--device",
    "cpu",
    "--set",
    "ema_decay=0.99",
    "--set",
    "dropout=0.2",
    "--set",
    "augmentation.cutout=0.25",
]
CLOCK = ("seconds", "train/images_per_second")


def train(*arguments):
    assert cli(["train", *map(str, arguments)]) == 0


# Real processes, forked from one that has imported everything: a start takes 0.1 s and not 5.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "mobilenets.cli.main",
        "mobilenets.tasks.classification.calibration",
        "mobilenets.tasks.classification.task",
        "mobilenets.training.loop",
        "sklearn.datasets",
        "torch.utils.tensorboard",
        "torchmetrics.classification",
    ]
)


def start(*arguments, errors=os.devnull):
    process = PROCESSES.Process(target=_run, args=(["train", *map(str, arguments)], str(errors)))
    process.start()
    return process


def _run(arguments, errors):
    torch.set_num_threads(1)
    with open(errors, "w") as file:  # noqa: PTH123
        os.dup2(file.fileno(), sys.stderr.fileno())
        os.dup2(file.fileno(), sys.stdout.fileno())
        sys.exit(cli(arguments))


def state(folder):
    """All that a run holds, without what a clock says."""
    loaded = torch.load(folder / "state.pt", weights_only=True)
    loaded["standing"].pop("seconds")
    return loaded


def rows(folder):
    return [
        {key: value for key, value in row.items() if key not in CLOCK and key[:5] != "time/"}
        for row in read_curves(folder)
    ]


def assert_same(folder, other):
    """To the bit: weights, average, optimiser, standing, curves, and the weights that are kept."""
    _assert_equal(state(folder), state(other))
    assert rows(folder) == rows(other)
    for name in ("model.safetensors", "last/model.safetensors", "validation.json"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    first, second = (json.loads((f / "config.json").read_text()) for f in (folder, other))
    assert first["metrics"] == second["metrics"]


def _assert_equal(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _assert_equal(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            _assert_equal(*pair)
    else:
        assert one == other


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Four epochs without a break."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    train(*ARGUMENTS, "--epochs", 4, "--output", folder)
    return folder


# Case 16: kill -9 at any moment, ten of them: while reading, in a step, in an evaluation, in a save.
def test_killed_ten_times_at_random_it_ends_with_the_same_bits(straight, tmp_path):
    folder = tmp_path / "run"
    moments, kills, steps = random.Random(7), 0, []
    while True:
        first = not (folder / "config.json").is_file()
        if first:
            # Killed before the run existed: whoever starts it again starts it anew.
            shutil.rmtree(folder, ignore_errors=True)
        arguments = (
            [*ARGUMENTS, "--epochs", 4, "--output", folder] if first else ["--resume", folder]
        )
        process = start(*arguments, "--save-every", 0)
        if kills < 10:
            # In saves, of which each step makes one, so that a fast machine is not done before; then
            # a part of a step. Two of the ten fall while images are read.
            if kills not in (3, 7):
                _wait_for_saves(process, folder, moments.randint(1, 13))
            time.sleep(moments.uniform(0.0, 0.02 if kills not in (3, 7) else 0.5))
            if process.is_alive():
                process.kill()
                process.join()
                kills += 1
                if (folder / "state.pt").is_file():
                    steps.append(state(folder)["standing"]["step"])
                continue
        process.join(120)
        assert process.exitcode == 0
        break
    assert kills == 10
    assert len(set(steps)) > 5, steps
    assert any(step % 41 for step in steps), "no kill fell into the middle of an epoch"
    assert_same(folder, straight)


def _wait_for_saves(process, folder, count):
    path, last, seen = folder / "state.pt", _changed(folder / "state.pt"), 0
    while process.is_alive() and seen < count:
        time.sleep(0.001)
        now = _changed(path)
        seen += now != last
        last = now


def _changed(path):
    return path.stat().st_mtime_ns if path.is_file() else 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_says_how_to_go_on_and_loses_nothing(straight, tmp_path, number, code):
    folder = tmp_path / "run"
    # Too short for a save by time: what is there afterwards, the signal has saved.
    log = tmp_path / "errors"
    process = start(*ARGUMENTS, "--epochs", 4, "--output", folder, errors=log)
    while not (folder / "tensorboard").is_dir():
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(process.pid, number)
    process.join(60)
    errors = log.read_text()
    assert process.exitcode == code, errors
    assert f"go on with: mobilenets train --resume {folder}" in errors
    assert "Traceback" not in errors
    assert state(folder)["standing"]["step"] > 0
    train("--resume", folder)
    assert_same(folder, straight)


def test_two_epochs_and_two_more_are_four(tmp_path):
    # A schedule that does not depend on the length, so that the first half can't know of the second.
    arguments = [*ARGUMENTS, "--set", "schedule.name=exponential", "--set", "schedule.warmup=0"]
    train(*arguments, "--epochs", 4, "--output", tmp_path / "four")
    train(*arguments, "--epochs", 2, "--output", tmp_path / "two")
    train("--resume", tmp_path / "two", "--epochs", 4)
    assert_same(tmp_path / "two", tmp_path / "four")


def test_a_run_that_moved_goes_on(straight, tmp_path):
    folder = tmp_path / "run"
    _stop_after(folder, steps=50)
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    folder.rename(moved)
    train("--resume", moved)
    assert_same(moved, straight)


def test_data_that_moved_goes_on_and_other_data_is_refused(hymenoptera, tmp_path, capsys):
    data = tmp_path / "photos"
    for split in ("train", "val"):
        for label in ("ants", "bees"):
            (data / split / label).mkdir(parents=True)
            for photo in sorted((hymenoptera / split / label).iterdir())[:6]:
                shutil.copy(photo, data / split / label)
    folder = tmp_path / "run"
    train(data, "--model", "0.25-64", "--epochs", 1, "--set", "batch_size=4", "--output", folder)
    moved = data.rename(tmp_path / "album")
    assert cli(["train", "--resume", str(folder), "--epochs", "2"]) == 2
    assert f"mobilenets train DATA --resume {folder}" in capsys.readouterr().err
    train(moved, "--resume", folder, "--epochs", 2)
    assert len(read_curves(folder)) == 2
    photo = next((moved / "train" / "ants").iterdir())
    photo.rename(photo.with_name("zzz.jpg"))
    assert cli(["train", str(moved), "--resume", str(folder), "--epochs", "3"]) == 2
    assert "is not the data that" in capsys.readouterr().err


def test_a_finished_run_says_so_and_stays_as_it_is(straight, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    train("--resume", folder)
    assert "nothing is left to train" in capsys.readouterr().err
    assert_same(folder, straight)


# Case 22: a full disk. A real, small one where the system lets us make it.
def test_full_disk_ends_with_a_sentence_and_the_run_goes_on(straight, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], capture_output=True
    )
    if made.returncode:
        pytest.skip("this system lets no one but root make a small disk")
    try:
        folder = disk / "run"
        _stop_after(folder, steps=50)
        before = (folder / "state.pt").read_bytes()
        filler = disk / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(2**25))
        assert cli(["train", "--resume", str(folder)]) == 2
        errors = capsys.readouterr().err
        assert "no space left on the disk" in errors
        assert f"mobilenets train --resume {folder}" in errors
        assert (folder / "state.pt").read_bytes() == before
        filler.unlink()
        train("--resume", folder)
        assert_same(folder, straight)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: path.write_bytes(b"no archive"), "training can't go on from it"),
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), "training can't go on from it"),
        # A pickle that would run code is refused, not run.
        (lambda path: torch.save({"format": print}, path), "training can't go on from it"),
        (lambda path: torch.save({"format": 1}, path), "written by another version"),
    ],
)
def test_damaged_states_are_one_sentence(straight, tmp_path, capsys, spoil, sentence):
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    spoil(folder / "state.pt")
    assert cli(["train", "--resume", str(folder), "--epochs", "5"]) == 2
    errors = capsys.readouterr().err
    assert sentence in errors
    assert str(folder / "state.pt") in errors
    assert "Traceback" not in errors


def _stop_after(folder, steps):
    """Train four epochs, but stop after some steps, as Ctrl-C would."""
    from mobilenets import tasks
    from mobilenets.architecture import MobileNetSpec
    from mobilenets.training.loop import train as run_training
    from mobilenets.training.run import Run

    kind, spec = tasks.find("classification"), MobileNetSpec.parse("0.25-8-s4")
    recipe = kind.default_recipe(spec, "digits").override(
        {"ema_decay": 0.99, "dropout": 0.2, "augmentation.cutout": 0.25, "epochs": 4}
    )
    task = kind.from_data("digits", spec, recipe)
    data = task.build_data(recipe, on_bad_image="stop")
    run = Run.create(folder, task, spec, recipe, data.record)
    asked = iter(range(1, 10_000))
    over = run_training(
        run, data, recipe, torch.device("cpu"), stop=lambda: next(asked) >= steps, report=str
    )
    assert not over
    assert state(folder)["standing"]["step"] == steps
