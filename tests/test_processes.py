"""Several processes that `torchrun` starts train as one would, count every image once, and go on without one that is lost."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from mobilenets.cli.main import run as cli
from mobilenets.training.curves import read_curves
from mobilenets.training.interrupt import Interrupt, ProcessLostError
from mobilenets.training.processes import Processes, processes
from mobilenets.training.recipe import read_recipe
from mobilenets.training.run import Run

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


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def torchrun(*arguments, count=2):
    done = subprocess.run(
        [*TORCHRUN, "--standalone", "--nproc-per-node", str(count), *map(str, arguments)],
        env=ENVIRONMENT,
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


# `two` went on alone takes each batch in two pieces, as large as those that each of the two had.
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


@pytest.mark.slow
def test_four_processes_match_one(runs, digits_folder, tmp_path):
    training = arguments(digits_folder, tmp_path / "four", 2)
    code, output, errors = torchrun("-m", "mobilenets", *training, count=4)
    assert code == 0, errors
    assert json.loads(output)["images"] == 21
    assert distance(runs / "first", tmp_path / "four") < TOLERANCE


def test_what_each_process_did_is_in_one_file(runs):
    lines = [
        json.loads(line)
        for line in (runs / "two" / "processes.jsonl").read_text().split("\n")
        if line
    ]
    assert [(line["epoch"], line["rank"]) for line in lines] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for line in lines:
        assert line["images"] in (226, 227)
        assert line["processes"] == 2
        assert line["host"] == socket.gethostname()
        assert line["images_per_second"] > 0
        assert line["peak_mb"] > 50
        stages = [line[stage] for stage in ("data", "forward", "backward", "step")]
        assert sum(stages) == pytest.approx(1, abs=0.001)
    # One process needs no such file.
    assert not (runs / "one" / "processes.jsonl").exists()


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


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """The script, and what one process makes of it."""
    script = tmp_path_factory.mktemp("exact") / "exact.py"
    script.write_text(EXACT)
    one = script.parent / "one.pt"
    subprocess.run([sys.executable, script, one], check=True, timeout=120)
    return script, torch.load(one, weights_only=True)


@pytest.mark.parametrize("count", [2, 4])
def test_gradients_and_statistics_are_those_of_one_process(exact, count, tmp_path):
    script, one = exact
    code, _, errors = torchrun(script, tmp_path / "several.pt", count=count)
    assert code == 0, errors
    several = torch.load(tmp_path / "several.pt", weights_only=True)
    for mine, theirs in zip(one, several, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            torch.testing.assert_close(value, theirs[key], rtol=1e-8, atol=1e-10)


WAYS = """
import hashlib
import json
import sys
from pathlib import Path

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from mobilenets import tasks
from mobilenets.training import processes as module
from mobilenets.training.begin import Wanted, begin
from mobilenets.training.session import Session
from mobilenets.training.stages import Stages

