"""Reading images as a person sees them, and saying which file can't be read."""

import contextlib
import gc
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mobilenets.data.images import BadImageError, find_images, image_to_tensor, read_image

RED, GREEN, BLUE, WHITE = (220, 30, 40), (30, 200, 60), (20, 60, 210), (255, 255, 255)


def encoded(image, kind, **options):
    into = io.BytesIO()
    image.save(into, kind, **options)
    return into.getvalue()


def quarters(width=32, height=16):
    """Red and green above, blue and white below: no turn or mirror leaves it as it is."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(WHITE, (width // 2, height // 2, width, height))
    return image


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).int()


def farthest(seen, expected):
    return (seen.int() - expected.int()).abs().max().item()


ORIENTATIONS = [
    # Orientation, and the turn that undoes what the reader of the tag does.
    (1, None),
    (2, Image.Transpose.FLIP_LEFT_RIGHT),
    (3, Image.Transpose.ROTATE_180),
    (4, Image.Transpose.FLIP_TOP_BOTTOM),
    (5, Image.Transpose.TRANSPOSE),
    # The camera held upright: stored lying, and turned a quarter when shown.
    (6, Image.Transpose.ROTATE_90),
    (7, Image.Transpose.TRANSVERSE),
    (8, Image.Transpose.ROTATE_270),
]


@pytest.mark.parametrize(("orientation", "stored_as"), ORIENTATIONS)
@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        # Phones write JPEG; quarters on block edges lose almost nothing.
        ("JPEG", {"quality": 95, "subsampling": 0}, 6),
        # Converters keep the tag in PNG and WebP too, and then it must be exact.
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("TIFF", {}, 0),
    ],
)
def test_orientation(tmp_path, orientation, stored_as, kind, options, tolerance):
    upright = quarters()
    stored = upright if stored_as is None else upright.transpose(stored_as)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo"
    path.write_bytes(encoded(stored, kind, exif=exif, **options))
    seen = read_image(path)
    assert seen.shape == (3, 16, 32)
    assert farthest(seen, pixels(upright)) <= tolerance


@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {"quality": 95, "subsampling": 0}), ("PNG", {})]
)
@pytest.mark.parametrize(
    "exif",
    [
        # Other programs write these; every viewer still shows the picture.
        b"Exif\0\0not a header",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0",
        b"Exif\0\0",
        # The orientation as a letter in place of a number.
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\x006\0\0\0\0\0\0\0",
    ],
)
# Pillow warns of some of them, and reads on.
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_broken_exif_says_nothing(kind, options, exif):
    seen = read_image(encoded(quarters(), kind, exif=exif, **options))
    assert farthest(seen, pixels(quarters())) <= 6


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_do_not_exist(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert read_image(encoded(quarters(), "PNG", exif=exif)).equal(pixels(quarters()).byte())


def on_white(colour, alpha):
    return tuple(round(value * alpha / 255 + 255 * (1 - alpha / 255)) for value in colour)


def palette(**transparency):
    image = Image.new("P", (8, 4), 1)
    image.putpalette([*RED, *GREEN])
    image.paste(0, (0, 0, 4, 4))
    return encoded(image, "PNG", **transparency)


def cmyk():
    image = Image.new("CMYK", (16, 8), (0, 255, 255, 0))
    image.paste((0, 0, 0, 255), (8, 0, 16, 8))
    return encoded(image, "JPEG", quality=95)


def grey(values, kind="PNG", bits=np.uint16):
    return encoded(Image.fromarray(np.array([values], dtype=bits)), kind)


def floats(values):
    return encoded(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")


def animation(kind):
    first, second = Image.new("RGB", (8, 4), RED), Image.new("RGB", (8, 4), BLUE)
    return encoded(first, kind, save_all=True, append_images=[second], duration=50)


def halves(mode, left, right, kind, **options):
    image = Image.new(mode, (16, 8), left)
    image.paste(right, (8, 0, 16, 8))
    return encoded(image, kind, **options)


BLACK, GREY = (0, 0, 0), (128, 128, 128)


@pytest.mark.parametrize(
    ("file", "left", "right", "tolerance"),
    [
        # A palette index is no brightness.
        (palette(), RED, GREEN, 0),
        # One index transparent; and one alpha for each index, half of it seen through.
        (palette(transparency=0), WHITE, GREEN, 0),
        (palette(transparency=bytes([255, 128])), RED, on_white(GREEN, 128), 1),
        # CMYK is ink, so that 0 is paper: cyan off, magenta and yellow on is red.
        (cmyk(), (255, 0, 0), BLACK, 3),
        # 16 bits: Pillow alone clips everything above 255 to white.
        (grey([0x8080, 0xFFFF]), GREY, WHITE, 0),
        # A dark 16-bit picture stays dark, though its values would fit into 8 bits.
        (grey([0, 255]), BLACK, (1, 1, 1), 0),
        (grey([0x8080, 0xFFFF], "TIFF"), GREY, WHITE, 0),
        # Mode I, 32 bits to Pillow: what it makes of a 16-bit PGM, and a 32-bit TIFF.
        (b"P5 2 1 65535\n" + bytes([0x80, 0x80, 0xFF, 0xFF]), GREY, WHITE, 0),
        (grey([0x8080, 0xFFFF], "TIFF", np.int32), GREY, WHITE, 0),
        (grey([0, 200], "TIFF", np.int32), BLACK, (200, 200, 200), 0),
        # Transparent pixels hold any colour, mostly black: seen, they are the paper below.
        (halves("RGBA", (*RED, 255), (0, 0, 0, 0), "PNG"), RED, WHITE, 0),
        (halves("RGBA", (*RED, 128), (*BLUE, 255), "PNG"), on_white(RED, 128), BLUE, 1),
        (halves("LA", (128, 255), (0, 0), "PNG"), GREY, WHITE, 0),
        # A colour made transparent by tRNS has no alpha channel to notice.
        (halves("RGB", RED, BLUE, "PNG", transparency=BLUE), RED, WHITE, 0),
        (halves("L", 128, 7, "PNG", transparency=7), GREY, WHITE, 0),
        (halves("RGBA", (*RED, 255), (0, 0, 0, 0), "WEBP", lossless=True), RED, WHITE, 0),
        # The first frame of an animation is the picture.
        (animation("GIF"), RED, RED, 1),
        (animation("PNG"), RED, RED, 0),
        (animation("WEBP"), RED, RED, 12),
        (halves("L", 128, 255, "PNG"), GREY, WHITE, 0),
        (halves("L", 128, 255, "JPEG", quality=95), GREY, WHITE, 3),
        (halves("RGB", RED, BLUE, "WEBP", quality=95), RED, BLUE, 12),
        # One bit: 1 is white and not nearly black.
        (halves("1", 0, 1, "PNG"), BLACK, WHITE, 0),
        (halves("RGB", RED, BLUE, "BMP"), RED, BLUE, 0),
        (halves("RGB", RED, BLUE, "PPM"), RED, BLUE, 0),
        # Floats from 0 to 1, from 0 to 255, and what is none of both.
        (floats([0.0, 0.5, 1.0]), BLACK, WHITE, 0),
        (floats([0.0, 60.0, 200.0]), BLACK, (200, 200, 200), 0),
        (floats([-1.0, float("nan"), 1.0]), BLACK, WHITE, 0),
    ],
)
def test_as_a_person_sees_it(tmp_path, file, left, right, tolerance):
    path = tmp_path / "image"
    path.write_bytes(file)
    seen = read_image(path)
    assert seen.dtype == torch.uint8
    assert seen.shape[0] == 3
    assert seen.ndim == 3
    assert farthest(seen[:, 0, 0], torch.tensor(left)) <= tolerance
    assert farthest(seen[:, -1, -1], torch.tensor(right)) <= tolerance
    # Parquet files hold the same bytes.
    assert read_image(file).equal(seen)


@pytest.mark.parametrize(
    ("file", "left", "right"),
    [
        # Alpha is kept where the network takes four channels.
        (halves("RGBA", (*RED, 128), (*BLUE, 0), "PNG"), (*RED, 128), (*BLUE, 0)),
        (palette(transparency=0), (*RED, 0), (*GREEN, 255)),
        (halves("LA", (128, 255), (7, 9), "PNG"), (*GREY, 255), (7, 7, 7, 9)),
        # Without alpha a picture is opaque.
        (halves("RGB", RED, BLUE, "PNG"), (*RED, 255), (*BLUE, 255)),
        (cmyk(), (255, 0, 0, 255), (0, 0, 0, 255)),
        (grey([0x8080, 0xFFFF]), (*GREY, 255), (*WHITE, 255)),
        (halves("1", 0, 1, "PNG"), (*BLACK, 255), (*WHITE, 255)),
    ],
)
def test_four_channels(file, left, right):
    seen = read_image(file, channels=4)
    assert seen.shape[0] == 4
    assert seen[:, 0, 0].tolist() == list(left)
    assert seen[:, -1, -1].tolist() == list(right)


@pytest.mark.parametrize(
    ("file", "left", "right"),
    [
        # Grey is luma, 0.299 R + 0.587 G + 0.114 B: 88 for the red and 65 for the blue.
        (halves("RGB", RED, BLUE, "PNG"), 88, 65),
        (palette(), 88, 133),
        # Transparent is white here too.
        (halves("LA", (128, 255), (0, 0), "PNG"), 128, 255),
        (grey([0x8080, 0xFFFF]), 128, 255),
        (halves("L", 3, 250, "PNG"), 3, 250),
    ],
)
def test_one_channel(file, left, right):
    seen = read_image(file, channels=1)
    assert seen.shape[0] == 1
    assert [seen[0, 0, 0], seen[0, -1, -1]] == [left, right]


def test_a_pillow_image_is_read_as_its_file_is():
    picture = quarters()
    assert image_to_tensor(picture).equal(read_image(encoded(picture, "PNG")))
    # A frame that someone moved on from: the first one counts.
    frames = Image.open(io.BytesIO(animation("GIF")))
    frames.seek(1)
    assert farthest(image_to_tensor(frames)[:, 0, 0], torch.tensor(RED)) <= 1


def png_of(width, height):
    """A valid header that promises pixels which never come."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100))
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


