"""Folders, Parquet files and named sets: the labels are right, or one sentence says what is not."""

import hashlib
import io
import json
import pickle
import socket
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torchvision import datasets

from mobilenets.data.images import BadImageError
from mobilenets.data.sources import data_home, open_source
from mobilenets.data.splits import ALL, ArrayImages, Source, Split, hold_out, relabel

CIFAR10 = Path(__file__).parents[2] / "shared/data/cifar10"


def grow(folder, *names):
    """Folders (a name that ends in /) and images of one pixel, whose red tells them apart."""
    for red, name in enumerate(names):
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (1, 1), (red, 0, 0)).save(path)
    return folder


def targets(source):
    return {name: split.targets.tolist() for name, split in source.splits.items()}


def reds(split):
    """Which images a split holds, by the red that `grow` and `png` gave them."""
    return [int(split.images.read(i, 3)[0, 0, 0]) for i in range(len(split))]


def refusal(where):
    """The one sentence with which a source is refused."""
    with pytest.raises(ValueError) as caught:
        open_source(where)
    message = str(caught.value)
    assert "\n" not in message
    return message


TRAIN = ("train/ant/1.png", "train/ant/2.png", "train/bee/3.png")


@pytest.mark.parametrize(
    ("names", "labels", "splits"),
    [
        (
            (*TRAIN, "val/ant/4.png", "val/bee/5.png"),
            "ant bee",
            {"train": [0, 0, 1], "val": [0, 1]},
        ),
        # The names that other tools write, and any letter case.
        (
            (*TRAIN, "validation/ant/4.png", "test/bee/5.png"),
            "ant bee",
            {"train": [0, 0, 1], "val": [0], "test": [1]},
        ),
        (
            ("Training/ant/1.png", "Training/bee/2.png", "VALID/bee/3.png"),
            "ant bee",
            {"train": [0, 1], "val": [1]},
        ),
        # Train alone: a part is held out later.
        (TRAIN, "ant bee", {"train": [0, 0, 1]}),
        # One folder of classes; images lie as deep as they like below their class.
        (("ant/1.png", "bee/x/2.png", "bee/x/y/3.png"), "ant bee", {ALL: [0, 1, 1]}),
        # Case 13: 4 classes in train, 3 in val. By position, dog would become cow.
        (
            (
                *("train/ant/1.png", "train/bee/2.png", "train/cow/3.png", "train/dog/4.png"),
                *("val/ant/5.png", "val/bee/6.png", "val/dog/7.png"),
            ),
            "ant bee cow dog",
            {"train": [0, 1, 2, 3], "val": [0, 1, 3]},
        ),
        # A class of trains next to other classes is a class, and tests are one too.
        (("car/1.png", "test/2.png", "train/3.png"), "car test train", {ALL: [0, 1, 2]}),
        # Kaggle's layout: a test folder of loose images without labels is left alone.
        ((*TRAIN, "test/1.png"), "ant bee", {"train": [0, 0, 1]}),
        # A validation folder whose classes are all empty validates nothing.
        ((*TRAIN, "val/ant/", "val/bee/"), "ant bee", {"train": [0, 0, 1]}),
        # What notebooks and macOS leave behind is no class, nor are loose files beside classes.
        (
            ("ant/1.png", "bee/2.png", ".ipynb_checkpoints/3.png", "bee/._2.png", "4.png"),
            "ant bee",
            {ALL: [0, 1]},
        ),
    ],
)
def test_folders(tmp_path, names, labels, splits):
    source = open_source(grow(tmp_path, *names))
    assert source.labels == tuple(labels.split())
    assert targets(source) == splits
    assert source.warnings == ()
    assert source.mirror
    # Each image has the target of its own folder: labels are not shuffled against images.
    for split in source.splits.values():
        for index, target in enumerate(split.targets):
            assert source.labels[target] in Path(split.images.name(index)).parts


