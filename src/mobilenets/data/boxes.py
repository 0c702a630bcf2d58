"""Where images with boxes come from: COCO's JSON, Pascal VOC's XML, YOLO's text files; and into which they go.

Shapes: M objects of an image. A box is (left, top, right, bottom) in pixels of the image, the first pixel's
edge being 0.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import xml.sax
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal
from xml.sax.handler import ContentHandler
from xml.sax.saxutils import escape
from xml.sax.xmlreader import Locator

import yaml
from PIL import ExifTags, Image

from mobilenets.data.files import read_json
from mobilenets.data.images import IMAGE_SUFFIXES, BadImageError, images_below
from mobilenets.data.splits import FileImages

Format = Literal["coco", "voc", "yolo"]
# In pixels. A box that reaches out by less was rounded.
SMALLEST_BOX, NEAR = 0.1, 1.5
# A file whose shape differs from what is told by more is another image, or lies on its side.
SHAPE = 0.02
# Of EXIF's orientations, those from here on lie on their side.
_QUARTER_TURNED = 5
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class Object:
    """One thing in an image, as it is told.

    Args:
        box: left, top, right, bottom in pixels; it may be degenerate or reach out of the image.
        label: class index.
        ignored: a crowd (COCO) or difficult (VOC): it is neither searched for nor held against who finds it.
        area: of its outline where it has one, else of the box; in pixels.
        told: file and line, or the annotation's number, for messages.
    """

    box: tuple[float, float, float, float]
    label: int
    told: str
    ignored: bool = False
    area: float = 0.0

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in pixels.

        >>> Object(box=(10, 20, 40, 25), label=0, told="a.txt line 1").size
        (30, 5)
        """
        left, top, right, bottom = self.box
        return right - left, bottom - top


@dataclass(frozen=True, kw_only=True)
class BoxSplit:
    """Images and what is in them.

    Args:
        images: one file each.
        sizes: height and width of each image in pixels.
        objects: of each image; an image may have none.
        ids: what COCO's files call the images.
    """

    images: FileImages
    sizes: tuple[tuple[int, int], ...]
    objects: tuple[tuple[Object, ...], ...]
    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Sequence[int]) -> BoxSplit:
        """The images at these positions."""
        return BoxSplit(
            images=self.images.take(indices),
            sizes=tuple(self.sizes[index] for index in indices),
            objects=tuple(self.objects[index] for index in indices),
            ids=tuple(self.ids[index] for index in indices),
        )


@dataclass(frozen=True, kw_only=True)
class BoxSource:
    """A data set of images with boxes.

    Args:
        where: the path it was opened with.
        format: what its annotations are written in.
        labels: class names, in the order of their indices.
        ids: what COCO's files call the classes, which may leave numbers out; else 1, 2, 3 and so on.
        splits: `train`, `val` and `test` as they exist, or `all`.
    """

    where: str
    format: Format
    labels: tuple[str, ...]
    ids: tuple[int, ...]
    splits: Mapping[str, BoxSplit]

    def fingerprint(self) -> str:
        """A hash of labels, boxes and file names, by which a run knows its own data again."""
        digest = hashlib.sha256(json.dumps(self.labels).encode())
        for name in sorted(self.splits):
            split = self.splits[name]
            digest.update(name.encode())
            for index, objects in enumerate(split.objects):
                told = [(item.box, item.label, item.ignored) for item in objects]
                digest.update(json.dumps([split.images.key(index), told]).encode())
        return digest.hexdigest()[:16]

    def only(self, labels: Sequence[str]) -> BoxSource:
        """The same images with objects of some classes alone, in the order that is given.

        A class that it does not have gets no objects, and the number that follows the largest one.

        Raises:
            ValueError: it has none of them.
        """
        own = {label: place for place, label in enumerate(self.labels)}
        if not own.keys() & set(labels):
            raise ValueError(
                f"{self.where} has none of the classes {', '.join(labels[:5])}: it has {', '.join(self.labels[:5])}"
            )
        index = {own[label]: place for place, label in enumerate(labels) if label in own}
        splits = {
            name: replace(
                split,
                objects=tuple(
                    tuple(replace(o, label=index[o.label]) for o in objects if o.label in index)
                    for objects in split.objects
                ),
            )
            for name, split in self.splits.items()
        }
        following = count(max(self.ids) + 1)
        ids = tuple(self.ids[own[label]] if label in own else next(following) for label in labels)
        return replace(self, labels=tuple(labels), ids=ids, splits=splits)


