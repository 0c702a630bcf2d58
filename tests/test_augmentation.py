"""What training does to images: each option by itself, repeatable from any place, for any number
of processes, with 1, 3 and 4 channels.
"""

import dataclasses

import numpy as np
import pytest
import torch

from mobilenets import tasks
from mobilenets.architecture import MobileNetSpec
from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.data.loaders import Batch, MemoryLoader, PhotoLoader, Shard
from mobilenets.data.splits import ArrayImages, Split
from mobilenets.data.transforms import GREY, Distortion, distort_batch, distort_photo, normalise

SIDE = 8
STILL = Distortion(mirror=False)
CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}


def preprocessing(channels=3):
    half = (0.5,) * channels
    return Preprocessing(SIDE, SIDE, CHANNELS[channels], crop_fraction=1.0, mean=half, std=half)


def noise(count, channels=3):
    random = np.random.default_rng(0)
    return random.integers(0, 256, (count, SIDE, SIDE, channels), dtype=np.uint8)


def memory(pixels, distortion, batch_size=4, seed=0, **options):
    return MemoryLoader(
        torch.from_numpy(pixels),
        torch.arange(len(pixels)),
        preprocessing(pixels.shape[-1]),
        batch_size,
        distortion,
        seed,
        **options,
    )


def disk(pixels, distortion, batch_size=4, seed=0, **options):
    split = Split(ArrayImages(pixels, "noise"), np.arange(len(pixels)))
    channels = preprocessing(pixels.shape[-1])
    return PhotoLoader(split, channels, batch_size, distortion, seed, workers=0, **options)


both = pytest.mark.parametrize("make", [memory, disk], ids=["memory", "disk"])


def by_image(loader, epoch):
    """The images of an epoch in the order of their targets."""
    batches = list(loader.batches(epoch))
    targets = torch.cat([batch.targets_N for batch in batches])
    return torch.cat([batch.images_NCHW for batch in batches])[targets.argsort()]


def same(batches, others):
    return len(batches) == len(others) and all(
        a.images_NCHW.equal(b.images_NCHW) and a.targets_N.equal(b.targets_N)
        for a, b in zip(batches, others, strict=True)
    )


# airbench's derandomised flip: no image is seen the same way round twice in a row.
@both
def test_alternate_mirrors_each_image_every_second_epoch(make):
    pixels = noise(100)
    plain = by_image(make(pixels, STILL), 0)
    loader = make(pixels, Distortion(mirror=True, alternate=True))
    mirrored = []
    for epoch in range(1, 4):
        seen = by_image(loader, epoch)
        flipped = (seen == plain.flip(-1)).flatten(1).all(1)
        assert ((seen == plain).flatten(1).all(1) ^ flipped).all()
        mirrored.append(flipped)
    # Half of the images in the first epoch; then the other half; then as before.
    assert 32 <= mirrored[0].sum() <= 68
    assert mirrored[1].equal(~mirrored[0])
    assert mirrored[2].equal(mirrored[0])
    # Another seed, another half.
    other = make(pixels, Distortion(mirror=True, alternate=True), seed=1)
    assert not (by_image(other, 1) == plain.flip(-1)).flatten(1).all(1).equal(mirrored[0])


@both
def test_digits_are_not_mirrored_by_alternate(make):
    # `mirror` is what the data allow: a mirrored 2 is no 2.
    pixels = noise(20)
    loader = make(pixels, Distortion(mirror=False, alternate=True))
    for epoch in (1, 2):
        assert by_image(loader, epoch).equal(by_image(make(pixels, STILL), 0))


def painted(make, share, count=200):
    """Where cutout has painted, in black images: (N, H, W)."""
    black = np.zeros((count, SIDE, SIDE, 3), dtype=np.uint8)
    seen = by_image(make(black, Distortion(mirror=False, cutout=share), 64), 1)
    pixels = ((seen * 0.5 + 0.5) * 255).round()
    assert set(pixels.unique().tolist()) <= {0.0, float(GREY)}
    changed = pixels == GREY
    # All channels or none.
    assert changed.all(1).equal(changed.any(1))
    return changed.any(1)


