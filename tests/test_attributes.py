"""Attributes: data in three layouts, what is missing, figures by hand, training to prediction, mistakes in one sentence."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from mobilenets import Run
from mobilenets.cli.main import run as cli
from mobilenets.data.loaders import Batch
from mobilenets.tasks.attributes.data import open_attributes
from mobilenets.tasks.attributes.loss import attribute_divergence, attribute_loss
from mobilenets.tasks.attributes.metrics import AttributeMetrics, fit_threshold
from mobilenets.training.curves import read_curves

NAN = float("nan")
LABELS = ("red", "round", "large")


def draw(path, red, is_round, large):
    random = np.random.default_rng(int(path.stem))
    picture = Image.fromarray(random.integers(90, 140, (40, 40, 3), dtype=np.uint8))
    side = 28 if large else 14
    left, top = random.integers(1, 40 - side, 2).tolist()
    box = (left, top, left + side, top + side)
    pen = ImageDraw.Draw(picture)
    (pen.ellipse if is_round else pen.rectangle)(box, fill="red" if red else "blue")
    picture.save(path)


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """240 pictures of one thing each, 180 to train on and 60 to validate on; one value in ten of the first is not told."""
    folder = tmp_path_factory.mktemp("things")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    lines = ["image,split,red,round,large"]
    for number in range(240):
        values = random.integers(0, 2, 3).tolist()
        name = f"{number:03}.png"
        draw(folder / "images" / name, *values)
        part = "val" if number >= 180 else "train"
        told = ["" if part == "train" and random.random() < 0.1 else str(one) for one in values]
        lines.append(",".join([name, part, *told]))
    (folder / "attributes.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def things_run(things, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "things"
    command = ["train", things, "--task", "attributes", "--model", "0.25-32-s8", "--epochs", 12]
    command += ["--set", "augmentation.min_area=1", "--set", "augmentation.colour=0"]
    command += ["--set", "optimizer.lr=0.005", "--set", "ema_decay=0.9", "--set", "batch_size=16"]
    assert cli([*map(str, (*command, "--device", "cpu", "--output", folder))]) == 0
    return folder


def test_a_table_is_read_as_it_is_written(things):
    source = open_attributes(things)
    assert source.labels == LABELS
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 180, "val": 60}
    assert 30 < np.isnan(source.splits["train"].targets).sum() < 80
    assert not np.isnan(source.splits["val"].targets).any()
    assert open_attributes(things / "attributes.csv").fingerprint() == source.fingerprint()


def write_images(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)


def test_celebas_lists_are_read(tmp_path):
    names = [f"{number:06}.png" for number in range(1, 4)]
    write_images(tmp_path / "img_align_celeba", *names)
    rows = "\n".join(f"{name} -1  1 -1" for name in names)
    (tmp_path / "list_attr_celeba.txt").write_text(f"3\nSmiling Young Male\n{rows}\n")
    parts = zip(names, "012", strict=True)
    (tmp_path / "list_eval_partition.txt").write_text("".join(f"{n} {p}\n" for n, p in parts))
    source = open_attributes(tmp_path)
    assert source.labels == ("Smiling", "Young", "Male")
    assert [len(source.splits[name]) for name in ("train", "val", "test")] == [1, 1, 1]
    assert source.splits["test"].targets.tolist() == [[0, 1, 0]]
    assert source.splits["test"].images.read(0, 3).shape == (3, 8, 8)
    # As Kaggle packs it: tables, and a folder in a folder.
    kaggle = tmp_path / "kaggle"
    write_images(kaggle / "img_align_celeba" / "img_align_celeba", *names)
    lines = "".join(f"{name},-1,1,-1\n" for name in names)
    (kaggle / "list_attr_celeba.csv").write_text(f"image_id,Smiling,Young,Male\n{lines}")
    lines = "".join(f"{name},{part}\n" for name, part in zip(names, "012", strict=True))
    (kaggle / "list_eval_partition.csv").write_text(f"image_id,partition\n{lines}")
    other = open_attributes(kaggle)
    assert other.labels == source.labels
    assert other.fingerprint() == source.fingerprint()
    assert other.splits["val"].images.read(0, 3).shape == (3, 8, 8)


def test_folders_of_yes_and_no_are_read(tmp_path):
    write_images(tmp_path / "smiling" / "yes", "a.png", "b.png")
    write_images(tmp_path / "smiling" / "no", "c.png")
    write_images(tmp_path / "glasses" / "no", "a.png")
    source = open_attributes(tmp_path)
    assert source.labels == ("glasses", "smiling")
    np.testing.assert_array_equal(source.splits["all"].targets, [[0, 1], [NAN, 1], [NAN, 0]])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image,smiling\na.png,2\n", "line 2: smiling is '2': 0 or 1"),
        ("image,smiling\na.png,maybe\n", "line 2: smiling is 'maybe'"),
        ("image,smiling\na.png,1\na.png,0\n", "line 3: a.png stands in line 2 too"),
        ("image,smiling\na.png,1,1\n", "line 2: 3 values for 2 columns"),
        ("image,smiling,smiling\na.png,1,1\n", "two columns are called smiling"),
        ("image,smiling\na.png,-1\nb.png,0\n", "is -1 no, or not known"),
        ("image,split,smiling\na.png,later,1\n", "line 2: split is 'later'"),
        ("image,split,smiling\na.png,test,1\n", "no image is in the train part"),
        ("image\na.png\n", "it has no attributes"),
        ("image,smiling\n", "it names no images"),
        ("", "it names no images"),
    ],
)
def test_wrong_tables_are_one_sentence(tmp_path, text, sentence):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=sentence.replace("?", r"\?")):
        open_attributes(tmp_path)


def test_missing_images_are_named(things, tmp_path, capsys):
    text = (things / "attributes.csv").read_text().replace("005.png", "gone.png")
    (tmp_path / "attributes.csv").write_text(text)
    (tmp_path / "images").symlink_to(things / "images")
    command = ["train", tmp_path, "--task", "attributes", "--model", "0.25-32-s8"]
    command += ["--epochs", 1, "--device", "cpu", "--output", tmp_path / "run"]
    assert cli([*map(str, command)]) == 2
    assert "gone.png: there is no such image" in capsys.readouterr().err
    assert cli([*map(str, command), "--on-bad-image", "skip"]) == 0


def test_what_is_not_told_teaches_nothing():
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]], requires_grad=True)
    loss = attribute_loss(logits, torch.tensor([[1.0, NAN], [NAN, NAN]]))
    assert loss.item() == pytest.approx(np.log1p(np.exp(-2.0)))
    torch.autograd.backward(loss)
    assert (logits.grad != 0).tolist() == [[True, False], [False, False]]
    assert attribute_loss(torch.zeros(0, 2), torch.zeros(0, 2)).item() == 0
    assert attribute_loss(logits.detach(), torch.full((2, 2), NAN)).item() == 0


def test_imitation_is_cross_entropy_less_what_can_not_be_learnt():
    taught = torch.tensor([[3.0, -2.0]])
    assert attribute_divergence(taught, taught, 2.0).item() == pytest.approx(0, abs=1e-6)
    p, q = (1 / (1 + np.exp(-np.array(one) / 2)) for one in ([3.0, -2.0], [0.0, 1.0]))
    by_hand = 4 * np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    found = attribute_divergence(torch.tensor([[0.0, 1.0]]), taught, 2.0)
    assert found.item() == pytest.approx(by_hand, rel=1e-5)


def test_figures_are_those_of_scikit_learn_and_undefined_ones_are_left_out():
    random = np.random.default_rng(0)
    logits = random.normal(size=(50, 4)).astype(np.float32)
    targets = (random.random((50, 4)) < 0.3).astype(np.float32)
    # The third is never yes; the fourth is told of half of the images.
    targets[:, 2] = 0
    targets[::2, 3] = NAN
    metrics = AttributeMetrics(("a", "b", "none", "half"), (0.6, 0.5, 0.5, 0.4))
    for rows in (slice(0, 20), slice(20, 50)):
        batch = Batch(torch.zeros(1), torch.tensor(targets[rows]), whole=0)
        metrics.update(torch.tensor(logits[rows]), batch)
    figures, rows = metrics.compute(), metrics.details()["attributes"]
    expected = []
    scores = 1 / (1 + np.exp(-logits))
    for place, (label, threshold) in enumerate(zip(rows, (0.6, 0.5, 0.5, 0.4), strict=True)):
        told = ~np.isnan(targets[:, place])
        assert rows[label]["images"] == told.sum()
        if label == "none":
            assert rows[label]["ap"] is rows[label]["balanced_accuracy"] is None
            continue
        truth = targets[told, place]
        expected.append(average_precision_score(truth, scores[told, place]))
        assert rows[label]["ap"] == pytest.approx(expected[-1])
        assert rows[label]["balanced_accuracy"] == pytest.approx(
            balanced_accuracy_score(truth, scores[told, place] >= threshold)
        )
    assert figures["map"] == pytest.approx(np.mean(expected))


def test_thresholds_are_the_best_there_are():
    random = np.random.default_rng(1)
    scores = torch.tensor(random.random(40).round(1))
    yes = torch.tensor(random.random(40) < scores.numpy())

    def accuracy(threshold):
        return balanced_accuracy_score(yes.numpy(), scores.numpy() >= threshold)

    best = max(accuracy(threshold) for threshold in np.arange(0, 1.1, 0.05))
    assert accuracy(fit_threshold(scores, yes)) == pytest.approx(best)


def test_from_training_to_prediction(things, things_run, capsys):
    rows = read_curves(things_run)
    assert rows[-1]["val/map"] > 0.8
    run = Run.load(things_run)
    details = json.loads((things_run / "validation.json").read_text())
    assert run.config["attributes"]["thresholds"] == details["thresholds"]
    capsys.readouterr()
    assert cli(["evaluate", str(things_run), str(things), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["split"] == "val"
    assert found["map"] == pytest.approx(run.config["metrics"]["map"], abs=1e-6)
    image = things / "images" / "200.png"
    said = run.predict(image).to_dict()["attributes"]
    assert [row["label"] for row in said] == list(LABELS)
    assert all(row["yes"] == (row["score"] >= row["threshold"]) for row in said)
    assert cli(["predict", str(things_run), str(image), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["attributes"] == said
    drawn = run.predict(image).draw(Image.open(image))
    assert drawn.size == (40, 40)
    assert cli(["predict", str(things_run), str(image), "--csv"]) == 0
    assert "red" in capsys.readouterr().out


def test_error_rates_are_told_by_group(things, things_run, capsys):
    assert cli(["evaluate", str(things_run), str(things), "--by", "large", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    groups = found["groups"]
    assert groups["0"]["images"] + groups["1"]["images"] == found["images"] == 60
    rows = [group["details"]["attributes"] for group in groups.values()]
    # Of large things none is small.
    assert rows[1]["large"]["ap"] is None
    assert rows[1]["large"]["false_yes"] is None
    for label in ("red", "round"):
        wrong = sum(row[label]["false_no"] * row[label]["yes"] for row in rows)
        assert found["attributes"][label]["false_no"] * found["attributes"][label]["yes"] == (
            pytest.approx(wrong)
        )
    assert cli(["evaluate", str(things_run), str(things), "--by", "large"]) == 0
    assert "by large" in capsys.readouterr().out


def test_a_run_is_exported_with_its_answers_proven(things, things_run, tmp_path, capsys):
    bundle = tmp_path / "onnx"
    command = ["export", things_run, "--to", "onnx", "--output", bundle, "--data", things]
    assert cli([*map(str, command)]) == 0
    assert "of the answers" in capsys.readouterr().out
    assert (bundle / "labels.txt").read_text().split() == list(LABELS)


def test_a_student_learns_attributes_from_a_teacher_alone(things, things_run, tmp_path):
    folder = tmp_path / "student"
    command = ["train", things, "--task", "attributes", "--model", "0.25-24-s8", "--epochs", 8]
    command += ["--recipe", "attributes-distil", "--teacher", things_run, "--device", "cpu"]
    command += ["--set", "optimizer.lr=0.005", "--set", "ema_decay=0.9", "--output", folder]
    assert cli([*map(str, command)]) == 0
    rows = read_curves(folder)
    assert rows[-1]["train/teacher"] < 0.6 * rows[0]["train/teacher"]
    assert rows[-1]["val/map"] > 0.65


def test_the_doctor_tells_of_attributes(things, tmp_path, capsys):
    lines = (things / "attributes.csv").read_text().splitlines()
    lines = [lines[0] + ",hat", *(line + ",0" for line in lines[1:])]
    (tmp_path / "attributes.csv").write_text("\n".join(lines))
    (tmp_path / "images").symlink_to(things / "images")
    assert cli(["doctor", str(tmp_path), "--task", "attributes", "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    kinds = {(finding["kind"], finding["name"]) for finding in findings}
    assert ("one-sided-attribute", "hat") in kinds
    assert ("untold-attribute", "red") in kinds


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--set", "augmentation.mixup=0.2"], "augmentation.mixup is not for attributes"),
        (["--set", "label_smoothing=0.1"], "label_smoothing is for classes"),
        (["--model", "ssd96/0.25"], "a model for attributes is named as 0.5-128 is"),
        (["--recipe", "attributes-distil"], "distillation needs a teacher"),
        (["--folds", "3"], "folds is for classes"),
    ],
)
def test_what_attributes_can_not_do_is_one_sentence(things, tmp_path, capsys, more, sentence):
    command = ["train", things, "--task", "attributes", "--output", tmp_path / "run", *more]
    assert cli([*map(str, command)]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_the_page_to_try_it_answers_as_predict_does(things, things_run, trial, capsys, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(things_run, run, ignore=shutil.ignore_patterns("onnx*"))
    assert cli(["export", str(run), "--limit", "16"]) == 0
    images = sorted((things / "images").iterdir())[:4]
    capsys.readouterr()
    assert cli(["predict", str(run), *map(str, images), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    page = trial(run)
    for image, wanted in zip(images, told, strict=True):
        found = page.answer(image)["attributes"]
        for one, other in zip(found, wanted["attributes"], strict=True):
            assert (one["label"], one["yes"]) == (other["label"], other["yes"])
            assert one["score"] == pytest.approx(other["score"], abs=0.01)
    rows = page.page.locator("#rows tr").all_inner_texts()
    assert len(rows) == len(LABELS)
