"""The doctor: what is planted is found, what is clean stays clean, and nothing is ever lost."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mobilenets import MobileNetSpec, Run, tasks
from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.cli.main import run as cli
from mobilenets.data import doctor, quarantine
from mobilenets.data.duplicates import find_copies, hash_views, near_pairs, shrink
from mobilenets.data.images import images_below
from mobilenets.data.sources import open_source
from mobilenets.tasks.classification import plausibility
from mobilenets.tasks.classification.doctor import check
from mobilenets.tasks.classification.plausibility import judge
from mobilenets.training.checkpoint import write_weights
from mobilenets.training.recipe import Recipe
from mobilenets.web import doctor as page_module
from mobilenets.web.doctor import write_page


def picture(seed, size=(256, 192)):
    """Soft random colours: no two alike, and nothing like a photo."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def jpeg(image, quality=90, **more):
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=quality, **more)
    return encoded.getvalue()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Image.Image):
        content.save(path)
    else:
        path.write_bytes(content)
    return path


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def bomb():
    """A PNG of a few bytes that says it is 60,000 pixels a side."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def make_folder(folder, images=12, classes=("ant", "bee"), splits=("train", "val")):
    """Class folders of pictures that have nothing wrong with them."""
    seed = 0
    for split in splits:
        for name in classes:
            for number in range(images):
                seed += 1
                put(folder / split / name / f"{number}.png", picture(seed, (80, 64)))
    return folder


def listed(report):
    return {(finding.kind, finding.severity, finding.name) for finding in report.findings}


def places(folder):
    """Every file below a folder with a hash of what it holds, links by where they lead."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def one_sentence(capsys):
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert len(text.splitlines()) == 1, text
    return text


ODD = "train/bees/<img src=x onerror=alert(1)> né.jpg"


