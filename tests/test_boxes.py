"""Images with boxes: three formats read and written, ids with gaps, and what is wrong named by file and line."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mobilenets.data.boxes import Object, flaws, open_boxes, usable, write_boxes

# Left, top, right, bottom in pixels of a 64 x 48 image, class, ignored.
OBJECTS = {
    "a": [((4, 8, 20, 40), "cat", False), ((30, 10, 60, 30), "dog", True)],
    "b": [((0, 0, 64, 48), "dog", False)],
    "empty": [],
}
# COCO's numbering has gaps.
IDS = {"cat": 17, "dog": 90}


def picture(path, size=(64, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def coco(tmp_path):
    folder = tmp_path / "coco"
    images, annotations = [], []
    for number, (name, objects) in enumerate(OBJECTS.items(), start=100):
        picture(folder / "train2017" / f"{name}.png")
        images.append({"id": number, "file_name": f"{name}.png", "width": 64, "height": 48})
        for (left, top, right, bottom), label, ignored in objects:
            annotations.append(
                {
                    "id": 7 + len(annotations),
                    "image_id": number,
                    "category_id": IDS[label],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": 5.0,
                    "iscrowd": int(ignored),
                }
            )
    categories = [{"id": number, "name": label} for label, number in IDS.items()]
    write_json(folder, images=images, annotations=annotations, categories=categories)
    return folder


def write_json(folder, **content):
    file = folder / "annotations" / "instances_train2017.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def content_of(folder):
    return json.loads((folder / "annotations" / "instances_train2017.json").read_text())


def told(source, split="train"):
    """What a source says, as OBJECTS does."""
    part = source.splits[split]
    return {
        path.stem: [(thing.box, source.labels[thing.label], thing.ignored) for thing in objects]
        for path, objects in zip(part.images.paths, part.objects, strict=True)
    }


def test_coco_with_gaps_crowds_and_empty_images(coco):
    source = open_boxes(coco)
    assert (source.format, source.labels, source.ids) == ("coco", ("cat", "dog"), (17, 90))
    assert told(source) == OBJECTS
    part = source.splits["train"]
    assert part.ids == (100, 101, 102)
    assert part.sizes == ((48, 64),) * 3
    assert part.objects[0][0].area == 5.0
    assert part.images.read(0, 3).shape == (3, 48, 64)


@pytest.mark.parametrize("to", ["coco", "voc", "yolo"])
def test_from_each_format_to_each_other(coco, tmp_path, to):
    source = open_boxes(coco)
    write_boxes(source, tmp_path / "new", to)
    again = open_boxes(tmp_path / "new")
    assert again.format == to
    flagged = {
        name: [
            (pytest.approx(box, abs=1e-3), label, ignored and to != "yolo")
            for box, label, ignored in rows
        ]
        for name, rows in OBJECTS.items()
    }
    assert told(again) == flagged
    assert again.splits["train"].sizes == source.splits["train"].sizes
    assert again.labels == source.labels
    if to == "coco":
        assert again.ids == source.ids
        assert again.splits["train"].ids == source.splits["train"].ids
    write_boxes(again, tmp_path / "back", "coco")
    assert told(open_boxes(tmp_path / "back")) == flagged


def test_images_of_one_name_keep_their_own_boxes(coco, tmp_path):
    for part in ("train", "val"):
        folder = tmp_path / "two"
        picture(folder / part / "same.png", (10 if part == "train" else 20, 10))
        image = {"id": 1, "file_name": "same.png", "width": 10, "height": 10}
        thing = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}
        file = folder / part / "_annotations.coco.json"
        file.write_text(
            json.dumps(
                {"images": [image], "annotations": [thing], "categories": [{"id": 1, "name": "x"}]}
            )
        )
    source = open_boxes(tmp_path / "two")
    assert set(source.splits) == {"train", "val"}
    write_boxes(source, tmp_path / "voc", "voc")
    again = open_boxes(tmp_path / "voc")
    widths = [again.splits[name].images.read(0, 3).shape[2] for name in ("train", "val")]
    assert widths == [10, 20]


def test_some_classes_alone(coco):
    source = open_boxes(coco).only(["dog"])
    assert (source.labels, source.ids) == (("dog",), (90,))
    assert told(source)["a"] == OBJECTS["a"][1:]
    assert len(source.splits["train"]) == 3
    with pytest.raises(ValueError, match="has none of the classes cow: it has cat, dog"):
        open_boxes(coco).only(["cow"])


def test_another_box_is_another_data_set(coco, tmp_path):
    source = open_boxes(coco)
    assert open_boxes(coco).fingerprint() == source.fingerprint()
    content = content_of(coco)
    content["annotations"][0]["bbox"][0] += 1
    write_json(coco, **content)
    assert open_boxes(coco).fingerprint() != source.fingerprint()


@pytest.mark.parametrize(
    ("box", "kind", "says"),
    [
        ((4, 4, 4, 20), "degenerate-box", "its box is 0 x 16 pixels"),
        ((20, 4, 10, 20), "degenerate-box", "ends before it begins (20, 4, 10, 20)"),
        ((70, 4, 90, 20), "degenerate-box", "lies outside the 64 x 48 image"),
        ((float("nan"), 4, 9, 20), "degenerate-box", "not made of numbers"),
        ((-9, 4, 20, 20), "box-outside", "reaches out of the 64 x 48 image"),
        ((4, 8, 20, 40), "duplicate-box", "the same box and class as"),
    ],
)
def test_flaws_are_named_and_taken_out(coco, box, kind, says):
    part = open_boxes(coco).splits["train"]
    wrong = Object(box=box, label=0, told="x.txt line 3")
    spoilt = replace(part, objects=((*part.objects[0], wrong), *part.objects[1:]))
    ((place, flaw),) = flaws(spoilt, 0)
    assert (place, flaw.kind) == (2, kind)
    assert str(flaw).startswith("x.txt line 3: ")
    assert says in str(flaw)
    good, found = usable(spoilt)
    assert found == (flaw,)
    kept = [thing.box for thing in good.objects[0]]
    assert kept == [
        *(box for box, _, _ in OBJECTS["a"]),
        *([(0, 4, 20, 20)] if kind == "box-outside" else []),
    ]


def test_a_pixel_too_many_is_rounding(coco):
    part = open_boxes(coco).splits["train"]
    near = Object(box=(-1, -1, 65, 49), label=0, told="x.txt line 3")
    spoilt = replace(part, objects=((near,), *part.objects[1:]))
    assert list(flaws(spoilt, 0)) == []
    assert usable(spoilt)[0].objects[0][0].box == (0, 0, 64, 48)


def spoil_json(change):
    def spoil(coco, tmp_path):
        content = content_of(coco)
        change(content)
        write_json(coco, **content)
        return coco

    return spoil


def no_json(coco, tmp_path):
    (coco / "annotations" / "instances_train2017.json").write_text("[1, 2")
    return coco


def spoil_xml(before, after):
    def spoil(coco, tmp_path):
        write_boxes(open_boxes(coco), tmp_path / "voc", "voc")
        file = tmp_path / "voc" / "Annotations" / "a.xml"
        text = file.read_text()
        assert before in text
        file.write_text(text.replace(before, after, 1))
        return tmp_path / "voc"

    return spoil


def no_xml(coco, tmp_path):
    write_boxes(open_boxes(coco), tmp_path / "voc", "voc")
    (tmp_path / "voc" / "Annotations" / "b.xml").unlink()
    return tmp_path / "voc"


def spoil_text(line):
    def spoil(coco, tmp_path):
        write_boxes(open_boxes(coco), tmp_path / "yolo", "yolo")
        file = tmp_path / "yolo" / "labels" / "train" / "a.txt"
        file.write_text(file.read_text() + line)
        return tmp_path / "yolo"

    return spoil


def spoil_yaml(text):
    def spoil(coco, tmp_path):
        (tmp_path / "data.yaml").write_text(text)
        return tmp_path / "data.yaml"

    return spoil


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda coco, tmp_path: tmp_path / "nothing", "there is no such folder or file"),
        (
            lambda coco, tmp_path: coco / "train2017" / "a.png",
            "give a folder, COCO's JSON or YOLO's",
        ),
        (lambda coco, tmp_path: coco / "train2017", "no boxes here: neither COCO's JSON"),
        (no_json, "instances_train2017.json"),
        (spoil_json(lambda c: c.pop("images")), "not COCO's JSON, it has no images"),
        (spoil_json(lambda c: c["annotations"][1].pop("bbox")), "not COCO's JSON ('bbox')"),
        (
            spoil_json(lambda c: c["annotations"][1].update(category_id=3)),
            "annotation 8: there is no category 3",
        ),
        (
            spoil_json(lambda c: c["annotations"][1].update(image_id=3)),
            "annotation 8: there is no image 3",
        ),
        (
            spoil_json(lambda c: c["annotations"][1].update(bbox=[1, 2, 3])),
            "annotation 8: its bbox is not four numbers ([1, 2, 3])",
        ),
        (spoil_json(lambda c: c["categories"][1].update(name="cat")), "have one id or one name"),
        (spoil_xml("</size>", ""), "a.xml line 14: not XML (mismatched tag)"),
        (spoil_xml("<height>", "<tallness>"), "a.xml line 3: not XML"),
        (spoil_xml("<xmin>5</xmin>", ""), "a.xml: not Pascal VOC's XML, it has no bndbox/xmin"),
        (spoil_xml("<xmin>5", "<xmin>five"), "a.xml line 4: could not convert"),
        (no_xml, "b.xml: there is no such annotation"),
        (spoil_text("0 0.5 0.5\n"), "a.txt line 3: not a class and four numbers (0 0.5 0.5)"),
        (spoil_text("7 0.5 0.5 0.1 0.1\n"), "a.txt line 3: there is no class 7"),
        (spoil_yaml("names: [a"), "data.yaml: not YAML"),
        (spoil_yaml("train: images"), "it has no names"),
        (spoil_yaml("names: [a]"), "it names no train, val or test images"),
        (spoil_yaml("names: [a]\ntrain: nowhere"), "nowhere is not there"),
        (spoil_yaml("names: [a]\ntrain: [x, y]"), "one folder or one list of images"),
    ],
)
def test_what_is_wrong_is_one_sentence(coco, tmp_path, spoil, says):
    where = spoil(coco, tmp_path)
    with pytest.raises(ValueError, match=r"^[^\n]+$") as raised:
        open_boxes(where)
    assert says in str(raised.value)


def test_nothing_is_written_over(coco, tmp_path):
    with pytest.raises(ValueError, match="is not empty: give another folder"):
        write_boxes(open_boxes(coco), coco, "voc")


def test_the_real_sets(shared, tmp_path):
    import tarfile

    for name in ("coco128", "bccd_voc"):
        with tarfile.open(shared / "data" / f"{name}.tar") as archive:
            archive.extractall(tmp_path, filter="data")
    coco, blood = open_boxes(tmp_path / "coco128"), open_boxes(tmp_path / "bccd")
    counts = {name: (len(part), sum(map(len, part.objects))) for name, part in coco.splits.items()}
    assert counts == {"train": (128, 929), "val": (128, 898)}
    assert (len(coco.labels), coco.ids[-1]) == (80, 90)
    assert sum(not objects for objects in coco.splits["train"].objects) == 2
    assert blood.labels == ("Platelets", "RBC", "WBC")
    assert {name: len(part) for name, part in blood.splits.items()} == {
        "train": 205,
        "val": 87,
        "test": 72,
    }
