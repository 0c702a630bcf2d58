"""Batches depend on nothing but seed, epoch and place; every image is counted; bad ones are named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.data import loaders
from mobilenets.data.images import BadImageError
from mobilenets.data.loaders import (
    MEMORY_LIMIT,
    SMALL_SIDE,
    STILL,
    Batch,
    MemoryLoader,
    PhotoLoader,
    make_loader,
)
from mobilenets.data.splits import ArrayImages, FileImages, Split
from mobilenets.data.transforms import Distortion, fit, normalise

SMALL = Preprocessing(8, 6, crop_fraction=1.0)
MOVED = Distortion(mirror=True, shift=0.25, min_area=0.5)


def pixels(count, height=8, width=6):
    """Images of noise; each has its own number in its first pixel."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return images


def in_memory(count, batch_size, distortion=None, seed=0):
    images = torch.from_numpy(pixels(count))
    return MemoryLoader(images, torch.arange(count), SMALL, batch_size, distortion, seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(pixels(22, 12, 10)):
        Image.fromarray(image).save(folder / f"{number:02}.png")
    return folder


def files(folder, count):
    paths = tuple(folder / f"{number:02}.png" for number in range(count))
    return Split(FileImages(paths), np.arange(count))


def from_disk(folder, count, batch_size, distortion=None, seed=0, workers=0):
    return PhotoLoader(files(folder, count), SMALL, batch_size, distortion, seed, workers)


@pytest.fixture(params=["memory", "disk"])
def make(request, folder):
    """Either loader: what a target is tells which image it was."""
    if request.param == "memory":
        return in_memory
    workers = 2 if request.param == "two workers" else 0
    return lambda *args, **options: from_disk(folder, *args, workers=workers, **options)


# Worker processes take a while to start: for the tests in which they could make a difference.
with_workers = pytest.mark.parametrize("make", ["memory", "disk", "two workers"], indirect=True)


def order(loader, epoch=0, start=0):
    return [batch.targets_N.tolist() for batch in loader.batches(epoch, start)]


def flat(batches):
    return [row for batch in batches for row in batch]


def same(a, b):
    return a.images_NCHW.equal(b.images_NCHW) and a.targets_N.equal(b.targets_N)


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [
        # Case 15's 21 images: the last batch is small, and holds one image.
        (21, 4, [4, 4, 4, 4, 4, 1]),
        (20, 4, [4, 4, 4, 4, 4]),
        # A batch larger than the split; a split of one image; one image a batch.
        (3, 64, [3]),
        (1, 64, [1]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_evaluation_counts_every_image_once_and_in_order(make, count, batch_size, sizes):
    loader = make(count, batch_size)
    batches = order(loader)
    assert [len(batch) for batch in batches] == sizes
    assert flat(batches) == list(range(count))
    assert (len(loader), loader.images) == (len(sizes), count)
    # The epoch has no say in evaluation.
    assert order(loader, epoch=3) == batches


def test_evaluation_serves_the_images_themselves(folder):
    (batch,) = from_disk(folder, 22, 64).batches()
    split = files(folder, 22)
    expected = torch.stack([fit(split.images.read(index, 3), SMALL) for index in range(22)])
    assert batch.images_NCHW.equal(normalise(expected, SMALL))
    (batch,) = in_memory(22, 64).batches()
    images = torch.from_numpy(pixels(22)).permute(0, 3, 1, 2)
    assert batch.images_NCHW.equal(normalise(images, SMALL))


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [
        (22, 4, [4, 4, 4, 4, 4, 2]),
        # A last batch of one is left out: batch norm needs two values a channel.
        (21, 4, [4, 4, 4, 4, 4]),
        # No batch is left out where all of them hold one, as the user chose.
        (3, 1, [1, 1, 1]),
        (3, 64, [3]),
    ],
)
def test_training_order(make, count, batch_size, sizes):
    loader = make(count, batch_size, STILL)
    epochs = [order(loader, epoch) for epoch in range(2)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == sizes
        seen = flat(batches)
        # No image twice, and at most the one that was left out is missing.
        assert len(set(seen)) == len(seen) == sum(sizes)
        assert set(seen) <= set(range(count))
    assert (len(loader), loader.images) == (len(sizes), sum(sizes))


def test_every_image_gets_its_turn(make):
    # Whichever is left out of an epoch of 21 in fours, it is not always the same one.
    loader = make(21, 4, STILL)
    left_out = [set(range(21)) - set(flat(order(loader, epoch))) for epoch in range(4)]
    assert all(len(rows) == 1 for rows in left_out)
    assert len(set.union(*left_out)) > 1


def test_images_and_targets_stay_together(make):
    loader = make(22, 5, STILL)
    (whole,) = make(22, 22).batches()
    for batch in loader.batches(epoch=1):
        assert batch.images_NCHW.equal(whole.images_NCHW[batch.targets_N])


def test_a_still_loader_has_the_order_and_the_images_themselves(make):
    loader = make(22, 4, MOVED, seed=3)
    (whole,) = make(22, 22).batches()
    still = loader.still()
    assert order(still) == order(loader)
    for batch in still.batches():
        assert batch.images_NCHW.equal(whole.images_NCHW[batch.targets_N])
    # The one it came from goes on distorting.
    assert not all(same(a, b) for a, b in zip(loader.batches(), still.batches(), strict=True))
    # One of evaluation is still.
    evaluated = make(21, 4)
    assert order(evaluated.still()) == order(evaluated)


@with_workers
def test_epochs_and_seeds(make):
    loader = make(22, 4, MOVED, seed=7)
    first, second = order(loader, 0), order(loader, 1)
    assert first != second
    assert flat(first) != list(range(22))
    # The same seed and epoch, from a new loader and after other epochs: the same batches.
    for a, b in zip(loader.batches(1), make(22, 4, MOVED, seed=7).batches(1), strict=True):
        assert same(a, b)
    assert order(make(22, 4, MOVED, seed=8), 0) != first


def test_distortions_differ_by_epoch(make):
    def images(epoch):
        loader = make(22, 22, Distortion(mirror=True, shift=0.25, min_area=0.5))
        (batch,) = loader.batches(epoch)
        return batch.images_NCHW[batch.targets_N.argsort()]

    changed = (images(0) != images(1)).flatten(1).any(1)
    assert changed.sum() >= 11


@with_workers
@pytest.mark.parametrize("start", [0, 1, 3, 5, 6])
def test_start_gives_the_rest_of_the_epoch(make, start):
    # Case 16: a run that goes on from the middle of an epoch sees what it would have seen.
    loader = make(22, 4, MOVED, seed=3)
    whole = list(loader.batches(epoch=2))
    # The global generator's state must not matter: it is another after a restart.
    torch.manual_seed(start)
    rest = list(make(22, 4, MOVED, seed=3).batches(epoch=2, start=start))
    assert len(rest) == 6 - start
    assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))


@with_workers
def test_start_in_evaluation(make):
    assert order(make(21, 4), start=4) == [[16, 17, 18, 19], [20]]


def test_the_number_of_workers_does_not_matter(folder):
    alone, two = (
        list(from_disk(folder, 22, 4, MOVED, seed=1, workers=workers).batches(1))
        for workers in (0, 2)
    )
    assert all(same(a, b) for a, b in zip(alone, two, strict=True))


@with_workers
@pytest.mark.parametrize("distortion", [None, MOVED])
def test_loaders_leave_the_global_generator_alone(make, distortion):
    # Dropout draws from it: an epoch that was resumed begins to read once more than one that ran
    # through, and must still train the same weights (case 16).
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        for _ in make(22, 4, distortion).batches():
            pass
        assert torch.get_rng_state().equal(before)


def test_batches_from_memory_are_channels_last():
    for distortion in (None, MOVED):
        for batch in in_memory(21, 4, distortion).batches():
            images = batch.images_NCHW
            assert images.dtype == torch.float32
            assert images.shape[1:] == (3, 8, 6)
            assert images.is_contiguous(memory_format=torch.channels_last)


def test_batch_to():
    batch = Batch(torch.rand(4, 3, 8, 6), torch.arange(4), whole=4)
    assert not batch.images_NCHW.is_contiguous(memory_format=torch.channels_last)
    moved = batch.to(torch.device("cpu"))
    assert len(moved) == len(batch) == 4
    assert moved.images_NCHW.is_contiguous(memory_format=torch.channels_last)
    assert same(moved, batch)
    assert batch.to(torch.device("meta")).images_NCHW.device.type == "meta"


def blank(count, height, width):
    images = np.zeros((count, height, width, 3), dtype=np.uint8)
    return Split(ArrayImages(images, "blank"), np.zeros(count, dtype=np.int64))


@pytest.mark.parametrize(
    ("height", "width", "input_side", "kind"),
    [
        (32, 32, 32, MemoryLoader),
        # The largest that counts as small, and one pixel more, on either side.
        (SMALL_SIDE, SMALL_SIDE, 32, MemoryLoader),
        (SMALL_SIDE + 1, 8, 32, PhotoLoader),
        (8, SMALL_SIDE + 1, 32, PhotoLoader),
        # Small images that are enlarged are kept enlarged.
        (28, 28, 224, MemoryLoader),
        (500, 375, 224, PhotoLoader),
    ],
)
def test_small_images_go_to_memory(height, width, input_side, kind):
    loader, skipped = make_loader(
        blank(5, height, width), Preprocessing(input_side, input_side), 2, STILL
    )
    assert type(loader) is kind
    assert (loader.images, len(loader), skipped) == (4, 2, ())
    batch = next(loader.batches())
    assert batch.images_NCHW.shape == (2, 3, input_side, input_side)


def test_too_many_small_images_stay_on_disk(monkeypatch):
    import mobilenets.data.loaders as module

    assert MEMORY_LIMIT == 2**30
    preprocessing = Preprocessing(32, 32)
    for limit, kind in ((5 * 32 * 32 * 3, MemoryLoader), (5 * 32 * 32 * 3 - 1, PhotoLoader)):
        monkeypatch.setattr(module, "MEMORY_LIMIT", limit)
        assert type(make_loader(blank(5, 32, 32), preprocessing, 2)[0]) is kind


@pytest.mark.parametrize(("channels", "count"), [("L", 1), ("RGB", 3), ("BGR", 3), ("RGBA", 4)])
@pytest.mark.parametrize("side", [16, 128])
def test_channels(channels, count, side):
    # Case 11: networks of 1 and 4 channels, from memory and from disk.
    half = (0.5,) * count
    preprocessing = Preprocessing(16, 16, channels, mean=half, std=half)
    loader, _ = make_loader(blank(2, side, side), preprocessing, 2)
    (batch,) = loader.batches()
    assert batch.images_NCHW.shape == (2, count, 16, 16)


@pytest.fixture(params=[10, 120], ids=["memory", "disk"])
def damaged(request, tmp_path):
    """Seven images, of which the first, the fourth and the last can't be read."""
    paths = []
    for number, image in enumerate(pixels(7, request.param, request.param)):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(image).save(paths[-1])
    paths[0].write_bytes(b"")
    paths[3].write_text("no image")
    paths[6].write_bytes(paths[6].read_bytes()[:60])
    return Split(FileImages(tuple(paths)), np.arange(7) * 10)


@pytest.mark.parametrize("distortion", [None, STILL])
def test_bad_images_stop(damaged, distortion):
    # Case 19.
    with pytest.raises(BadImageError) as caught:
        make_loader(damaged, SMALL, 4, distortion, what="training images")
    message = str(caught.value)
    assert message.startswith(f"{damaged.images.paths[0]}: the file is empty and 2 more like it")
    assert message.endswith("--on-bad-image skip leaves such images out")
    assert "\n" not in message


def test_one_bad_image_is_no_more_like_it(damaged):
    with pytest.raises(BadImageError, match=r"3\.png: not an image that can be read; --on"):
        make_loader(damaged.take([1, 2, 3, 4]), SMALL, 4)


def test_bad_images_are_skipped(damaged):
    loader, skipped = make_loader(damaged, SMALL, 4, on_bad_image="skip")
    assert len(skipped) == 3
    for sentence, number in zip(skipped, (0, 3, 6), strict=True):
        assert sentence.startswith(f"{damaged.images.paths[number]}: ")
    # The others keep their own targets.
    assert loader.images == 4
    (batch,) = loader.batches()
    assert batch.targets_N.tolist() == [10, 20, 40, 50]
    for image, number in zip(batch.images_NCHW, (1, 2, 4, 5), strict=True):
        expected = fit(damaged.images.read(number, 3), SMALL)
        assert image.equal(normalise(expected[None], SMALL)[0])


@pytest.mark.parametrize("what", ["training images", "validation images"])
def test_nothing_but_bad_images(damaged, what):
    broken = damaged.take([3, 0])
    with pytest.raises(ValueError, match=rf"^no {what} can be read; the first: .*3\.png: not an"):
        make_loader(broken, SMALL, 4, what=what, on_bad_image="skip")
    with pytest.raises(BadImageError, match=r"3\.png: not an image"):
        make_loader(broken, SMALL, 4, what=what)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("distortion", [None, MOVED])
def test_a_file_that_vanishes_later_is_named(tmp_path, workers, distortion):
    for number, image in enumerate(pixels(9, 12, 10)):
        Image.fromarray(image).save(tmp_path / f"{number:02}.png")
    loader = from_disk(tmp_path, 9, 3, distortion, workers=workers)
    assert len(order(loader)) == 3
    gone = tmp_path / "05.png"
    gone.unlink()
    # The worker's own error would come with its stack trace, and without the path.
    with pytest.raises(BadImageError) as caught:
        order(loader)
    assert str(caught.value) == f"{gone}: there is no such image"


def test_progress_names_what_is_read(capsys, monkeypatch, folder):
    import mobilenets.data.progress as module

    monkeypatch.setattr(module, "LINE_SECONDS", -1.0)
    split = files(folder, 20)
    many = split.take(list(range(20)) * 60)
    make_loader(many, SMALL, 4, what="validation images")
    assert capsys.readouterr().err.startswith("reading validation images: 1,024 of 1,200 images, ")


def test_paths_are_paths(folder):
    split = files(folder, 3)
    assert [Path(split.images.name(index)).name for index in range(3)] == [
        "00.png",
        "01.png",
        "02.png",
    ]
    assert split.take([2, 0]).images.paths == (folder / "02.png", folder / "00.png")


def test_processes_of_a_machine_share_its_readers(folder, monkeypatch):
    monkeypatch.setattr(loaders.os, "cpu_count", lambda: 16)
    assert from_disk(folder, 4, 2, workers=None)._workers == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert from_disk(folder, 4, 2, workers=None)._workers == 2
