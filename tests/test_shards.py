"""Shards: written, read from any number by any number of workers, and from a server that fails."""

import http.server
import io
import json
import re
import tarfile
import time
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file

from conftest import served
from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.cli.main import run as cli
from mobilenets.data.loaders import Order, PhotoLoader, Shard, make_loader
from mobilenets.data.shards import store
from mobilenets.data.shards.images import ShardImages, open_shards
from mobilenets.data.shards.store import ShardError
from mobilenets.data.shards.write import Choices, write_shards
from mobilenets.data.sources import open_source
from mobilenets.data.transforms import Distortion

SMALL = Preprocessing(height=16, width=16, channels="L", mean=(0.5,), std=(0.5,))
LAYOUTS = ("webdataset", "parquet")


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """Shards are kept in a folder of the test's own, and nobody waits long."""
    monkeypatch.setenv(store.CACHE, str(tmp_path / "kept"))
    monkeypatch.setattr(store, "WAIT", 0.001)
    return tmp_path / "kept"


def some_digits():
    """700 images to train on, 100 to test on."""
    source = open_source("digits")
    splits = {
        name: source.splits[name].take(range(count))
        for name, count in (("train", 700), ("test", 100))
    }
    return replace(source, splits=splits)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Digits as a number of shards of a layout."""
    folder = tmp_path_factory.mktemp("digits")

    def write(layout, count):
        place = folder / f"{layout}-{count}"
        if not place.exists():
            size = 1e9
            if count > 1:
                one = open_source(str(write(layout, 1))).splits["train"].images
                beside = 3.5 * 512 if layout == "webdataset" else 0
                size = sum(one.index.sizes[one.rows] + beside) / (count - 0.5)
            written = write_shards(some_digits(), place, Choices(layout, size))
            assert written.splits()["train"]["shards"] == count
        return place

    return write


def pixels_of(split):
    """How often each image is there, by its pixels and class."""
    images = split.images
    return Counter(
        (images.read(i, 1).numpy().tobytes(), int(target)) for i, target in enumerate(split.targets)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shards_hold_what_was_written(digits, layout):
    source, shards = some_digits(), open_source(str(digits(layout, 3)))
    assert shards.labels == source.labels
    assert shards.mirror is source.mirror is False
    for name, split in source.splits.items():
        assert pixels_of(shards.splits[name]) == pixels_of(split)


# PyTorch warns of more workers than cores.
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("layout", "count", "workers"),
    [*product(["webdataset"], (1, 3, 7), (1, 2, 5)), ("parquet", 3, 2), ("parquet", 1, 5)],
)
def test_any_shards_with_any_workers(digits, layout, count, workers):
    """Evaluation sees every image once; training goes on from the middle as it would have."""
    split = open_source(str(digits(layout, count))).splits["train"]

    def loader(workers, distortion=None):
        return PhotoLoader(split, SMALL, 128, distortion, 3, workers, window=2)

    rows = torch.cat([batch.rows_N for batch in loader(workers).batches()])
    assert rows.tolist() == list(range(len(split)))

    moved = Distortion(shift=2)
    whole = list(loader(workers, moved).batches(epoch=2))
    assert sorted(torch.cat([b.rows_N for b in whole]).tolist()) == list(range(len(split)))
    # Another number of workers, and two processes in place of one.
    rest = [list(loader(6 - workers, moved).batches(2, 3, Shard(rank, 2))) for rank in (0, 1)]
    assert len(rest[0]) == len(rest[1]) == len(whole) - 3
    for left, *parts in zip(whole[3:], *rest, strict=True):
        for rank, part in enumerate(parts):
            assert torch.equal(part.images_NCHW, left.images_NCHW[rank::2])
            assert torch.equal(part.targets_N, left.targets_N[rank::2])


def test_order_goes_through_windows_of_shards():
    shards_N = torch.arange(10).repeat_interleave(30)
    order = Order(300, 16, 0, shuffled=True, shards_N=shards_N, window=4)
    epochs = [torch.cat(list(order.rows(epoch))) for epoch in (0, 1)]
    for rows in epochs:
        assert sorted(rows.tolist()) == list(range(300))
        assert [len(set(shards_N[part].tolist())) for part in torch.split(rows, 120)] == [4, 4, 2]
        # Within a window images of its shards lie mixed: shards change at three of four places.
        assert (shards_N[rows][1:] != shards_N[rows][:-1]).float().mean() > 0.6
    assert not torch.equal(*epochs)
    # No more shards than a window: the order of images that lie in none.
    whole = Order(300, 16, 0, shuffled=True, shards_N=shards_N, window=10)
    plain = Order(300, 16, 0, shuffled=True)
    assert torch.equal(torch.cat(list(whole.rows(1))), torch.cat(list(plain.rows(1))))


class Flaky(http.server.ThreadingHTTPServer):
    """Serves a folder; the answer to each path fails as `failures` says, one after the other."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.failures, self.asked, self.ranges = folder, {}, Counter(), True

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        server, name = self.server, self.path.lstrip("/")
        path = server.folder / name
        if not path.is_file():
            self.send_error(404)
            return
        server.asked[name] += body
        failures = server.failures.get(name, [])
        failure = failures.pop(0) if body and failures else None
        if failure == 503:
            self.send_error(503)
            return
        if failure == "reset":
            self.close_connection = True
            return
        content = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        part = content
        if wanted and server.ranges:
            part = content[int(wanted[1]) : int(wanted[2]) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {wanted[1]}-{wanted[2]}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if body:
            if failure == "truncated":
                part = part[: len(part) // 2]
                self.close_connection = True
            self.wfile.write(part if failure != "damaged" else b"\0" * len(part))

    def log_message(self, *_):
        pass


@pytest.fixture
def server(digits):
    with served(Flaky(digits("webdataset", 3))) as made:
        yield made


TRAIN = ["--model", "0.25-8-s4-shallow", "--epochs", "1", "--set", "batch_size=256", "--json"]


def last(folder):
    return load_file(folder / "last" / "model.safetensors")


# Resets, 503 and answers that break off, each at several shards: the run ends as from a folder.
@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_fails_is_asked_again(server, digits, tmp_path, monkeypatch, capsys, ranges):
    monkeypatch.setattr(store, "BLOCK", 200_000)
    server.ranges = ranges
    names = sorted(path.name for path in server.folder.glob("train-*.tar"))
    server.failures = {
        names[0]: ["reset", 503, "truncated"],
        names[1]: ["truncated", "reset"],
        names[2]: [503, 503, 503, 503],
        "shards.json": [503],
    }
    from_server = ["train", server.address, *TRAIN, "--output", str(tmp_path / "far")]
    assert cli(from_server) == 0
    assert not any(failures for failures in server.failures.values())
    assert cli(["train", str(server.folder), *TRAIN, "--output", str(tmp_path / "near")]) == 0
    far, near = last(tmp_path / "far"), last(tmp_path / "near")
    assert all(torch.equal(far[name], near[name]) for name in near)
    # What was fetched is not fetched again, also by another verb.
    before = +server.asked
    assert cli(["evaluate", str(tmp_path / "far"), server.address, "--json"]) == 0
    after = server.asked - before
    assert set(after) <= {"shards.json", "shards.arrow", "test-000000-of-000001.tar"}


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ("truncated", "train-000001-of-000003.tar did not come in 5 attempts"),
        (503, "train-000001-of-000003.tar did not come in 5 attempts"),
        ("damaged", "train-000001-of-000003.tar is not the shard that was written: its SHA-256"),
    ],
)
def test_a_shard_that_stays_broken_is_named(server, tmp_path, capsys, failure, said):
    server.failures = {"train-000001-of-000003.tar": [failure] * 20}
    assert cli(["train", server.address, *TRAIN, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


# Images that stay on disk are read by processes of their own; what is wrong comes from there too.
def test_readers_fetch_ahead_and_name_what_is_broken(server, kept):
    split = open_source(server.address).splits["train"]
    loader = PhotoLoader(split, SMALL, 64, Distortion(), 0, 2, window=1)
    assert sum(len(batch) for batch in loader.batches(epoch=1)) == len(split)
    assert len(list(kept.glob("[!.]*.tar"))) == 3
    for path in kept.glob("[!.]*.tar"):
        path.unlink()
    server.failures = {"train-000002-of-000003.tar": [503] * 99}
    with pytest.raises(ValueError, match=r"train-000002-of-000003\.tar did not come"):
        list(PhotoLoader(split, SMALL, 64, Distortion(), 0, 2, window=1).batches(epoch=1))


def test_room_is_kept(server, kept, monkeypatch):
    monkeypatch.setenv(store.ROOM, "0.0008")
    split = open_source(server.address).splits["train"]
    loader = PhotoLoader(split, SMALL, 64, Distortion(), 0, 1, window=1)
    assert sum(len(batch) for batch in loader.batches(epoch=1)) == len(split)
    waited = time.monotonic() + 20
    while len(list(kept.glob("[!.]*.tar"))) == 3 and time.monotonic() < waited:
        time.sleep(0.01)
    assert len(list(kept.glob("[!.]*.tar"))) < 3
    monkeypatch.setenv(store.ROOM, "much")
    with pytest.raises(ValueError, match="MOBILENETS_SHARDS_GB is a number of gigabytes"):
        open_source(server.address)


# As S3 and its like: fsspec's bucket in memory, by its folder and by a star.
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bucket_is_read_and_lists_its_shards(digits, layout):
    bucket = fsspec.filesystem("memory")
    for path in digits(layout, 3).iterdir():
        bucket.pipe(f"/bucket-{layout}/{path.name}", path.read_bytes())
    suffix = "tar" if layout == "webdataset" else "parquet"
    for where in (f"memory://bucket-{layout}", f"memory://bucket-{layout}/*.{suffix}"):
        shards = open_source(where)
        assert pixels_of(shards.splits["train"]) == pixels_of(some_digits().splits["train"])
    with pytest.raises(ValueError, match="there is no such shard"):
        open_source("memory://bucket-of-nobody/*.tar")


def tar_of(path, samples):
    with tarfile.open(path, "w") as tar:
        for name, content in samples:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def jpeg(shade):
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (shade, 0, 0)).save(file, "JPEG")
    return file.getvalue()


# As ImageNet lies on the Hub: JSON beside each image, several suffixes, numbers that names stand for.
def test_shards_of_others_are_read_once(tmp_path, kept):
    for number in range(3):
        samples = []
        for row in range(4):
            key = f"n0{row % 2}/image_{number}{row}"
            samples += [(f"{key}.jpg", jpeg(60 * row))]
            samples += [(f"{key}.json", json.dumps({"label": row % 2, "width": 20}).encode())]
        tar_of(tmp_path / f"set-train-{number:04}.tar", [*samples, ("._set", b"")])
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    source = open_source(f"{tmp_path}/set-train-{{0000..0002}}.tar")
    assert source.labels == ("cat", "dog")
    train = source.splits["train"]
    assert train.targets.tolist() == [0, 1] * 6
    assert train.images.name(5) == f"{tmp_path}/set-train-0001.tar: n01/image_11"
    assert train.images.read(3, 3)[0].float().mean() == pytest.approx(180, abs=2)
    assert source.fingerprint() == open_source(f"{tmp_path}/set-train-*.tar").fingerprint()
    # Each image is decoded once, and that is known the next time.
    assert not train.images.checked
    make_loader(train, Preprocessing(height=128, width=128), 4, what="images")
    assert train.images.checked
    assert open_source(str(tmp_path)).splits["train"].images.checked


def test_parquet_of_others(tmp_path):
    """Too large for memory, as a pattern says: read row by row from what is laid out beside."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for number in range(2):
        rows = [{"bytes": jpeg(80 * row), "path": None} for row in range(3)]
        named = pa.array(["cat", "dog", "cat"]).dictionary_encode()
        table = pa.table({"id": [1, 2, 3], "img": pa.array(rows, image), "label": named})
        parquet.write_table(table, tmp_path / f"train-{number}.parquet")
    source = open_source(f"{tmp_path}/train-*.parquet")
    assert source.labels == ("cat", "dog")
    assert source.splits["train"].targets.tolist() == [0, 1, 0, 0, 1, 0]
    assert source.splits["train"].images.read(5, 3)[0].float().mean() == pytest.approx(160, abs=2)


def test_writing_goes_on_where_it_ended(tmp_path):
    folder = tmp_path / "photos"
    for row in range(40):
        place = folder / ("a" if row % 2 else "b")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{row}.jpg").write_bytes(jpeg(row * 6))
    whole = (folder / "a" / "39.jpg").read_bytes()
    (folder / "a" / "39.jpg").write_bytes(whole[:300])
    command = ["shard", str(folder), "--size", "20kB", "--output", str(tmp_path / "out")]
    assert cli([*command, "--threads", "1"]) == 2
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert done
    (folder / "a" / "39.jpg").write_bytes(whole)
    assert cli(command) == 0
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert done.items() < after.items()
    assert not list((tmp_path / "out").glob(".*"))
    assert len(open_source(str(tmp_path / "out")).splits["all"]) == 40
    # Bytes stay as they are.
    split = open_source(str(tmp_path / "out")).splits["all"]
    assert whole in [split.images.encoded(index) for index in range(40)]


def test_images_are_made_smaller_if_asked(tmp_path, capsys):
    for name, size in (("large", (90, 60)), ("small", (30, 20))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for row in range(2):
            Image.new("RGB", size, (10, 200, row)).save(tmp_path / "photos" / name / f"{row}.png")
    command = ["shard", str(tmp_path / "photos"), "--to", "parquet", "--resize", "32"]
    assert cli([*command, "--output", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["all"]["images"] == 4
    split = open_source(str(tmp_path / "out")).splits["all"]
    shapes = {(int(t), tuple(split.images.read(i, 3).shape)) for i, t in enumerate(split.targets)}
    assert shapes == {(0, (3, 32, 48)), (1, (3, 20, 30))}


def test_a_bad_image_is_left_out_if_asked(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for row in range(3):
            (tmp_path / "photos" / name / f"{row}.jpg").write_bytes(jpeg(row))
    (tmp_path / "photos" / "b" / "1.jpg").write_text("no image")
    command = ["shard", str(tmp_path / "photos"), "--output", str(tmp_path / "out")]
    assert cli(command) == 2
    assert "1.jpg: not an image" in capsys.readouterr().err
    assert cli([*command, "--on-bad-image", "skip"]) == 0
    assert "left out" in capsys.readouterr().err
    assert np.bincount(open_source(str(tmp_path / "out")).splits["all"].targets).tolist() == [3, 2]


def test_shards_that_changed_are_refused(digits, tmp_path, capsys):
    whole = digits("webdataset", 3)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in whole.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    short = copy / "train-000001-of-000003.tar"
    short.write_bytes(short.read_bytes()[:5000])
    split = open_shards(copy).splits["train"]
    assert isinstance(split.images, ShardImages)
    with pytest.raises(ShardError, match=r"train-000001-of-000003.tar has 5,000 bytes, and"):
        pixels_of(split)
    short.unlink()
    with pytest.raises(ShardError, match="there is no such shard"):
        pixels_of(open_shards(copy).splits["train"])
    manifest = copy / "shards.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(ValueError, match="another version"):
        open_shards(copy)
    manifest.write_text("{}")
    with pytest.raises(ValueError, match=r"shards\.json is damaged"):
        open_shards(copy)
    # A stranger's manifest names files of its own folder only.
    told = json.loads((whole / "shards.json").read_text())
    told["shards"][0]["name"] = "../../secret.tar"
    manifest.write_text(json.dumps(told))
    assert Path(open_shards(copy).splits["test"].images.store.files[0].address).parent == copy


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("https://example.org/train-*.tar", "a web server does not list its files"),
        ("{folder}/train-{{0..2.tar", "there is no such shard|a brace is not closed"),
        ("{folder}/none-{{0..2}}.tar", "none-0.tar: there is no such shard"),
        ("{folder}/x.tar", "not a whole tar file"),
        ("{folder}/y.tar", "y.tar: a tells no class: it needs a .cls"),
        ("{folder}/z.tar", "z.tar: a has no image among cls"),
        ("nosuch://bucket/train.tar", "nosuch"),
    ],
)
def test_what_is_no_shard_is_said(tmp_path, where, said):
    (tmp_path / "x.tar").write_bytes(b"no tar" * 400)
    tar_of(tmp_path / "y.tar", [("a.jpg", jpeg(1))])
    tar_of(tmp_path / "z.tar", [("a.cls", b"1")])
    with pytest.raises(ValueError, match=said) as error:
        open_source(where.format(folder=tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--to", "zip"], "--to is webdataset or parquet, not 'zip'"),
        (["--size", "large"], "--size must be a number above 0"),
        (["--output", "{here}"], "holds no shards|is not empty"),
    ],
)
def test_wrong_choices_of_shard(tmp_path, capsys, options, said):
    (tmp_path / "letter.txt").write_text("mine")
    given = [option.format(here=tmp_path) for option in options]
    if "--output" not in given:
        given += ["--output", str(tmp_path / "out")]
    assert cli(["shard", "digits", *given]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert (tmp_path / "letter.txt").read_text() == "mine"


# The issue's own case: CIFAR-10 whole, at the size of photos.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("count", [1, 3, 7])
def test_cifar_from_shards(shared, tmp_path, count):
    source = open_source(str(shared / "data/cifar10"))
    written = write_shards(source, tmp_path / "out", Choices("webdataset", 128.5e6 / (count - 0.4)))
    assert written.splits()["train"]["shards"] == count
    split = open_source(str(tmp_path / "out")).splits["train"]
    how = Preprocessing(height=32, width=32)
    for workers in (1, 2, 5):
        rows = torch.cat(
            [b.rows_N for b in PhotoLoader(split, how, 256, workers=workers).batches()]
        )
        assert rows.tolist() == list(range(50_000))
        whole = PhotoLoader(split, how, 256, Distortion(), 0, workers, window=2)
        left = PhotoLoader(split, how, 256, Distortion(), 0, 6 - workers, window=2)
        after = [batch for place, batch in enumerate(whole.batches(1)) if place >= 100]
        for one, two in zip(after, left.batches(1, 100), strict=True):
            assert torch.equal(one.images_NCHW, two.images_NCHW)
            assert torch.equal(one.targets_N, two.targets_N)