@both
@pytest.mark.parametrize(
    ("share", "longest"),
    # A quarter and a half of the side; so little that one pixel is left; nearly all.
    [(0.25, 2), (0.5, 4), (0.01, 1), (0.9, 7)],
)
def test_cutout_is_a_square_cut_off_at_the_edges(make, share, longest):
    changed = painted(make, share)
    rows, columns = changed.any(2), changed.any(1)
    # A rectangle: it is where its rows and its columns meet.
    assert changed.equal(rows[:, :, None] & columns[:, None, :])
    for side in (rows, columns):
        lengths = side.sum(1)
        assert lengths.max() == longest
        assert lengths.min() >= 1
        # A single stretch, without holes.
        starts = side.int().diff(dim=1, prepend=torch.zeros(len(side), 1).int()) == 1
        assert (starts.sum(1) == 1).all()
    # Its middle is anywhere, so every pixel is painted in some image; most, where one is all.
    assert changed.any(0).float().mean() > (0.8 if longest == 1 else 0.999)


@both
def test_cutout_leaves_the_rest_alone(make):
    pixels = noise(50)
    seen = by_image(make(pixels, Distortion(mirror=False, cutout=0.5)), 1)
    plain = by_image(make(pixels, STILL), 1)
    grey = normalise(torch.full((1, 3, 1, 1), GREY, dtype=torch.uint8), preprocessing())
    assert ((seen == plain) | (seen == grey)).all()
    assert (seen != plain).any()


@both
def test_colour_leaves_grey_values_grey(make):
    grey = noise(60, 1).repeat(3, axis=3)
    seen = by_image(make(grey, Distortion(mirror=False, colour=1.0)), 1)
    # Saturation is mixed with a grey picture that is rounded: off by one.
    apart = (seen.amax(1) - seen.amin(1)) * 255 / 2
    assert apart.max() <= 1.01


@both
def test_brightness_is_within_inceptions(make):
    flat = np.full((100, SIDE, SIDE, 1), 100, dtype=np.uint8)
    seen = by_image(make(flat, Distortion(mirror=False, colour=1.0)), 1) * 127.5 + 127.5
    most = 100 * 32 / 255
    assert 100 - most - 1.01 <= seen.min() < 100 - most / 2
    assert 100 + most / 2 < seen.max() <= 100 + most + 1.01
    # Half as much with half the number; and one image has one brightness.
    half = by_image(make(flat, Distortion(mirror=False, colour=0.5)), 1) * 127.5 + 127.5
    assert (half - 100).abs().max() <= most / 2 + 1.01
    assert (half.flatten(1).amax(1) == half.flatten(1).amin(1)).all()


@both
@pytest.mark.parametrize(
    ("share", "least", "most"),
    # Two operations out of fourteen may both be the identity, or change nothing of this image.
    [(0.0, 0, 0), (0.4, 35, 80), (1.0, 120, 150)],
)
def test_randaugment_changes_its_share(make, share, least, most):
    pixels = noise(150)
    changed = Distortion(mirror=False, randaugment=9, randaugment_share=share)
    plain = by_image(make(pixels, STILL, 64), 1)
    differ = (by_image(make(pixels, changed, 64), 1) != plain).flatten(1).any(1).sum()
    assert least <= differ <= most


@pytest.mark.parametrize("magnitude", [0, 30])
def test_randaugment_at_both_ends_of_its_range(magnitude):
    distortion = Distortion(randaugment=magnitude, randaugment_share=1.0)
    assert next(memory(noise(64), distortion, 64).batches(1)).images_NCHW.isfinite().all()


def of_one_value(count):
    """Flat images, each of its own brightness."""
    pixels = np.zeros((count, SIDE, SIDE, 3), dtype=np.uint8)
    pixels[:] = (np.arange(count) * 10)[:, None, None, None]
    return pixels