def open_boxes(where: str | Path) -> BoxSource:
    """Open a data set of boxes: a folder with COCO's JSON, Pascal VOC's XML or YOLO's text files, or one JSON file.

    Raises:
        ValueError: one sentence that says what is wrong with it, and where.
    """
    path = Path(where)
    if not path.exists():
        raise ValueError(f"{where}: there is no such folder or file")
    if path.is_file():
        if path.suffix == ".json":
            return _open_coco(path.parent, {"all": path}, str(where))
        if path.suffix in (".yaml", ".yml"):
            return _open_yolo(path, str(where))
        raise ValueError(f"{where}: give a folder, COCO's JSON or YOLO's YAML file")
    if (path / "Annotations").is_dir():
        return _open_voc(path, str(where))
    described = [*sorted(path.glob("*.yaml")), *sorted(path.glob("*.yml"))]
    if described:
        return _open_yolo(described[0], str(where))
    files = _coco_files(path)
    if files:
        return _open_coco(path, files, str(where))
    raise ValueError(
        f"{where}: no boxes here: neither COCO's JSON (annotations/instances_*.json), nor Pascal VOC's "
        "Annotations folder, nor YOLO's YAML file"
    )


def _coco_files(folder: Path) -> dict[str, Path]:
    """JSON files by split: COCO's own layout, a folder a split, or files beside the images."""
    files = [
        *folder.glob("annotations/*.json"),
        *folder.glob("*.json"),
        *folder.glob("*/*.coco.json"),
    ]
    # COCO keeps captions and key points beside them.
    instances = [file for file in files if file.stem.startswith("instances_")]
    found: dict[str, Path] = {}
    for file in sorted(instances or files):
        place = file.parent.name if ".coco" in file.name else ""
        words = re.split(r"[^a-z]+", f"{place} {file.stem}".lower())
        name = next((_SPLITS[word] for word in words if word in _SPLITS), "all")
        if name in found:
            raise ValueError(
                f"{folder}: {found[name].name} and {file.name} are both of the {name} split"
            )
        found[name] = file
    return found


def _open_coco(folder: Path, files: Mapping[str, Path], where: str) -> BoxSource:
    contents = {name: read_json(file) for name, file in files.items()}
    first = "train" if "train" in contents else next(iter(contents))
    categories = _coco_part(
        contents["train" if "train" in contents else first], "categories", files[first]
    )
    labels = tuple(str(row["name"]) for row in categories)
    ids = tuple(int(row["id"]) for row in categories)
    if len(set(ids)) < len(ids) or len(set(labels)) < len(labels):
        raise ValueError(f"{files[first]}: two of its categories have one id or one name")
    splits = {
        name: _coco_split(
            folder, files[name], content, dict(zip(ids, range(len(ids)), strict=True))
        )
        for name, content in contents.items()
    }
    return BoxSource(where=where, format="coco", labels=labels, ids=ids, splits=splits)


def _coco_part(content: Mapping[str, Any], part: str, file: Path) -> list[dict[str, Any]]:
    rows = content.get(part)
    if not isinstance(rows, list):
        raise ValueError(f"{file}: not COCO's JSON, it has no {part}")
    return rows


def _coco_split(
    folder: Path, file: Path, content: Mapping[str, Any], index: Mapping[int, int]
) -> BoxSplit:
    found: dict[int, list[Object]] = {}
    try:
        images = {int(row["id"]): row for row in _coco_part(content, "images", file)}
        for row in _coco_part(content, "annotations", file):
            told = f"{file} annotation {row.get('id', '?')}"
            image, category = int(row["image_id"]), int(row["category_id"])
            if image not in images:
                raise ValueError(f"{told}: there is no image {image}")
            if category not in index:
                raise ValueError(f"{told}: there is no category {category}")
            found.setdefault(image, []).append(_coco_object(row, index[category], told))
        sizes = tuple((int(row["height"]), int(row["width"])) for row in images.values())
        names = [str(row["file_name"]) for row in images.values()]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: not COCO's JSON ({error})") from None
    # Splits may have images of one name: `train2017` belongs to `instances_train2017.json`.
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    places = [file.parent, folder, *sorted(folders, key=lambda path: path.name not in file.stem)]
    home = next((place for place in places if names and (place / names[0]).is_file()), folder)
    return BoxSplit(
        images=FileImages(tuple(home / name for name in names)),
        sizes=sizes,
        objects=tuple(tuple(found.get(number, ())) for number in images),
        ids=tuple(images),
    )


