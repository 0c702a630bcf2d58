"""Detection from data to figures: training, evaluation, imported weights, and mistakes in one sentence."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.ops import box_iou

from conftest import SIDE
from mobilenets import Run
from mobilenets.architecture.detector import Selection, parse_spec
from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.cli.main import run as cli
from mobilenets.data.box_loader import AREA, EMPTY, LABEL, BoxDistortion, BoxLoader, distorted
from mobilenets.data.boxes import Object, open_boxes, write_boxes
from mobilenets.data.loaders import Batch, generator_of
from mobilenets.data.transforms import seeded
from mobilenets.tasks.detection.boxes import Objects, boxes_of, objects_in
from mobilenets.tasks.detection.doctor import check
from mobilenets.tasks.detection.metrics import DetectionMetrics
from mobilenets.tasks.detection.task import Detection
from mobilenets.training.curves import read_curves
from mobilenets.weights.load import load_weights
from mobilenets.weights.tflite_file import read_tflite_detector


def loader_of(shapes, distortion=None, size=(64, 80), **more):
    part = open_boxes(shapes).splits["train"]
    preprocessing = Preprocessing(*size, resize="squash", crop_fraction=1.0)
    return part, BoxLoader(part, preprocessing, 4, distortion, workers=0, **more)


def test_boxes_keep_their_place_at_any_size(shapes):
    part, loader = loader_of(shapes)
    batches = list(loader.batches())
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert batches[0].images_NCHW.shape == (4, 3, 64, 80)
    assert batches[0].sizes_N2.tolist() == [[SIDE, SIDE]] * 4
    for batch, start in zip(batches, (0, 4, 8), strict=True):
        for place, rows_MD in enumerate(batch.targets_N):
            told = rows_MD[rows_MD[:, LABEL] >= 0]
            expected = part.objects[start + place]
            assert len(told) == len(expected)
            for row, thing in zip(told, expected, strict=True):
                assert row[:4] == pytest.approx([side / SIDE for side in thing.box])
                assert (row[LABEL], row[AREA]) == (thing.label, thing.area)
            assert (rows_MD[len(told) :, LABEL] == EMPTY).all()


def colour_inside(image_CHW, box_4):
    """What is in the middle of a box: "disc", "square" or neither."""
    height, width = image_CHW.shape[1:]
    x, y = (float((box_4[0] + box_4[2]) / 2) * width, float((box_4[1] + box_4[3]) / 2) * height)
    red, _, blue = image_CHW[:, min(int(y), height - 1), min(int(x), width - 1)].tolist()
    return "disc" if red > 0.5 else "square" if blue < 0.1 and red < -0.5 else None


@pytest.mark.parametrize(
    "distortion",
    [
        BoxDistortion(),
        BoxDistortion(mirror=False, expand=3.0),
        BoxDistortion(mirror=False, crop=True),
        BoxDistortion(mirror=False, mosaic=1.0),
        BoxDistortion(expand=2.0, crop=True, mosaic=0.5),
    ],
)
def test_boxes_move_with_what_is_in_them(shapes, distortion):
    _, loader = loader_of(shapes, distortion, size=(96, 96))
    seen = right = 0
    for epoch in range(4):
        for batch in loader.batches(epoch):
            for image_CHW, rows_MD in zip(batch.images_NCHW, batch.targets_N, strict=True):
                for row in rows_MD[rows_MD[:, LABEL] >= 0]:
                    assert 0 <= row[0] < row[2] <= 1
                    assert 0 <= row[1] < row[3] <= 1
                    seen += 1
                    right += (
                        colour_inside(image_CHW, row[:4]) == ("disc", "square")[int(row[LABEL])]
                    )
    assert seen > 40
    # A crop may leave less than half of a disc, and so not its middle.
    assert right >= 0.9 * seen


def test_boxes_end_where_their_objects_end():
    image_CHW = torch.zeros(3, 150, 200, dtype=torch.uint8)
    image_CHW[:, 40:90, 60:140] = 255
    boxes = tv_tensors.BoundingBoxes(
        [[60.0, 40.0, 140.0, 90.0]], format="XYXY", canvas_size=(150, 200)
    )
    distortion = BoxDistortion(expand=2.0, crop=True)
    preprocessing = Preprocessing(96, 128, resize="squash", crop_fraction=1.0)
    found = []
    for seed in range(100):
        with seeded(generator_of(seed)):
            pixels_CHW, told_MD = distorted(
                image_CHW, boxes, torch.tensor([[0.0, 0.0, 4000.0]]), distortion, preprocessing
            )
        assert pixels_CHW.shape == (3, 96, 128)
        ys, xs = (pixels_CHW[0] > 192).nonzero().T
        lit = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        (box_4,) = told_MD[:, :4] * torch.tensor([128, 96]).repeat(2)
        assert (lit - box_4).abs().max() <= 1
        found.append(box_4)
    widths = [float(box_4[2] - box_4[0]) for box_4 in found]
    assert min(widths) < 0.6 * 128 * 80 / 200 < 1.6 * 128 * 80 / 200 < max(widths)


def test_batches_are_the_same_again_and_from_the_middle(shapes):
    _, loader = loader_of(shapes, BoxDistortion(expand=2.0, crop=True, mosaic=0.5), seed=3)
    whole = list(loader.batches(1))
    again = list(loader.batches(1, start=1))
    for first, second in zip(whole[1:], again, strict=True):
        assert first.images_NCHW.equal(second.images_NCHW)
        assert first.targets_N.equal(second.targets_N)
    other = next(iter(loader.batches(2)))
    assert not other.images_NCHW.equal(whole[0].images_NCHW)
    still = list(loader.still().batches(1))
    assert sum(len(batch) for batch in still) == 12


def test_a_batch_of_images_without_boxes(shapes):
    part = open_boxes(shapes).splits["train"].take([11, 11])
    preprocessing = Preprocessing(64, 64, resize="squash", crop_fraction=1.0)
    (batch,) = BoxLoader(part, preprocessing, 4, BoxDistortion(crop=True), workers=0).batches()
    assert batch.targets_N.shape == (2, 0, 7)
    task = Detection.from_data(str(shapes), parse_spec("ssd64/0.25"))
    losses = task.loss(
        task.build_model(parse_spec("ssd64/0.25")), batch, task.recipes()["ssd-finetune"]
    )
    assert torch.isfinite(losses["loss"]).item()


def metrics_of(found, told, size, lose=2.0):
    """Figures and details of one image."""
    metrics = DetectionMetrics(
        ["disc", "square"], lambda outputs: [found], lambda outputs, rows: torch.tensor(lose)
    )
    rows = torch.tensor(told).view(1, -1, 7)
    batch = Batch(torch.zeros(1, 3, 8, 8), rows, 1, torch.tensor([size]))
    metrics.update(torch.zeros(1), batch)
    return metrics.compute(), metrics.details()


def objects(*rows):
    """Left, top, right, bottom as shares; score; label."""
    values = torch.tensor(rows).view(-1, 6)
    return Objects(values[:, :4], values[:, 4], values[:, 5].long())


# An image of 100 x 400: a disc of 40 x 50 pixels, and a square of 200 x 100.
DISC, SQUARE = (0.1, 0.2, 0.2, 0.7), (0.5, 0.0, 1.0, 1.0)
TOLD = [[*DISC, 0, 0, 2000.0], [*SQUARE, 1, 0, 20000.0]]


def test_figures_are_those_of_coco_and_voc():
    whole = objects([*DISC, 0.9, 0], [*SQUARE, 0.8, 1])
    figures, details = metrics_of(whole, TOLD, [100, 400])
    assert figures == pytest.approx({"map": 1, "map50": 1, "map75": 1, "loss": 2})
    assert details["sizes"] == {
        "small": None,
        "medium": pytest.approx(1),
        "large": pytest.approx(1),
    }
    assert details["voc_map50"] == pytest.approx(1)
    # A disc that is 7 of 10 parts right: right at overlaps of 0.5 to 0.7, which are five of ten.
    part = objects([0.1, 0.2, 0.17, 0.7, 0.9, 0], [*SQUARE, 0.8, 1])
    figures, details = metrics_of(part, TOLD, [100, 400])
    assert figures["map"] == pytest.approx((0.5 + 1) / 2)
    assert figures["map50"] == pytest.approx(1)
    assert figures["map75"] == pytest.approx(0.5)
    assert details["classes"]["disc"] == {"map": pytest.approx(0.5), "voc_ap50": pytest.approx(1)}
    # Names that are mixed up.
    figures, details = metrics_of(objects([*DISC, 0.9, 1], [*SQUARE, 0.8, 0]), TOLD, [100, 400])
    assert figures["map50"] == 0
    assert details["voc_map50"] == 0


def test_crowds_and_difficult_objects_count_neither_way():
    crowd = [[*DISC, 0, 0, 2000.0], [0.3, 0.0, 0.9, 1.0, 0, 1, 24000.0]]
    inside = objects([*DISC, 0.5, 0], [0.4, 0.1, 0.5, 0.6, 0.9, 0])
    figures, _ = metrics_of(inside, crowd, [100, 400])
    assert figures["map50"] == pytest.approx(1)
    whole = objects([*DISC, 0.5, 0], [0.3, 0.0, 0.9, 1.0, 0.9, 0])
    _, details = metrics_of(whole, crowd, [100, 400])
    assert details["classes"]["disc"]["voc_ap50"] == pytest.approx(1)
    # The same box told twice is right once.
    twice = objects([*DISC, 0.9, 0], [*DISC, 0.8, 0], [*SQUARE, 0.7, 1])
    _, details = metrics_of(twice, TOLD, [100, 400])
    assert details["voc_map50"] == pytest.approx(1)
    worse = objects([0.6, 0.2, 0.7, 0.7, 0.9, 0], [*DISC, 0.8, 0])
    _, details = metrics_of(worse, TOLD, [100, 400])
    assert details["classes"]["disc"]["voc_ap50"] == pytest.approx(0.5)
    assert details["classes"]["square"]["voc_ap50"] == 0


def test_a_handful_of_pictures_is_learnt_by_heart(shapes, shapes_run, capsys):
    rows = read_curves(shapes_run)
    assert max(row["val/map50"] for row in rows) > 0.95
    capsys.readouterr()
    assert cli(["evaluate", str(shapes_run), str(shapes), "--split", "val", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["map50"] > 0.95
    assert found["voc_map50"] > 0.95
    assert set(found["classes"]) == {"disc", "square"}


def test_a_run_tells_what_is_where(shapes, shapes_run, capsys):
    run = Run.load(shapes_run)
    part = open_boxes(shapes).splits["val"]
    prediction = run.predict(part.images.paths[0])
    told = {part.objects[0][n].label: part.objects[0][n].box for n in range(2)}
    for found in prediction.objects:
        truth = torch.tensor([told[found.index]]) / SIDE
        assert float(box_iou(torch.tensor([found.box]), truth)) > 0.5
    drawn = prediction.draw(Image.open(part.images.paths[0]))
    assert drawn.size == (SIDE, SIDE)
    assert np.asarray(drawn).tolist() != np.asarray(Image.open(part.images.paths[0])).tolist()
    capsys.readouterr()
    assert cli(["predict", str(shapes_run), str(part.images.paths[0]), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert len(row["predictions"]) == len(prediction.objects)
    assert cli(["predict", str(shapes_run), str(part.images.paths[11])]) == 0
    assert "nothing found" in capsys.readouterr().out


def test_a_classifier_s_weights_are_a_detector_s_body(shapes, digits_run, tmp_path, capsys):
    start = [
        "train",
        str(shapes),
        "--task",
        "detection",
        "--weights",
        str(digits_run),
        "--epochs",
        "1",
    ]
    out = ["--output", str(tmp_path / "run"), "--device", "cpu"]
    # Its strides are for tiny pictures.
    assert cli([*start, *out]) == 2
    assert "a detector stands on a plain body" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "epochs", "rate"), [("frcnn96/0.25", 100, 0.006), ("ssdfpn96/0.25", 60, 0.003)]
)
def test_the_other_detectors_learn_too(shapes, tmp_path, model, epochs, rate):
    command = ["train", str(shapes), "--task", "detection", "--model", model]
    command += ["--epochs", str(epochs)]
    for change in (
        "augmentation.crop=false",
        "augmentation.expand=1",
        "augmentation.colour=0",
        "batch_size=4",
        f"optimizer.lr={rate}",
        "optimizer.weight_decay=0",
        "ema_decay=0.9",
    ):
        command += ["--set", change]
    assert cli([*command, "--device", "cpu", "--output", str(tmp_path / "run")]) == 0
    assert max(row["val/map50"] for row in read_curves(tmp_path / "run")) > 0.95


def test_one_framework_starts_from_the_body_of_another(shapes, shapes_run, tmp_path):
    folder = tmp_path / "run"
    command = ["train", shapes, "--task", "detection", "--weights", shapes_run]
    command += ["--model", "ssdfpn96/0.25", "--set", "fine_tuning.thaw=null", "--epochs", 1]
    assert cli([*map(str, (*command, "--device", "cpu", "--output", folder))]) == 0
    start, run = Run.load(shapes_run), Run.load(folder)
    assert str(run.spec) == "ssdfpn96/0.25"
    theirs = start.model.state_dict()
    body = {name: value for name, value in run.model.state_dict().items() if "body." in name}
    assert len(body) > 100
    for name, value in body.items():
        assert torch.allclose(value, theirs[name], atol=1e-6), name


def test_going_on_repeats_what_would_have_been(shapes, tmp_path):
    common = ["--device", "cpu"]
    start = ["train", str(shapes), "--task", "detection", "--model", "ssd64/0.25"]
    for change in ("batch_size=4", "schedule.name=constant", "schedule.warmup=0"):
        start += ["--set", change]
    weights = []
    for name, epochs in (("whole", "2"), ("half", "1")):
        assert cli([*start, *common, "--epochs", epochs, "--output", str(tmp_path / name)]) == 0
    assert cli(["train", "--resume", str(tmp_path / "half"), "--epochs", "2", *common]) == 0
    weights = [
        (tmp_path / name / "last" / "model.safetensors").read_bytes() for name in ("whole", "half")
    ]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("weights", ["classifier", "detector"])
def test_weights_start_a_detector_of_other_classes(shapes, shared, coco_run, tmp_path, weights):
    width = {"classifier": "0.25", "detector": "0.75"}[weights]
    start = {
        "classifier": shared / "weights" / "mobilenet_v1_0.25_128_quant.tflite",
        "detector": coco_run,
    }[weights]
    command = ["train", str(shapes), "--task", "detection", "--weights", str(start)]
    command += ["--model", f"ssd96/{width}", "--epochs", "1", "--set", "optimizer.lr=1e-9"]
    assert cli([*command, "--device", "cpu", "--output", str(tmp_path / "run")]) == 0
    run = Run.load(tmp_path / "run")
    assert str(run.spec) == f"ssd96/{width}"
    assert run.spec.activation == "relu6"
    before, after = load_weights(start).state, run.model.state_dict()
    same = {
        name for name, value in before.items() if name in after and after[name].shape == value.shape
    }
    close = {
        name
        for name in same
        if torch.allclose(after[name].float(), before[name].float(), atol=1e-6)
    }
    convolutions = {name for name in same if name.endswith("conv.weight")}
    assert convolutions <= close
    assert len([name for name in convolutions if name.startswith("body.")]) == 27
    assert len([name for name in close if name.startswith("box_heads.")]) == 12 * (
        weights == "detector"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "0.5-160"], "0.5-160 classifies: a detector is named as ssd300/0.5 is"),
        (["--set", "augmentation.mixup=0.2"], "augmentation.mixup does not move boxes along"),
        (["--set", "growth.start=0.5"], "growth is not for it"),
        (["--set", "fine_tuning.probe=true", "--weights", "SHAPES"], "a detector has none"),
        (["--folds", "3"], "folds are not for it"),
    ],
)
def test_mistakes_are_one_sentence(shapes, shapes_run, tmp_path, capsys, arguments, says):
    arguments = [str(shapes_run) if word == "SHAPES" else word for word in arguments]
    command = ["train", str(shapes), "--task", "detection", "--epochs", "1", "--device", "cpu"]
    assert cli([*command, *arguments, "--output", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") <= 2


def test_a_classifier_is_not_trained_as_a_detector(tmp_path, capsys):
    out = ["--output", str(tmp_path / "run")]
    assert cli(["train", "digits", "--model", "ssd300/0.5", *out]) == 2
    assert "ssd300/0.5 detects" in capsys.readouterr().err


def test_wrong_boxes_are_told_and_train_no_nan(shapes, tmp_path, capsys):
    source = open_boxes(shapes)
    part = source.splits["train"]
    wrong = [
        Object(box=(10, 10, 10, 40), label=0, told="a"),
        Object(box=(40, 40, 20, 20), label=0, told="b"),
        Object(box=(-30, -30, 30, 30), label=1, told="c"),
        Object(box=(200, 200, 220, 220), label=1, told="d"),
    ]
    spoilt = replace(part, objects=tuple((*things, *wrong) for things in part.objects))
    write_boxes(replace(source, splits={"train": spoilt, "val": spoilt}), tmp_path / "data", "coco")
    command = ["train", str(tmp_path / "data"), "--task", "detection", "--model", "ssd64/0.25"]
    assert (
        cli([*command, "--epochs", "1", "--device", "cpu", "--output", str(tmp_path / "run")]) == 0
    )
    assert "96 boxes are wrong" in capsys.readouterr().err
    assert all(np.isfinite(list(row.values())).all() for row in read_curves(tmp_path / "run"))
    report = check(str(tmp_path / "data"))
    kinds = {kind: count for (_, kind), count in report.counts().items()}
    assert kinds["degenerate-box"] == 3 * 24
    assert kinds["box-outside"] == 24
    first = next(finding for finding in report.findings if finding.kind == "degenerate-box")
    assert "instances_train.json annotation" in first.detail
    assert cli(["doctor", str(tmp_path / "data"), "--task", "detection"]) == 1


def test_the_doctor_finds_nothing_in_sound_data(shapes):
    # Val is a copy of train, which is a fault of its own.
    report = check(str(shapes))
    assert {finding.kind for finding in report.findings} <= {
        "copy-across-splits",
        "same-image-in-two-splits",
        "without-boxes",
    }


def test_the_doctor_knows_names_that_a_slip_tells_apart(shapes, tmp_path):
    content = json.loads((shapes / "annotations" / "instances_train.json").read_text())
    content["categories"].append({"id": 11, "name": "squares"})
    many = [dict(row, id=100 + n) for n, row in enumerate(content["annotations"] * 5)]
    one = dict(many[0], id=1, category_id=11)
    content["annotations"] = [one, *({**row, "category_id": 9} for row in many)]
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(content))
    for image in (shapes / "train").iterdir():
        (tmp_path / image.name).write_bytes(image.read_bytes())
    report = check(str(file))
    (found,) = (finding for finding in report.findings if finding.kind == "similar-class-names")
    assert (found.name, found.other) == ("squares", "square")


def test_imported_weights_are_named_and_shaped(coco_run, capsys):
    run = Run.load(coco_run)
    assert str(run.spec) == "ssd300/0.75"
    assert len(run.labels) == 80
    assert (run.labels[0], run.labels[-1]) == ("person", "toothbrush")
    assert "???" not in run.labels
    assert (run.spec.activation, run.spec.padding) == ("relu6", "tensorflow")
    assert run.preprocessing.resize == "squash"


def test_imported_weights_find_what_the_original_finds(coco_run, coco, shared):
    interpreter_module = pytest.importorskip("ai_edge_litert.interpreter")
    run = Run.load(coco_run)
    file = shared / "weights" / "ssd_mobilenet_v1_1_metadata_1.tflite"
    names = read_tflite_detector(file).labels
    original = interpreter_module.Interpreter(model_path=str(file))
    original.allocate_tensors()
    place = original.get_input_details()[0]["index"]
    ends = [tensor["index"] for tensor in original.get_output_details()]
    grid_A4 = boxes_of(run.spec)
    found = told = 0
    for path in sorted((coco / "val2017").glob("*.jpg"))[:24]:
        picture = Image.open(path).convert("RGB")
        pixels = np.asarray(picture.resize((300, 300), Image.Resampling.BILINEAR))
        original.set_tensor(place, pixels[None])
        original.invoke()
        boxes, classes, scores, _ = (original.get_tensor(end)[0] for end in ends)
        (mine,) = objects_in(
            run.outputs(run.prepare(pixels)), grid_A4, selection=Selection(score=0.2)
        )
        for (top, left, bottom, right), index, score in zip(boxes, classes, scores, strict=True):
            if score <= 0.3:
                continue
            told += 1
            theirs = torch.tensor([[left, top, right, bottom]]).clamp(0, 1)
            named = torch.tensor(
                [run.labels[label] == names[int(index) + 1] for label in mine.labels_M],
                dtype=torch.bool,
            )
            found += bool((box_iou(theirs, mine.boxes_M4[named]) > 0.8).any())
    assert told > 100
    assert found >= 0.9 * told


@pytest.mark.slow
def test_imported_weights_are_as_precise_as_published(coco_run, coco, capsys):
    assert cli(["evaluate", str(coco_run), str(coco), "--split", "val", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["map50"] >= 0.34