@both
@pytest.mark.parametrize(
    ("mixup", "cutmix"),
    [(0.2, 0.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.3), (0.5, 1.0)],
)
def test_mixed_targets_match_the_mixed_pixels(make, mixup, cutmix):
    values = torch.arange(24) * 10 / 127.5 - 1
    distortion = Distortion(mirror=False, mixup=mixup, cutmix=cutmix, outputs=30)
    kinds = set()
    for epoch in range(6):
        for batch in make(of_one_value(24), distortion, 6).batches(epoch):
            assert batch.targets_N.shape == (6, 30)
            assert batch.targets_N.sum(1).tolist() == pytest.approx([1.0] * 6, abs=1e-6)
            assert (batch.targets_N >= 0).all()
            # The mean pixel is the mean of the two images, in the shares that the target gives.
            expected = batch.targets_N[:, :24] @ values
            means = batch.images_NCHW.mean((1, 2, 3))
            assert means.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
            # Mixed everywhere, or cut: then every pixel is of one of the images.
            flat = batch.images_NCHW.flatten(1)
            own = (flat[:, :, None] - values).abs().amin(2).amax(1) < 1e-5
            mixed = (flat.amax(1) - flat.amin(1)) < 1e-5
            assert (own | mixed).all()
            kinds |= {"mixup"} if (mixed & ~own).any() else set()
            kinds |= {"cutmix"} if (own & ~mixed).any() else set()
    assert ("mixup" in kinds) == bool(mixup)
    assert ("cutmix" in kinds) == bool(cutmix)


@both
def test_without_mixing_targets_are_classes(make):
    (batch,) = make(noise(4), Distortion(outputs=30)).batches(1)
    assert batch.targets_N.dtype == torch.int64
    assert batch.targets_N.shape == (4,)


DISTORTIONS = {
    "alternate": Distortion(alternate=True, shift=0.25, min_area=0.5),
    "cutout": Distortion(cutout=0.5),
    "colour": Distortion(colour=1.0),
    "randaugment": Distortion(randaugment=9, randaugment_share=0.5),
    "mixup": Distortion(mixup=1.0, outputs=30),
    "cutmix": Distortion(cutmix=1.0, outputs=30),
    "all": Distortion(
        alternate=True,
        shift=0.25,
        min_area=0.5,
        cutout=0.5,
        colour=1.0,
        randaugment=9,
        mixup=0.2,
        cutmix=1.0,
        outputs=30,
    ),
}
every = pytest.mark.parametrize("name", DISTORTIONS)


@both
@every
def test_seed_epoch_and_place_decide(make, name):
    pixels, distortion = noise(22), DISTORTIONS[name]
    whole = list(make(pixels, distortion, seed=3).batches(2))
    # The state of the global generator has no say, and nothing is kept from other epochs.
    torch.manual_seed(99)
    again = make(pixels, distortion, seed=3)
    list(again.batches(1))
    assert same(list(again.batches(2)), whole)
    for start in (0, 1, 5, 6):
        assert same(list(make(pixels, distortion, seed=3).batches(2, start)), whole[start:])
    assert not same(list(make(pixels, distortion, seed=3).batches(3)), whole)
    assert not same(list(make(pixels, distortion, seed=4).batches(2)), whole)


@both
@every
def test_the_global_generator_is_left_alone(make, name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        list(make(noise(10), DISTORTIONS[name]).batches(1))
        assert torch.get_rng_state().equal(before)


@both
@every
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_shards_are_the_whole(make, name, processes):
    distortion = DISTORTIONS[name]
    if make is disk and (distortion.mixup or distortion.cutmix):
        # Photos are paired within a process, as PhotoLoader says: which ones, and no more, differs.
        distortion = dataclasses.replace(distortion, mixup=0.0, cutmix=0.0)
    # The last of the batches has two images: one of three processes has none.
    pixels = noise(22)
    whole = list(make(pixels, distortion).batches(1))
    parts = [
        list(make(pixels, distortion).batches(1, shard=Shard(rank, processes)))
        for rank in range(processes)
    ]
    assert {len(part) for part in parts} == {len(whole)}
    for position, batch in enumerate(whole):
        images, targets = torch.empty_like(batch.images_NCHW), torch.empty_like(batch.targets_N)
        for rank, part in enumerate(parts):
            assert part[position].whole == len(batch) == batch.whole
            images[rank::processes] = part[position].images_NCHW
            targets[rank::processes] = part[position].targets_N
        assert images.equal(batch.images_NCHW)
        assert targets.equal(batch.targets_N)


@both
@pytest.mark.parametrize("processes", [2, 3])
def test_photos_and_small_images_mix_in_every_process(make, processes):
    distortion = DISTORTIONS["cutmix"]
    for rank in range(processes):
        for batch in make(noise(22), distortion).batches(1, shard=Shard(rank, processes)):
            assert len(batch) == len(batch.images_NCHW) == len(range(rank, batch.whole, processes))
            if len(batch):
                assert batch.targets_N.sum(1).tolist() == pytest.approx([1] * len(batch), abs=1e-6)


@both
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_evaluation_is_shared_out_too(make, processes):
    parts = [
        batch.targets_N
        for rank in range(processes)
        for batch in make(noise(7), None).batches(shard=Shard(rank, processes))
    ]
    assert torch.cat(parts).sort().values.tolist() == list(range(7))


@both
@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [
        (22, 4, [4] * 5),
        (20, 4, [4] * 5),
        (21, 4, [4] * 5),
        # A batch larger than all the images is the only one there is: it stays.
        (3, 64, [3]),
        (4, 4, [4]),
    ],
)
def test_drop_last(make, count, batch_size, sizes):
    loader = make(noise(count), STILL, batch_size, drop_last=True)
    assert [len(batch) for batch in loader.batches(1)] == sizes
    assert (len(loader), loader.images) == (len(sizes), sum(sizes))
    # Evaluation drops nothing.
    whole = make(noise(count), None, batch_size, drop_last=True)
    assert sum(len(batch) for batch in whole.batches()) == whole.images == count