@pytest.mark.parametrize("split", ["", "train/"])
def test_an_empty_class_keeps_its_index(tmp_path, split):
    # Case 14: without its index, cow would move from 2 to 1.
    names = [f"{split}ant/1.png", f"{split}bee/", f"{split}cow/2.png"]
    source = open_source(grow(tmp_path, *names))
    assert source.labels == ("ant", "bee", "cow")
    assert targets(source) == {"train" if split else ALL: [0, 2]}
    (warning,) = source.warnings
    assert f"{tmp_path / split / 'bee'} holds no images" in warning


@pytest.mark.parametrize(
    ("names", "where", "message"),
    [
        # Case 13, the other way round.
        ((*TRAIN, "val/ant/4.png", "val/wasp/5.png"), "val", "the class wasp is not in {}/train"),
        ((), "", "it holds no images"),
        # Classes without a single image in them.
        (("ant/", "bee/"), "", "it holds no images"),
        (("train/ant/", "train/bee/"), "train", "it holds no images"),
        (("train/", "val/ant/1.png", "val/bee/2.png"), "train", "it holds no images"),
        (("1.png", "2.png"), "", "its images are not sorted into one folder a class"),
        # Loose images in splits: train and val themselves are not two classes to tell apart.
        (("train/1.png", "val/2.png"), "train", "not sorted into one folder a class"),
        (("train/1.png", "val/ant/2.png", "val/bee/3.png"), "train", "not sorted into one folder"),
        (("val/ant/1.png", "val/bee/2.png"), "", "has val but no train folder"),
        # One of the two would be lost without a word.
        ((*TRAIN, "val/ant/4.png", "valid/bee/5.png"), "", "has both val and valid"),
        (("ant/1.png",), "", "has one class, ant: a classifier needs two"),
        (("train/ant/1.png",), "train", "has one class, ant: a classifier needs two"),
        # An archive unpacked into a folder of its own name: the right folder is one deeper.
        (("photos/train/ant/1.png", "photos/val/ant/2.png"), "", "did you mean {}/photos?"),
        (("photos/ant/1.png", "photos/bee/2.png"), "", "did you mean {}/photos?"),
    ],
)
def test_folders_refused(tmp_path, names, where, message):
    refused = refusal(grow(tmp_path, *names))
    assert refused.startswith(str(tmp_path / where))
    assert message.format(tmp_path) in refused


def test_no_such_place(tmp_path):
    assert refusal(tmp_path / "nothing").startswith(f"{tmp_path / 'nothing'}: there is no such")
    assert "digits, cifar10, cifar100" in refusal("cifar")
    archive = tmp_path / "photos.tar.gz"
    with tarfile.open(archive, "w:gz"):
        pass
    assert refusal(archive) == f"{archive} is a file: give a folder (unpack an archive first)"


def test_a_split_that_is_not_there(tmp_path):
    source = open_source(grow(tmp_path, *TRAIN))
    with pytest.raises(ValueError, match="has no split 'test': it has train"):
        source.split("test")
    assert source.split("train") is source.splits["train"]


def png(red):
    into = io.BytesIO()
    Image.new("RGB", (2, 1), (red, 0, 0)).save(into, "PNG")
    return into.getvalue()


def hub_images(reds):
    return [{"bytes": png(red), "path": f"{red}.png"} for red in reds]


def write(folder, name, columns, names=None, label="label"):
    """One shard; with `names`, the schema metadata that the Hub's `datasets` writes."""
    table = pa.table(columns)
    if names is not None:
        features = {
            "image": {"_type": "Image"},
            label: {"names": names, "_type": "ClassLabel"},
            # Nested features, which older files write as a list.
            "words": [{"dtype": "string", "_type": "Value"}],
        }
        info = {"info": {"features": features}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, folder / name, row_group_size=2)
    return folder


