"""What a detector says of photos, in every form, and of images much larger than its input; boxes from format to format."""

import csv
import io
import json

import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from conftest import SIDE
from mobilenets.cli.main import run as cli
from mobilenets.data.boxes import open_boxes
from mobilenets.data.parts import Part, parts_of
from mobilenets.tasks.detection.prediction import BoxPrediction, Found, join_parts
from mobilenets.training.run import Run


def told(shapes, number=0):
    part = open_boxes(shapes).splits["val"]
    return part.images.paths[number], part.objects[number]


def test_coco_results_are_scored_by_coco_s_own_tools(shapes, shapes_run, tmp_path, capsys):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    file = shapes / "annotations" / "instances_val.json"
    asked = ["predict", str(shapes_run), str(shapes / "val"), "--coco", str(file)]
    assert cli(asked) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["category_id"] for row in rows} <= {3, 9}
    truth = COCO(str(file))
    scores = COCOeval(truth, truth.loadRes(rows), "bbox")
    scores.evaluate()
    scores.accumulate()
    scores.summarize()
    capsys.readouterr()
    assert cli(["evaluate", str(shapes_run), str(shapes), "--split", "val", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    # Sides are told to hundredths of a pixel: each of 22 things may miss one of ten overlaps by that.
    assert scores.stats[0] == pytest.approx(figures["map"], abs=2 / 220)
    assert scores.stats[1] == pytest.approx(figures["map50"], abs=0.005)
    stranger = tmp_path / "stranger.png"
    Image.new("RGB", (SIDE, SIDE)).save(stranger)
    assert cli(["predict", str(shapes_run), str(stranger), "--coco", str(file)]) == 2
    assert "instances_val.json has no image stranger.png" in capsys.readouterr().err


def test_csv_has_a_row_for_each_thing(shapes, shapes_run, capsys):
    path, objects = told(shapes)
    empty, _ = told(shapes, 11)
    assert cli(["predict", str(shapes_run), str(path), str(empty), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["label"] for row in rows} == {("disc", "square")[one.label] for one in objects}
    assert {row["image"] for row in rows} == {str(path)}
    assert list(rows[0]) == [
        "image",
        "rank",
        "label",
        "index",
        "score",
        "left",
        "top",
        "right",
        "bottom",
    ]
    assert cli(["predict", str(shapes_run), str(empty), "--csv"]) == 0
    assert capsys.readouterr().out.startswith("image")


def test_a_lower_score_tells_more(shapes, shapes_run, capsys):
    paths = [str(told(shapes, number)[0]) for number in range(12)]
    counts = []
    for score in ("0.99", "0.5", "0.01"):
        assert cli(["predict", str(shapes_run), *paths, "--json", "--score", score]) == 0
        found = [one for row in json.loads(capsys.readouterr().out) for one in row["predictions"]]
        assert all(one["score"] >= float(score) for one in found)
        counts.append(len(found))
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_small_things_on_a_large_image_are_found_in_its_parts(shapes, shapes_run, tmp_path, capsys):
    # Four pictures that the network knows as one of twice their side, in which all is half as large to it.
    large, wanted = Image.new("RGB", (2 * SIDE, 2 * SIDE)), []
    for number, corner in enumerate([(0, 0), (SIDE, 0), (0, SIDE), (SIDE, SIDE)]):
        path, objects = told(shapes, number)
        large.paste(Image.open(path).convert("RGB"), corner)
        wanted += [
            (one.label, [side + corner[n % 2] for n, side in enumerate(one.box)]) for one in objects
        ]
    large.save(tmp_path / "large.png")
    again = {}
    for tile in ((), ("--tile", str(SIDE))):
        asked = ["predict", str(shapes_run), str(tmp_path / "large.png"), "--json", *tile]
        assert cli([*asked, "--draw", str(tmp_path / "drawn")]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        again[len(tile)] = sum(
            sum(
                found["index"] == label
                and float(box_iou(2 * SIDE * torch.tensor([found["box"]]), torch.tensor([box])))
                > 0.6
                for found in row["predictions"]
            )
            == 1
            for label, box in wanted
        )
    assert again[2] == len(wanted) == 8
    assert again[0] < 4
    with Image.open(next((tmp_path / "drawn").iterdir())) as drawn:
        assert drawn.size == large.size


def test_parts_cover_an_image_and_overlap():
    for width, height, side in ((1000, 700, 300), (301, 300, 300), (90, 5000, 128)):
        whole, *parts = parts_of(width, height, side)
        assert whole == Part()
        seen = torch.zeros(height, width, dtype=torch.int)
        for part in parts:
            piece = part.cut(seen[None])
            assert max(piece.shape[1:]) <= side
            piece += 1
        assert seen.min() >= 1
        assert seen.max() > 1


def test_what_a_part_cuts_off_is_told_by_another():
    def found(*box, score=0.9, index=0):
        return Found("disc", index, score, box)

    left, right = Part(0.0, 0.0, 0.6, 1.0), Part(0.4, 0.0, 1.0, 1.0)
    # The left half sees a thing to its edge, the right half sees it whole, and so does the whole.
    parts = [Part(), left, right]
    predictions = [
        BoxPrediction((found(0.5, 0.4, 0.7, 0.6, score=0.8),)),
        BoxPrediction((found(0.5 / 0.6, 0.4, 1.0, 0.6),)),
        BoxPrediction((found(0.1 / 0.6, 0.4, 0.3 / 0.6, 0.6), found(0.0, 0.0, 0.2, 0.2, index=1))),
    ]
    joined = join_parts(predictions, parts).objects
    # What nobody else has seen is told though it is cut off.
    assert sorted(one.index for one in joined) == [0, 1]
    first = next(one for one in joined if one.index == 0)
    assert first.box == pytest.approx((0.5, 0.4, 0.7, 0.6))
    assert first.score == 0.9
    # At the image's own edge a thing is not cut off.
    edge = [BoxPrediction(()), BoxPrediction((found(0.0, 0.0, 0.2, 0.2),)), BoxPrediction(())]
    assert len(join_parts(edge, parts).objects) == 1
    assert join_parts([BoxPrediction(())], [Part()]) == BoxPrediction(())


@pytest.mark.parametrize("to", ["coco", "voc", "yolo"])
def test_boxes_go_from_format_to_format(shapes, tmp_path, capsys, to):
    assert cli(["convert", str(shapes), "--to", to, "--output", str(tmp_path / to), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["boxes"] == {"train": 22, "val": 22}
    before, after = open_boxes(shapes), open_boxes(tmp_path / to)
    assert sorted(after.labels) == sorted(before.labels)
    for name, split in before.splits.items():
        other = after.splits[name]
        for mine, theirs in zip(split.objects, other.objects, strict=True):
            for one, two in zip(mine, theirs, strict=True):
                assert one.box == pytest.approx(two.box, abs=0.51)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["convert", "SHAPES", "--to", "pdf", "--output", "OUT"], "--to is coco, voc, yolo"),
        (["convert", "nowhere", "--to", "coco", "--output", "OUT"], "nowhere"),
        (["convert", "SHAPES", "--to", "coco", "--output", "FULL"], "is not empty"),
        (["predict", "RUN", "FULL", "--coco", "nowhere.json"], "nowhere.json"),
        (["predict", "RUN", "FULL", "--coco", "x.json", "--csv"], "give one of"),
        (["predict", "RUN", "FULL", "--tile", "5"], "--tile"),
        (["predict", "DIGITS", "FULL", "--score", "0.3"], "are for detectors"),
    ],
)
def test_mistakes_are_one_sentence(
    shapes, shapes_run, digits_run, tmp_path, capsys, arguments, says
):
    full = tmp_path / "full"
    full.mkdir()
    Image.new("RGB", (20, 20)).save(full / "a.png")
    names = {
        "SHAPES": shapes,
        "RUN": shapes_run,
        "DIGITS": digits_run,
        "OUT": tmp_path / "out",
        "FULL": full,
    }
    assert cli([str(names.get(word, word)) for word in arguments]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_run_predicts_without_the_command_line(shapes, shapes_run):
    path, objects = told(shapes)
    prediction = Run.load(shapes_run).predict(path)
    assert len(prediction.objects) == len(objects)
