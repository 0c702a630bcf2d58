"""Embeddings: losses and figures by hand, data, batches, training to search, mistakes in one sentence."""

import colorsys
import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score, roc_curve

from mobilenets import Run
from mobilenets.cli.main import run as cli
from mobilenets.data.loaders import Batch, GroupedOrder
from mobilenets.deploy.fold import fold_batch_norm
from mobilenets.runtimes.onnx import OnnxModel
from mobilenets.tasks.embedding.data import hold_out_identities, open_identities
from mobilenets.tasks.embedding.loss import TripletLoss, arcface, embedding_distance
from mobilenets.tasks.embedding.metrics import EmbeddingMetrics
from mobilenets.tasks.embedding.pairs import read_pairs
from mobilenets.tasks.embedding.search import nearest
from mobilenets.tasks.embedding.task import Embedding
from mobilenets.tasks.embedding.verification import (
    accuracy_by_folds,
    rank_one,
    similarities,
    verify,
)
from mobilenets.training.recipe import EmbeddingChoice

NAMES = [f"thing{number}" for number in range(12)]
SMALL = ["--model", "0.25-32-s8", "--device", "cpu"]
SMALL += ["--set", "augmentation.colour=0", "--set", "optimizer.lr=0.01", "--set", "ema_decay=0.9"]
SMALL += ["--set", "batch_size=16", "--set", "embedding.size=16"]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def draw(random, colour):
    """A patch of a thing's own colour, somewhere, in noise."""
    picture = random.integers(90, 150, (40, 40, 3))
    top, left = random.integers(0, 9, 2)
    picture[top : top + 32, left : left + 32] = colour + random.normal(0, 12, (32, 32, 1))
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """Twelve things, eight pictures of each."""
    folder = tmp_path_factory.mktemp("embedding") / "things"
    random = np.random.default_rng(0)
    for place, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        colour = 255 * np.array(colorsys.hsv_to_rgb(place / len(NAMES), 0.8, 0.8))
        for number in range(1, 9):
            draw(random, colour).save(folder / name / f"{number}.png")
    return folder


def train(data, folder, *more):
    command = ["train", data, "--task", "embedding", *SMALL, "--epochs", 20, *more]
    return cli([*map(str, (*command, "--output", folder))])


@pytest.fixture(scope="module")
def things_run(things, tmp_path_factory):
    """Trained on eight of the things, validated on four others."""
    folder = tmp_path_factory.mktemp("runs") / "things"
    # Long enough to be well above the bars, whatever the processor's rounding makes of it.
    more = ["--set", "held_out=0.34", "--epochs", 40]
    assert train(things, folder, *more) == 0
    return folder


def test_triplets_are_those_of_the_paper_by_hand():
    """Two identities, of which one has two images, and a third: every triplet that is semi-hard, and no other."""
    angles = torch.tensor([0.0, 0.7, 1.0, 2.5])
    embeddings = torch.stack([angles.cos(), angles.sin()], 1)
    targets = torch.tensor([0, 0, 1, 2])
    margin, costs = 0.8, []
    squared = (embeddings[:, None] - embeddings).square().sum(2)
    for anchor, same in ((0, 1), (1, 0)):
        for other in (2, 3):
            gap = float(squared[anchor, other] - squared[anchor, same])
            if 0 < gap < margin:
                costs.append(margin - gap)
    assert len(costs) == 1
    assert float(TripletLoss(margin)(3 * embeddings, targets)) == pytest.approx(
        np.mean(costs), abs=1e-5
    )