@pytest.mark.parametrize(
    ("columns", "names", "labels", "expected"),
    [
        # The Hub's layout, whose classes are not in alphabetical order.
        (
            {"image": hub_images(range(3)), "label": [1, 0, 1]},
            ["wasp", "ant"],
            ("wasp", "ant"),
            [1, 0, 1],
        ),
        # A class that no row has keeps its index.
        (
            {"image": hub_images(range(3)), "label": [2, 0, 2]},
            ["a", "b", "c"],
            ("a", "b", "c"),
            [2, 0, 2],
        ),
        # Plain bytes and names of classes, which are sorted.
        (
            {"jpg": [png(0), png(1), png(2)], "class": ["wasp", "ant", "wasp"]},
            None,
            ("ant", "wasp"),
            [1, 0, 1],
        ),
        # Whole numbers without names stand for themselves.
        (
            {"label": [2, 0, 2], "img": hub_images(range(3))},
            None,
            ("0", "1", "2"),
            [2, 0, 2],
        ),
        # Large binary and eight-bit labels, as other writers choose them.
        (
            {
                "image": pa.array([png(0), png(1), png(2)], pa.large_binary()),
                "labels": pa.array([1, 0, 1], pa.int8()),
            },
            None,
            ("0", "1"),
            [1, 0, 1],
        ),
    ],
)
@pytest.mark.parametrize("file", ["train-00000-of-00001.parquet", "data/train-0.parquet"])
def test_parquet(tmp_path, columns, names, labels, expected, file):
    source = open_source(write(tmp_path, file, columns, names))
    assert source.labels == labels
    assert targets(source) == {"train": expected}
    assert reds(source.splits["train"]) == [0, 1, 2]
    assert source.splits["train"].images.name(2) == f"{tmp_path} train row 2"


def test_parquet_label_columns(tmp_path):
    # CIFAR-100 on the Hub has fine and coarse labels: fine ones, by their names.
    columns = {"img": hub_images([0, 1]), "coarse_label": [0, 0], "fine_label": [1, 0]}
    source = open_source(write(tmp_path, "train.parquet", columns, ["x", "y"], "fine_label"))
    assert (source.labels, targets(source)) == (("x", "y"), {"train": [1, 0]})


def test_parquet_shards(tmp_path):
    rows = range(7)
    for shard, part in enumerate([rows[:3], rows[3:4], rows[4:]]):
        columns = {"image": hub_images(part), "label": [i % 2 for i in part]}
        # Writers differ in column order and width of integers from shard to shard.
        if shard == 1:
            columns = {"label": pa.array(columns["label"], pa.int32()), "image": columns["image"]}
        write(tmp_path, f"train-{shard:05}-of-00003.parquet", columns, ["a", "b"])
    test = {"image": hub_images([8, 9]), "label": [1, 1]}
    write(tmp_path, "validation-00000-of-00001.parquet", test, ["a", "b"])
    write(tmp_path, "test-00000-of-00001.parquet", test, ["a", "b"])
    source = open_source(tmp_path)
    assert targets(source) == {
        "test": [1, 1],
        "train": [0, 1, 0, 1, 0, 1, 0],
        "val": [1, 1],
    }
    assert reds(source.splits["train"]) == list(rows)
    picked = source.splits["train"].take([6, 0, 3])
    assert (reds(picked), picked.targets.tolist()) == ([6, 0, 3], [0, 0, 1])
    assert picked.images.name(0) == f"{tmp_path} train row 6"


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        # The split's name stands anywhere in the file's.
        (("cifar-train.parquet", "cifar-test.parquet"), {"train", "test"}),
        (("my_train_file.parquet", "my_dev_file.parquet"), {"train", "val"}),
        # One file without such a name is the whole set.
        (("photos.parquet",), {ALL}),
        (("photos-0.parquet", "photos-1.parquet"), {ALL}),
    ],
)
def test_parquet_split_names(tmp_path, files, splits):
    for file in files:
        write(tmp_path, file, {"image": hub_images([0, 1]), "label": [0, 1]})
    assert set(open_source(tmp_path).splits) == splits


