"""Learning from a teacher: the losses by hand, who sees what, what is kept, and mistakes in one sentence."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mobilenets import Run
from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.architecture.spec import MobileNetSpec
from mobilenets.cli.main import run as cli
from mobilenets.data.box_loader import BoxLoader
from mobilenets.data.boxes import open_boxes, with_unknown
from mobilenets.data.images import read_image
from mobilenets.data.loaders import Batch
from mobilenets.data.transforms import fit, normalise
from mobilenets.tasks.classification.task import Classification
from mobilenets.tasks.detection.loss import detection_loss, imitation_loss
from mobilenets.training.curves import read_curves
from mobilenets.training.distillation import Distilled
from mobilenets.training.imitation import soft, squared
from mobilenets.training.recipe import DistillationChoice
from mobilenets.training.teachers import NetworkTeacher, find_teacher


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_divergence_is_averaged_over_images_and_scaled_by_the_temperature_squared():
    random = np.random.default_rng(0)
    ours, theirs = random.normal(size=(2, 2, 10))
    by_hand = 0.0
    for row, told in zip(ours, theirs, strict=True):
        p = np.exp(told / 3) / np.exp(told / 3).sum()
        q = np.exp(row / 3) / np.exp(row / 3).sum()
        by_hand += float((p * np.log(p / q)).sum())
    by_hand *= 9 / 2
    assert float(soft(torch.tensor(ours), torch.tensor(theirs), 3.0)) == pytest.approx(by_hand)
    # Over the classes it would be a tenth of that.
    assert float(soft(torch.tensor(theirs), torch.tensor(theirs), 3.0)) == pytest.approx(0)


def test_losses_of_no_images_are_zero():
    nothing = torch.zeros(0, 10, requires_grad=True)
    for loss in (soft(nothing, torch.zeros(0, 10), 4.0), squared(nothing, torch.zeros(0, 10))):
        assert loss.item() == 0
        torch.autograd.backward(loss)


@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
def test_a_detector_that_agrees_has_nothing_to_learn(scores):
    torch.manual_seed(0)
    taught = torch.randn(2, 5, 4 + 3)
    assert float(imitation_loss(taught, taught, scores, 1.0)) == pytest.approx(0, abs=1e-5)
    moved = taught.clone()
    moved[..., 0] += 1
    # Half of a square of 1 each, weighed by how sure the teacher is, for one sure box.
    assert float(imitation_loss(moved, taught, scores, 1.0)) == pytest.approx(0.5, abs=1e-4)
    unsure = taught.clone()
    unsure[..., 4:] -= torch.tensor([0.0, 1.0, 2.0])
    assert float(imitation_loss(unsure, taught, scores, 1.0)) > 0.1


class Witness(nn.Module):
    """Keeps what it is shown, and answers with the mean of each image in each of three outputs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images_NCHW):
        self.seen.append(images_NCHW.clone())
        return images_NCHW.mean((1, 2, 3))[:, None] * torch.tensor([1.0, 2.0, 3.0])


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture
def photos(tmp_path):
    """Pictures that fade, of three classes; a train and a val part."""
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for label in ("ash", "elm", "oak"):
            (tmp_path / "photos" / split / label).mkdir(parents=True)
            for number in range(count):
                small = Image.fromarray(random.integers(0, 255, (5, 6, 3), dtype=np.uint8))
                picture = small.resize((150, 130), Image.Resampling.BICUBIC)
                picture.save(tmp_path / "photos" / split / label / f"{number}.png")
    return tmp_path / "photos"


def taught_by(photos, teacher_preprocessing, *, side=32, labels=(), **choices):
    recipe = Classification.recipes()["modern"].override(
        {
            "batch_size": 5,
            "augmentation.min_area": 1.0,
            "augmentation.mirror": choices.pop("mirror", False),
            "augmentation.colour": 0,
            "augmentation.randaugment": None,
            "augmentation.cutmix": 0,
            "augmentation.mixup": 0,
            "augmentation.cutout": 0,
            **{f"distillation.{name}": value for name, value in choices.items()},
        }
    )
    half = Preprocessing(side, side, crop_fraction=1.0)
    task = Classification.from_data(str(photos), MobileNetSpec(0.25, side), recipe, half)
    witness = Witness()
    teacher = NetworkTeacher("witness", witness, teacher_preprocessing, tuple(labels))
    distilled = Distilled(task, teacher, recipe.distillation or DistillationChoice())
    return witness, distilled, recipe