def test_arcface_is_the_papers_by_hand():
    """Two images, three identities: the angle to the right one is made larger, and cross-entropy taken of the scaled cosines."""
    torch.manual_seed(0)
    choice = EmbeddingChoice(size=4, loss="arcface", margin=20.0, scale=8.0)
    loss = arcface(3, choice)
    outputs, targets = torch.randn(2, 4), torch.tensor([2, 0])
    directions = loss.W.detach() / loss.W.detach().norm(dim=0)
    costs = []
    for row, target in zip(
        outputs / outputs.norm(dim=1, keepdim=True), targets.tolist(), strict=True
    ):
        cosines = (row @ directions).tolist()
        cosines[target] = math.cos(math.acos(cosines[target]) + math.radians(20))
        weights = [math.exp(8 * cosine) for cosine in cosines]
        costs.append(-math.log(weights[target] / sum(weights)))
    assert loss(outputs, targets).item() == pytest.approx(np.mean(costs), abs=1e-4)


def test_the_distance_from_a_teacher_by_hand():
    outputs = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    taught = torch.tensor([[3.0, 4.0], [0.0, 5.0]])
    # (1 - 0.6)^2 + 0.8^2 of the first; the second points the same way.
    assert float(embedding_distance(outputs, taught)) == pytest.approx(0.8 / 2)


def test_verification_is_that_of_scikit_learn():
    random = np.random.default_rng(1)
    same, others = random.normal(0.6, 0.2, 300), random.normal(0.2, 0.2, 20_000)
    found = verify(same, others)
    truth = np.r_[np.ones(300), np.zeros(20_000)]
    assert found.auc == pytest.approx(roc_auc_score(truth, np.r_[same, others]))
    false, true, _ = roc_curve(truth, np.r_[same, others], drop_intermediate=False)
    assert found.tar_at_far[0.01] == pytest.approx(true[false <= 0.01].max())
    miss = np.argmin(np.abs(1 - true - false))
    assert found.equal_error_rate == pytest.approx((1 - true + false)[miss] / 2, abs=2e-3)


def test_a_rate_that_the_pairs_can_not_resolve_is_no_number():
    """CASES 27: of 20,000 pairs of others, ten are let in at 0.0005."""
    random = np.random.default_rng(1)
    found = verify(random.normal(0.6, 0.2, 300), random.normal(0.2, 0.2, 20_000))
    assert found.tar_at_far[0.001] is not None
    assert found.tar_at_far[0.0001] is None
    told = dict(found.rows())
    assert told["TAR at FAR 0.0001"] == "not measurable: 20,000 pairs of others"


def test_the_threshold_of_a_fold_is_fitted_to_the_others():
    """CASES 27: by its own threshold the second fold would be all right."""
    similarity = np.array([0.9, 0.8, 0.2, 0.1, 0.45, 0.44, 0.43, 0.42])
    same = np.array([True, True, False, False] * 2)
    folds = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    accuracy, spread = accuracy_by_folds(similarity, same, folds)
    # The first is judged at 0.435, the second at 0.5.
    assert (accuracy, spread) == (0.75, 0.25)