def test_one_parquet_file(tmp_path):
    columns = {"image": hub_images([0, 1]), "label": [0, 1]}
    write(tmp_path, "train.parquet", columns)
    write(tmp_path, "test.parquet", columns)
    assert set(open_source(tmp_path / "test.parquet").splits) == {"test"}


TWO = hub_images([0, 1])


@pytest.mark.parametrize(
    ("columns", "names", "message"),
    [
        ({"text": ["a", "b"], "label": [0, 1]}, None, "no image column"),
        ({"image": TWO, "caption": ["a", "b"]}, None, "no label column among image, caption"),
        # Scores are no classes.
        ({"image": TWO, "label": [0.5, 1.5]}, None, "no label column"),
        # A missing label is named by its row, whatever the kind of labels.
        ({"image": TWO, "label": [0, None]}, ["a", "b"], "train row 1: None is not one of the 2"),
        ({"image": hub_images(range(3)), "label": [0, 1, None]}, None, "train row 2: None"),
        ({"image": hub_images(range(3)), "label": ["a", "b", None]}, None, "train row 2: None"),
        # Out of range, and the Hub's sign for a hidden label.
        ({"image": TWO, "label": [0, 2]}, ["a", "b"], "train row 1: 2 is not one of the 2 labels"),
        ({"image": TWO, "label": [0, -1]}, ["a", "b"], "train row 1: -1 is not one of the 2"),
        ({"image": hub_images(range(3)), "label": [0, 1, -1]}, None, "train row 2: -1"),
        ({"image": TWO, "label": ["a", "a"]}, None, "has one class"),
        (
            {"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())},
            ["a", "b"],
            "it holds no images",
        ),
    ],
)
def test_parquet_refused(tmp_path, columns, names, message):
    refused = refusal(write(tmp_path, "train-0.parquet", columns, names))
    assert refused.startswith(str(tmp_path))
    assert message in refused


@pytest.mark.parametrize(
    ("file", "columns", "message"),
    [
        # A test split without labels, or whose image column has another name.
        ("test-0.parquet", {"image": TWO}, "the test split has no column 'label'"),
        ("test-0.parquet", {"img": TWO, "label": [0, 1]}, "the test split has no column 'image'"),
        ("train-1.parquet", {"image": TWO, "label": ["a", "b"]}, "train files do not fit together"),
        ("more.parquet", {"image": TWO, "label": [0, 1]}, "name the Parquet files train-*"),
    ],
)
def test_parquet_files_that_differ(tmp_path, file, columns, message):
    write(tmp_path, "train-0.parquet", {"image": TWO, "label": [0, 1]})
    assert message in refusal(write(tmp_path, file, columns))


@pytest.mark.parametrize("left", [0, 100, -20])
def test_a_truncated_parquet_file_is_named(tmp_path, left):
    write(tmp_path, "train-0.parquet", {"image": TWO, "label": [0, 1]})
    path = tmp_path / "train-0.parquet"
    path.write_bytes(path.read_bytes()[:left])
    assert refusal(tmp_path).startswith(f"{path}: not a whole Parquet file")
    assert refusal(path).startswith(f"{path}: not a whole Parquet file")


@pytest.mark.parametrize(
    "images",
    [
        [{"bytes": png(0), "path": None}, {"bytes": None, "path": "elsewhere.png"}],
        [{"bytes": png(0), "path": None}, None],
        [png(0), None],
        [png(0), b""],
        [png(0), png(1)[:40]],
    ],
)
def test_a_bad_image_in_a_parquet_file(tmp_path, images):
    source = open_source(write(tmp_path, "train.parquet", {"image": images, "label": [0, 1]}))
    assert source.splits["train"].images.read(0, 3).shape == (3, 1, 2)
    with pytest.raises(BadImageError, match=r" train row 1: "):
        source.splits["train"].images.read(1, 3)


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="needs ../shared/data/cifar10")
def test_cifar10_in_parquet():
    source = open_source(CIFAR10)
    assert {name: len(split) for name, split in source.splits.items()} == {
        "train": 50_000,
        "test": 10_000,
    }
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    assert " ".join(source.labels) == names
    assert np.bincount(source.splits["train"].targets).tolist() == [5000] * 10
    assert np.bincount(source.splits["test"].targets).tolist() == [1000] * 10
    for index in (0, 9_999):
        assert source.splits["test"].images.read(index, 3).shape == (3, 32, 32)