@pytest.fixture(scope="module")
def planted(hymenoptera, tmp_path_factory):
    """A copy of the photos with every fault, and the findings that should come of them."""
    folder = tmp_path_factory.mktemp("planted") / "photos"
    shutil.copytree(hymenoptera, folder)
    train = {name: sorted((folder / "train" / name).iterdir()) for name in ("ants", "bees")}
    val = {name: sorted((folder / "val" / name).iterdir()) for name in ("ants", "bees")}
    expected = set()

    def plant(name, content, *findings):
        put(folder / name, content)
        for kind, severity in findings:
            expected.add((kind, severity, name))

    def photo(path):
        return Image.open(path).convert("RGB")

    # Files that hold no whole image.
    whole = train["ants"][0].read_bytes()
    plant("train/ants/cut.jpg", whole[: len(whole) // 2], ("broken-image", "error"))
    plant("val/ants/empty.jpg", b"", ("empty-file", "error"))
    plant("train/ants/text.jpg", b"hello", ("not-an-image", "error"))
    plant("train/bees/page.png", b"<!DOCTYPE html><html>", ("not-an-image", "error"))
    plant("train/bees/bomb.png", bomb(), ("broken-image", "error"))
    # What training passes over in silence; clutter of the system is no one's business.
    plant("train/bees/notes.txt", b"bees", ("other-file", "note"))
    plant("labels.csv", b"a,b", ("other-file", "note"))
    plant("train/bees/.DS_Store", b"x")
    plant("train/bees/Thumbs.db", b"x")
    plant(".git/picture.jpg", jpeg(picture(1)))
    plant("train/bees/unnamed", jpeg(picture(2)), ("image-left-out", "warning"))
    plant("train/bees/new.jfif", jpeg(picture(3)), ("image-left-out", "warning"))
    plant("train/loose.jpg", jpeg(picture(4)), ("image-left-out", "warning"))
    put(folder / "extra" / "a.jpg", jpeg(picture(5)))
    expected.add(("image-left-out", "warning", "extra"))
    (folder / "train/ants/gone.jpg").symlink_to("nowhere.jpg")
    expected.add(("dead-link", "warning", "train/ants/gone.jpg"))
    # Names and formats, sizes and shapes, orientation.
    png = io.BytesIO()
    picture(6).save(png, "PNG")
    plant("train/ants/really a png.jpg", png.getvalue(), ("wrong-suffix", "note"))
    plant("train/ants/tiny.png", picture(7, (20, 16)), ("tiny-image", "warning"))
    plant("train/ants/wide.png", picture(8, (900, 150)), ("extreme-shape", "warning"))
    plant("train/ants/blank.png", Image.new("RGB", (256, 192), "white"), ("blank-image", "warning"))
    frames = io.BytesIO()
    picture(9).save(frames, "GIF", save_all=True, append_images=[picture(10)])
    plant("train/ants/moving.gif", frames.getvalue(), ("animated-image", "note"))
    turned = jpeg(picture(11), exif=exif(6))
    plant("train/ants/turned.jpg", turned, ("turned-by-exif", "note"))
    nonsense = jpeg(picture(12), exif=exif(9))
    plant("train/ants/nonsense.jpg", nonsense, ("invalid-orientation", "warning"))
    # One image in both splits: the same file, re-encoded at half the size, as PNG, under an odd name.
    across = ("same-image-in-two-splits", "error")
    plant("train/ants/same.jpg", val["ants"][3].read_bytes(), across)
    half = photo(val["bees"][3])
    half = half.resize((half.width // 2, half.height // 2))
    plant(ODD, jpeg(half, 40), across)
    plant("train/bees/as.png", photo(val["bees"][4]), across)
    plant("train/bees/low.jpg", jpeg(photo(val["bees"][5]), 40), across)
    # One image under two labels, and twice under one.
    plant("train/bees/contradiction.jpg", jpeg(photo(train["ants"][20]), 60))
    for name in (f"train/ants/{train['ants'][20].name}", "train/bees/contradiction.jpg"):
        expected.add(("contradictory-labels", "error", name))
    plant("train/ants/twice.jpg", jpeg(photo(train["ants"][21]), 70))
    # Of the two, the one that comes later in sorted order is named.
    twice = max("train/ants/twice.jpg", f"train/ants/{train['ants'][21].name}")
    expected.add(("same-image-twice", "warning", twice))
    for name, how, kind in (
        ("mirrored", Image.Transpose.FLIP_LEFT_RIGHT, "mirrored-copy"),
        ("quarter", Image.Transpose.ROTATE_90, "turned-copy"),
        ("half turn", Image.Transpose.ROTATE_180, "turned-copy"),
        ("three quarters", Image.Transpose.ROTATE_270, "turned-copy"),
    ):
        path = f"train/ants/~{name}.jpg"
        original = photo(train["ants"][22 + len(name)])
        plant(path, jpeg(original.transpose(how), 80), (kind, "warning"))
    # Classes: one that only val has, an empty one, one that differs in capitals and is small.
    put(folder / "val/wasps/1.jpg", jpeg(picture(13)))
    expected.add(("class-not-in-train", "error", "val/wasps"))
    (folder / "train/moths").mkdir()
    expected.add(("empty-class", "warning", "train/moths"))
    put(folder / "train/Ants/1.jpg", jpeg(picture(14)))
    expected |= {
        ("similar-class-names", "warning", "train/ants"),
        ("small-class", "warning", "Ants"),
        ("unbalanced-classes", "warning", "Ants"),
        ("class-not-in-val", "note", "Ants"),
    }
    return folder, expected


@pytest.fixture(scope="module")
def report(planted):
    return check(str(planted[0]))


def test_clean_photos_have_no_findings(hymenoptera):
    report = check(str(hymenoptera))
    assert report.findings == ()
    assert report.images == {
        "train": {"ants": 123, "bees": 121},
        "val": {"ants": 70, "bees": 83},
    }
    # Pixels tell too little of these photos, and the report says so.
    (sentence,) = report.not_checked
    assert re.match(r"labels: a quick model on pixels is right on \d\d % of 397 images", sentence)


def test_everything_planted_is_found_and_nothing_else(planted, report):
    assert listed(report) == planted[1]
    # Every finding is about one thing, and is told once.
    assert len(report.findings) == len(planted[1])
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities, key=doctor.SEVERITIES.index)


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("train/ants/cut.jpg", r"a damaged image \(image file is truncated"),
        ("train/ants/text.jpg", "nothing in it says that it is an image"),
        # What a failed download leaves.
        ("train/bees/page.png", "it holds a web page"),
        ("train/bees/bomb.png", "more pixels than are safe to read"),
        ("train/ants/really a png.jpg", "holds a PNG image"),
        ("train/ants/same.jpg", "the same file as val/ants/.*: figures on val flatter$"),
        ("train/bees/as.png", "the same pixels as val/bees/"),
        (ODD, "a re-encoded or resized copy of val/bees/"),
        ("train/bees/contradiction.jpg", "train/ants/.*; one is labelled bees, the other ants"),
        ("train/ants/~half turn.jpg", "train/ants/.* upside down$"),
        ("Ants", "1 to 13[0-9]: train with --set class_weights=true|1 training image: too few"),
        ("val/wasps", "train refuses a class that stands only here"),
        ("extra", "a folder beside the splits, never read: 1 image$"),
    ],
)
def test_details_say_what_is_wrong(report, name, detail):
    details = [finding.detail for finding in report.findings if finding.name == name]
    assert details
    assert any(re.search(detail, sentence) for sentence in details), details


def test_fix_moves_what_errors_name_and_a_second_run_finds_no_error(planted, tmp_path, capsys):
    folder = tmp_path / "photos"
    shutil.copytree(planted[0], folder, symlinks=True)
    before = places(folder)
    with pytest.raises(ValueError, match="the class wasps is not in"):
        open_source(folder)
    page = tmp_path / "page.html"
    assert cli(["doctor", str(folder), "--fix", "--json", "--html", str(page)]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["counts"]["error"] == 12
    assert first["fix"]["left"] == []
    after, aside = places(folder), places(tmp_path / "photos-doctor")
    manifest = json.loads((tmp_path / "photos-doctor" / "moved.json").read_text())
    del aside["moved.json"]
    # Nothing is lost, nothing changed, and val keeps its side of every pair.
    assert before == after | {entry["from"]: aside[entry["to"]] for entry in manifest["moved"]}
    assert len(manifest["moved"]) == len(aside) == 12
    lost = {name for name in before if name not in after}
    assert {name for name in lost if name.startswith("val")} == {
        "val/ants/empty.jpg",
        "val/wasps/1.jpg",
    }
    assert manifest["data"] == str(folder)
    assert all(entry["why"] for entry in manifest["moved"])
    assert ODD in {entry["from"] for entry in manifest["moved"]}
    assert not (folder / "val" / "wasps").exists()
    open_source(folder)

    # Again: no errors left, nothing to move.
    assert cli(["doctor", str(folder), "--fix"]) == 0
    assert "moved nothing" in capsys.readouterr().out


def test_a_second_fix_goes_beside_the_first_and_into_its_list(tmp_path, capsys):
    folder = make_folder(tmp_path / "photos", images=2)
    for content in (b"text", b"another text"):
        put(folder / "train/ant/text.jpg", content)
        assert cli(["doctor", str(folder), "--fix"]) == 0
        assert "moved 1 file to" in capsys.readouterr().out
    aside = tmp_path / "photos-doctor"
    assert (aside / "train/ant/text.jpg").read_bytes() == b"text"
    assert (aside / "train/ant/text-2.jpg").read_bytes() == b"another text"
    manifest = json.loads((aside / "moved.json").read_text())
    assert [(entry["from"], entry["to"]) for entry in manifest["moved"]] == [
        ("train/ant/text.jpg", "train/ant/text.jpg"),
        ("train/ant/text.jpg", "train/ant/text-2.jpg"),
    ]


class Page(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.attributes, self.text = [], [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {key for key, _ in attrs}
        self.addresses += [value for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def test_page_lists_everything_with_pictures_and_runs_nothing(report, tmp_path):
    path = tmp_path / "deep" / "page.html"
    write_page(report, path)
    html = path.read_text()
    page = Page()
    page.feed(html)
    text = " ".join(page.text)
    for finding in report.findings:
        assert finding.name in text
        assert finding.detail in text
    # A file's name is text, not markup.
    assert not {"script", "iframe", "link", "object"} & set(page.tags)
    assert not {name for name in page.attributes if name.startswith("on")}
    assert page.tags.count("img") == len(page.addresses) > 25
    assert all(re.match(r"data:image/(png|jpeg);base64,", address) for address in page.addresses)
    assert not re.search(r"@import|url\(", html)
    assert "prefers-color-scheme: dark" in html


def test_page_says_when_pictures_end(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "MOST_PICTURES", 3)
    folder = make_folder(tmp_path / "photos")
    for number in range(3):
        shutil.copy(folder / f"val/ant/{number}.png", folder / f"train/ant/copy {number}.png")
    write_page(check(str(folder)), tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert html.count("<img") == 3
    assert html.count("no picture") == 3
    assert "Pictures are shown for the first 3 images" in html


def test_clean_folder_in_words_json_and_page(tmp_path, capsys):
    folder = make_folder(tmp_path / "photos")
    page = tmp_path / "page.html"
    assert cli(["doctor", str(folder), "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"48 images \(train 24, val 24\) in \d+\.\d s: nothing is wrong", out)
    assert "not checked: labels" in out
    assert f"open {page}" in out
    assert "Nothing is wrong." in page.read_text()
    assert cli(["doctor", str(folder), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert set(values) == {
        "data",
        "images",
        "splits",
        "counts",
        "findings",
        "not_checked",
        "seconds",
    }
    assert values["splits"] == {"train": {"ant": 12, "bee": 12}, "val": {"ant": 12, "bee": 12}}
    assert values["counts"] == {"error": 0, "warning": 0, "note": 0}


def test_json_has_every_field_and_tables_cut_long_lists(tmp_path, capsys):
    folder = make_folder(tmp_path / "photos")
    for number in range(12):
        put(folder / "train" / "ant" / f"broken{number:02}.jpg", b"no image")
    assert cli(["doctor", str(folder), "--json"]) == 1
    values = json.loads(capsys.readouterr().out)
    assert len(values["findings"]) == values["counts"]["error"] == 12
    assert values["findings"][0] == {
        "kind": "not-an-image",
        "severity": "error",
        "name": "train/ant/broken00.jpg",
        "split": "train",
        "label": "ant",
        "detail": "nothing in it says that it is an image",
        "other": "",
    }
    assert cli(["doctor", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "broken09.jpg" in out
    assert "broken10.jpg" not in out
    assert "and 2 more" in out


@pytest.mark.parametrize(
    ("names", "kind", "detail"),
    [
        # Photos that no one has sorted yet are looked at all the same.
        (("1.png", "2.png"), "layout", "not sorted into one folder a class"),
        (("train/1.png", "val/2.png"), "layout", "not sorted into one folder a class"),
        (("train/ant/1.png",), "layout", "has one class, ant"),
        (("val/ant/1.png", "val/bee/2.png"), "layout", "no train folder"),
        (
            ("train/ant/1.png", "train/bee/2.png", "val/ant/3.png", "valid/bee/4.png"),
            "layout",
            "has both val and valid",
        ),
        # The class is there under another spelling.
        (
            ("train/Ant/1.png", "train/bee/2.png", "val/ant/3.png"),
            "class-not-in-train",
            "did you mean Ant?",
        ),
    ],
)
def test_a_folder_that_training_refuses_is_an_error(tmp_path, names, kind, detail):
    for seed, name in enumerate(names):
        put(tmp_path / name, picture(seed))
    report = check(str(tmp_path))
    (error,) = report.errors
    assert error.kind == kind
    assert detail in error.detail
    assert report.total == len(names)
    with pytest.raises(ValueError):
        open_source(tmp_path)


def test_structure_is_not_moved(tmp_path, capsys):
    put(tmp_path / "photos" / "1.png", picture(1))
    assert cli(["doctor", str(tmp_path / "photos"), "--fix"]) == 1
    out = capsys.readouterr().out
    assert "left in place: .: " in out
    assert "moved nothing" in out
    assert not (tmp_path / "photos-doctor").exists()


def test_one_folder_of_classes_and_two_levels(tmp_path):
    put(tmp_path / "ant" / "deep" / "1.png", picture(1))
    put(tmp_path / "bee" / "2.png", picture(2))
    put(tmp_path / "bee" / "also 2.png", picture(2))
    put(tmp_path / "beside.png", picture(3))
    report = check(str(tmp_path))
    assert report.images == {"all": {"ant": 1, "bee": 2}}
    assert {finding.kind: finding.name for finding in report.findings} == {
        "same-image-twice": "bee/also 2.png",
        "small-class": "bee",
        "image-left-out": "beside.png",
    }


def test_digits_and_parquet(shared, tmp_path, capsys):
    assert cli(["doctor", "digits", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["images"] == 1797
    assert values["findings"] == []
    assert [sentence.split(":")[0] for sentence in values["not_checked"]] == [
        "re-encoded, mirrored and turned copies of 1,797 images below 32 pixels"
    ]

    import pyarrow as pa
    from pyarrow import parquet

    name = "test-00000-of-00001.parquet"
    table = parquet.read_table(shared / "data" / "cifar10" / name).slice(0, 60)
    images = table["img"].to_pylist()
    images[3] = {"bytes": None, "path": None}
    images[4] = {"bytes": images[5]["bytes"][:300], "path": None}
    images[7] = images[6]
    table = table.set_column(0, "img", pa.array(images, table.schema.field("img").type))
    folder = tmp_path / "cifar"
    folder.mkdir()
    parquet.write_table(table, folder / "train.parquet")
    report = check(str(folder))
    assert report.total == 58
    found = {finding.kind: finding.name for finding in report.findings}
    assert found["unreadable-file"] == f"{folder} train row 3"
    assert found["broken-image"] == f"{folder} train row 4"
    assert {"contradictory-labels", "same-image-twice"} & set(found)
    assert cli(["doctor", str(folder), "--fix"]) == 2
    assert "not a folder of image files: --fix moves files" in one_sentence(capsys)


def test_parquet_with_an_unused_class(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    rows = [jpeg(picture(seed)) for seed in range(2)]
    table = pa.table({"image": rows, "label": [0, 2]})
    parquet.write_table(table, tmp_path / "train.parquet")
    report = check(str(tmp_path))
    assert [f.label for f in report.findings if f.kind == "empty-class"] == ["1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        (["empty"], "empty: it holds no images"),
        (["photos", "--task", "classify"], "unknown task 'classify'"),
        (["photos", "--run", "nowhere"], "nowhere is not a run"),
        (["photos", "--quarantine", "aside"], "--quarantine is where --fix moves files"),
        # A slip of the hand must not write a page over a photo.
        (["photos", "--html", "photos/train/ant/0.png"], "the page's name ends in .html"),
        (["digits", "--fix"], "digits is not a folder of image files"),
        (["photos", "--fix", "--quarantine", "photos/aside"], "lie in each other"),
        (["photos", "--fix", "--quarantine", "."], "lie in each other"),
        (["photos", "--fix", "--quarantine", "file"], "is a file: give another"),
        (["photos", "--fix", "--quarantine", "other"], "holds no moved.json"),
        (["photos", "--fix", "--quarantine", "taken"], "holds files of other data"),
        (["photos", "--fix", "--quarantine", "damaged"], "moved.json is damaged"),
    ],
)
def test_wrong_input_gets_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "photos", images=1)
    (tmp_path / "empty").mkdir()
    put(tmp_path / "file", b"x")
    put(tmp_path / "other" / "x", b"x")
    put(tmp_path / "taken" / "moved.json", b'{"data": "/elsewhere", "moved": []}')
    put(tmp_path / "damaged" / "moved.json", b"[")
    before = places(tmp_path)
    assert cli(["doctor", *arguments]) == 2
    assert message in one_sentence(capsys)
    assert places(tmp_path) == before


def test_a_file_that_may_not_be_read_is_a_finding(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "photos", images=2)
    locked = folder / "train" / "ant" / "0.png"
    whole = Path.read_bytes

    def read_bytes(path):
        if path == locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    (error,) = check(str(folder)).errors
    assert (error.kind, error.detail) == ("unreadable-file", "can't be read (Permission denied)")


def test_names_that_are_no_unicode_and_control_the_terminal(tmp_path, capsys):
    folder = make_folder(tmp_path / "photos", images=2)
    put(folder / "train" / "ant" / "a\x1b[31m\nb.jpg", b"no image")
    put(Path(os.fsdecode(os.fsencode(folder / "train/ant") + b"/caf\xe9.jpg")), b"no image")
    assert cli(["doctor", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"a\x1b[31m\nb.jpg" in out
    page = tmp_path / "page.html"
    assert cli(["doctor", str(folder), "--fix", "--json", "--html", str(page)]) == 0
    assert r"caf\udce9.jpg" in page.read_text()
    manifest = json.loads((tmp_path / "photos-doctor" / "moved.json").read_text())
    moved = {os.fsencode(entry["from"]) for entry in manifest["moved"]}
    assert b"train/ant/caf\xe9.jpg" in moved


def test_links_are_moved_as_links_and_never_followed_out(tmp_path, capsys):
    folder = make_folder(tmp_path / "photos", images=2)
    outside = put(tmp_path / "outside" / "broken.jpg", b"no image")
    put(tmp_path / "outside" / "fine.png", picture(99))
    link = folder / "train" / "ant" / "link.jpg"
    link.symlink_to(outside)
    (folder / "train" / "cat").symlink_to(tmp_path / "outside", target_is_directory=True)
    # The copy in val is but a link to the training image: moving that would break both.
    (folder / "val" / "ant" / "same.png").symlink_to(folder / "train" / "ant" / "0.png")
    assert cli(["doctor", str(folder), "--fix"]) == 1
    out = capsys.readouterr().out
    assert "train/cat/broken.jpg: it is reached through a link out of the data" in out
    assert "train/ant/0.png: its copy is only a link to it" in out
    assert outside.read_bytes() == b"no image"
    assert not os.path.lexists(link)
    assert (tmp_path / "photos-doctor/train/ant/link.jpg").readlink() == outside


def test_a_class_folder_that_is_a_link_is_moved_as_a_link(tmp_path):
    folder = make_folder(tmp_path / "photos", images=2)
    put(tmp_path / "outside" / "fine.png", picture(99))
    (folder / "val" / "cat").symlink_to(tmp_path / "outside", target_is_directory=True)
    assert cli(["doctor", str(folder), "--fix"]) == 0
    assert (tmp_path / "photos-doctor" / "val" / "cat").is_symlink()
    assert (tmp_path / "outside" / "fine.png").is_file()
    assert check(str(folder)).errors == ()


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM])
def test_another_file_system_gets_a_whole_copy_first(code, tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "photos", images=2)
    broken = put(folder / "train" / "ant" / "broken.jpg", b"no image")
    os.utime(broken, (1e9, 1e9))
    (folder / "train" / "ant" / "link.jpg").symlink_to("broken.jpg")

    def link(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    assert cli(["doctor", str(folder), "--fix"]) == 0
    moved = tmp_path / "photos-doctor" / "train" / "ant"
    assert (moved / "broken.jpg").read_bytes() == b"no image"
    assert (moved / "broken.jpg").stat().st_mtime == 1e9
    assert (moved / "link.jpg").readlink() == Path("broken.jpg")
    assert not os.path.lexists(broken)


@pytest.mark.parametrize("step", ["link", "unlink", "copy"])
def test_a_folder_that_may_not_be_written_keeps_its_files(step, tmp_path, monkeypatch, capsys):
    folder = make_folder(tmp_path / "photos", images=2)
    broken = put(folder / "train" / "ant" / "broken.jpg", b"no image")

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    def across(*_, **__):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    if step == "link":
        monkeypatch.setattr(os, "link", refuse)
    elif step == "copy":
        monkeypatch.setattr(os, "link", across)
        monkeypatch.setattr(shutil, "copyfileobj", full)
    else:
        unlink = Path.unlink

        def only_quarantine(path, *rest, **more):
            refuse() if path == broken else unlink(path, *rest, **more)

        monkeypatch.setattr(Path, "unlink", only_quarantine)
    assert cli(["doctor", str(folder), "--fix"]) == 1
    out = capsys.readouterr().out
    assert "left in place: train/ant/broken.jpg: " in out
    assert "moved nothing" in out
    assert broken.read_bytes() == b"no image"
    # Half a copy, or a second one, would only confuse.
    assert list(places(tmp_path / "photos-doctor")) == ["moved.json"]
    assert json.loads((tmp_path / "photos-doctor" / "moved.json").read_text())["moved"] == []


def test_the_list_is_written_before_the_first_file_moves(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "photos", images=2)
    for number in range(3):
        put(folder / "train" / "ant" / f"broken{number}.jpg", b"no image")
    before = places(folder)
    whole, moved = quarantine._move, []

    def crash(source, target):
        if moved:
            raise KeyboardInterrupt
        moved.append(source)
        whole(source, target)

    monkeypatch.setattr(quarantine, "_move", crash)
    report = check(str(folder))
    with pytest.raises(KeyboardInterrupt):
        quarantine.move_aside(report, tmp_path / "aside")
    aside = places(tmp_path / "aside")
    manifest = json.loads((tmp_path / "aside" / "moved.json").read_text())
    assert len(manifest["moved"]) == 3
    after = places(folder)
    for name, content in before.items():
        assert content in (after.get(name), aside.get(name))
    # The next run picks up where that one ended.
    monkeypatch.undo()
    assert cli(["doctor", str(folder), "--fix", "--quarantine", str(tmp_path / "aside")]) == 0


def test_folder_named_by_where_one_stands(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "photos", images=2)
    put(folder / "train" / "ant" / "broken.jpg", b"no image")
    monkeypatch.chdir(folder)
    assert cli(["doctor", ".", "--fix"]) == 0
    assert (tmp_path / "photos-doctor" / "train" / "ant" / "broken.jpg").is_file()


def test_small_images_as_a_set_are_not_tiny(tmp_path):
    for seed in range(20):
        put(tmp_path / "ab"[seed % 2] / f"{seed}.png", picture(seed, (32, 32)))
    assert listed(check(str(tmp_path))) == set()
    put(tmp_path / "a" / "dot.png", picture(99, (4, 4)))
    assert listed(check(str(tmp_path))) == {("tiny-image", "warning", "a/dot.png")}


def test_huge_images_are_said_to_be_slow(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 50)
    for seed in range(4):
        put(tmp_path / "ab"[seed % 2] / f"{seed}.png", picture(seed, (60, 50)))
    put(tmp_path / "a" / "huge.png", picture(9, (70, 60)))
    (finding,) = [f for f in check(str(tmp_path)).findings if f.kind == "huge-image"]
    assert finding.detail.startswith("70x60 pixels, decoded anew")


def test_three_splits_keep_the_last_copy(tmp_path):
    folder = make_folder(tmp_path / "photos", images=2, splits=("train", "val", "test"))
    copy = jpeg(picture(77))
    for name in ("train/ant/a.jpg", "train/ant/b.jpg", "val/ant/a.jpg", "test/bee/a.jpg"):
        put(folder / name, copy)
    found = {(f.kind, f.name, f.other) for f in check(str(folder)).errors}
    kind = "same-image-in-two-splits"
    assert found == {
        (kind, "train/ant/a.jpg", "test/bee/a.jpg"),
        (kind, "train/ant/b.jpg", "test/bee/a.jpg"),
        (kind, "val/ant/a.jpg", "test/bee/a.jpg"),
    }


@pytest.mark.parametrize(
    ("change", "found"),
    [
        # A copy, as mail and web sites make them.
        (lambda photo: Image.open(io.BytesIO(jpeg(photo, 40))), True),
        (lambda photo: photo.resize((photo.width // 2, photo.height // 2)), True),
        (lambda photo: photo.resize((224, 224)), True),
        # Other pictures: in other colours, and a third of it cut off.
        (lambda photo: Image.merge("RGB", photo.split()[::-1]), False),
        (lambda photo: photo.crop((photo.width // 3, 0, photo.width, photo.height)), False),
    ],
)
def test_copies_of_real_photos(hymenoptera, change, found):
    paths = sorted((hymenoptera / "val" / "bees").iterdir())[:40]
    photos = [Image.open(path).convert("RGB") for path in paths]
    views = [shrink(photo) for photo in [*photos, *map(change, photos)]]
    copies = find_copies(
        [str(row).encode() for row in range(len(views))],
        np.full(len(views), 256),
        np.stack([np.asarray(view) for view in views]),
        np.stack([hash_views(view) for view in views]),
    )
    expected = {(row, row + len(photos)) for row in range(len(photos))}
    # Grey stones are grey stones with red and blue exchanged too.
    assert len(set(copies.groups) & expected) >= 40 if found else len(copies.groups) <= 2
    assert set(copies.groups) <= expected


def test_near_pairs_are_those_that_comparing_each_with_each_gives():
    random = np.random.default_rng(0)
    known = random.integers(0, 256, (300, 8), dtype=np.uint8)
    asked = known.copy()
    for row in range(300):
        for bit in random.choice(64, row % 12, replace=False):
            asked[row, bit // 8] ^= 1 << (bit % 8)
    bits = np.unpackbits(asked[:, None] ^ known[None], axis=2).sum(axis=2)
    pairs = [
        pair for left, right in near_pairs(asked, known) for pair in zip(left, right, strict=True)
    ]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == set(zip(*np.nonzero(bits <= 7), strict=True))


def write_digits(folder, place, split, wrong):
    """Handwritten digits as files under `place`, a number of them in the wrong class: those, and how many in all."""
    random = np.random.default_rng(0)
    swapped = set()
    images = open_source("digits").splits[split]
    misplaced = set(random.choice(len(images), wrong, replace=False).tolist())
    for row, target in enumerate(images.targets.tolist()):
        label = (target + int(random.integers(1, 10))) % 10 if row in misplaced else target
        pixels = images.images.read(row, 1)[0].numpy()
        path = put(folder / place / str(label) / f"{row}.png", Image.fromarray(pixels))
        if row in misplaced:
            swapped.add(path.relative_to(folder).as_posix())
    return swapped, len(images)


@pytest.fixture(scope="module")
def digit_photos(tmp_path_factory):
    """Handwritten digits as files, ten of them in the wrong class."""
    folder = tmp_path_factory.mktemp("digits")
    swapped, _ = write_digits(folder, "", "train", 10)
    return folder, swapped


def test_wrong_labels_are_found_from_pixels(digit_photos):
    folder, swapped = digit_photos
    report = check(str(folder))
    doubted = {f.name for f in report.findings if f.kind == "implausible-label"}
    assert len(doubted & swapped) >= 7
    assert len(doubted - swapped) <= 1
    assert all("it is right on 9" in f.detail for f in report.findings)


def test_a_third_of_wrong_labels_goes_from_training_alone(tmp_path, capsys):
    photos = tmp_path / "photos"
    swapped, images = write_digits(photos, "train", "train", 430)
    in_test, _ = write_digits(photos, "test", "test", 40)
    # Too many are wrong for a check that expects few.
    assert any("too few to judge by" in sentence for sentence in check(str(photos)).not_checked)
    assert cli(["doctor", str(photos), "--noisy", "--fix", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    doubted = {
        f["name"]: f["severity"] for f in values["findings"] if f["kind"] == "implausible-label"
    }
    assert {doubted[name] for name in in_test & set(doubted)} == {"warning"}
    moved = {Path(move["from"]).relative_to(photos).as_posix() for move in values["fix"]["moved"]}
    assert moved == {name for name, severity in doubted.items() if severity == "error"}
    assert all(name.startswith("train/") for name in moved)
    assert len(moved & swapped) >= 0.8 * len(swapped)
    assert len(moved - swapped) <= 0.02 * (images - len(swapped))


def test_what_is_measured_on_judges_no_training_label():
    """The labels of other splits are asked about, and change nothing for those of training."""
    random = np.random.default_rng(4)
    targets = np.repeat([0, 1, 2], 60)
    features = random.normal(size=(180, 8)).astype(np.float32)
    features[np.arange(180), targets] += 3
    given = targets.copy()
    given[::10] = (given[::10] + 1) % 3
    taught = np.arange(180) % 2 == 0
    alone = judge(features[taught], given[taught], noisy=True)
    assert alone.trusted
    for others in (targets, (targets + 1) % 3):
        labels = np.where(taught, given, others)
        verdict = judge(features, labels, noisy=True, taught_N=taught)
        assert (verdict.images, verdict.accuracy) == (90, alone.accuracy)
        among = [(doubt.row // 2, doubt.other) for doubt in verdict.doubts if taught[doubt.row]]
        assert among == [(doubt.row, doubt.other) for doubt in alone.doubts]
        asked = {doubt.row for doubt in verdict.doubts if not taught[doubt.row]}
        wrong = set(np.flatnonzero(~taught & (labels != targets)).tolist())
        assert len(asked - wrong) <= 9
        assert len(asked & wrong) >= 0.5 * len(wrong)


@pytest.fixture(scope="module")
def imagenet_run(shared, tmp_path_factory):
    """A run of published weights: width 0.25 with LeakyReLU, 1,000 classes."""
    path = shared / "weights" / "mobilenetv1_0.25_leaky_imagenet.pth.tar"
    state = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    spec = MobileNetSpec(0.25, 224, activation="leaky")
    statistics = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    task = tasks.find("classification")(
        [str(number) for number in range(1000)], Preprocessing(224, 224, **statistics)
    )
    own = task.build_model(spec).state_dict()
    folder = tmp_path_factory.mktemp("runs") / "imagenet"
    Run.create(folder, task, spec, Recipe(name="published", epochs=1), {"where": "imagenet"})
    write_weights(folder / "model.safetensors", dict(zip(own, state.values(), strict=True)))
    return folder


def test_wrong_labels_of_photos_are_found_with_a_run(hymenoptera, imagenet_run, tmp_path, capsys):
    folder = tmp_path / "photos"
    shutil.copytree(hymenoptera, folder)
    random = np.random.default_rng(0)
    swapped = set()
    for name, other in (("ants", "bees"), ("bees", "ants")):
        paths = sorted((folder / "train" / name).iterdir())
        for row in random.choice(len(paths), 5, replace=False):
            swapped.add(f"train/{other}/{paths[row].name}")
    for name in swapped:
        other = "ants" if "/bees/" in name else "bees"
        (folder / "train" / other / Path(name).name).rename(folder / name)
    assert cli(["doctor", str(folder), "--run", str(imagenet_run), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["not_checked"] == []
    doubted = {f["name"] for f in values["findings"] if f["kind"] == "implausible-label"}
    # A network this small tells ants from bees on nine of ten photos: it speaks up rarely.
    assert doubted & swapped
    assert len(doubted - swapped) <= 1


def test_a_run_of_another_kind_and_too_much_work(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="features of a MobileNet"):
        plausibility.network_features([], torch.nn.Identity(), Preprocessing(8, 8))
    monkeypatch.setattr("mobilenets.tasks.classification.doctor.MOST_WORK", 1e3)
    folder = make_folder(tmp_path / "photos")
    assert check(str(folder)).not_checked == ("labels: 48 images of 2 classes would take hours",)


def test_a_weak_model_is_told_from_a_part_and_says_nothing(monkeypatch):
    monkeypatch.setattr(plausibility, "PROBE", 50)
    random = np.random.default_rng(0)
    targets = np.arange(400) % 4
    verdict = judge(random.normal(size=(400, 6)).astype(np.float32), targets)
    assert (verdict.trusted, verdict.images, verdict.doubts) == (False, 48, ())
    features = random.normal(size=(400, 6)).astype(np.float32)
    features[np.arange(400), targets] += 6
    assert judge(features, targets).trusted


def test_labels_of_a_small_class_are_said_to_be_unchecked(tmp_path):
    folder = make_folder(tmp_path / "photos", classes=("ant", "bee"))
    put(folder / "train" / "cat" / "1.png", picture(500))
    assert any(
        sentence.startswith("labels of cat: it has 1 image,")
        for sentence in check(str(folder)).not_checked
    )


def test_damage_that_shows_in_neither_header_nor_name(tmp_path):
    folder = make_folder(tmp_path / "photos", images=2)
    # EXIF that can't be read says nothing, and is no reason to stop.
    put(folder / "train/ant/exif.jpg", jpeg(picture(50), exif=b"Exif\x00\x00MM\x00*\xff\xff"))
    # A TIFF whose header leads nowhere.
    put(folder / "train/ant/nowhere.tif", b"II*\x00\xff\xff\xff\x7f")
    os.mkfifo(folder / "train/ant/pipe.jpg")
    os.mkfifo(folder / "train/pipe")
    (folder / "train/ant/folder.jpg").mkdir()
    (error,) = check(str(folder)).errors
    assert error.name == "train/ant/nowhere.tif"


CHANGES = {
    "JPEG quality 75": lambda photo: compress(photo, 75),
    "JPEG quality 40": lambda photo: compress(photo, 40),
    "half the size, quality 40": lambda photo: compress(scale(photo, 2), 40),
    "a quarter of the size, quality 60": lambda photo: compress(scale(photo, 4), 60),
    "mirrored, quality 40": lambda photo: compress(photo.transpose(0), 40),
    "turned by a quarter, quality 40": lambda photo: compress(photo.transpose(2), 40),
    "upside down, quality 40": lambda photo: compress(photo.transpose(3), 40),
}


def compress(photo, quality):
    return Image.open(io.BytesIO(jpeg(photo, quality))).convert("RGB")


def scale(photo, times):
    return photo.resize((photo.width // times, photo.height // times), Image.Resampling.LANCZOS)


@pytest.fixture(scope="module")
def real_images(shared, hymenoptera, tmp_path_factory):
    import tarfile

    folder = tmp_path_factory.mktemp("samples")
    with tarfile.open(shared / "data" / "imagenet_samples.tar") as archive:
        archive.extractall(folder, filter="data")
    cifar = open_source(shared / "data" / "cifar10").splits["test"]
    return {
        "hymenoptera": [Image.open(path).convert("RGB") for path in images_below(hymenoptera)],
        "imagenet": [Image.open(path).convert("RGB") for path in images_below(folder)],
        "cifar10": [
            Image.fromarray(cifar.images.read(row, 3).permute(1, 2, 0).numpy())
            for row in range(1000)
        ],
    }


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("name", "least"),
    # On 32 pixels, JPEG at quality 40 spoils some, and a smaller copy holds too little to tell.
    [("hymenoptera", 0.98), ("imagenet", 0.98), ("cifar10", 0.9)],
)
def test_share_of_copies_found(real_images, name, least, change):
    photos = real_images[name]
    everything = [*photos, *map(CHANGES[change], photos)]
    views = [shrink(photo) for photo in everything]
    copies = find_copies(
        [str(row).encode() for row in range(len(views))],
        np.array([min(photo.size) for photo in everything]),
        np.stack([np.asarray(view) for view in views]),
        np.stack([hash_views(view) for view in views]),
    )
    pairs = {*copies.groups, *(pair[:2] for pair in copies.turned)}
    found = pairs & {(row, row + len(photos)) for row in range(len(photos))}
    print(
        f"{name}, {change}: {100 * len(found) / len(photos):.1f} % found, {len(pairs - found)} others"
    )
    assert pairs == found
    assert len(found) >= least * len(photos) or (name == "cifar10" and "size" in change)


@pytest.mark.slow
def test_share_of_wrong_labels_found(hymenoptera, imagenet_run):
    run = Run.load(imagenet_run)
    items = check(str(hymenoptera)).items
    names = sorted({item.label for item in items})
    digits = doctor.items_of(open_source("digits"))
    for name, features, targets in (
        (
            "digits from pixels",
            plausibility.pixel_features(doctor.examine(digits).thumbnails_NSS3),
            np.array([int(item.label) for item in digits]),
        ),
        (
            "hymenoptera with a run",
            plausibility.network_features(items, run.model, run.preprocessing),
            np.array([names.index(item.label) for item in items]),
        ),
    ):
        found, false = [], []
        for seed in range(10):
            random = np.random.default_rng(seed)
            wrong = random.choice(len(targets), 10, replace=False)
            given = targets.copy()
            classes = targets.max() + 1
            given[wrong] = (targets[wrong] + random.integers(1, classes, 10)) % classes
            doubted = {doubt.row for doubt in judge(features, given).doubts}
            found.append(len(doubted & set(wrong.tolist())))
            false.append(len(doubted - set(wrong.tolist())))
        print(
            f"{name}: {np.mean(found):.1f} ± {np.std(found):.1f} of 10 found, "
            f"{np.mean(false):.1f} ± {np.std(false):.1f} false; "
            f"none planted: {len(judge(features, targets).doubts)} doubted"
        )
        assert np.mean(false) < 1