# The model of this test is smaller than a bucket.
module.BUCKET_MB = 0.05
PLAIN = {"batch_size": 152, "fraction": 0.47, "augmentation.shift": 0, "dropout": 0}
WAYS = {
    "plain": {},
    "bf16": {"reduce_in": "bf16"},
    # The last batch has a single image for each process, whose norms then keep their statistics.
    "own": {"sync_batch_norm": False, "ema_decay": 0.9},
    "pieces": {"accumulate": 2},
}
folder = Path(sys.argv[1])
answers = {}
with module.processes(torch.device("cpu")) as (mine, device):
    for name, changes in WAYS.items():
        wanted = Wanted(
            data="digits", model="0.25-8-s4-shallow", output=folder / name, changes={**PLAIN, **changes}
        )
        job = begin(tasks.find("classification"), wanted, mine, device)
        mine.wait()
        session = Session(job.run, job.data, job.recipe, device, mine, None)
        events = []
        if name == "pieces":
            def reduce(state, bucket):
                events[-1] += "B"
                return allreduce_hook(state, bucket)
            session._shared.register_comm_hook(None, reduce)
            first = next(session.model.parameters())
            first.register_post_accumulate_grad_hook(lambda _: events.append(events.pop() + "F"))
        sizes = []
        for batch in job.data.train.batches(1, 0, mine.shard):
            sizes.append(batch.whole)
            events.append("")
            session.step(batch, 0.01, Stages())
        assert sum(session.standing.plain_sums().values()) > 0
        figures, _ = session.evaluate()
        state = session.trained.state_dict()
        digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values()))
        answers[name] = {
            "kept": mine.gather(digest.hexdigest()),
            "loss": figures["val/loss"],
            "events": events,
            "sizes": sizes,
        }
        if mine.first:
            torch.save(session.model.state_dict(), folder / f"{name}.pt")
    # As if they had gone on from different files.
    session.standing.step += mine.rank
    try:
        session.load(folder / "nothing.pt")
    except ValueError as error:
        answers["apart"] = str(error)
    if mine.first:
        (folder / "answers.json").write_text(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def ways(tmp_path_factory):
    """Two processes train in several ways."""
    folder = tmp_path_factory.mktemp("ways")
    script = folder / "ways.py"
    script.write_text(WAYS)
    code, _, errors = torchrun(script, folder)
    assert code == 0, errors
    return folder, json.loads((folder / "answers.json").read_text())


@pytest.mark.parametrize("way", ["plain", "bf16", "own", "pieces"])
def test_all_processes_keep_the_same_network(ways, way):
    _, answers = ways
    first, second = answers[way]["kept"]
    assert first == second


def test_gradients_in_bf16_are_near(ways):
    folder, answers = ways
    plain, rounded = (torch.load(folder / f"{w}.pt", weights_only=True) for w in ("plain", "bf16"))
    apart = [
        float((plain[k] - rounded[k]).norm() / plain[k].norm())
        for k in plain
        if k.endswith("conv.weight")
    ]
    assert 0 < max(apart) < 0.02
    assert answers["bf16"]["loss"] == pytest.approx(answers["plain"]["loss"], rel=0.02)


def test_own_statistics_are_those_of_no_process_alone(ways):
    folder, answers = ways
    assert answers["own"]["sizes"][-1] < 4
    assert answers["own"]["kept"] != answers["plain"]["kept"]
    own = torch.load(folder / "own.pt", weights_only=True)
    assert all(value.isfinite().all() for value in own.values())


# B is a bucket on its way, F the gradient of the first layer, which the backward pass comes to last.
def test_gradients_are_reduced_while_the_backward_pass_goes_on(ways):
    _, answers = ways
    first, *others, last = answers["pieces"]["events"]
    # Buckets are cut once the order of the gradients is known.
    assert first == "FFB"
    for events in others:
        # The first of two pieces sends nothing.
        assert re.fullmatch("FB{2,}FB?", events)
    # Of so few images there is one piece.
    assert re.fullmatch("B{2,}FB?", last)


@pytest.mark.parametrize(
    ("count", "accumulate", "began", "pieces"),
    [
        (1, 1, 1, 1),
        (2, 1, 2, 1),
        (1, 1, 2, 2),
        (3, 1, 8, 3),
        (7, 1, 8, 2),
        (3, 2, 8, 6),
        (4, 3, 2, 3),
    ],
)
def test_no_process_holds_more_images_than_at_the_start(count, accumulate, began, pieces):
    assert Processes(count=count).pieces(accumulate, began) == pieces
    assert 1 / (count * pieces) <= 1 / (began * accumulate)


def test_a_state_says_how_many_processes_the_run_began_with(runs):
    state = torch.load(runs / "two" / "state.pt", weights_only=True)
    assert state["standing"]["processes"] == 2


def test_a_state_of_before_this_was_kept_goes_on(runs, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(runs / "first", folder)
    state = torch.load(folder / "state.pt", weights_only=True)
    del state["standing"]["processes"]
    torch.save(state, folder / "state.pt")
    epochs = str(read_recipe(folder / "recipe.yaml").epochs + 1)
    assert cli(["train", "--resume", str(folder), "--epochs", epochs, "--device", "cpu"]) == 0
    assert torch.load(folder / "state.pt", weights_only=True)["standing"]["processes"] == 1


DIGITS = ["train", "digits", "--model", "0.25-8-s4-shallow", "--device", "cpu", "--epochs", "2"]
DIGITS += ["--set", "batch_size=512"]


def restartable(folder, *more):
    return cli([*DIGITS, "--restartable", "--output", str(folder), *more])


def test_the_same_command_begins_goes_on_and_has_nothing_left(tmp_path, monkeypatch, capsys):
    assert cli([*DIGITS, "--output", str(tmp_path / "straight")]) == 0
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        # Someone else's process was told to stop, so that all of them do; none of them is done.
        patch.setattr(Interrupt, "__call__", lambda self: True)
        assert restartable(folder) == 128 + signal.SIGTERM
    assert torch.load(folder / "state.pt", weights_only=True)["standing"]["step"] == 1
    assert restartable(folder) == 0
    for name in ("model.safetensors", "last/model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    capsys.readouterr()
    assert restartable(folder) == 0
    assert "nothing is left to train" in capsys.readouterr().err


def test_a_run_without_a_state_begins_anew_if_it_had_hardly_begun(runs, tmp_path, capsys):
    folder = tmp_path / "run"
    assert restartable(folder, "--epochs", "1") == 0
    (folder / "state.pt").unlink()
    assert restartable(folder, "--epochs", "1") == 0
    assert (folder / "state.pt").is_file()
    # A training of several epochs, of which someone removed the state, is kept.
    run = Run.load(folder)
    run.config["metrics"]["epoch"] = 2
    run.save_config()
    (folder / "state.pt").unlink()
    assert restartable(folder, "--epochs", "1") == 2
    assert "holds another training" in capsys.readouterr().err


def test_nobody_elses_folder_is_gone_on_with_or_replaced(runs, tmp_path, capsys):
    before = (runs / "first" / "state.pt").read_bytes()
    assert restartable(runs / "first") == 2
    assert "holds another training" in capsys.readouterr().err
    assert (runs / "first" / "state.pt").read_bytes() == before
    (tmp_path / "note.txt").write_text("mine")
    assert restartable(tmp_path) == 2
    assert "holds no run" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--overwrite"], ["--folds", "3"]])
def test_restartable_is_the_same_at_each_start(more, tmp_path, capsys):
    assert restartable(tmp_path / "run", *more) == 2
    assert "leave out --overwrite and --folds" in capsys.readouterr().err
    assert cli([*DIGITS, "--restartable"]) == 2
    assert "give --output" in capsys.readouterr().err
    assert cli(["train", "--resume", str(tmp_path), "--restartable"]) == 2
    assert "leave out --restartable" in capsys.readouterr().err


def test_a_fault_of_ours_is_no_lost_process(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.distributed.init_process_group", lambda backend: None)
    cpu = torch.device("cpu")
    with pytest.raises(RuntimeError, match="shapes do not fit"), processes(cpu):
        raise RuntimeError("shapes do not fit")
    with pytest.raises(ProcessLostError, match="another of 2 processes was lost"), processes(cpu):
        raise RuntimeError(
            "[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"
        )


def test_processes_that_went_on_from_different_states_are_refused(ways):
    folder, answers = ways
    assert answers["apart"].startswith(f"not all processes read the same {folder / 'nothing.pt'}")


def test_a_lost_process_is_said_once_on_each_machine(monkeypatch, capsys):
    def lose(arguments):
        raise ProcessLostError("another of 16 processes was lost")

    monkeypatch.setattr("mobilenets.cli.main.app", lose)
    for rank, local_rank, said in (("8", "0", 1), ("9", "1", 0)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        assert cli(["train"]) == 75
        assert capsys.readouterr().err.count("mobilenets: another of 16 processes was lost") == said


@pytest.mark.slow
def test_a_node_that_is_lost_does_not_end_the_run(tmp_path):
    """Two agents; the one that does not host the rendezvous is killed in mid-epoch, with its process."""
    folder, epochs = tmp_path / "run", 12
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    training = [
        "train",
        "digits",
        "--model",
        "0.25-8-s4-shallow",
        "--device",
        "cpu",
        "--restartable",
    ]
    training += ["--epochs", str(epochs), "--set", "batch_size=128", "--save-every", "0", "--json"]

    def agent(is_host):
        conf = (
            f"is_host={is_host},last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=2"
        )
        command = [*TORCHRUN, "--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "2"]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
        command += ["--rdzv-id", "test", "--rdzv-conf", conf]
        with (
            (tmp_path / f"out-{is_host}").open("w") as out,
            (tmp_path / f"errors-{is_host}").open("w") as errors,
        ):
            return subprocess.Popen(
                [*command, "-m", "mobilenets", *training, "--output", folder],
                env={**ENVIRONMENT, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
                stdout=out,
                stderr=errors,
            )

    def standing():
        with suppress(FileNotFoundError):
            return torch.load(folder / "state.pt", weights_only=True)["standing"]
        return {"epoch": 0, "position": 0}

    host, other = agent(1), agent(0)
    try:
        over = time.monotonic() + 200
        while not (standing()["epoch"] > 1 and standing()["position"] > 0):
            assert time.monotonic() < over
            assert host.poll() is other.poll() is None
            time.sleep(0.01)
        for children in Path(f"/proc/{other.pid}/task").glob("*/children"):
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGKILL)
        other.kill()
        host.wait(timeout=200)
    finally:
        for process in (host, other):
            process.kill()
            process.wait()
    errors = (tmp_path / "errors-1").read_text()
    assert host.returncode == 0, errors
    assert json.loads((tmp_path / "out-1").read_text())["finished"]
    assert errors.count("another of 2 processes was lost") == 1
    assert "Traceback" not in errors
    state = torch.load(folder / "state.pt", weights_only=True)["standing"]
    assert state["step"] == epochs * 11
    assert state["processes"] == 2
    assert [row["epoch"] for row in read_curves(folder)] == list(range(1, epochs + 1))
    lines = (folder / "processes.jsonl").read_text().splitlines()
    assert [json.loads(line)["processes"] for line in lines[:2]] == [2, 2]
    # Alone, it did the rest.
    assert max(json.loads(line)["epoch"] for line in lines) < epochs


def test_bad_input_in_several_processes_is_said_once(tmp_path):
    code, _, errors = torchrun("-m", "mobilenets", "train", tmp_path / "nothing", "--device", "cpu")
    assert code != 0
    assert errors.count("there is no such folder") == 1
    assert "site-packages/mobilenets" not in errors