def _coco_object(row: Mapping[str, Any], label: int, told: str) -> Object:
    try:
        left, top, width, height = (float(value) for value in row["bbox"])
        area = float(row.get("area", width * height))
    except (TypeError, ValueError):
        raise ValueError(f"{told}: its bbox is not four numbers ({row['bbox']})") from None
    return Object(
        box=(left, top, left + width, top + height),
        label=label,
        ignored=bool(row.get("iscrowd", 0)),
        area=area,
        told=told,
    )


class _Annotation(ContentHandler):
    """Of Pascal VOC's XML the texts by their path, object by object, with the line that each begins in."""

    def __init__(self) -> None:
        super().__init__()
        self.whole: dict[str, str] = {}
        self.objects: list[tuple[int, dict[str, str]]] = []
        self._path: list[str] = []
        self._text = ""
        self._line: Callable[[], int | None] = lambda: None

    def setDocumentLocator(self, locator: Locator) -> None:  # noqa: N802 (the interface's name)
        self._line = locator.getLineNumber

    def startElement(self, name: str, attrs: Any) -> None:  # noqa: N802 (the interface's name)
        del attrs
        self._path.append(name)
        self._text = ""
        if self._path[1:] == ["object"]:
            self.objects.append((self._line() or 0, {}))

    def characters(self, content: str) -> None:
        self._text += content

    def endElement(self, name: str) -> None:  # noqa: N802 (the interface's name)
        del name
        inside = self._path[1:2] == ["object"]
        place = "/".join(self._path[2 if inside else 1 :])
        (self.objects[-1][1] if inside else self.whole).setdefault(place, self._text.strip())
        self._path.pop()
        self._text = ""


def _open_voc(folder: Path, where: str) -> BoxSource:
    lists = {
        _SPLITS[path.stem]: path
        for path in sorted(folder.glob("ImageSets/Main/*.txt"))
        if path.stem in _SPLITS
    }
    names = {split: _listed(path) for split, path in lists.items()}
    if not names:
        names = {"all": [path.stem for path in sorted((folder / "Annotations").glob("*.xml"))]}
    read = {split: [_voc_image(folder, name) for name in files] for split, files in names.items()}
    labels = tuple(
        sorted({label for rows in read.values() for _, _, objects in rows for label, _ in objects})
    )
    if not labels:
        raise ValueError(f"{where}: its annotations tell of no object")
    splits = {
        split: BoxSplit(
            images=FileImages(tuple(path for path, _, _ in rows)),
            sizes=tuple(size for _, size, _ in rows),
            objects=tuple(
                tuple(replace(thing, label=labels.index(label)) for label, thing in objects)
                for _, _, objects in rows
            ),
            ids=tuple(range(1, len(rows) + 1)),
        )
        for split, rows in read.items()
        if rows
    }
    ids = tuple(range(1, len(labels) + 1))
    return BoxSource(where=where, format="voc", labels=labels, ids=ids, splits=splits)


