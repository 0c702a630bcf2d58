"""From trained weights to new classes: norms given back, a classifier fitted, blocks thawed, a run kept.

Shapes: N images, C channels, H height, W width.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mobilenets import Run, create_model, tasks
from mobilenets.architecture import MobileNetSpec
from mobilenets.architecture.network import MobileNet
from mobilenets.cli.main import run as cli
from mobilenets.data.loaders import Batch
from mobilenets.tasks.classification.probe import fit_classifier
from mobilenets.training.fine_tuning import Thaw, unfold
from mobilenets.training.optimizers import parameter_groups
from mobilenets.training.recipe import FineTuningChoice, OptimizerChoice, Recipe
from mobilenets.weights.imported import Convolution, ForeignWeights, fit
from mobilenets.weights.load import load_weights

CPU = torch.device("cpu")
MODEL = "0.25-16-s8"


class Batches:
    """A loader of the same few batches in every epoch."""

    def __init__(self, images_NCHW, targets_N, size=16):
        self._batches = [
            Batch(images, targets, len(targets))
            for images, targets in zip(images_NCHW.split(size), targets_N.split(size), strict=True)
        ]
        self.images = len(targets_N)

    def __len__(self):
        return len(self._batches)

    def batches(self, epoch=0, start=0, shard=None):
        yield from self._batches[start:]

    def still(self):
        return self


def trained_looking(classes=3, model=MODEL):
    """A network whose statistics, scales and shifts are not those of a new one."""
    torch.manual_seed(0)
    network = MobileNet(MobileNetSpec.parse(model), classes)
    for key, value in network.state_dict().items():
        if ".norm." in key and value.is_floating_point():
            value.uniform_(0.5, 1.5)
    return network


def folded(network):
    """The same function with each norm folded into its convolution, as TensorFlow Lite has it."""
    convolutions = []
    state = network.state_dict()
    for name in [key.removesuffix(".conv.weight") for key in state if key.endswith(".conv.weight")]:
        scale = state[f"{name}.norm.weight"] / (state[f"{name}.norm.running_var"] + 1e-5).sqrt()
        bias = state[f"{name}.norm.bias"] - scale * state[f"{name}.norm.running_mean"]
        weight = state[f"{name}.conv.weight"] * scale[:, None, None, None]
        convolutions.append(Convolution(name=name, weight=weight, bias=bias))
    spec = network.spec
    imported = fit(
        ForeignWeights(
            origin="folded",
            convolutions=convolutions,
            classifier=(state["classifier.weight"], state["classifier.bias"]),
            activation=spec.activation,
            padding=spec.padding,
            batch_norm_epsilon=spec.batch_norm_epsilon,
            resolution=spec.height,
            preprocessing=tasks.find("classification")
            .from_data("digits", MobileNetSpec(0.25, 16))
            .preprocessing,
            total_stride=spec.total_stride,
        )
    )
    result = MobileNet(imported.spec, imported.classes)
    result.load_state_dict(imported.state)
    return result


# Folded batch norm


def test_a_folded_norm_gets_its_statistics_back_and_the_function_stays():
    images_NCHW = torch.randn(64, 3, 16, 16)
    original = trained_looking().eval()
    network = folded(original).eval()
    before = network(images_NCHW)
    torch.testing.assert_close(before, original(images_NCHW), rtol=1e-4, atol=1e-4)
    # Trained as it is, batch norm would normalise away what the fold put into the bias.
    spoilt = (folded(original).train()(images_NCHW) - before).abs().max()
    assert spoilt > 0.2
    loader = Batches(images_NCHW, torch.zeros(64, dtype=torch.int64))
    assert unfold(network, loader) == 27
    network.eval()
    torch.testing.assert_close(network(images_NCHW), before, rtol=1e-3, atol=1e-3)
    # In training mode too, on the images that the statistics are of.
    network.train()
    assert (network(images_NCHW) - before).abs().max() < 0.2 * spoilt
    assert unfold(network, loader) == 0


def test_norms_with_statistics_of_their_own_are_left_alone():
    network = trained_looking()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    loader = Batches(torch.randn(8, 3, 16, 16), torch.zeros(8, dtype=torch.int64))
    assert unfold(network, loader) == 0
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


# The classifier


def blobs(network, classes, images=60):
    """Images whose features tell their classes: noise of another strength each."""
    torch.manual_seed(1)
    targets_N = torch.arange(images) % classes
    images_NCHW = torch.randn(images, 3, 16, 16) * (1.0 + 2 * targets_N)[:, None, None, None]
    return Batches(images_NCHW, targets_N)


@pytest.mark.parametrize(("classes", "mirror"), [(2, False), (3, True)])
def test_a_fitted_classifier_tells_the_classes_and_the_body_stays(classes, mirror):
    network = trained_looking(classes)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    loader = blobs(network, classes)
    result = fit_classifier(network, loader, CPU, mirror=mirror)
    assert set(result) == {"strength", "rows", "loss"}
    assert result["rows"] == (120 if mirror else 60)
    network.eval()
    right = sum(
        int((network(batch.images_NCHW).argmax(1) == batch.targets_N).sum())
        for batch in loader.batches()
    )
    assert right >= 54
    after = network.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before if key.startswith("body."))
    assert not torch.equal(after["classifier.weight"], before["classifier.weight"])


def test_a_class_without_images_is_never_guessed():
    network = trained_looking(4)
    loader = blobs(network, 3)
    fit_classifier(network, loader, CPU, mirror=False)
    network.eval()
    for batch in loader.batches():
        assert (network(batch.images_NCHW).argmax(1) != 3).all()


# Thawing


@pytest.mark.parametrize(
    ("thaw", "share", "blocks"),
    [
        (0.0, 0.0, 14),
        (None, 1.0, 0),
        # 14 blocks join over the first half.
        (0.5, 0.0, 0),
        (0.5, 0.25, 7),
        (0.5, 0.49, 13),
        (0.5, 0.5, 14),
        (1.0, 1.0, 14),
    ],
)
def test_blocks_join_from_the_last(thaw, share, blocks):
    network = trained_looking()
    thawing = Thaw(network, FineTuningChoice(thaw=thaw), alone=True)
    assert thawing.count(share) == blocks
    network.train()
    thawing.before_step(share)
    network(torch.randn(4, 3, 16, 16)).sum().backward()
    thawing.after_backward(share)
    learning = [
        name
        for name, block in network.body.named_children()
        if all(parameter.grad is not None for parameter in block.parameters())
    ]
    assert learning == list(dict(network.body.named_children()))[14 - blocks :]
    assert network.classifier.weight.grad is not None


# Case 8.
@pytest.mark.parametrize(("norm", "moves"), [("kept", False), ("batch", True)])
def test_statistics_of_batch_norm_are_kept_or_move(norm, moves):
    network = trained_looking()
    before = network.body["block13"].pointwise.norm.running_mean.clone()
    first = network.body["conv0"].norm.running_mean.clone()
    thawing = Thaw(network, FineTuningChoice(thaw=0.5, norm=norm), alone=True)
    network.train()
    thawing.before_step(0.25)
    network(torch.randn(4, 3, 16, 16))
    assert network.body["block13"].pointwise.norm.running_mean.equal(before) is not moves
    # A block that does not train keeps them in any case.
    assert network.body["conv0"].norm.running_mean.equal(first)


def test_of_several_processes_gradients_are_dropped_afterwards():
    network = trained_looking()
    thawing = Thaw(network, FineTuningChoice(thaw=0.5), alone=False)
    network.train()
    thawing.before_step(0.0)
    network(torch.randn(4, 3, 16, 16)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    thawing.after_backward(0.0)
    assert {name for name, p in network.named_parameters() if p.grad is not None} == {
        "classifier.weight",
        "classifier.bias",
    }


def test_earlier_blocks_learn_more_slowly():
    network = trained_looking()
    choice = OptimizerChoice(lr=0.1, head_lr=2.0)
    rates = {}
    for group in parameter_groups(network, choice, 0.5):
        for parameter in group["params"]:
            rates[id(parameter)] = group["peak_lr"]
    of = {name: rates[id(parameter)] for name, parameter in network.named_parameters()}
    assert of["classifier.weight"] == pytest.approx(0.2)
    assert of["body.block13.pointwise.conv.weight"] == pytest.approx(0.1)
    assert of["body.block12.depthwise.norm.bias"] == pytest.approx(0.05)
    assert of["body.conv0.conv.weight"] == pytest.approx(0.1 * 0.5**13)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fine_tuning.thaw": 1.5}, "fine_tuning.thaw"),
        ({"fine_tuning.rate_decay": 0}, "fine_tuning.rate_decay"),
        ({"fine_tuning.norm": "frozen"}, "fine_tuning.norm"),
        ({"epochs": 0}, "epochs is 0: at least 1, unless a classifier is fitted beforehand"),
        ({"epochs": 0, "fine_tuning.probe": False}, "epochs is 0"),
    ],
)
def test_choices_that_can_not_be_get_one_line(changes, says):
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        Recipe(name="r", epochs=1).override(changes)
    assert says in str(caught.value)


# Through the command


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Photos of two sets of classes, told apart by their colour."""
    place = tmp_path_factory.mktemp("colours")
    random = np.random.default_rng(0)
    for name, labels in {"old": ("red", "green", "blue"), "new": ("cyan", "pink")}.items():
        for number, label in enumerate(labels):
            for image in range(15):
                paint(place / name / label / f"{image}.png", number, random)
    return place