NOISE = Image.effect_noise((64, 64), 80).convert("RGB")
JPEG, PNG = encoded(NOISE, "JPEG"), encoded(NOISE, "PNG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "there is no such image"),
        (b"", "the file is empty"),
        # A download that stopped: in the pixels, and already in the header.
        (JPEG[: len(JPEG) // 2], "a damaged image"),
        (JPEG[:30], ""),
        (PNG[: len(PNG) // 2], "a damaged image"),
        (PNG[:20], "a damaged image"),
        # An error page saved under an image's name.
        (b"<html>404 not found</html>", "not an image that can be read"),
        (bytes(2000), "not an image that can be read"),
        # 10 GB of pixels from 100 bytes of file; 300 MB, at which Pillow warns only.
        (png_of(60_000, 60_000), "too large"),
        (png_of(10_000, 10_000), "too large"),
        (png_of(0, 10), ""),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path, content, reason):
    path = tmp_path / "x.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadImageError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert reason in message
    assert "\n" not in message
    # Read as bytes, the caller's name for them stands in its place.
    if content is not None:
        with pytest.raises(BadImageError, match=r"^train row 7: "):
            read_image(content, name="train row 7")


def test_a_folder_is_no_image(tmp_path):
    (tmp_path / "x.jpg").mkdir()
    with pytest.raises(BadImageError, match=r"x\.jpg: can't be read \(Is a directory\)"):
        read_image(tmp_path / "x.jpg")


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("content", [JPEG, PNG[:900], b"text", animation("GIF")])
def test_files_are_closed(tmp_path, content):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    for _ in range(3):
        with contextlib.suppress(BadImageError):
            read_image(path)
    # A file left open warns when it is collected, and warnings are errors here.
    gc.collect()


@pytest.fixture
def photos(tmp_path):
    for name in (
        "b.png",
        "a.jpg",
        "Z.JPG",
        "inner/deeper/c.webp",
        "inner/d.tiff",
        # Not images, or not for us: thumbnails and what macOS leaves in archives.
        "notes.txt",
        "inner/labels.csv",
        ".hidden.png",
        ".cache/e.png",
        "inner/.thumbs/f.png",
        "odd [1].png",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("places", "found"),
    [
        # A file is taken whatever its suffix: the user named it.
        (["b.png"], ["b.png"]),
        (["notes.txt"], ["notes.txt"]),
        # Brackets are a pattern to glob; a file of that very name comes first.
        (["odd [1].png"], ["odd [1].png"]),
        # A folder is searched whole, sorted, without hidden files and folders.
        (["."], ["Z.JPG", "a.jpg", "b.png", "inner/d.tiff", "inner/deeper/c.webp", "odd [1].png"]),
        (["inner"], ["inner/d.tiff", "inner/deeper/c.webp"]),
        # Places keep the order in which they are given.
        (["b.png", "a.jpg", "inner/deeper"], ["b.png", "a.jpg", "inner/deeper/c.webp"]),
        # A pattern names images only: neither the text nor the folder called folder.png.
        (["*"], ["Z.JPG", "a.jpg", "b.png", "odd [1].png"]),
        (["*.png"], ["b.png", "odd [1].png"]),
        (["inner/*"], ["inner/d.tiff"]),
        (["**/*.webp"], ["inner/deeper/c.webp"]),
        (["inner/**"], ["inner/d.tiff", "inner/deeper/c.webp"]),
    ],
)
def test_find_images(photos, places, found):
    names = [
        path.relative_to(photos).as_posix() for path in find_images(photos / p for p in places)
    ]
    assert sorted(names) == sorted(found)
    if len(places) > 1 or places[0] == "inner":
        assert names == found


def test_find_images_sorts(photos):
    found = find_images([photos])
    assert found == sorted(found)
    assert find_images([str(photos / "*.png")]) == [photos / "b.png", photos / "odd [1].png"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("folder.png", "no images in this folder"),
        ("inner/.thumbs/nothing", "there is no such image, folder or pattern"),
        ("*.bmp", "there is no such image, folder or pattern"),
        ("missing.jpg", "there is no such image, folder or pattern"),
        # It matches, but nothing that is an image.
        ("*.txt", "there is no such image, folder or pattern"),
        ("folder.pn?", "there is no such image, folder or pattern"),
    ],
)
def test_nothing_found(photos, place, message):
    with pytest.raises(ValueError, match=message) as caught:
        find_images([photos / "b.png", photos / place])
    assert str(caught.value).startswith(f"{photos / place}: ")
    assert "\n" not in str(caught.value)