def _listed(path: Path) -> list[str]:
    """Names of images, one a line; lists of one class say behind each whether the class is in it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    names = (re.sub(r"\s+(-1|0|1)$", "", line.rstrip()).strip() for line in lines)
    return list(dict.fromkeys(name for name in names if name))


def _voc_image(folder: Path, name: str) -> tuple[Path, tuple[int, int], list[tuple[str, Object]]]:
    file = folder / "Annotations" / f"{name}.xml"
    handler = _Annotation()
    try:
        # By default it reads no entity of another file, and stops where entities grow out of bounds.
        xml.sax.parseString(file.read_bytes(), handler)  # noqa: S317
        height, width = (_pixels(handler.whole, side, file) for side in ("height", "width"))
        objects = [_voc_object(file, line, texts) for line, texts in handler.objects]
    except FileNotFoundError:
        raise ValueError(f"{file}: there is no such annotation") from None
    except xml.sax.SAXParseException as error:
        raise ValueError(
            f"{file} line {error.getLineNumber()}: not XML ({error.getMessage()})"
        ) from None
    except KeyError as error:
        raise ValueError(f"{file}: not Pascal VOC's XML, it has no {error.args[0]}") from None
    # Tools write a name with or without its ending, or one that the file does not have any more.
    written = Path(handler.whole.get("filename", name)).name
    names = [written, *(f"{name}{suffix}" for suffix in sorted(IMAGE_SUFFIXES))]
    pictures = folder / "JPEGImages"
    path = next((pictures / n for n in names if (pictures / n).is_file()), pictures / written)
    # Some tools write no size.
    size = (height, width) if height > 0 and width > 0 else size_of(path)
    return path, size, objects


def _pixels(texts: Mapping[str, str], side: str, file: Path) -> int:
    text = texts[f"size/{side}"]
    try:
        return round(float(text))
    except ValueError:
        raise ValueError(f"{file}: its {side} is no number ({text})") from None


def _voc_object(file: Path, line: int, texts: Mapping[str, str]) -> tuple[str, Object]:
    told = f"{file} line {line}"
    try:
        # The pixels at the edges are inside, and the first one is 1.
        left, top = (float(texts[f"bndbox/{side}"]) - 1 for side in ("xmin", "ymin"))
        right, bottom = (float(texts[f"bndbox/{side}"]) for side in ("xmax", "ymax"))
    except ValueError as error:
        raise ValueError(f"{told}: {error}") from None
    thing = Object(
        box=(left, top, right, bottom),
        label=0,
        ignored=texts.get("difficult", "0") == "1",
        area=(right - left) * (bottom - top),
        told=told,
    )
    return texts["name"], thing


def _open_yolo(file: Path, where: str) -> BoxSource:
    try:
        described = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not YAML ({' '.join(str(error).split())})") from None
    names = described.get("names") if isinstance(described, dict) else None
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{file}: not YOLO's YAML, it has no names")
    labels = tuple(map(str, names))
    home = Path(described.get("path") or ".")
    home = home if home.is_absolute() else file.parent / home
    splits: dict[str, BoxSplit] = {}
    for word, split in _SPLITS.items():
        place = described.get(word)
        if not place or split in splits:
            continue
        if not isinstance(place, str):
            raise ValueError(f"{file}: {word} is one folder or one list of images, not {place!r}")
        images = _yolo_images(home, place, file)
        objects = [_yolo_objects(path, len(labels)) for path in images]
        splits[split] = BoxSplit(
            images=FileImages(tuple(images)),
            sizes=tuple(size for size, _ in objects),
            objects=tuple(found for _, found in objects),
            ids=tuple(range(1, len(images) + 1)),
        )
    if not splits:
        raise ValueError(f"{file}: it names no train, val or test images")
    ids = tuple(range(1, len(labels) + 1))
    return BoxSource(where=where, format="yolo", labels=labels, ids=ids, splits=splits)


def _yolo_images(home: Path, place: str, file: Path) -> list[Path]:
    # Some tools write their places as seen from another folder.
    found = next((path for path in (home / place, file.parent / place) if path.exists()), None)
    if found is None:
        raise ValueError(f"{file}: {home / place} is not there")
    if found.is_file():
        lines = found.read_text(encoding="utf-8").split("\n")
        return [home / line.strip() for line in lines if line.strip()]
    return list(images_below(found))


def with_unknown(split: BoxSplit, paths: Sequence[Path]) -> BoxSplit:
    """A split with more images, of which nobody says what is in them: all of each is ignored."""
    sizes = tuple(_size_or_one(path) for path in paths)
    whole = [
        Object(
            box=(0, 0, width, height), label=0, ignored=True, area=width * height, told=str(path)
        )
        for path, (height, width) in zip(paths, sizes, strict=True)
    ]
    last = max(split.ids, default=0)
    return BoxSplit(
        images=FileImages((*split.images.paths, *paths)),
        sizes=(*split.sizes, *sizes),
        objects=(*split.objects, *((thing,) for thing in whole)),
        ids=(*split.ids, *range(last + 1, last + 1 + len(paths))),
    )


def _size_or_one(image: Path) -> tuple[int, int]:
    """Height and width; who reads the image tells what is wrong with it, or leaves it out."""
    try:
        return size_of(image)
    except BadImageError:
        return 1, 1


def _yolo_objects(image: Path, classes: int) -> tuple[tuple[int, int], tuple[Object, ...]]:
    height, width = _size_or_one(image)
    parts = list(image.parts)
    # The last folder of that name holds the images, and one beside it the text files.
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    file = Path(*parts).with_suffix(".txt")
    if not file.is_file():
        return (height, width), ()
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        told = f"{file} line {number}"
        found.append(_yolo_object(line, (height, width), classes, told))
    return (height, width), tuple(found)


def _yolo_object(line: str, size: tuple[int, int], classes: int, told: str) -> Object:
    height, width = size
    try:
        label, *numbers = (float(word) for word in line.split())
    except ValueError:
        numbers = []
    # Four are the middle and the size; six or more are the corners of an outline.
    if len(numbers) < 4 or len(numbers) % 2:
        raise ValueError(f"{told}: not a class and four numbers ({line.strip()})")
    if not 0 <= label < classes or label != int(label):
        raise ValueError(f"{told}: there is no class {line.split()[0]}")
    if len(numbers) == 4:
        x, y, across, high = numbers
        ends = (x - across / 2, y - high / 2, x + across / 2, y + high / 2)
    else:
        xs, ys = numbers[0::2], numbers[1::2]
        ends = (min(xs), min(ys), max(xs), max(ys))
    left, right = (end * width for end in ends[0::2])
    top, bottom = (end * height for end in ends[1::2])
    return Object(
        box=(left, top, right, bottom),
        label=int(label),
        area=(right - left) * (bottom - top),
        told=told,
    )


def size_of(image: Path) -> tuple[int, int]:
    """Height and width of an image file as a person sees it.

    Raises:
        BadImageError: it is missing or can't be read.
    """
    try:
        with Image.open(image) as opened:
            width, height = opened.size
            turned = opened.getexif().get(ExifTags.Base.Orientation, 1) >= _QUARTER_TURNED
    except FileNotFoundError:
        raise BadImageError(f"{image}: there is no such image") from None
    # What is damaged is told in full by who reads all of it.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImageError(f"{image}: not an image that can be read ({reason})") from None
    return (width, height) if turned else (height, width)


def same_shape(told: tuple[int, int], found: tuple[int, int]) -> bool:
    """Whether two sizes (height, width) are those of one image, perhaps scaled.

    >>> same_shape((480, 640), (240, 320)), same_shape((480, 640), (640, 480))
    (True, False)
    """
    return abs(told[1] * found[0] / (told[0] * found[1]) - 1) <= SHAPE


@dataclass(frozen=True, kw_only=True)
class Flaw:
    """Something wrong with one object's box."""

    kind: Literal["degenerate-box", "box-outside", "duplicate-box"]
    detail: str
    told: str

    def __str__(self) -> str:
        return f"{self.told}: {self.detail}"