def paint(path, number, random):
    """A photo whose colour tells its class, by number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = random.integers(0, 50, (16, 16, 3))
    pixels[..., number] += 150
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def old(colours):
    run = colours / "old-run"
    arguments = ["train", str(colours / "old"), "--model", MODEL, "--epochs", "4"]
    assert cli([*arguments, "--device", "cpu", "--output", str(run)]) == 0
    return run


def train(*arguments):
    return cli(["train", *map(str, arguments), "--device", "cpu"])


def test_a_probe_trains_the_classifier_alone(colours, old, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ("--weights", old, "--recipe", "probe", "--output", run, "--json")
    assert train(colours / "new", *arguments) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["finished"]
    assert said["epoch"] == 0
    assert said["top1"] == 1.0
    before, after = (load_file(folder / "model.safetensors") for folder in (old, run))
    assert all(after[key].equal(before[key]) for key in before if key.startswith("body."))
    opened = Run.load(run)
    assert opened.labels == ("cyan", "pink")
    assert opened.config["start"] == str(old)
    assert opened.config["probe"]["rows"] > 0
    assert f"It started from `{old}`." in (run / "README.md").read_text()


def test_fine_tuning_is_never_worse_than_its_probe(colours, old, tmp_path):
    run = tmp_path / "run"
    # A rate that ruins all: what is kept is the probe.
    ruin = ("--set", "optimizer.lr=30", "--set", "clip_norm=null", "--set", "ema_decay=null")
    train(colours / "new", "--weights", old, "--epochs", 1, "--output", run, *ruin)
    best = Run.load(run).config["metrics"]
    assert best["top1"] == 1.0


def test_a_broken_off_fine_tuning_goes_on_to_the_bit(colours, old, tmp_path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    start = (colours / "new", "--weights", old, "--seed", 3, "--set", "fine_tuning.thaw=0.9")
    assert train(*start, "--epochs", 4, "--output", straight) == 0
    from mobilenets.training import loop

    original = loop.train

    def stopped_early(*arguments, **named):
        # After the first step, when only some of the blocks have joined.
        return original(*arguments, **{**named, "stop": lambda: True})

    loop.train = stopped_early
    try:
        train(*start, "--epochs", 4, "--output", resumed)
    finally:
        loop.train = original
    assert train("--resume", resumed) == 0
    first, second = (load_file(run / "last" / "model.safetensors") for run in (straight, resumed))
    assert all(first[key].equal(second[key]) for key in first)


def test_weights_of_one_resolution_start_another(colours, old, tmp_path):
    run = tmp_path / "run"
    arguments = ("--weights", old, "--model", "0.25-24-s8", "--recipe", "probe", "--output", run)
    assert train(colours / "new", *arguments) == 0
    opened = Run.load(run)
    assert str(opened.spec) == "0.25-24-s8"
    assert (opened.preprocessing.height, opened.preprocessing.width) == (24, 24)


def test_folds_say_what_to_expect_and_go_on(colours, old, tmp_path, capsys):
    whole = tmp_path / "folds"
    command = (colours / "new", "--weights", old, "--recipe", "probe", "--folds", 3)
    assert train(*command, "--output", whole, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["images"] == [10, 10, 10]
    assert said["mean"] == sum(said["values"]) / 3
    assert said["interval"][0] <= said["mean"] <= said["interval"][1]
    assert json.loads((whole / "folds.json").read_text())["values"] == said["values"]
    held = [Run.load(whole / f"fold-{fold}").config["data"] for fold in (1, 2, 3)]
    assert len({record["held_out_fingerprint"] for record in held}) == 3
    assert [record["fold"] for record in held] == [1, 2, 3]
    # What a fold held out is found again.
    assert cli(["evaluate", str(whole / "fold-2"), str(colours / "new"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["split"], found["images"]) == ("val", 10)
    assert found["top1"] == said["values"][1]
    low, high = found["top1_interval"]
    assert low <= found["top1"] <= high
    # Begun folds go on, and are not trained again.
    (whole / "folds.json").unlink()
    before = (whole / "fold-1" / "model.safetensors").stat().st_mtime_ns
    assert train(*command, "--output", whole) == 0
    assert (whole / "folds.json").is_file()
    assert (whole / "fold-1" / "model.safetensors").stat().st_mtime_ns == before
    assert "on average" in capsys.readouterr().out
    # Folds go on with the data that is given, which may have moved but must be the same.
    shutil.copytree(colours / "new", tmp_path / "moved")
    assert train(tmp_path / "moved", *command[1:], "--output", whole) == 0
    capsys.readouterr()
    assert train(colours / "old", *command[1:], "--output", whole) == 2
    assert "is not the data that" in capsys.readouterr().err
    # Other folds do not mix with these: another seed, recipe, model or length is another training.
    for others in (
        (*command, "--seed", 9),
        (*command, "--model", "0.25-24-s8"),
        (*command[:3], "--epochs", 1, "--folds", 3),
        (*command[:3], "--folds", 3),
    ):
        assert train(*others, "--output", whole) == 2, others
        assert "already holds a run" in capsys.readouterr().err


def test_what_can_not_be_is_one_sentence(colours, old, tmp_path, capsys):
    new, run = colours / "new", tmp_path / "run"
    for arguments, says in (
        ((new, "--recipe", "probe"), "epochs is 0: without --weights"),
        ((new, "--activation", "leaky"), "give --weights too"),
        ((new, "--folds", 16, "--weights", old), "16 folds are too many"),
        ((new, "--weights", old, "--set", "whiten=true"), "choose one"),
        ((new, "--weights", "keras/9.0-1"), "names no published weights"),
        (("--resume", old, "--folds", 2), "leave out --folds"),
    ):
        given = arguments if "--resume" in arguments else (*arguments, "--output", run)
        assert train(*given) == 2, arguments
        error = capsys.readouterr().err
        assert says in error
        assert not run.exists() or not (run / "model.safetensors").exists()


def test_from_noisy_photos_to_a_small_clean_set(old, tmp_path, capsys):
    """Section 4.3 of the paper, by the commands of docs/weights.md."""
    random = np.random.default_rng(1)
    web, clean = tmp_path / "web", tmp_path / "clean"
    wrong = set()
    for number, (label, other) in enumerate((("cyan", "pink"), ("pink", "cyan"))):
        for image in range(30):
            shown = other if image < 6 else label
            paint(web / "train" / shown / f"{label}-{image}.png", number, random)
            if image < 6:
                wrong.add(f"{label}-{image}.png")
        for part, count in (("train", 4), ("test", 8)):
            for image in range(count):
                paint(clean / part / label / f"{image}.png", number, random)
    shutil.copyfile(clean / "test" / "cyan" / "3.png", web / "train" / "cyan" / "leak.png")
    shutil.copytree(clean / "test", web / "test")
    assert cli(["doctor", str(web), "--noisy", "--run", str(old), "--fix", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    moved = {move["from"].rpartition("/")[2] for move in report["fix"]["moved"]}
    assert "leak.png" in moved
    assert len(moved & wrong) >= 10
    assert len(moved - wrong - {"leak.png"}) <= 3
    middle, last = tmp_path / "middle", tmp_path / "last"
    assert train(web, "--weights", old, "--epochs", 2, "--output", middle) == 0
    assert train(clean, "--weights", middle, "--epochs", 2, "--output", last) == 0
    capsys.readouterr()
    assert cli(["evaluate", str(last), str(clean), "--split", "test", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] > 0.9


def test_a_licence_goes_along(colours, old, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(old, start)
    config = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps(config | {"licence": "Apache-2.0"}))
    run = tmp_path / "run"
    assert train(colours / "new", "--weights", start, "--recipe", "probe", "--output", run) == 0
    assert "\nlicense: apache-2.0\n" in (run / "README.md").read_text()
    given = tmp_path / "given"
    assert cli(["push", str(run), str(given), "--licence", "CC-BY-4.0"]) == 0
    assert "\nlicense: cc-by-4.0\n" in (given / "README.md").read_text()
    assert load_weights(given).licence == "CC-BY-4.0"
    assert load_weights(run).licence == "Apache-2.0"


def test_a_start_that_was_never_saved_can_not_be_gone_on_with(colours, old, tmp_path, capsys):
    run = tmp_path / "run"
    command = (colours / "new", "--weights", old, "--recipe", "probe", "--output", run)
    assert train(*command) == 0
    (run / "state.pt").unlink()
    assert train("--resume", run) == 2
    assert "stopped before its first save" in capsys.readouterr().err


def test_the_same_classes_keep_their_classifier(colours, old, tmp_path):
    run = tmp_path / "run"
    command = (colours / "old", "--weights", old, "--epochs", 1, "--output", run)
    assert train(*command, "--set", "optimizer.lr=1e-12", "--set", "ema_decay=null") == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (old, run))
    assert torch.allclose(after["classifier.weight"], before["classifier.weight"], atol=1e-6)
    assert "probe" not in Run.load(run).config


# Runs of weights from elsewhere


@pytest.fixture
def leaky(shared):
    return shared / "weights" / "mobilenetv1_0.25_leaky_imagenet.pth.tar"


def test_an_imported_run_predicts_evaluates_and_exports(leaky, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli(["weights", "import", str(leaky), "--output", str(run), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["model"], said["classes"], said["spec"]["activation"]) == (
        "0.25-224",
        1000,
        "leaky",
    )
    opened = Run.load(run)
    assert opened.config["origin"] == {"weights": str(leaky)}
    assert "Trained elsewhere" in (run / "README.md").read_text()
    photo = tmp_path / "photo.png"
    Image.new("RGB", (300, 200), (90, 120, 60)).save(photo)
    assert cli(["predict", str(run), str(photo), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert cli(["export", str(run), "--to", "onnx", "--images", str(photo), "--json"]) == 0
    assert cli(["export", str(run), "--to", "onnx", "--overwrite"]) == 2
    said = capsys.readouterr().err
    assert "was trained elsewhere and has no images of its own: give images to compare on" in said
    assert cli(["train", "--resume", str(run)]) == 2
    assert "was trained elsewhere and can't be gone on with" in capsys.readouterr().err
    # It is a run, which another may replace only when asked.
    assert cli(["weights", "import", str(leaky), "--output", str(run)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert cli(["weights", "import", str(leaky), "--output", str(run), "--overwrite"]) == 0


def test_a_model_by_the_weights_that_it_starts_from(leaky, shared):
    network = create_model("0.25-224", weights=leaky)
    assert network.spec.activation == "leaky"
    coral = shared / "weights" / "mobilenet_v1_0.5_160_quant.tflite"
    network = create_model("0.5-192", 37, weights=coral, new_classifier=True)
    assert (network.spec.padding, network.spec.height) == ("tensorflow", 192)
    assert network.classifier.out_features == 37
    imported = load_weights(coral)
    assert network.body["conv0"].conv.weight.equal(imported.state["body.conv0.conv.weight"])
    with pytest.raises(ValueError, match=r"it has total stride 32 for 16"):
        create_model("0.5-160-s16", weights=coral)
    # Case 4.
    with pytest.raises(ValueError, match=r"its width is 0.5 and the model's 0.25"):
        create_model("0.25-160", weights=coral)
    with pytest.raises(ValueError, match=r"it has 1000 classes and the model 37"):
        create_model("0.5-160", 37, weights=coral)
    with pytest.raises(
        ValueError, match=r"activation relu6 for relu, padding tensorflow for torch"
    ):
        create_model(MobileNetSpec(0.5, 160), weights=coral)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("import", "nothing.h5"), "nothing.h5: there is no such weights file"),
        (("import", "LEAKY", "--activation", "swish"), "the activation is relu, relu6 or leaky"),
        (("show", "keras/0.3-160"), "'keras/0.3-160' names no published weights: did you mean"),
        (("get", "keras"), "'keras' names no published weights"),
        (("import", "LEAKY", "LEAKY"), "several files make one model in TensorFlow Lite's format"),
    ],
)
def test_mistakes_are_one_sentence(arguments, says, leaky, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = [str(leaky) if argument == "LEAKY" else argument for argument in arguments]
    assert cli(["weights", *given]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_the_list_of_weights_for_people_and_for_programs(capsys):
    assert cli(["weights", "list", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert len(entries) == 57
    assert entries[0]["name"] == "keras/1.0-224"
    assert entries[0]["parameters"] == 4_231_976
    assert cli(["weights", "list"]) == 0
    assert "timm/1.0-224" in capsys.readouterr().out
    assert cli(["weights", "show", "coral/0.5-160"]) == 0
    assert (
        "3cc6d2ca460abd2e0f699a6d0d2550c6b61c6e3b0e27a3616e384ea74cb86f43"
        in capsys.readouterr().out
    )