def test_digits():
    source = open_source("digits")
    train, test = source.splits["train"], source.splits["test"]
    assert (len(train), len(test)) == (1438, 359)
    assert source.labels == tuple("0123456789")
    # A mirrored 2 is no 2.
    assert not source.mirror
    # A fifth of each digit, and the same one every time, here and in a year.
    counts = np.bincount(train.targets) + np.bincount(test.targets)
    assert np.abs(np.bincount(test.targets) - counts / 5).max() <= 0.5
    assert hashlib.sha256(test.images.pixels_NHWC.tobytes()).hexdigest()[:16] == "79f879f7d5c51589"
    image = test.images.read(0, 1)
    assert (image.shape, image.dtype, test.images.name(0)) == (
        (1, 8, 8),
        torch.uint8,
        "digits image 0",
    )


@pytest.mark.parametrize(
    ("stored", "channels", "expected"),
    [
        ((7,), 1, [7]),
        ((7,), 3, [7, 7, 7]),
        # Four channels: an image in memory has no transparency.
        ((7,), 4, [7, 7, 7, 255]),
        ((220, 30, 40), 3, [220, 30, 40]),
        ((220, 30, 40), 4, [220, 30, 40, 255]),
        # Luma, as images from files have it.
        ((220, 30, 40), 1, [87]),
    ],
)
def test_array_images(stored, channels, expected):
    pixels = np.broadcast_to(np.array(stored, dtype=np.uint8), (2, 4, 5, len(stored)))
    image = ArrayImages(pixels.copy(), "set").read(1, channels)
    assert image.shape == (channels, 4, 5)
    assert image.dtype == torch.uint8
    assert (image[:, 0, 0].int() - torch.tensor(expected)).abs().max() <= 1


def numbered(counts):
    """A split with so many images of each class; an image's pixel is its position."""
    classes = np.repeat(np.arange(len(counts)), counts)
    pixels = np.arange(len(classes), dtype=np.uint8).reshape(-1, 1, 1, 1)
    order = np.random.default_rng(3).permutation(len(classes))
    return Split(ArrayImages(pixels[order], "set"), classes[order].astype(np.int64))


@pytest.mark.parametrize(
    ("counts", "share", "held"),
    [
        ([50, 100, 20], 0.1, [5, 10, 2]),
        # At least one of each class that can spare it, and never the last one.
        ([3, 2, 1], 0.1, [1, 1, 0]),
        ([3, 2, 1], 0.9, [2, 1, 0]),
        # A class without images is nowhere.
        ([4, 0, 4], 0.5, [2, 0, 2]),
    ],
)
def test_hold_out(counts, share, held):
    split = numbered(counts)
    train, val = hold_out(split, share, seed=0)
    width = len(counts)
    assert np.bincount(val.targets, minlength=width).tolist() == held
    assert np.bincount(train.targets, minlength=width).tolist() == [
        a - b for a, b in zip(counts, held, strict=True)
    ]
    assert sorted(reds(train) + reds(val)) == sorted(reds(split))
    # Every image keeps its own class.
    bounds = np.cumsum(counts)
    for part in (train, val):
        assert np.searchsorted(bounds, reds(part), side="right").tolist() == part.targets.tolist()