# The teacher is larger, smaller, and as large; its channels stand the other way round.
@pytest.mark.parametrize(("side", "order"), [(48, "RGB"), (24, "RGB"), (32, "BGR")])
def test_a_teacher_sees_the_same_images_at_its_own_size_in_its_own_way(photos, side, order):
    theirs = Preprocessing(side, side, order, crop_fraction=1.0, **IMAGENET)
    witness, distilled, recipe = taught_by(photos, theirs)
    train = distilled.build_data(recipe, on_bad_image="stop").train
    paths = sorted((photos / "train").rglob("*.png"))
    shown = 0
    for number, batch in enumerate(train.batches()):
        assert batch.images_NCHW.shape[-2:] == (32, 32)
        for place, row in enumerate(batch.rows_N.tolist()):
            image_CHW = read_image(paths[row])
            expected = normalise(fit(image_CHW, theirs)[None], theirs)[0]
            seen = witness.seen[number][place]
            assert seen.shape == expected.shape
            # Scaled twice it is a little softer.
            assert (seen - expected).abs().mean() < (0.15 if side < 32 else 1e-5)
            ours = normalise(
                fit(image_CHW, distilled._task.preprocessing)[None], Preprocessing(32, 32)
            )
            assert (batch.images_NCHW[place] - ours[0]).abs().mean() < 0.1
            answer = seen.mean() * torch.tensor([1.0, 2.0, 3.0])
            assert torch.allclose(batch.taught_N[place], answer, atol=1e-5)
            shown += 1
    assert shown == 18


def test_answers_about_whole_images_are_asked_once_and_kept(photos, own_cache):
    theirs = Preprocessing(48, 48, crop_fraction=1.0, **IMAGENET)
    witness, distilled, recipe = taught_by(photos, theirs, sees="whole", mirror=True)
    train = distilled.build_data(recipe, on_bad_image="stop").train
    told = {}
    for epoch in range(3):
        for batch in train.batches(epoch):
            for row, answer in zip(batch.rows_N.tolist(), batch.taught_N, strict=True):
                assert told.setdefault(row, answer).equal(answer)
    assert len(told) == 18
    assert sum(map(len, witness.seen)) == 18
    for row, path in enumerate(sorted((photos / "train").rglob("*.png"))):
        mean = normalise(fit(read_image(path), theirs)[None], theirs).mean()
        assert torch.allclose(told[row], mean * torch.tensor([1.0, 2.0, 3.0]), atol=1e-5)
    # Another training looks at the first batch alone.
    witness, distilled, recipe = taught_by(photos, theirs, sees="whole", mirror=True)
    train = distilled.build_data(recipe, on_bad_image="stop").train
    next(iter(train.batches()))
    assert sum(map(len, witness.seen)) == 5
    (file,) = own_cache.rglob("*.safetensors")
    assert file.parent.name == "answers"


def test_kept_answers_that_no_longer_hold_are_asked_again(photos, own_cache, monkeypatch):
    theirs = Preprocessing(32, 32, crop_fraction=1.0)
    _, distilled, recipe = taught_by(photos, theirs, sees="whole")
    first = next(iter(distilled.build_data(recipe, on_bad_image="stop").train.batches()))
    monkeypatch.setattr(
        Witness, "forward", lambda self, x: x.mean((1, 2, 3))[:, None].expand(-1, 3)
    )
    _, distilled, recipe = taught_by(photos, theirs, sees="whole")
    again = next(iter(distilled.build_data(recipe, on_bad_image="stop").train.batches()))
    assert not torch.allclose(first.taught_N, again.taught_N)
    assert again.taught_N[:, 0].equal(again.taught_N[:, 2])


def test_classes_are_matched_by_name(photos):
    theirs = Preprocessing(32, 32, crop_fraction=1.0)
    _, straight, recipe = taught_by(photos, theirs, labels=("ash", "elm", "oak"))
    _, turned, _ = taught_by(photos, theirs, labels=("oak", "ash", "elm"))
    one, other = (
        next(iter(each.build_data(recipe, on_bad_image="stop").train.batches())).taught_N
        for each in (straight, turned)
    )
    assert other.equal(one[:, [1, 2, 0]])
    with pytest.raises(ValueError, match="witness does not know elm"):
        taught_by(photos, theirs, labels=("oak", "ash", "pine"))


def train_digits(output, *more):
    command = ["train", "digits", "--model", "0.25-8-s4", "--device", "cpu", "--seed", "1"]
    return cli([*map(str, (*command, "--output", output, *more))])