def flaws(split: BoxSplit, index: int) -> Iterator[tuple[int, Flaw]]:
    """What is wrong with the boxes of one image, by their place among its objects."""
    height, width = split.sizes[index]
    seen: dict[tuple[object, ...], str] = {}
    for place, thing in enumerate(split.objects[index]):
        across, high = thing.size
        shown = ", ".join(f"{side:g}" for side in thing.box)
        left, top, right, bottom = clipped(thing.box, (height, width))
        if not all(math.isfinite(side) for side in thing.box):
            kind, detail = "degenerate-box", f"its box is not made of numbers ({shown})"
        elif across < 0 or high < 0:
            kind, detail = "degenerate-box", f"its box ends before it begins ({shown})"
        elif min(across, high) < SMALLEST_BOX:
            kind, detail = "degenerate-box", f"its box is {across:g} x {high:g} pixels"
        elif min(right - left, bottom - top) < SMALLEST_BOX:
            kind, detail = (
                "degenerate-box",
                f"its box ({shown}) lies outside the {width} x {height} image",
            )
        elif max(-thing.box[0], -thing.box[1], thing.box[2] - width, thing.box[3] - height) > NEAR:
            kind, detail = (
                "box-outside",
                f"its box ({shown}) reaches out of the {width} x {height} image",
            )
        elif (thing.box, thing.label) in seen:
            first = seen[thing.box, thing.label]
            kind, detail = "duplicate-box", f"the same box and class as {first}"
        else:
            seen[thing.box, thing.label] = thing.told
            continue
        yield place, Flaw(kind=kind, detail=detail, told=thing.told)  # type: ignore[arg-type]


def usable(split: BoxSplit) -> tuple[BoxSplit, tuple[Flaw, ...]]:
    """The same with boxes cut to the image, without those that are degenerate or told twice; and what was wrong."""
    objects: list[tuple[Object, ...]] = []
    found: list[Flaw] = []
    for index, (size, things) in enumerate(zip(split.sizes, split.objects, strict=True)):
        wrong = dict(flaws(split, index))
        found += wrong.values()
        objects.append(
            tuple(
                replace(thing, box=clipped(thing.box, size))
                for place, thing in enumerate(things)
                if place not in wrong or wrong[place].kind == "box-outside"
            )
        )
    return replace(split, objects=tuple(objects)), tuple(found)