@pytest.mark.parametrize(
    ("images", "count", "sizes"),
    [
        (4, 1, [4]),
        (4, 2, [2, 2]),
        (5, 2, [3, 2]),
        (7, 3, [3, 2, 2]),
        # A last batch smaller than the number of pieces; and none at all.
        (2, 3, [1, 1, 0]),
        (0, 2, [0, 0]),
    ],
)
@pytest.mark.parametrize("soft", [False, True])
def test_pieces(images, count, sizes, soft):
    targets = torch.rand(images, 3) if soft else torch.arange(images)
    batch = Batch(torch.rand(images, 3, 2, 2), targets, whole=10)
    pieces = list(batch.pieces(count))
    assert [len(piece) for piece in pieces] == sizes
    assert all(piece.whole == 10 for piece in pieces)
    assert torch.cat([piece.images_NCHW for piece in pieces]).equal(batch.images_NCHW)
    assert torch.cat([piece.targets_N for piece in pieces]).equal(batch.targets_N)


# With four channels all but what changes colours: see test_colours_of_transparent_images.
@both
@pytest.mark.parametrize(
    ("channels", "name"),
    [
        *((channels, name) for channels in (1, 3) for name in DISTORTIONS),
        *((4, name) for name in ("alternate", "cutout", "mixup", "cutmix")),
    ],
)
def test_channels(make, channels, name):
    for batch in make(noise(6, channels), DISTORTIONS[name]).batches(1):
        assert batch.images_NCHW.shape[1:] == (channels, SIDE, SIDE)
        assert batch.images_NCHW.isfinite().all()


# torchvision's colour operations know 1 and 3 channels.
@pytest.mark.parametrize("changes", [{"augmentation.colour": 1.0}, {"augmentation.randaugment": 9}])
def test_colours_of_transparent_images(changes):
    task = tasks.find("classification")
    spec = MobileNetSpec(0.25, 8, total_stride=4, input_channels=4)
    recipe = task.recipes()["digits"].override(changes)
    try:
        data = task.from_data("digits", spec, recipe).build_data(recipe, on_bad_image="stop")
    except ValueError as sentence:
        assert "RGBA" in str(sentence)  # noqa: PT017
        return
    assert len(list(data.train.batches(1))) == len(data.train)


# Cutout paints after colours change, so that it is the same grey in every image.
@pytest.mark.parametrize("channels", [1, 3])
def test_cutout_is_grey_whatever_the_colours(channels):
    distortion = Distortion(mirror=False, cutout=0.9, colour=1.0, randaugment=9)
    random = torch.Generator().manual_seed(0)
    images = torch.from_numpy(noise(20, channels))
    seen = distort_batch(images, torch.arange(20), distortion, random)
    assert (seen == GREY).all(-1).flatten(1).any(1).all()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for image in images:
            photo = distort_photo(image.permute(2, 0, 1), distortion, preprocessing(channels))
            assert (photo == GREY).all(0).any()


def test_distorting_leaves_the_images_in_memory_alone():
    pixels = torch.from_numpy(noise(8))
    before = pixels.clone()
    distortion = dataclasses.replace(DISTORTIONS["all"], mixup=0.0, cutmix=0.0)
    distort_batch(pixels, torch.arange(8), distortion, torch.Generator())
    assert pixels.equal(before)