def test_hold_out_by_seed():
    split = numbered([40, 40])
    assert reds(hold_out(split, 0.2, seed=1)[1]) == reds(hold_out(split, 0.2, seed=1)[1])
    assert reds(hold_out(split, 0.2, seed=1)[1]) != reds(hold_out(split, 0.2, seed=2)[1])
    with pytest.raises(ValueError, match="every class has only one"):
        hold_out(numbered([1, 1, 1]), 0.2, seed=0)


def labelled(labels, *splits):
    return Source(
        "photos",
        tuple(labels),
        {
            name: Split(ArrayImages(np.zeros((len(t), 1, 1, 1), np.uint8), name), np.array(t))
            for name, t in splits
        },
        mirror=False,
        warnings=("one",),
    )


def test_relabel():
    source = labelled("abc", ("train", [0, 1, 2]), ("val", [2, 2]))
    # The model knows more classes, in another order.
    known = relabel(source, ["d", "c", "b", "a"])
    assert targets(known) == {"train": [3, 2, 1], "val": [1, 1]}
    assert (known.labels, known.where, known.mirror, known.warnings) == (
        ("d", "c", "b", "a"),
        "photos",
        False,
        ("one",),
    )
    assert relabel(source, ("a", "b", "c")) is source
    # A label that no image has needs no place in the model.
    assert targets(relabel(labelled("abc", ("test", [2, 0])), ["c", "a"])) == {"test": [0, 1]}


@pytest.mark.parametrize(
    ("labels", "known", "message"),
    [
        ("abc", "ab", "photos has classes the model does not know: c; it knows a, b"),
        # A wrong data set altogether: five names and a count, not a thousand names.
        ("abcdefg", "xyzuvw", "know: a, b, c, d, e and 2 more; it knows x, y, z, u, v…"),
    ],
)
def test_relabel_names_unknown_classes(labels, known, message):
    source = labelled(labels, ("test", list(range(len(labels)))))
    with pytest.raises(ValueError) as caught:
        relabel(source, list(known))
    assert message in str(caught.value)


def test_fingerprint(tmp_path):
    first = labelled("ab", ("train", [0, 1, 0]), ("val", [1]))
    assert first.fingerprint() == labelled("ab", ("val", [1]), ("train", [0, 1, 0])).fingerprint()
    # It stands in run folders: a change of it would disown every run that exists.
    assert first.fingerprint() == "64bcba07b56ea811"
    others = [
        # Another name, order or number of labels; of targets; of splits.
        labelled("ac", ("train", [0, 1, 0]), ("val", [1])),
        labelled("ba", ("train", [0, 1, 0]), ("val", [1])),
        labelled("abc", ("train", [0, 1, 0]), ("val", [1])),
        labelled("ab", ("train", [0, 0, 1]), ("val", [1])),
        labelled("ab", ("train", [0, 1]), ("val", [0, 1])),
        labelled("ab", ("train", [0, 1, 0])),
        labelled("ab", ("train", [0, 1, 0]), ("test", [1])),
    ]
    assert len({source.fingerprint() for source in [first, *others]}) == len(others) + 1
    # The same data from another place is the same data.
    names = ("ant/1.png", "bee/2.png")
    a, b = (open_source(grow(tmp_path / place, *names)) for place in "ab")
    assert a.fingerprint() == b.fingerprint()


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("/data/sets", Path("/data/sets")),
        # Set but empty is not set.
        ("", Path.home() / ".cache" / "mobilenets"),
        (None, Path.home() / ".cache" / "mobilenets"),
    ],
)
def test_data_home(monkeypatch, setting, expected):
    monkeypatch.delenv("MOBILENETS_HOME", raising=False)
    if setting is not None:
        monkeypatch.setenv("MOBILENETS_HOME", setting)
    assert data_home() == expected