def clipped(
    box: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """The part of a box that lies in an image of height and width.

    >>> clipped((-5, 10, 700, 20), (480, 640))
    (0, 10, 640, 20)
    """
    height, width = size
    left, top, right, bottom = box
    return (
        min(max(left, 0), width),
        min(max(top, 0), height),
        max(min(right, width), 0),
        max(min(bottom, height), 0),
    )


def write_boxes(source: BoxSource, folder: Path, to: Format) -> None:
    """Write a data set in another format, whole or not at all, its images beside the annotations as links or copies.

    COCO keeps all that is told; Pascal VOC rounds to whole pixels, and YOLO has no flags.

    Raises:
        ValueError: the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: give another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".convert-") as aside:
        written = Path(aside) / "data"
        written.mkdir()
        _WRITERS[to](source, written)
        if folder.exists():
            folder.rmdir()
        written.rename(folder)


def _write_coco(source: BoxSource, folder: Path) -> None:
    (folder / "annotations").mkdir()
    for name, split in source.splits.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, path in enumerate(_placed(split, folder / name)):
            height, width = split.sizes[index]
            number = split.ids[index]
            images.append({"id": number, "file_name": path.name, "height": height, "width": width})
            for thing in split.objects[index]:
                left, top, *_ = thing.box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": source.ids[thing.label],
                        "bbox": [left, top, *thing.size],
                        "area": thing.area,
                        "iscrowd": int(thing.ignored),
                    }
                )
        pairs = zip(source.ids, source.labels, strict=True)
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number, "name": label} for number, label in pairs],
        }
        file = folder / "annotations" / f"instances_{name}.json"
        file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _write_voc(source: BoxSource, folder: Path) -> None:
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for name, split in source.splits.items():
        names = []
        for index, path in enumerate(_placed(split, folder / "JPEGImages")):
            height, width = split.sizes[index]
            names.append(path.stem)
            lines = [
                "<annotation>",
                f"  <filename>{escape(path.name)}</filename>",
                f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
            ]
            for thing in split.objects[index]:
                left, top, right, bottom = (round(side) for side in thing.box)
                # Thinner than a pixel: no pixel at all would be no box.
                right, bottom = max(right, left + 1), max(bottom, top + 1)
                lines += [
                    "  <object>",
                    f"    <name>{escape(source.labels[thing.label])}</name>",
                    f"    <difficult>{int(thing.ignored)}</difficult>",
                    f"    <bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
                    f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>",
                    "  </object>",
                ]
            file = folder / "Annotations" / f"{path.stem}.xml"
            file.write_text("\n".join([*lines, "</annotation>", ""]), encoding="utf-8")
        if name != "all":
            lists = folder / "ImageSets" / "Main" / f"{name}.txt"
            lists.write_text("".join(f"{stem}\n" for stem in names), encoding="utf-8")


def _write_yolo(source: BoxSource, folder: Path) -> None:
    described: dict[str, Any] = {"path": ".", "names": list(source.labels)}
    for name, split in source.splits.items():
        # One part alone is there to be trained on.
        described["train" if name == "all" else name] = f"images/{name}"
        texts = folder / "labels" / name
        texts.mkdir(parents=True)
        for index, path in enumerate(_placed(split, folder / "images" / name)):
            height, width = split.sizes[index]
            lines = []
            for thing in split.objects[index]:
                left, top, right, bottom = thing.box
                middle = ((left + right) / 2 / width, (top + bottom) / 2 / height)
                size = ((right - left) / width, (bottom - top) / height)
                numbers = " ".join(f"{share:.6f}" for share in (*middle, *size))
                lines.append(f"{thing.label} {numbers}\n")
            (texts / f"{path.stem}.txt").write_text("".join(lines), encoding="utf-8")
    text = yaml.safe_dump(described, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")


_WRITERS: Mapping[Format, Callable[[BoxSource, Path], None]] = {
    "coco": _write_coco,
    "voc": _write_voc,
    "yolo": _write_yolo,
}


def _placed(split: BoxSplit, folder: Path) -> Iterator[Path]:
    """Each image in a folder, under a name of its own, which its annotation has too."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = {path.stem for path in folder.iterdir()}
    for path in split.images.paths:
        numbered = (f"{path.stem}-{number}" for number in count(1))
        name = next(name for name in chain([path.stem], numbered) if name not in taken)
        taken.add(name)
        place = folder / f"{name}{path.suffix}"
        try:
            os.link(path, place)
        # Across disks, or where the system has no links.
        except OSError:
            shutil.copyfile(path, place)
        yield place
