"""From pixels to the network's input, and the distortions of training."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.data.transforms import Distortion, distort_batch, distort_photo, fit, normalise


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize(
    ("height", "width", "target", "fraction", "resize_to"),
    [
        # The usual 224 of 256, from a landscape, a portrait and a square photo.
        (300, 400, 224, 0.875, 256),
        (512, 256, 224, 0.875, 256),
        (320, 320, 224, 0.875, 256),
        # Enlarged: small photos are not refused.
        (60, 90, 224, 0.875, 256),
        # The whole shorter side.
        (64, 96, 32, 1.0, 32),
    ],
)
def test_crop_is_torchvisions(height, width, target, fraction, resize_to, interpolation):
    image = noise(3, height, width)
    torchvisions = v2.Compose(
        [
            v2.Resize(resize_to, InterpolationMode(interpolation), antialias=True),
            v2.CenterCrop(target),
        ]
    )
    how = Preprocessing(target, target, crop_fraction=fraction, interpolation=interpolation)
    expected = torchvisions(image)
    assert fit(image, how).shape == expected.shape == (3, target, target)
    assert fit(image, how).equal(expected)


def test_squash_keeps_the_whole_picture():
    image = noise(3, 300, 500)
    how = Preprocessing(160, 96, resize="squash")
    assert fit(image, how).equal(v2.Resize((160, 96), antialias=True)(image))


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_right_size_is_left_alone(resize, channels):
    half = (0.5,) * channels
    kind = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    how = Preprocessing(33, 47, kind, resize, crop_fraction=1.0, mean=half, std=half)
    image = noise(channels, 33, 47)
    assert fit(image, how).equal(image)


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize(
    ("shape", "target"),
    [
        # One pixel, one row, one column.
        ((1, 1), (32, 32)),
        ((1, 40), (32, 32)),
        ((40, 1), (32, 32)),
        # Inputs that are not square, wide and tall, from photos that are the other way.
        ((300, 200), (97, 161)),
        ((200, 300), (161, 97)),
        # A side that is one pixel short, and one that is one over.
        ((31, 33), (32, 32)),
        ((1, 1), (1, 1)),
    ],
)
def test_sizes(shape, target, resize):
    flat = torch.full((3, *shape), 77, dtype=torch.uint8)
    for fraction in (0.1, 0.875, 1.0):
        seen = fit(flat, Preprocessing(*target, resize=resize, crop_fraction=fraction))
        # A flat picture stays flat, to its edges: nothing is padded.
        assert seen.equal(torch.full((3, *target), 77, dtype=torch.uint8))


def test_the_crop_is_the_centre():
    # A bright middle half in a dark picture, wide and tall.
    wide = torch.zeros(3, 40, 160, dtype=torch.uint8)
    wide[:, :, 60:100] = 200
    how = Preprocessing(40, 40, crop_fraction=1.0)
    assert (fit(wide, how) == 200).all()
    assert (fit(wide.transpose(1, 2), how) == 200).all()
    # A half of each side is what crop_fraction 0.5 shows.
    framed = torch.zeros(3, 80, 80, dtype=torch.uint8)
    framed[:, 20:60, 20:60] = 200
    assert (fit(framed, Preprocessing(40, 40, crop_fraction=0.5)) == 200).all()


@pytest.mark.parametrize(
    ("values", "pixel", "expected"),
    [
        # [-1, 1], exactly at both ends.
        ({}, (0, 255, 51), (-1.0, 1.0, -0.6)),
        # BGR: the first plane of the input is blue.
        ({"channels": "BGR"}, (0, 255, 51), (-0.6, 1.0, -1.0)),
        # Mean and deviation belong to the planes as the network sees them, after the swap.
        (
            {"channels": "BGR", "mean": (0.2, 0.0, 0.0), "std": (1.0, 1.0, 0.5)},
            (255, 0, 51),
            (0.0, 0.0, 2.0),
        ),
        (
            {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
            (255, 0, 51),
            ((1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225),
        ),
        ({"channels": "L", "mean": (0.5,), "std": (0.25,)}, (255,), (2.0,)),
        (
            {"channels": "RGBA", "mean": (0.0,) * 4, "std": (1.0,) * 4},
            (0, 51, 255, 0),
            (0, 0.2, 1, 0),
        ),
    ],
)
def test_normalise(values, pixel, expected):
    how = Preprocessing(2, 3, **values)
    images = torch.tensor(pixel, dtype=torch.uint8)[None, :, None, None].expand(5, -1, 2, 3)
    seen = normalise(images, how)
    assert (seen.shape, seen.dtype) == (images.shape, torch.float32)
    for plane, value in enumerate(expected):
        assert seen[:, plane].flatten().tolist() == pytest.approx([value] * 30, abs=1e-6)


def test_normalise_agrees_with_scaled():
    # `scaled` is what padding and exported files use: one formula, two places.
    how = Preprocessing(1, 1, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    images = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1).expand(-1, 3, -1, -1)
    seen = normalise(images, how)
    for channel in range(3):
        expected = [how.scaled(pixel, channel) for pixel in range(256)]
        assert seen[:, channel, 0, 0].tolist() == pytest.approx(expected, abs=1e-6)


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def test_nothing_on_changes_nothing():
    images = noise(6, 7, 9, 3)
    rows = torch.tensor([4, 0, 0, 5])
    still = Distortion(mirror=False)
    assert distort_batch(images, rows, still, generator()).equal(images[rows])


def test_mirror():
    images = noise(64, 4, 5, 3)
    rows = torch.arange(64).flip(0)
    seen = distort_batch(images, rows, Distortion(mirror=True), generator())
    kept = (seen == images[rows]).flatten(1).all(1)
    mirrored = (seen == images[rows].flip(2)).flatten(1).all(1)
    # Each image is either as it was or mirrored whole, left and right and never up and down.
    assert (kept ^ mirrored).all()
    # About half of them; 16 to 48 of 64 are four standard deviations.
    assert 16 <= mirrored.sum() <= 48
    # The very ones that the generator says: after both shifts, which draw a number even if 0.
    same = generator()
    for _ in range(2):
        torch.randint(0, 1, (64, 1), generator=same)
    assert mirrored.equal(torch.rand(64, 1, generator=same)[:, 0] < 0.5)


# Reflected without repeating the edge, as numpy's and torch's "reflect" do.
SHIFTED = {
    -3: [3, 2, 1, 0, 1, 2],
    -2: [2, 1, 0, 1, 2, 3],
    -1: [1, 0, 1, 2, 3, 4],
    0: [0, 1, 2, 3, 4, 5],
    1: [1, 2, 3, 4, 5, 4],
    2: [2, 3, 4, 5, 4, 3],
    3: [3, 4, 5, 4, 3, 2],
}


@pytest.mark.parametrize(
    ("share", "possible"),
    [
        (0.0, [0]),
        # A share of the side, rounded: 0.6, 1.2, 2.1 and 3 of 6 pixels.
        (0.1, [-1, 0, 1]),
        (0.2, [-1, 0, 1]),
        (0.35, [-2, -1, 0, 1, 2]),
        (0.5, [-3, -2, -1, 0, 1, 2, 3]),
    ],
)
def test_shift_reflects_at_the_edges(share, possible):
    row = torch.arange(6, dtype=torch.uint8)
    distortion = Distortion(mirror=False, shift=share)
    # Along the width, and the same along the height; a side of one pixel can't be shifted.
    for image in (row.reshape(1, 1, 6, 1), row.reshape(1, 6, 1, 1)):
        seen = distort_batch(image, torch.zeros(400, dtype=torch.long), distortion, generator())
        assert {tuple(one) for one in seen.reshape(400, 6).tolist()} == {
            tuple(SHIFTED[shift]) for shift in possible
        }


def test_the_largest_shift_stays_inside():
    # More than the whole side is asked for: at most all but one pixel.
    image = torch.arange(4, dtype=torch.uint8).reshape(1, 2, 2, 1)
    distortion = Distortion(mirror=False, shift=3.0)
    seen = distort_batch(image, torch.zeros(100, dtype=torch.long), distortion, generator())
    assert seen.shape == (100, 2, 2, 1)
    assert set(seen.flatten().tolist()) == {0, 1, 2, 3}


def test_shift_moves_each_image_by_itself():
    pattern = torch.from_numpy(np.pad(np.arange(64).reshape(8, 8), 2, mode="reflect")).byte()
    images = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8, 1)
    distortion = Distortion(mirror=False, shift=0.25)
    seen = distort_batch(images, torch.zeros(300, dtype=torch.long), distortion, generator())
    windows = {
        tuple(pattern[y : y + 8, x : x + 8].flatten().tolist()) for y in range(5) for x in range(5)
    }
    # Every one of the 25 shifts comes up, and nothing else.
    assert {tuple(one) for one in seen.flatten(1).tolist()} == windows


def test_the_generator_decides():
    images, rows = noise(32, 8, 8, 3), torch.arange(32)
    distortion = Distortion(mirror=True, shift=0.25)
    first = distort_batch(images, rows, distortion, generator(1))
    # Not the global one, whatever its state.
    torch.manual_seed(9)
    assert distort_batch(images, rows, distortion, generator(1)).equal(first)
    assert not distort_batch(images, rows, distortion, generator(2)).equal(first)


PHOTO = Preprocessing(48, 64)


@pytest.mark.parametrize("shape", [(120, 90), (48, 64), (20, 300), (1, 1)])
@pytest.mark.parametrize("min_area", [0.08, 0.35, 1.0])
def test_photo_sizes(shape, min_area):
    distortion = Distortion(mirror=True, min_area=min_area)
    with torch.random.fork_rng(devices=[]):
        seen = distort_photo(noise(3, *shape), distortion, PHOTO)
    assert (seen.shape, seen.dtype) == ((3, 48, 64), torch.uint8)


def test_photo_of_area_one_is_the_evaluated_one():
    image = noise(3, 120, 90)
    with torch.random.fork_rng(devices=[]):
        seen = [distort_photo(image, Distortion(mirror=True), PHOTO) for _ in range(40)]
        still = distort_photo(image, Distortion(mirror=False), PHOTO)
    whole = fit(image, PHOTO)
    assert still.equal(whole)
    mirrored = [one.equal(whole.flip(-1)) for one in seen]
    assert all(one.equal(whole) or flipped for one, flipped in zip(seen, mirrored, strict=True))
    assert 5 < sum(mirrored) < 35


@pytest.mark.parametrize("distortion", [Distortion(), Distortion(min_area=0.3)])
def test_photo_by_seed(distortion):
    def distorted(seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return distort_photo(image, distortion, PHOTO)

    image = noise(3, 120, 90)
    assert distorted(1).equal(distorted(1))
    assert len({distorted(seed).numpy().tobytes() for seed in range(8)}) > 1


@pytest.mark.parametrize("min_area", [0.25, 0.7])
def test_photo_crops_are_no_smaller_than_asked(min_area):
    # Red rises from left to right, green from top to bottom: their spans are the crop's sides.
    side = 200
    ramp = torch.arange(side, dtype=torch.uint8)
    image = torch.stack(
        [ramp.expand(side, side), ramp[:, None].expand(side, side), torch.zeros(side, side).byte()]
    )
    distortion = Distortion(mirror=False, min_area=min_area)
    square = Preprocessing(side, side, interpolation="nearest")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        areas = []
        for _ in range(25):
            seen = distort_photo(image, distortion, square).int()
            width, height = (int(seen[i].max() - seen[i].min()) + 1 for i in (0, 1))
            areas.append(width * height / side**2)
    assert min(areas) > min_area * 0.97
    assert max(areas) > (min_area + 1) / 2