def test_pairs_and_ranks_are_those_of_a_plain_loop():
    random = np.random.default_rng(2)
    embeddings = random.normal(size=(30, 5)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    targets = np.array([0] * 3 + [1] * 10 + [2] * 16 + [3])
    alike = embeddings @ embeddings.T
    pairs = [(a, b) for a in range(30) for b in range(a + 1, 30)]
    same, others = similarities(embeddings, targets)
    assert sorted(same) == pytest.approx(
        sorted(alike[a, b] for a, b in pairs if targets[a] == targets[b])
    )
    assert sorted(others) == pytest.approx(
        sorted(alike[a, b] for a, b in pairs if targets[a] != targets[b])
    )
    np.fill_diagonal(alike, -np.inf)
    # The last one is alone of its kind.
    right = [targets[alike[a].argmax()] == targets[a] for a in range(29)]
    assert rank_one(embeddings, targets)[0] == pytest.approx(np.mean(right))


def test_embeddings_that_have_collapsed_are_told_of(capsys):
    """CASES 26."""
    metrics = EmbeddingMetrics()
    outputs = torch.ones(8, 4) + 1e-4 * torch.randn(
        8, 4, generator=torch.Generator().manual_seed(0)
    )
    targets = torch.arange(8) // 2
    metrics.update(outputs, Batch(torch.zeros(8, 3, 4, 4), targets, 8))
    figures = metrics.compute()
    assert "all images have the same embedding" in capsys.readouterr().err
    # A triplet costs its margin then.
    assert figures["loss"] == pytest.approx(0.2, abs=1e-3)


def test_every_batch_has_something_to_compare():
    targets = torch.tensor([0] * 9 + [1] * 2 + [2] + [3] * 4)
    order = GroupedOrder(targets, batch_size=8, seed=0, group=4)
    seen = torch.cat(list(order.rows(0)))
    assert set(seen.tolist()) == set(range(16)) - {11}
    for rows in order.rows(1):
        assert all(len(set(group.tolist())) == 1 for group in targets[rows].split(4))
    assert not torch.equal(seen, torch.cat(list(order.rows(1))))


def test_people_who_are_held_out_are_in_no_other_part(things):
    source = open_identities(things)
    train_part, held = hold_out_identities(source.splits["all"], 0.34, seed=0)
    assert len(train_part) + len(held) == 96
    assert not set(train_part.targets) & set(held.targets)
    assert len(set(held.targets)) == 4


def test_from_training_to_prediction(things, things_run, capsys):
    run = Run.load(things_run)
    found = json.loads((things_run / "validation.json").read_text())["verification"]
    assert (found["same"], found["others"]) == (4 * 28, 6 * 64)
    assert run.config["metrics"]["auc"] > 0.85
    assert found["tar_at_far"]["0.1"] is not None
    assert found["tar_at_far"]["0.001"] is None
    assert cli(["predict", str(things_run), str(things / "thing0"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert np.linalg.norm([row["embedding"] for row in rows], axis=1) == pytest.approx(
        np.ones(8), abs=1e-4
    )
    card = (things_run / "README.md").read_text()
    assert "8 known identities" in card
    assert "pipeline_tag: image-feature-extraction" in card


def test_evaluation_says_what_can_not_be_measured(things, things_run, tmp_path, capsys):
    plot = tmp_path / "roc.png"
    assert cli(["evaluate", str(things_run), str(things), "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    assert "not measurable" in out
    assert "on the val images" in out
    with Image.open(plot) as picture:
        assert picture.width > 400


def test_who_has_one_image_is_named(things, tmp_path, capsys):
    """CASES 28."""
    data = tmp_path / "data"
    for part, names in (("train", NAMES[:4]), ("val", NAMES[4:8])):
        for name in names:
            (data / part / name).mkdir(parents=True)
            for number in range(1, 2 if name == "thing2" else 5):
                (data / part / name / f"{number}.png").symlink_to(things / name / f"{number}.png")
    assert train(data, tmp_path / "run", "--epochs", 1) == 0
    assert (
        "left out: thing2 has one image, and nothing to compare it with" in capsys.readouterr().err
    )
    assert Run.load(tmp_path / "run").config["data"]["train_images"] == 12


def test_figures_of_groups_stand_beside_those_of_all(things, things_run, tmp_path, capsys):
    table = things / "kinds.csv"
    table.write_text(
        "thing,kind\n"
        + "".join(f"{name},{'odd' if n % 2 else 'even'}\n" for n, name in enumerate(NAMES[:-1]))
    )
    try:
        assert (
            cli(
                [
                    "evaluate",
                    str(things_run),
                    str(things),
                    "--split",
                    "all",
                    "--by",
                    "kind",
                    "--json",
                ]
            )
            == 0
        )
        said = capsys.readouterr()
        assert cli(["evaluate", str(things_run), str(things), "--by", "size"]) == 2
        assert f"--by size: {table} has the columns kind" in capsys.readouterr().err
    finally:
        table.unlink()
    groups = json.loads(said.out)["groups"]
    assert {name: group["images"] for name, group in groups.items()} == {"even": 48, "odd": 40}
    assert all(0.5 < group["auc"] <= 1 for group in groups.values())
    assert "kind is not told of 8 images" in said.err


def lfw(folds, each):
    """Pairs of a thing, and pairs of things whose colours are opposite; in the last fold of the thing itself once more."""
    lines = [f"{folds}\t{each}"]
    for fold in range(folds):
        other = NAMES[fold if fold == folds - 1 else (fold + 6) % 12]
        lines += [f"{NAMES[fold]}\t{n}\t{n + 1}" for n in range(1, each + 1)]
        lines += [f"{NAMES[fold]}\t{n}\t{other}\t{n + 1}" for n in range(1, each + 1)]
    return "\n".join(lines) + "\n"


def test_pairs_are_judged_fold_by_fold(things, things_run, tmp_path, capsys):
    listed = tmp_path / "pairs.txt"
    listed.write_text(lfw(10, 5))
    pairs = read_pairs(listed, things)
    assert (len(pairs), pairs.same_P.sum(), pairs.fold_P.tolist()) == (
        100,
        50,
        [n // 10 for n in range(100)],
    )
    assert pairs.files[0] == (things / "thing0" / "1.png", things / "thing0" / "2.png")
    command = ["evaluate", str(things_run), str(things), "--pairs", str(listed)]
    assert cli([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] > 0.7
    # No threshold is right about the last fold.
    assert found["accuracy_spread"] > 0
    assert found["tar_at_far"]["0.1"] is None
    assert cli(command) == 0
    assert "not measurable: 50 pairs" in capsys.readouterr().out
    # The same as a table.
    table = tmp_path / "pairs.csv"
    rows = zip(pairs.files, pairs.same_P, pairs.fold_P, strict=True)
    table.write_text(
        "first,second,same,fold\n"
        + "".join(
            f"{a.relative_to(things)},{b.relative_to(things)},{int(s)},{f}\n"
            for (a, b), s, f in rows
        )
    )
    assert read_pairs(table, things).files == pairs.files


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("pairs.txt", "10 300\nann 1 2\n", "are 6000 lines, and there are 1"),
        ("pairs.txt", "nothing\n", "the first line says how many folds"),
        ("pairs.txt", "1\nthing0 1 2\nthing0 one thing1 2\n", "line 3: NAME 1 2 or NAME 1 OTHER 2"),
        (
            "pairs.txt",
            "1\nthing0 1 2\nthing0 1 thing1 99\n",
            "line 3: there is no image thing1/99 in",
        ),
        ("pairs.csv", "a,b,c\nthing0/1.png,thing0/2.png,maybe\n", "line 2: two images, 1 or 0"),
        (
            "pairs.csv",
            "a,b,c\nthing0/1.png,thing0/none.png,1\n",
            "line 2: there is no image thing0/none.png",
        ),
        ("pairs.csv", "a,b,c\n", "it lists no pairs"),
        ("pairs.csv", "thing0/1.png,thing0/2.png,1\n", "all images are of the same"),
    ],
)
def test_wrong_pairs_are_one_sentence(things, things_run, tmp_path, capsys, name, text, sentence):
    """CASES 28: what is missing is named."""
    (tmp_path / name).write_text(text)
    assert cli(["evaluate", str(things_run), str(things), "--pairs", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_a_gallery_is_searched_by_example(things, things_run, tmp_path, capsys):
    example = things / "thing3" / "5.png"
    command = ["search", things_run, example, things, "--count", 3, "--json"]
    assert cli([*map(str, command)]) == 0
    (plain,) = json.loads(capsys.readouterr().out)
    assert len(plain["found"]) == 3
    assert str(example) not in [hit["image"] for hit in plain["found"]]
    run, others = Run.load(things_run), sorted(set(things.rglob("*.png")) - {example})
    outputs = run.outputs(torch.cat([run.prepare(file) for file in (example, *others)])).numpy()
    outputs /= np.linalg.norm(outputs, axis=1, keepdims=True)
    alike = outputs[1:] @ outputs[0]
    best = np.argsort(-alike)[:3]
    assert [hit["image"] for hit in plain["found"]] == [str(others[place]) for place in best]
    assert [hit["cosine"] for hit in plain["found"]] == pytest.approx(alike[best], abs=1e-5)
    index = tmp_path / "index.safetensors"
    more = ["--index", index, "--draw", tmp_path / "drawn"]
    assert cli([*map(str, (*command, *more))]) == 0
    assert json.loads(capsys.readouterr().out)[0]["found"] == plain["found"]
    written = index.read_bytes()
    assert cli([*map(str, (*command, *more))]) == 0
    assert json.loads(capsys.readouterr().out)[0]["found"] == plain["found"]
    assert index.read_bytes() == written
    (sheet,) = (tmp_path / "drawn").iterdir()
    with Image.open(sheet) as picture:
        assert picture.width > 600


def test_an_index_knows_files_that_changed(things, things_run, tmp_path, capsys):
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    for number in (1, 2):
        (gallery / f"{number}.png").write_bytes((things / f"thing{number}" / "1.png").read_bytes())
    index = tmp_path / "index.safetensors"
    command = [
        *map(
            str,
            (
                "search",
                things_run,
                things / "thing1" / "2.png",
                gallery,
                "--index",
                index,
                "--json",
            ),
        )
    ]
    assert cli(command) == 0
    first = json.loads(capsys.readouterr().out)[0]["found"][0]
    assert first["image"].endswith("1.png")
    (gallery / "1.png").write_bytes((things / "thing5" / "1.png").read_bytes())
    assert cli(command) == 0
    cosines = {
        hit["image"]: hit["cosine"] for hit in json.loads(capsys.readouterr().out)[0]["found"]
    }
    assert cosines[str(gallery / "1.png")] < first["cosine"]


def test_faiss_and_numpy_find_the_same(monkeypatch):
    pytest.importorskip("faiss")
    random = np.random.default_rng(0)
    known = random.normal(size=(3000, 8)).astype(np.float32)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    fast = nearest(known[:1500], known, 4)
    monkeypatch.setattr("mobilenets.tasks.embedding.search.find_spec", lambda name: None)
    plain = nearest(known[:1500], known, 4)
    assert np.array_equal(fast[1], plain[1])
    np.testing.assert_allclose(fast[0], plain[0], atol=1e-5)


def test_a_margin_is_learnt_and_left_out_of_files(things, tmp_path):
    folder = tmp_path / "run"
    more = [
        "--recipe",
        "arcface",
        "--set",
        "held_out=0.34",
    ]
    assert train(things, folder, *more) == 0
    run = Run.load(folder)
    assert run.config["metrics"]["auc"] > 0.85
    assert run.model.margin.W.shape == (16, 8)
    whole = run.task.in_file(run.model, "network")
    assert not any("margin" in key for key in whole.state_dict())
    images = torch.randn(2, 3, 32, 32)
    folded = fold_batch_norm(whole)(images)
    assert torch.allclose(folded.norm(dim=1), torch.ones(2), atol=1e-5)
    assert torch.allclose(folded, whole.eval()(images), atol=1e-5)
    assert run.model.margin is not None


# All come from one graph, and only the writers differ.
@pytest.mark.parametrize(
    "name",
    [
        "onnx",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("litert", "executorch", "openvino", "pt2")
        ),
    ],
)
def test_every_file_gives_unit_length(things, things_run, tmp_path, name):
    pytest.importorskip({"litert": "litert_torch", "pt2": "torch", "onnx": "onnx"}.get(name, name))
    folder = tmp_path / name
    assert (
        cli(
            [
                "export",
                str(things_run),
                "--to",
                name,
                "--data",
                str(things),
                "--output",
                str(folder),
            ]
        )
        == 0
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["parity"]["holds"]
    if name == "onnx":
        outputs = OnnxModel(folder / "model.onnx").run(np.zeros((3, 3, 32, 32), dtype=np.float32))
        assert np.linalg.norm(outputs, axis=1) == pytest.approx(np.ones(3), abs=1e-5)


def test_int8_keeps_what_is_near(things, things_run, tmp_path):
    folder = tmp_path / "int8"
    command = ["export", things_run, "--to", "onnx", "--int8", "--data", things, "--output", folder]
    assert cli([*map(str, command)]) == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["precision"] == "int8"


def test_a_student_learns_from_a_teacher_who_knows_nobody_by_name(
    things, things_run, tmp_path, capsys
):
    """Images alone: what is validated on is what the teacher says of them."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in NAMES:
        for number in range(1, 9):
            (flat / f"{name}-{number}.png").symlink_to(things / name / f"{number}.png")
    assert cli(["export", str(things_run), "--to", "onnx", "--data", str(things)]) == 0
    more = [
        "--recipe",
        "embedding-distil",
        "--teacher",
        things_run / "onnx",
    ]
    assert train(flat, tmp_path / "student", *more) == 0
    run = Run.load(tmp_path / "student")
    assert run.config["metrics"]["likeness"] > 0.8
    capsys.readouterr()
    assert (
        cli(["evaluate", str(tmp_path / "student"), str(things), "--json", "--split", "all"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["auc"] > 0.85
    assert len(list((tmp_path / "cache" / "mobilenets" / "answers").iterdir())) == 2


def test_stored_outputs_teach(things, things_run, tmp_path, capsys):
    run = Run.load(things_run)
    files = sorted(things.rglob("*.png"))
    outputs = np.concatenate([run.outputs(run.prepare(file)).numpy() for file in files])
    stored = tmp_path / "stored"
    stored.mkdir()
    np.save(stored / "outputs.npy", outputs)
    names = [str(file.relative_to(things)) for file in files]
    (stored / "images.txt").write_text("\n".join(names) + "\n")
    more = ["--recipe", "embedding-distil", "--teacher", stored]
    more += ["--set", "ema_decay=0.9", "--set", "held_out=0.34"]
    assert train(things, tmp_path / "student", *more) == 0
    assert Run.load(tmp_path / "student").config["metrics"]["auc"] > 0.8
    capsys.readouterr()
    (stored / "images.txt").write_text("\n".join([*names[:-2], "a.png", "b.png"]) + "\n")
    assert train(things, tmp_path / "other", *more) == 2
    error = capsys.readouterr().err
    assert "holds no output of" in error
    assert "Traceback" not in error
    np.save(stored / "outputs.npy", outputs[1:])
    assert train(things, tmp_path / "other", *more) == 2
    assert "names 96 images, and outputs.npy has the shape (95, 16)" in capsys.readouterr().err


def test_the_doctor_tells_of_identities(things, tmp_path, capsys):
    """CASES 28: an identity with one image is named, and nothing breaks on grey ones."""
    folder = tmp_path / "people"
    for part in ("train", "val"):
        for name in ("ann", "ben"):
            (folder / part / name).mkdir(parents=True)
            for number in (1, 2):
                grey = Image.open(things / "thing0" / f"{number}.png").convert("L")
                grey.point(lambda value, n=number: value // n).save(
                    folder / part / name / f"{number}.png"
                )
    (folder / "train" / "cy").mkdir()
    Image.open(things / "thing1" / "1.png").convert("L").save(folder / "train" / "cy" / "1.png")
    cli(["doctor", str(folder), "--task", "embedding", "--json"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    told = {(finding["kind"], finding["name"]) for finding in findings}
    assert ("single-image", "cy") in told
    assert any(kind == "shared-identity" for kind, _ in told)


@pytest.mark.parametrize(
    ("layout", "more", "sentence"),
    [
        ({"a": 2}, [], "tells no identities apart"),
        (
            {"a": 1, "b": 1, "c": 1, "d": 1},
            ["--set", "held_out=0.5"],
            "one image of nearly every identity",
        ),
        ({"a": 4, "b": 4, "c": 4}, [], "too few to hold"),
        (
            {"a": 4, "b": 4, "c": 4, "d": 4},
            ["--set", "batch_size=30"],
            "a multiple of embedding.group",
        ),
        (
            {"a": 4, "b": 4, "c": 4, "d": 4},
            ["--set", "augmentation.mixup=0.2"],
            "augmentation.mixup is not for embeddings",
        ),
        (
            {"a": 4, "b": 4, "c": 4, "d": 4},
            ["--set", "label_smoothing=0.1"],
            "label_smoothing is for classes",
        ),
        ({"a": 4, "b": 4, "c": 4, "d": 4}, ["--recipe", "embedding-distil"], "--teacher"),
        (
            {"a": 4, "b": 4, "c": 4, "d": 4},
            ["--recipe", "embedding-distil", "--teacher", "RUN", "--set", "embedding.size=8"],
            "gives 16 values an image",
        ),
        (
            {"a": 4, "b": 4, "c": 4, "d": 4},
            [
                "--recipe",
                "embedding-distil",
                "--teacher",
                "CORRUPT",
                "--set",
                "distillation.mean=[0,0,0]",
                "--set",
                "distillation.std=[1,1,1]",
            ],
            "corrupt.onnx",
        ),
        ({}, [], "it holds no images"),
    ],
)
def test_what_can_not_be_learnt_is_one_sentence(
    things_run, tmp_path, capsys, layout, more, sentence
):
    data = tmp_path / "data"
    data.mkdir()
    for name, count in layout.items():
        (data / name).mkdir()
        for number in range(count):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(data / name / f"{number}.png")
    (tmp_path / "corrupt.onnx").write_bytes(b"no model")
    names = {"RUN": things_run, "CORRUPT": tmp_path / "corrupt.onnx"}
    assert train(data, tmp_path / "run", *(names.get(word, word) for word in more)) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_what_search_can_not_do_is_one_sentence(things, things_run, digits_run, tmp_path, capsys):
    (tmp_path / "index").write_bytes(b"nothing")
    for arguments, sentence in (
        (["search", digits_run, things, things], "search compares embeddings"),
        (["search", things_run, tmp_path / "none", things], "none"),
        (["search", things_run, things, things, "--index", tmp_path / "index"], "is no index"),
        (
            ["evaluate", digits_run, "digits", "--pairs", tmp_path / "pairs.txt"],
            "are for embeddings",
        ),
        (
            ["evaluate", things_run, things, "--plot", tmp_path / "roc.what"],
            "the name of a picture ends in",
        ),
        (["evaluate", things_run, things, "--by", "kind"], "holds no CSV"),
        (["train", things, "--set", "embedding.size=8"], "embedding is for embeddings, not for"),
    ):
        assert cli([*map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert "Traceback" not in error


def test_the_task_reads_itself_back(things_run):
    task = Run.load(things_run).task
    assert isinstance(task, Embedding)
    assert task.outputs == 16
    again = Embedding.from_dict(task.to_dict(), task.preprocessing)
    assert again.to_dict() == task.to_dict()


def test_the_page_to_try_it_compares_two_pictures(things, things_run, trial, capsys, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(things_run, run, ignore=shutil.ignore_patterns("onnx*"))
    assert cli(["export", str(run), "--limit", "16"]) == 0
    images = [things / NAMES[0] / "1.png", things / NAMES[0] / "2.png", things / NAMES[5] / "1.png"]
    capsys.readouterr()
    assert cli(["predict", str(run), *map(str, images), "--json"]) == 0
    wanted = [np.array(one["embedding"]) for one in json.loads(capsys.readouterr().out)]
    page = trial(run)
    assert page.answer(images[0])["embedding"] == pytest.approx(wanted[0], abs=0.01)
    assert page.page.locator("#answer").inner_text() == "Give a second picture to compare with."
    for image, other in zip(images[1:], wanted[1:], strict=True):
        page.answer(image, slot=1)
        told = float(page.page.locator("#answer").inner_text().removeprefix("Cosine "))
        assert told == pytest.approx(float(wanted[0] @ other), abs=0.005)