def test_a_student_learns_from_a_teacher_without_a_label(digits_run, tmp_path, capsys):
    more = ["--teacher", digits_run, "--set", "distillation.weight=1", "--epochs", 9]
    assert train_digits(tmp_path / "student", *more) == 0
    run = Run.load(tmp_path / "student")
    assert run.config["data"]["teacher"] == str(digits_run)
    assert run.recipe.distillation.weight == 1
    rows = read_curves(run.folder)
    assert rows[-1]["train/teacher"] < 0.7 * rows[0]["train/teacher"]
    assert rows[-1]["train/loss"] == pytest.approx(rows[-1]["train/teacher"])
    assert rows[-1]["val/top1"] > 0.5
    capsys.readouterr()
    assert cli(["evaluate", str(run.folder), "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] > 0.5


def test_images_without_labels_are_learnt_from_beside_those_with(photos, tmp_path):
    teacher = tmp_path / "teacher"
    begin = ["train", photos, "--model", "0.25-32-s8", "--epochs", 1, "--device", "cpu"]
    begin += ["--set", "augmentation.cutmix=0", "--set", "augmentation.mixup=0"]
    assert cli([*map(str, (*begin, "--output", teacher))]) == 0
    loose = tmp_path / "loose"
    loose.mkdir()
    for number, path in enumerate((photos / "val").rglob("*.png")):
        (loose / f"{number}.png").write_bytes(path.read_bytes())
    folder = tmp_path / "student"
    begin += ["--teacher", teacher, "--unlabelled", loose, "--set", "distillation.weight=0.5"]
    assert cli([*map(str, (*begin, "--output", folder))]) == 0
    run = Run.load(folder)
    assert run.config["data"]["unlabelled"] == str(loose)
    assert run.config["data"]["train_images"] == 18 + 6
    assert cli(["train", "--resume", str(folder), "--epochs", "2", "--device", "cpu"]) == 0
    (loose / "0.png").unlink()
    assert cli(["train", "--resume", str(folder), "--epochs", "3", "--device", "cpu"]) == 2


def test_unknown_classes_weigh_nothing_in_the_loss_of_labels():
    task = Classification(("ash", "elm", "oak"), Preprocessing(8, 8))
    recipe = Classification.recipes()["modern"]
    logits = torch.randn(4, 3)
    images = torch.zeros(4, 3, 8, 8)
    known, some = torch.tensor([0, 1]), torch.tensor([0, 1, -1, -1])
    expected = task.loss(lambda _: logits[:2], Batch(images[:2], known, whole=2), recipe)
    found = task.loss(lambda _: logits, Batch(images, some, whole=4), recipe)
    assert found["loss"].item() == pytest.approx(expected["loss"].item())
    assert found["top1"].item() == pytest.approx(expected["top1"].item())
    nothing = task.loss(lambda _: logits, Batch(images, torch.full((4,), -1), whole=4), recipe)
    assert nothing["loss"].item() == 0


def test_training_with_a_teacher_goes_on_as_if_nothing_had_happened(digits_run, tmp_path):
    for sees in ("same", "whole"):
        more = ["--teacher", digits_run, "--set", f"distillation.sees={sees}"]
        assert train_digits(tmp_path / f"{sees}-whole", *more, "--epochs", 2) == 0
        assert train_digits(tmp_path / sees, *more, "--epochs", 1) == 0
        again = ["train", "--resume", str(tmp_path / sees), "--epochs", "2", "--device", "cpu"]
        assert cli(again) == 0
        assert Run.load(tmp_path / sees).config["data"]["teacher"] == str(digits_run)
        assert "train/teacher" in read_curves(tmp_path / sees)[-1]


def test_an_exported_teacher_answers_as_its_run_does(digits_run, exported):
    bundle = exported / "onnx"
    task = Run.load(digits_run).task
    inputs = torch.randn(3, 3, 16, 16)
    by_run = find_teacher(str(digits_run), task, DistillationChoice()).answer(inputs)
    for reference in (bundle, bundle / "model.onnx"):
        teacher = find_teacher(str(reference), task, DistillationChoice())
        assert teacher.preprocessing == task.preprocessing
        assert teacher.labels == task.labels
        assert torch.allclose(teacher.answer(inputs), by_run, atol=1e-4)


def test_a_file_of_another_project_is_told_how_its_input_is_made(digits_run, exported, tmp_path):
    alone = shutil.copy(exported / "onnx" / "model.onnx", tmp_path)
    task = Run.load(digits_run).task
    told = find_teacher(str(alone), task, DistillationChoice(mean=(0.1, 0.2, 0.3), std=(0.2,) * 3))
    assert told.preprocessing == Preprocessing(
        16, 16, crop_fraction=1.0, mean=(0.1, 0.2, 0.3), std=(0.2,) * 3
    )
    assert told.labels == ()


def test_features_are_learnt_through_a_projector_that_is_not_kept(digits_run, tmp_path):
    """A student half as wide as its teacher is taught 64 features by 128; a file of another shape would do as well."""
    torch.manual_seed(0)
    task = Run.load(digits_run).task
    teacher = find_teacher(str(digits_run), task, DistillationChoice(loss="features"))
    choice = DistillationChoice(weight=1, loss="features")
    student = task.build_model(MobileNetSpec.parse("0.125-16-s8"))
    distilled = Distilled(task, teacher, choice)
    distilled.extend(student)
    images, told = torch.randn(2, 3, 16, 16), torch.randn(2, teacher.shape()[0])
    batch = Batch(images, torch.tensor([1, 2]), 2, taught_N=told)
    losses = distilled.loss(student.eval(), batch, Run.load(digits_run).recipe)
    weight, bias = student.projector.weight, student.projector.bias
    by_hand = ((student.pooled_features(images) @ weight.T + bias - told) ** 2).mean()
    assert losses["loss"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    more = [
        "--teacher",
        digits_run,
        "--set",
        "distillation.loss=features",
        "--set",
        "distillation.weight=0.5",
        "--epochs",
        6,
    ]
    assert train_digits(tmp_path / "run", *more) == 0
    run = Run.load(tmp_path / "run")
    assert not hasattr(run.model, "projector")
    rows = read_curves(run.folder)
    assert rows[-1]["train/teacher"] < 0.8 * rows[0]["train/teacher"]


@pytest.mark.parametrize("weight", [0.5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_detector_learns_from_a_detector(shapes, shapes_run, tmp_path, weight):
    """From images with boxes, and from others of which the teacher alone knows what is in them."""
    folder, loose = tmp_path / "student", tmp_path / "loose"
    loose.mkdir()
    for path in list((shapes / "train").iterdir())[:4]:
        (loose / path.name).write_bytes(path.read_bytes())
    command = ["train", shapes, "--task", "detection", "--model", "ssd96/0.25", "--epochs", 4]
    command += ["--teacher", shapes_run, "--device", "cpu", "--output", folder]
    command += ["--unlabelled", loose]
    for change in ("batch_size=6", f"distillation.weight={weight}", "optimizer.lr=0.005"):
        command += ["--set", change]
    assert cli([*map(str, command)]) == 0
    losses = [row["train/teacher"] for row in read_curves(folder)]
    assert losses[-1] < 0.8 * losses[0]
    assert Run.load(folder).config["data"]["train_images"] == 16


def test_what_nobody_knows_of_an_image_costs_a_detector_nothing(shapes):
    split = open_boxes(shapes).splits["train"]
    whole = with_unknown(split, [split.images.paths[0]])
    assert (len(whole), whole.ids[-1]) == (13, max(split.ids) + 1)
    loader = BoxLoader(whole.take([12]), Preprocessing(96, 96), 1)
    told = next(iter(loader.batches())).targets_N
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.3, 0.3, 1.2, 1.2]])
    outputs = torch.randn(1, 2, 4 + 3, requires_grad=True)
    losses = detection_loss(outputs, told, boxes, "softmax", focal=False)
    assert losses["loss"].item() == 0


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--set", "distillation.weight=0.5"], "distillation needs a teacher: give --teacher"),
        (["--teacher", "nothing/here"], "nothing/here"),
        (["--unlabelled", "nothing/here"], "--unlabelled needs a teacher"),
        (["--teacher", "DIGITS", "--unlabelled", "nothing/here"], "nothing/here"),
        (["--teacher", "DIGITS", "--set", "distillation.weight=0"], "distillation.weight is 0"),
        (["--teacher", "DIGITS", "--set", "distillation.mean=[0.5]"], "has its own"),
        (["--teacher", "DIGITS", "--set", "outputs=12"], "gives 10 values an image"),
        (["--teacher", "SHAPES"], "has learnt detection, and can't teach classification"),
        (["--teacher", "timm/no_such_model"], "timm/no_such_model"),
        (["--teacher", "torchvision/no_such_model"], "torchvision can't make it"),
        (["--teacher", "ALONE"], "does not say how its input is normalised"),
    ],
)
def test_what_can_not_teach_is_one_sentence(
    digits_run, shapes_run, exported, tmp_path, capsys, more, sentence
):
    alone = shutil.copy(exported / "onnx" / "model.onnx", tmp_path)
    capsys.readouterr()
    names = {"DIGITS": digits_run, "SHAPES": shapes_run, "ALONE": alone}
    assert train_digits(tmp_path / "run", *(names.get(word, word) for word in more)) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()