@pytest.fixture
def served(tmp_path):
    """A folder and the address under which this machine serves it."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def cifar_archive(folder, kind, labels, target_key, meta_key):
    """An archive in CIFAR's format with two images a class in train and one in test."""
    count = len(labels)
    batches = {
        "train_file": [*range(count), *reversed(range(count))],
        "test_file": list(range(count)),
    }
    entries = {
        # An image's red plane holds its class, green 100, blue 200.
        name: {
            "data": np.stack([np.repeat([t, 100, 200], 1024) for t in classes]).astype(np.uint8),
            target_key: classes,
        }
        for name, classes in batches.items()
    } | {"meta_file": {meta_key: labels}}
    md5 = {}
    with tarfile.open(folder / kind.filename, "w:gz") as archive:
        for name, entry in entries.items():
            content = pickle.dumps(entry, protocol=2)
            md5[name] = hashlib.md5(content).hexdigest()
            member = tarfile.TarInfo(f"{kind.base_folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return md5 | {"archive": hashlib.md5((folder / kind.filename).read_bytes()).hexdigest()}


@pytest.fixture
def cifar(request, monkeypatch, tmp_path, served):
    name, kind, target_key, meta_key = request.param
    folder, address = served
    labels = [f"class{index}" for index in range(3)]
    md5 = cifar_archive(folder, kind, labels, target_key, meta_key)
    monkeypatch.setenv("MOBILENETS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(kind, "url", f"{address}/{kind.filename}")
    monkeypatch.setattr(kind, "tgz_md5", md5["archive"])
    monkeypatch.setattr(kind, "train_list", [["train_file", md5["train_file"]]])
    monkeypatch.setattr(kind, "test_list", [["test_file", md5["test_file"]]])
    meta = {"filename": "meta_file", "key": meta_key, "md5": md5["meta_file"]}
    monkeypatch.setattr(kind, "meta", meta)
    return name, kind, folder


both_sets = pytest.mark.parametrize(
    "cifar",
    [
        ("cifar10", datasets.CIFAR10, "labels", "label_names"),
        ("cifar100", datasets.CIFAR100, "fine_labels", "fine_label_names"),
    ],
    indirect=True,
    ids=["cifar10", "cifar100"],
)


@both_sets
def test_download(cifar, tmp_path, monkeypatch):
    name, kind, folder = cifar
    source = open_source(name)
    assert source.labels == ("class0", "class1", "class2")
    assert targets(source) == {"train": [0, 1, 2, 2, 1, 0], "test": [0, 1, 2]}
    assert reds(source.splits["train"]) == [0, 1, 2, 2, 1, 0]
    image = source.splits["test"].images.read(1, 3)
    assert (image.shape, image[:, 31, 31].tolist()) == ((3, 32, 32), [1, 100, 200])
    assert source.splits["test"].images.name(1) == f"{name} test image 1"
    assert (tmp_path / "home" / kind.filename).is_file()
    # The second time it is there already, and no network is needed.
    (folder / kind.filename).unlink()
    monkeypatch.setattr(kind, "url", "http://127.0.0.1:1/gone")
    assert open_source(name).fingerprint() == source.fingerprint()


@both_sets
@pytest.mark.parametrize("fault", ["closed port", "not found", "damaged", "home is a file"])
def test_no_download(cifar, tmp_path, monkeypatch, fault):
    name, kind, folder = cifar
    if fault == "closed port":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        monkeypatch.setattr(kind, "url", f"http://127.0.0.1:{port}/{kind.filename}")
    elif fault == "not found":
        (folder / kind.filename).unlink()
    elif fault == "damaged":
        (folder / kind.filename).write_bytes(b"half an archive")
    else:
        (tmp_path / "home").write_text("in the way")
    message = refusal(name)
    assert message.startswith(f"{name} could not be downloaded from {kind.url} to {tmp_path}/home")
    assert message.endswith("check the network, or give a folder")
