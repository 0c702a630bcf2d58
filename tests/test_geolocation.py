"""Geolocation: distances and shares, cells against plain references, places from tables and EXIF, training to map, mistakes in one sentence."""

import csv
import io
import json
import resource
import shutil
import subprocess
import sys
import tarfile
import time
from contextlib import suppress

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import s2geometry
import torch
from geographiclib.geodesic import Geodesic
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from mobilenets import Run
from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.cli.main import run as cli
from mobilenets.data.gps import NoPlaceError, read_gps
from mobilenets.data.loaders import Batch
from mobilenets.tasks.geolocation import distance_km, shares_within
from mobilenets.tasks.geolocation.cells import (
    Cells,
    Partition,
    id_of,
    leaf_cells,
    levels_of,
    parents_of,
    split_cells,
    token_of,
)
from mobilenets.tasks.geolocation.data import (
    PLACE_LEVEL,
    Photos,
    divide_places,
    open_photos,
)
from mobilenets.tasks.geolocation.earth import centres, coarse_place
from mobilenets.tasks.geolocation.loss import cells_loss, neighbour_shares
from mobilenets.tasks.geolocation.metrics import PlaceMetrics
from mobilenets.tasks.geolocation.prediction import FINEST, CellGuess, PlacePrediction
from mobilenets.tasks.geolocation.task import Geolocation, radius_km
from mobilenets.web.map import WorldMap

latitudes = st.floats(-90, 90)
longitudes = st.floats(-180, 180)
places = st.tuples(latitudes, longitudes)


# Distances and shares.


@pytest.mark.parametrize(
    ("file", "shares"),
    [
        ("im2gps_base_M-fstar", (15.2, 40.9, 51.5, 65.4, 78.5)),
        ("im2gps_ISNs_M-fstar-S3", (16.9, 43.0, 51.9, 66.7, 80.2)),
        ("im2gps3k_base_M-fstar", (9.7, 27.0, 35.6, 49.1, 66.0)),
        ("im2gps3k_ISNs_M-fstar-S3", (10.5, 28.0, 36.6, 49.7, 66.0)),
    ],
)
def test_published_predictions_have_their_published_shares(geo, file, shares):
    with (geo / f"{file}.csv").open() as table:
        rows = list(csv.DictReader(table))
    columns = ("true_lat", "true_lon", "predicted_lat", "predicted_lon")
    found = shares_within(*([float(row[name]) for row in rows] for name in columns))
    assert list(found) == [1, 25, 200, 750, 2500]
    assert tuple(round(100 * share, 1) for share in found.values()) == shares


@pytest.mark.parametrize(
    ("one", "other", "km", "within"),
    [
        ((51.5074, -0.1278), (48.8566, 2.3522), 343.6, 0.05),
        ((0, 179.9), (0, -179.9), 22.24, 0.01),
        ((0, 0), (0, 180), 20_015.1, 0.1),
        ((90, 0), (-90, 77), 20_015.1, 0.1),
        ((37.2, 12.3), (-37.2, -167.7), 20_015.1, 0.1),
        ((48.2, 16.4), (48.2, 16.4), 0, 0),
        ((90, -120), (90, 30), 0, 1e-9),
    ],
)
def test_distances_are_great_circles(one, other, km, within):
    assert distance_km(*one, *other) == pytest.approx(km, abs=within)
    assert distance_km(*other, *one) == pytest.approx(km, abs=within)


@given(places, places)
def test_distances_are_those_of_the_ellipsoid_within_its_flattening(one, other):
    on_ellipsoid = Geodesic.WGS84.Inverse(*one, *other)["s12"] / 1000
    assert float(distance_km(*one, *other)) == pytest.approx(on_ellipsoid, rel=0.0057, abs=1e-3)


@given(places, places)
def test_distances_are_those_of_geographiclibs_sphere(one, other):
    sphere = Geodesic(6_371_008.8, 0.0)
    exact = sphere.Inverse(*one, *other)["s12"] / 1000
    assert float(distance_km(*one, *other)) == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize(
    ("given_places", "words"),
    [
        (([], [], [], []), ("at least one", "0")),
        (([1, 2], [1, 2], [1], [1]), ("as many", "2, 2, 1, 1")),
        (([151.2], [-33.9], [0], [0]), ("true place 0", "151.2", "±90")),
        (([0, 0], [0, 0], [0, np.nan], [0, 0]), ("predicted place 1", "nan")),
    ],
)
def test_shares_of_what_is_no_place_are_refused(given_places, words):
    with pytest.raises(ValueError, match=r"shares_within|place") as caught:
        shares_within(*given_places)
    assert all(word in str(caught.value) for word in words)


def test_means_lie_between_places_across_the_date_line_and_the_pole():
    latitude, longitude = np.array([10.0, 10.0, 89.0, 89.0]), np.array([179.0, -179.0, 0.0, 180.0])
    mean_K2 = centres(latitude, longitude, np.array([0, 0, 1, 1]), 2)
    assert mean_K2[0] == pytest.approx([10.0, 180.0], abs=0.01)
    assert mean_K2[1, 0] == pytest.approx(90.0)


# Cells.


def reference_cells(leaves, max_images, min_images, max_level):
    """The rule as it is written down, with S2's own cells and a list for each."""
    kept, waiting = (
        [],
        [(s2geometry.S2CellId.FromFacePosLevel(face, 0, 0), leaves) for face in range(6)],
    )
    while waiting:
        cell, around = waiting.pop()
        inside = [leaf for leaf in around if cell.contains(s2geometry.S2CellId(leaf))]
        if len(inside) > max_images and cell.level() < max_level:
            waiting += [(cell.child(quarter), inside) for quarter in range(4)]
        elif len(inside) >= max(1, min_images):
            kept.append(cell.ToToken())
    return sorted(kept)


clusters = st.lists(
    st.tuples(latitudes, longitudes, st.integers(1, 12), st.sampled_from([0.001, 0.5, 20.0])),
    min_size=1,
    max_size=8,
)


def scattered(towns, seed=0):
    random = np.random.default_rng(seed)
    found = [
        random.normal((latitude, longitude), spread, (count, 2))
        for latitude, longitude, count, spread in towns
    ]
    places_N2 = np.concatenate(found)
    return places_N2[:, 0].clip(-90, 90), places_N2[:, 1].clip(-180, 180)


@settings(deadline=None, max_examples=60)
@given(clusters, st.integers(0, 9), st.integers(0, 4), st.integers(0, 30))
def test_cells_are_those_of_a_plain_reference(towns, max_images, min_images, max_level):
    leaves = leaf_cells(*scattered(towns))
    found = split_cells(np.sort(leaves), max_images, min_images, max_level)
    tokens = [token_of(cell) for cell in found.tolist()]
    assert sorted(tokens) == reference_cells(leaves.tolist(), max_images, min_images, max_level)


@settings(deadline=None, max_examples=60)
@given(clusters, st.integers(1, 9), st.lists(places, min_size=1, max_size=20))
def test_a_place_is_in_one_cell_at_most_and_in_the_right_one(towns, max_images, asked):
    latitude, longitude = scattered(towns)
    ids = split_cells(np.sort(leaf_cells(latitude, longitude)), max_images, 1)
    cells = [s2geometry.S2CellId(cell) for cell in ids.tolist()]
    partition = Partition.of_places(leaf_cells(latitude, longitude), latitude, longitude, ids)
    assert partition.images_K.sum() == len(latitude)
    asked_latitude, asked_longitude = np.array(asked).T
    leaves = leaf_cells(np.append(asked_latitude, latitude), np.append(asked_longitude, longitude))
    for leaf, index in zip(leaves.tolist(), partition.index_of(leaves).tolist(), strict=True):
        inside = [
            place for place, cell in enumerate(cells) if cell.contains(s2geometry.S2CellId(leaf))
        ]
        assert inside == ([] if index == -1 else [index])


@given(places, st.integers(0, 30))
def test_numbers_of_cells_are_those_of_s2(place, level):
    leaf = leaf_cells(*(np.array([degrees]) for degrees in place))
    exact = s2geometry.S2CellId(s2geometry.S2LatLng.FromDegrees(*place))
    assert int(leaf[0]) == exact.id()
    parent = parents_of(leaf, level)
    assert token_of(parent[0]) == exact.parent(level).ToToken()
    assert id_of(exact.parent(level).ToToken()) == exact.parent(level).id()
    assert levels_of(parent).tolist() == [level]


@pytest.mark.parametrize("token", ["", "0", "x", "d", "80x", "1" * 17, "3"])
def test_what_is_no_token_is_refused(token):
    # The face of 0xd would be the seventh.
    if token == "3":
        assert s2geometry.S2CellId.FromToken("3").is_valid()
        return
    with pytest.raises(ValueError, match="no token"):
        id_of(token)


TOWNS = [(48, 2, 400, 1.0), (40, -74, 300, 0.5), (-34, 151, 200, 2.0), (0, 179.9, 100, 0.3)]


def test_cells_are_the_same_in_whatever_order_photos_come():
    latitude, longitude = scattered(TOWNS)
    order = np.random.default_rng(1).permutation(len(latitude))
    one = Cells.of_places(latitude, longitude, (100, 40, 20), 5)
    other = Cells.of_places(latitude[order], longitude[order], (100, 40, 20), 5)
    assert one.to_dict() == other.to_dict() == Cells.from_dict(one.to_dict()).to_dict()


def test_levels_lie_inside_each_other():
    latitude, longitude = scattered(TOWNS)
    cells = Cells.of_places(latitude, longitude, (20, 100, 40, 40), 5)
    counts = [len(level) for level in cells.levels]
    assert counts == sorted(counts)
    assert len(counts) == 3
    for level, parents in zip(cells.levels, cells.parents, strict=True):
        ids = level.ids_K[parents].tolist()
        for cell, fine in zip(ids, cells.finest.ids_K.tolist(), strict=True):
            assert s2geometry.S2CellId(cell).contains(s2geometry.S2CellId(fine))
    assert len(set(cells.tokens)) == len(cells.tokens) == len(cells)


def test_what_a_cell_is_told_of_its_photos_is_their_mean():
    latitude, longitude = scattered(TOWNS)
    level = Cells.of_places(latitude, longitude, (100,), 5).finest
    groups = level.index_of(leaf_cells(latitude, longitude))
    for cell in range(len(level)):
        mine = groups == cell
        apart = distance_km(latitude[mine], longitude[mine], *level.places_K2[cell])
        assert level.images_K[cell] == mine.sum()
        assert level.spread_K[cell] == pytest.approx(np.sqrt((apart**2).mean()))
        assert level.places_K2[cell, 0] == pytest.approx(latitude[mine].mean(), abs=0.1)


def test_joined_cells_are_as_if_they_had_never_been_cut():
    latitude, longitude = scattered(TOWNS)
    fine = Cells.of_places(latitude, longitude, (20,), 1).finest
    joined, _ = fine.merged(parents_of(fine.ids_K, 4))
    leaves = leaf_cells(latitude, longitude)
    whole = Partition.of_places(leaves, latitude, longitude, joined.ids_K)
    assert joined.images_K.tolist() == whole.images_K.tolist()
    np.testing.assert_allclose(joined.places_K2, whole.places_K2, atol=1e-3)
    np.testing.assert_allclose(joined.spread_K, whole.spread_K, rtol=1e-2)


def test_photos_of_one_place_are_no_choice():
    with pytest.raises(ValueError, match="30 photos are in one cell of at least 5"):
        Cells.of_places(np.full(30, 48.0), np.full(30, 2.0), (10,), 5)


@pytest.mark.slow
def test_five_million_places_take_a_minute_and_two_gigabytes():
    program = """
import numpy as np
from mobilenets.tasks.geolocation.cells import Cells
random = np.random.default_rng(0)
latitude = np.degrees(np.arcsin(random.uniform(-1, 1, 5_000_000)))
longitude = random.uniform(-180, 180, 5_000_000)
cells = Cells.of_places(latitude, longitude, (5000, 2000, 1000), 50)
assert sum(level.images_K.sum() for level in cells.levels) == 15_000_000
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True)
    assert time.monotonic() - started < 60
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert after < 2_000_000 or after == before


# Losses, probabilities and figures.


@pytest.fixture(scope="module")
def two_levels():
    """Two cells, one of which is finer ones at the second level."""
    latitude = np.concatenate([np.full(9, 40.0), np.full(4, -40.0)])
    longitude = np.concatenate([np.tile([-10.0, 5.0, 20.0], 3), np.full(4, 145.0)])
    return Cells.of_places(latitude, longitude, (9, 4), 2)


def test_a_fine_cell_is_as_likely_as_all_that_it_is_in(two_levels):
    assert [len(level) for level in two_levels.levels] == [2, 4]
    assert sorted(two_levels.parents[0].tolist()) in ([0, 0, 0, 1], [0, 1, 1, 1])
    random = np.random.default_rng(0)
    logits = random.normal(size=(5, 6)).astype(np.float32)
    coarse = torch.softmax(torch.from_numpy(logits[:, :2]).double(), 1).numpy()
    fine = torch.softmax(torch.from_numpy(logits[:, 2:]).double(), 1).numpy()
    product = coarse[:, two_levels.parents[0]] * fine
    expected = product / product.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(two_levels.probabilities(logits), expected, rtol=1e-6)


def test_a_temperature_makes_answers_as_sure_as_they_are_right(two_levels):
    """Cells drawn as the logits say, which are then told four times too large."""
    random = np.random.default_rng(0)
    count = 1500
    logits = random.normal(size=(count, 6)) * 2
    chances = two_levels.probabilities(logits)
    finest = np.array([random.choice(4, p=chance) for chance in chances])
    targets = np.column_stack([np.zeros((count, 3)), finest])
    targets[:7, -1] = -1
    found = {}
    for factor in (1.0, 4.0):
        metrics = PlaceMetrics(
            lambda outputs: np.zeros((len(outputs), 2)), lambda *_: (torch.zeros(()), 1), two_levels
        )
        batch = Batch(torch.zeros(count, 0), torch.from_numpy(targets), count)
        metrics.update(torch.from_numpy(factor * logits), batch)
        metrics.compute()
        found[factor] = metrics.details()["temperature"]
    assert found == {1.0: pytest.approx(1, rel=0.2), 4.0: pytest.approx(4, rel=0.2)}
    assert (two_levels.probabilities(logits, 9.0).argmax(1) == chances.argmax(1)).all()


def test_the_loss_is_a_mean_over_the_cells_that_photos_are_in():
    logits = torch.tensor([[1.0, 0.0, 0.0, 2.0], [0.0, 0.0, 1.0, 0.0], [9.0, 9.0, 9.0, 9.0]])
    cells = torch.tensor([[0, 1], [1, -1], [-1, -1]])
    parts = [slice(0, 2), slice(2, 4)]
    by_hand = (np.log(1 + np.exp(-1)) + np.log(2) + np.log(1 + np.exp(-2))) / 3
    assert float(cells_loss(logits, cells, parts)) == pytest.approx(by_hand, rel=1e-6)
    assert float(cells_loss(logits[2:], cells[2:], parts)) == 0


def test_a_neighbour_gets_less_of_the_label_the_farther_it_is():
    degrees = torch.tensor([0.0, 1.0, 90.0]).deg2rad()
    equator = torch.stack([degrees.cos(), degrees.sin(), torch.zeros(3)], dim=1)
    shares = neighbour_shares(equator, torch.tensor([0]), km=111.195)[0]
    assert float(shares.sum()) == pytest.approx(1)
    assert float(shares[1] / shares[0]) == pytest.approx(np.exp(-1), rel=1e-3)
    assert float(shares[2]) < 1e-20
    logits = torch.tensor([[0.3, 0.1, -0.2]])
    smooth = cells_loss(logits, torch.tensor([[0]]), [slice(0, 3)], [equator], 111.195)
    by_hand = -(shares * torch.log_softmax(logits[0], 0)).sum()
    assert float(smooth) == pytest.approx(float(by_hand), rel=1e-5)
    sharp = cells_loss(logits, torch.tensor([[0]]), [slice(0, 3)], [equator], 1e-3)
    assert float(sharp) == pytest.approx(
        float(cells_loss(logits, torch.tensor([[0]]), [slice(0, 3)]))
    )


def test_figures_count_every_photo_and_tell_how_sure_they_are():
    true = np.array([[0.0, 0.0], [10.0, 10.0], [-20.0, 179.95], [40.0, 40.0]])
    said = np.array([[0.0, 0.005], [10.0, 10.2], [-20.0, -179.95], [-40.0, -140.0]])
    metrics = PlaceMetrics(lambda outputs: outputs, lambda *_: (torch.tensor(0.5), 1))
    for rows in (slice(0, 3), slice(3, 4)):
        images = torch.zeros(len(true[rows]), 0)
        metrics.update(
            torch.from_numpy(said[rows]), Batch(images, torch.from_numpy(true[rows]), len(images))
        )
    figures = metrics.compute()
    assert [figures[f"within_{km}km"] for km in (1, 25, 200, 750, 2500)] == [
        0.25,
        0.75,
        0.75,
        0.75,
        0.75,
    ]
    assert figures["mean_within"] == pytest.approx(0.65)
    assert figures["median_km"] == pytest.approx(16.2, abs=1)
    low, high = metrics.details()["intervals"]["within_1km"]
    # Wilson's interval of one of four.
    assert (low, high) == pytest.approx((0.0456, 0.6994), abs=1e-3)


def test_the_radius_holds_nine_tenths():
    places_K2 = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 90.0]])
    spread = np.array([10.0, 20.0, 30.0])
    assert radius_km(places_K2, spread, np.array([0.95, 0.04, 0.01]), 0) == pytest.approx(10)
    assert radius_km(places_K2, spread, np.array([0.5, 0.45, 0.05]), 0) == pytest.approx(
        131.2, abs=0.1
    )
    assert radius_km(places_K2, spread, np.array([0.5, 0.3, 0.2]), 0) == pytest.approx(
        10037.5, abs=1
    )


# Places of photos.

ITALY = {
    "DSCN0010": (43.467448, 11.885127),
    "DSCN0012": (43.467157, 11.885395),
    "DSCN0021": (43.467082, 11.884538),
    "DSCN0025": (43.468365, 11.881635),
    "DSCN0027": (43.468442, 11.881515),
    "DSCN0029": (43.468243, 11.880172),
    "DSCN0038": (43.467255, 11.879213),
    "DSCN0040": (43.466012, 11.879112),
    "DSCN0042": (43.464455, 11.881478),
}
ELSEWHERE = {
    "Apple_iPhone_4": (41.853, 12.488833),
    "FujiFilm_FinePixS1Pro_1_": (54.989667, -1.914167),
    "FujiFilm_FinePixS1Pro_2_": (51.846667, -3.337833),
    "FujiFilm_FinePixS1Pro_3_": (55.104833, -1.8845),
    "FujiFilm_FinePixS1Pro_4_": (54.9135, -1.588833),
    "FujiFilm_FinePixS1Pro_5_": (50.723167, -1.962833),
    "FujiFilm_FinePixS2Pro": (48.857833, 2.297),
    "HTC_Desire": (45.500667, 9.110333),
    "Issue_173_dotnet_": (43.687394, -85.483519),
    "Issue_508": (43.859469, 15.503283),
    # Its seconds are 0/0: the fraction is in its minutes.
    "Nikon_D5000": (48.888726, 21.043251),
    "Sony_DSC-HX5V_2_": (51.778615, 8.365638),
}


@pytest.fixture(scope="session")
def geo(shared, tmp_path_factory):
    place = tmp_path_factory.mktemp("geo")
    with tarfile.open(shared / "data" / "geo.tar") as archive:
        archive.extractall(place, filter="data")
    return place / "geo"


def test_cameras_places_are_read_right_or_it_is_said_why(geo):
    source = open_photos(geo / "exif")
    photos = source.splits["all"]
    found = {
        path.stem: place for path, place in zip(photos.images.paths, photos.targets, strict=True)
    }
    expected = ITALY | ELSEWHERE
    assert found.keys() == expected.keys()
    for name, place in expected.items():
        assert found[name] == pytest.approx(place, abs=1e-6), name
    (warning,) = source.warnings
    assert "Samsung_GT-I9000_Galaxy_S_.jpg: its GPS says 0, 0" in warning


def photo_with(path, gps):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(gps)
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    return path


def thirds(*values):
    return tuple(IFDRational(*value) if isinstance(value, tuple) else value for value in values)


SOUTH_WEST = {1: "S", 2: thirds(33, 30, 36), 3: "W", 4: thirds(70, 15, 0)}


@pytest.mark.parametrize(
    ("gps", "told"),
    [
        (SOUTH_WEST, (-33.51, -70.25)),
        ({**SOUTH_WEST, 1: "s", 3: "w\0"}, (-33.51, -70.25)),
        ({**SOUTH_WEST, 2: thirds(33, (5132, 100), (0, 0))}, (-33.855333, -70.25)),
        ({}, "it has no GPS in its EXIF"),
        ({5: b"\0", 6: 848.0}, "tells no latitude"),
        ({1: "N", 2: thirds(33, 30, 36)}, "tells no longitude"),
        (
            {2: thirds(33, 30, 36), 4: thirds(70, 15, 0)},
            "does not say whether the latitude is N or S",
        ),
        ({**SOUTH_WEST, 3: "?"}, "does not say whether the longitude is E or W"),
        ({**SOUTH_WEST, 2: thirds((0, 0), (0, 0), (0, 0))}, "latitude of its GPS is nan degrees"),
        (
            {**SOUTH_WEST, 2: thirds(133, 0, 0)},
            "latitude of its GPS is 133 degrees, between 0 and 90",
        ),
        ({**SOUTH_WEST, 2: (33, 30)}, "no degrees, minutes and seconds"),
        ({**SOUTH_WEST, 2: thirds(0, 0, 0), 4: thirds(0, 0, 0)}, "0, 0, which cameras write"),
    ],
)
def test_what_cameras_write_is_a_place_or_a_reason(tmp_path, gps, told):
    path = photo_with(tmp_path / "photo.jpg", gps)
    if isinstance(told, tuple):
        assert read_gps(path) == pytest.approx(told, abs=1e-6)
        return
    with pytest.raises(NoPlaceError) as caught:
        read_gps(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,lat,lon\na.jpg,151.2,-33.9\n", ("line 2", "lat is 151.2", "±90", "changed places")),
        ("image,lat,lon\na.jpg,1,2\nb.jpg,95,170\n", ("line 3", "lat is 95, beyond ±90 degrees\n")),
        ("image,lat,lon\na.jpg,1,200\n", ("line 2", "lon is 200", "±180")),
        ("image,lat,lon\na.jpg,43°28'N,11.8\n", ("line 2", "43°28'N", "decimal point and a sign")),
        ('image,lat,lon\na.jpg,"43,46",11.8\n', ("line 2", "'43,46'", "not a comma")),
        ("image,lat,lon\na.jpg,north,11.8\n", ("line 2", "'north'", "a number of degrees")),
        ("image,lat,lon\na.jpg,,2\nb.jpg,,3\n", ("the column lat is empty",)),
        ("image,lat,lon\na.jpg,1,2\nb.jpg,1,\n", ("line 3", "lon is empty")),
        ("image,lat,lon\na.jpg,nan,2\n", ("line 2", "lat is 'nan'")),
        ("image,lat\na.jpg,1\n", ("no column lon", "image, lat")),
        ("image,latitude,breite\na.jpg,1,2\n", ("no column lon", "breite")),
        ("lat,lon\n1,2\n", ("which one names the images",)),
        ("image,lat,lon\n", ("names no photos",)),
        ("image,lat,lon\na.jpg,1,2\na.jpg,1,2\n", ("line 3", "a.jpg stands in line 2 too")),
        ("image,lat,lon\na.jpg,1\n", ("line 2", "2 values for 3 columns")),
        ("image,lat,lon,split\na.jpg,1,2,maybe\n", ("line 2", "'maybe'", "train, val or test")),
        ("image,lat,lon,split\na.jpg,1,2,test\n", ("no photo is in the train part",)),
    ],
)
def test_wrong_tables_are_one_sentence(tmp_path, capsys, text, words):
    table = tmp_path / "photos.csv"
    table.write_text(text)
    assert (
        cli(["train", str(table), "--task", "geolocation", "--output", str(tmp_path / "run")]) == 2
    )
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(word in said for word in ("photos.csv", *words)), said


def test_photos_without_gps_are_one_sentence(tmp_path, capsys):
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert cli(["train", str(tmp_path), "--task", "geolocation"]) == 2
    said = capsys.readouterr().err
    assert "a.jpg: it has no GPS in its EXIF and 1 more like it" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("where", ["nowhere", "photo.png"])
def test_what_holds_no_places_is_one_sentence(tmp_path, where, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    assert cli(["doctor", str(tmp_path / where), "--task", "geolocation"]) == 2
    assert "CSV, a Parquet or a folder" in capsys.readouterr().err.replace(
        "folder, CSV or Parquet", "CSV, a Parquet or a folder"
    )


def test_parquet_is_read_with_names_and_with_images(tmp_path):
    columns = {"latitude": [1.0, 2.5], "lng": [3.0, -4.0], "user": ["ann", None]}
    table = pyarrow.table(
        {"image": ["a.jpg", "b.jpg"], **columns, "split": ["train", "validation"]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "photos.parquet")
    source = open_photos(tmp_path / "photos.parquet")
    assert list(source.splits) == ["train", "val"]
    assert source.splits["val"].targets.tolist() == [[2.5, -4.0]]
    assert source.splits["val"].authors_N.tolist() == [-1]
    assert source.splits["train"].images.name(0) == str(tmp_path / "a.jpg")
    held = pyarrow.table(
        {"image": [{"bytes": b"x", "path": "a"}, {"bytes": b"y", "path": "b"}], **columns}
    )
    folder = tmp_path / "held"
    folder.mkdir()
    pyarrow.parquet.write_table(held, folder / "train-0.parquet")
    source = open_photos(folder)
    assert source.splits["train"].images.encoded(1) == b"y"
    wrong = pyarrow.table({"image": ["a.jpg"], "lat": [91.0], "lon": [3.0]})
    pyarrow.parquet.write_table(wrong, tmp_path / "wrong.parquet")
    with pytest.raises(ValueError, match="row 0: lat is 91, beyond ±90 degrees: have lat and lon"):
        open_photos(tmp_path / "wrong.parquet")


def test_parts_of_a_folder_of_photos_and_what_lacks_one(tmp_path):
    for part, count in (("train", 3), ("validation", 2), ("test", 1)):
        (tmp_path / "flat" / part).mkdir(parents=True)
        for number in range(count):
            photo_with(tmp_path / "flat" / part / f"{number}.jpg", SOUTH_WEST)
    source = open_photos(tmp_path / "flat")
    assert {name: len(part) for name, part in source.splits.items()} == {
        "train": 3,
        "val": 2,
        "test": 1,
    }
    (tmp_path / "flat" / "train").rename(tmp_path / "gone")
    with pytest.raises(ValueError, match="but no train part"):
        open_photos(tmp_path / "flat")


def test_authors_are_part_of_what_data_is_known_by(tmp_path):
    rows = ["image,lat,lon,author", "a.jpg,1,2,ann", "b.jpg,3,4,bob", "c.jpg,5,6,ann"]
    prints = set()
    for text in (
        rows,
        [row.rpartition(",")[0] for row in rows],
        [row.replace("bob", "ann") for row in rows],
    ):
        (tmp_path / "photos.csv").write_text("\n".join(text))
        prints.add(open_photos(tmp_path / "photos.csv").fingerprint())
    assert len(prints) == 3
    (tmp_path / "photos.csv").write_text("\n".join(rows).replace("ann", "zoe"))
    assert open_photos(tmp_path / "photos.csv").fingerprint() in prints


def test_a_geometry_is_no_image_and_authors_are_one_list(tmp_path):
    common = {"lat": [1.0, 2.0], "lon": [3.0, 4.0], "geometry": [b"x", b"y"]}
    for part, names in (("train", ["ann", "bob"]), ("test", ["cy", "ann"])):
        table = pyarrow.table(
            {"image": [f"{part}1.jpg", f"{part}2.jpg"], "author": names, **common}
        )
        pyarrow.parquet.write_table(table, tmp_path / f"{part}-0.parquet")
    source = open_photos(tmp_path)
    assert source.splits["test"].images.name(1) == str(tmp_path / "test2.jpg")
    cy, ann = source.splits["test"].authors_N.tolist()
    assert source.splits["train"].authors_N[0] == ann != cy
    assert len({cy, *source.splits["train"].authors_N.tolist()}) == 3
    pyarrow.parquet.write_table(
        pyarrow.table({"image": ["a", "a"], **common}), tmp_path / "train-0.parquet"
    )
    with pytest.raises(ValueError, match="row 1: a stands in row 0 too"):
        open_photos(tmp_path)


class Named:
    """Images of which nothing but their number matters."""

    def __init__(self, count):
        self.count = count

    def take(self, indices):
        return Named(len(list(indices)))


def photos_at(latitude, longitude, authors):
    return Photos(Named(len(authors)), np.stack([latitude, longitude], axis=1), np.array(authors))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**20), st.integers(20, 200), st.integers(1, 60))
def test_no_place_and_no_author_is_in_both_parts(seed, count, spots):
    random = np.random.default_rng(seed)
    towns = np.stack([random.uniform(-80, 80, spots), random.uniform(-170, 170, spots)], axis=1)
    spot = random.integers(0, spots, count)
    photos = photos_at(*towns[spot].T, random.integers(-1, count, count))
    if spots < 4:
        with suppress(ValueError):
            divide_places(photos, 0.2, seed)
        return
    train, val, warnings = divide_places(photos, 0.2, seed)
    assert len(train) + len(val) == count
    assert min(len(train), len(val)) > 0

    def of(part):
        leaves = leaf_cells(part.latitudes, part.longitudes)
        return set(parents_of(leaves, PLACE_LEVEL).tolist())

    assert not of(train) & of(val)
    if not warnings:
        assert not set(train.authors_N.tolist()) & set(val.authors_N.tolist()) - {-1}
    again = divide_places(photos, 0.2, seed)
    assert again[1].targets.tolist() == val.targets.tolist()


def test_authors_who_have_been_everywhere_are_not_kept_apart_and_it_is_said():
    latitude, longitude = np.repeat(np.arange(20.0), 5), np.repeat(np.arange(20.0), 5)
    photos = photos_at(latitude, longitude, [0] * 100)
    train, val, warnings = divide_places(photos, 0.2, 0)
    assert len(val) == 20
    assert len(train) == 80
    assert "chain most photos together" in warnings[0]


# From training to a map.

# Town, latitude, longitude, colour.
WORLD = (
    ("Paris", 48.86, 2.35, "royalblue"),
    ("Lyon", 45.76, 4.84, "skyblue"),
    ("Chicago", 41.88, -87.63, "firebrick"),
    ("Sydney", -33.87, 151.21, "seagreen"),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """80 pictures of one colour and some noise from each of four towns, a quarter of them to validate on."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    lines = ["image,lat,lon,split,town"]
    for town, latitude, longitude, colour in WORLD:
        for number in range(80):
            picture = np.asarray(Image.new("RGB", (32, 32), colour), dtype=np.int16)
            noisy = (picture + random.integers(-30, 30, picture.shape)).clip(0, 255)
            name = f"{town}-{number}.png"
            Image.fromarray(noisy.astype(np.uint8)).save(folder / "images" / name)
            near = random.normal((latitude, longitude), 0.05)
            part = "val" if number % 4 == 0 else "train"
            lines.append(f"{name},{near[0]:.5f},{near[1]:.5f},{part},{town}")
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")
    return folder


COMMAND = "--task geolocation --model 0.25-32-s8 --epochs 6 --set augmentation.min_area=1 --set augmentation.colour=0 --set optimizer.lr=0.005 --set ema_decay=0.9 --set batch_size=16 --device cpu --output"


@pytest.fixture(scope="module")
def world_run(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "world"
    command = ["train", str(world), *COMMAND.split(), str(folder)]
    assert cli([*command, "--set", "geolocation.smoothing=100"]) == 0
    return folder


def answer(capsys, *arguments):
    assert cli([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_from_training_to_prediction(world, world_run, capsys):
    capsys.readouterr()
    found = answer(capsys, "evaluate", world_run, world)
    assert found["split"] == "val"
    assert found["images"] == 80
    assert found["within_200km"] > 0.9
    low, high = found["intervals"]["within_200km"]
    assert low < found["within_200km"] <= high
    assert found["median_km"] < 25
    by_town = answer(capsys, "evaluate", world_run, world, "--by", "town")["groups"]
    assert by_town["Sydney"]["images"] == 20
    assert by_town["Sydney"]["within_200km"] > 0.9
    assert cli(["evaluate", str(world_run), str(world)]) == 0
    assert "95 % interval" in capsys.readouterr().out
    photo = world / "images" / "Sydney-0.png"
    (city,) = answer(capsys, "predict", world_run, photo, "--finest", "city")
    place = city["location"]
    assert distance_km(place["lat"], place["lon"], -33.87, 151.21) < 25
    assert city["predictions"][0]["score"] > 0.5
    assert sum(cell["score"] for cell in city["predictions"]) == pytest.approx(1, abs=0.02)


def test_answers_are_coarse_unless_asked_otherwise(world, world_run, capsys):
    photo = world / "images" / "Paris-1.png"
    levels = {}
    for finest in (None, "country", "region", "city"):
        asked = () if finest is None else ("--finest", finest)
        (told,) = answer(capsys, "predict", world_run, photo, *asked)
        level, least_km = FINEST[finest or "country"]
        cells = [id_of(cell["cell"]) for cell in told["predictions"]]
        assert levels_of(np.array(cells, dtype=np.uint64)).max() <= level
        assert told["radius_km"] >= least_km
        levels[finest] = told
    assert levels[None] == levels["country"]
    # The finer the cell, the nearer, and never nearer than a grid of that many km.
    for finest, most in (("city", 25), ("region", 200), ("country", 750)):
        place = levels[finest]["location"].values()
        assert distance_km(*place, 48.86, 2.35) < most
        assert distance_km(*place, *coarse_place(*place, FINEST[finest][1])) < 0.02
    assert Run.load(world_run).predict(photo).finest == "country"


@given(places, st.sampled_from([25, 200, 750]))
def test_a_coarse_place_is_near_and_one_of_few(place, km):
    coarse = coarse_place(*place, km)
    assert -90 <= coarse[0] <= 90
    assert -180 <= coarse[1] <= 180
    # Half a step either way.
    assert float(distance_km(*place, *coarse)) <= 0.95 * km
    assert float(distance_km(*coarse, *coarse_place(*coarse, km))) < 1e-3


def test_photos_around_one_house_do_not_tell_the_house(tmp_path):
    house = np.array([64.1466, -21.9426])
    others = np.array([[46.0, 2.0], [40.0, -95.0]]).repeat(30, axis=0)
    latitude, longitude = np.concatenate([house.reshape(1, 2).repeat(60, axis=0), others]).T
    cells = Cells.of_places(latitude, longitude, (60,), 10)
    task = Geolocation(cells, Preprocessing(32, 32))
    logits = np.full((1, len(cells)), -9.0, dtype=np.float32)
    logits[0, cells.index_of(house[:1], house[1:])[0, 0]] = 9
    (told,) = task.decode(logits)
    text = json.dumps([told.to_dict(), told.features({"image": "x"}), str(told)])
    assert float(distance_km(*house, told.latitude, told.longitude)) > 100
    assert "64.1" not in text
    assert "21.9" not in text


def test_geojson_csv_and_drawn_answers(world, world_run, tmp_path, capsys):
    photos = [str(world / "images" / f"{town}-0.png") for town in ("Paris", "Sydney")]
    capsys.readouterr()
    assert cli(["predict", str(world_run), *photos, "--geojson", "--finest", "city"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["type"] == "FeatureCollection"
    first = [one for one in found["features"] if one["properties"]["rank"] == 1]
    assert [one["properties"]["image"] for one in first] == photos
    longitude, latitude = first[1]["geometry"]["coordinates"]
    assert distance_km(latitude, longitude, -33.87, 151.21) < 25
    assert first[1]["properties"]["finest"] == "city"
    assert cli(["predict", str(world_run), *photos, "--csv", "--draw", str(tmp_path)]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert rows[0].keys() == {"image", "rank", "cell", "lat", "lon", "score"}
    assert len(list(tmp_path.glob("*.jpg"))) == 2
    assert cli(["predict", str(world_run), photos[1]]) == 0
    assert "33.7° S, 147.3° E within 750 km (country" in capsys.readouterr().out


@pytest.mark.parametrize(
    "target",
    [
        "onnx",
        *(pytest.param(other, marks=pytest.mark.slow) for other in ("litert", "openvino", "pt2")),
    ],
)
def test_a_run_is_exported_with_its_cells_proven(world, world_run, capsys, target):
    capsys.readouterr()
    common = ("--data", world, "--overwrite")
    (whole,) = answer(capsys, "export", world_run, "--to", target, *common)
    assert whole["parity"]["holds"]
    assert whole["parity"]["same_cells"] == 1
    told = json.loads((world_run / target / "cells.json").read_text())
    assert told["temperature"] > 0
    assert len(told["levels"][-1]["places"]) == len(Run.load(world_run).task.cells.finest)
    page = (world_run / target / "README.md").read_text()
    assert "a softmax within each level" in page
    assert "argmax" not in page
    if target != "onnx":
        return
    (small,) = answer(capsys, "export", world_run, "--to", "onnx", "--int8", *common)
    assert small["parity"]["images"] > 0
    photo = world / "images" / "Chicago-0.png"
    (through, plain) = (
        answer(capsys, "predict", world_run, photo, "--runtime", runtime, "--finest", "city")[0]
        for runtime in ("onnxruntime", "torch")
    )
    assert through["location"] == plain["location"]


def test_training_goes_on_and_without_parts_holds_places_out(world, tmp_path, capsys):
    rows = [line.split(",") for line in (world / "photos.csv").read_text().splitlines()]
    (tmp_path / "images").symlink_to(world / "images")
    table = tmp_path / "photos.csv"
    table.write_text("\n".join(",".join(row[:3]) for row in rows) + "\n")
    command = COMMAND.replace("--epochs 6", "--epochs 1").split()
    folder = tmp_path / "run"
    assert (
        cli(["train", str(table), *command, str(folder), "--set", "geolocation.max_images=[40]"])
        == 0
    )
    assert cli(["train", "--resume", str(folder), "--epochs", "2"]) == 0
    run = Run.load(folder)
    assert [len(level) for level in run.task.cells.levels] == [len(run.labels)]
    capsys.readouterr()
    found = answer(capsys, "evaluate", folder, table)
    assert found["split"] == "val"
    assert 16 <= found["images"] <= 48


def test_a_student_learns_cells_from_a_teacher(world, world_run, tmp_path):
    folder = tmp_path / "student"
    command = (
        COMMAND.replace("0.25-32-s8", "0.25-32-shallow").replace("-epochs 6", "-epochs 4").split()
    )
    more = [
        "--teacher",
        str(world_run),
        "--unlabelled",
        str(world / "images"),
        "--set",
        "distillation.weight=1",
    ]
    assert cli(["train", str(world), *command, str(folder), *more]) == 0
    assert Run.load(folder).config["metrics"]["within_200km"] > 0.7


@pytest.mark.slow
def test_tens_of_thousands_of_cells_train_in_bounded_memory(tmp_path):
    """At width 1.0: 30,000 cells in two levels, a few steps."""
    program = f"""
import resource
import numpy as np
from PIL import Image
from pathlib import Path
folder = Path({str(tmp_path)!r})
(folder / "images").mkdir()
random = np.random.default_rng(0)
latitude = np.degrees(np.arcsin(random.uniform(-1, 1, 60_000)))
longitude = random.uniform(-180, 180, 60_000)
Image.new("RGB", (40, 40), "teal").save(folder / "images" / "0.png")
for number in range(1, 60_000):
    (folder / "images" / f"{{number}}.png").hardlink_to(folder / "images" / "0.png")
rows = [f"{{n}}.png,{{a:.5f}},{{b:.5f}}" for n, (a, b) in enumerate(zip(latitude, longitude))]
(folder / "photos.csv").write_text("image,lat,lon\\n" + "\\n".join(rows))
from mobilenets.cli.main import run
assert run(["train", str(folder / "photos.csv"), "--task", "geolocation", "--model", "1.0-32", "--max-time", "60s",
            "--set", "geolocation.max_images=[8,3]", "--set", "geolocation.min_images=1", "--set", "geolocation.smoothing=75",
            "--output", str(folder / "run")]) == 0
from mobilenets import Run
print(len(Run.load(folder / "run").labels), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    outputs, kilobytes = map(int, done.stdout.split()[-2:])
    assert outputs > 30_000
    assert kilobytes < 5_000_000


# What is wrong, and pages.


def test_the_doctor_tells_of_places(world, tmp_path, capsys):
    assert cli(["doctor", str(world), "--task", "geolocation"]) == 0
    capsys.readouterr()
    names = sorted((world / "images").glob("*.png"))[:24]
    (tmp_path / "images").symlink_to(world / "images")
    rows = ["image,lat,lon,split,author"]
    for number, path in enumerate(names):
        place = "0,0" if number == 3 else "10,10"
        rows.append(f"{path.name},{place},{'val' if number > 20 else 'train'},ann")
    (tmp_path / "photos.csv").write_text("\n".join(rows))
    assert cli(["doctor", str(tmp_path / "photos.csv"), "--task", "geolocation", "--json"]) == 1
    found = {
        finding["kind"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]
    }
    assert found["null-island"]["severity"] == "error"
    assert "20 of 21 photos have the very same place" in found["one-point"]["detail"]
    assert "3 photos of val are less than about a kilometre" in found["shared-place"]["detail"]
    assert "3 photos of val are by an author of photos of train" in found["shared-author"]["detail"]
    assert found["whole-degrees"]["severity"] == "warning"
    assert found["one-author"]["severity"] == "note"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--finest", "street"], "--finest is city, region, country, not 'street'"),
        (["--map", "map.png"], "the name of a page ends in .html"),
        (["--map", "missing/map.html"], "there is no such folder"),
        (["--score", "0.5"], "--score, --tile and --coco are for detectors"),
        (["--json", "--geojson"], "give one of --json, --csv, --geojson and --coco"),
    ],
)
def test_what_predictions_of_places_can_not_do_is_one_sentence(
    world, world_run, monkeypatch, tmp_path, capsys, more, sentence
):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert cli(["predict", str(world_run), str(world / "images" / "Paris-0.png"), *more]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--set", "geolocation.max_images=[]"], "geolocation.max_images"),
        (["--set", "geolocation.max_images=[50,-1]"], "geolocation.max_images"),
        (["--set", "geolocation.max_levl=4"], "nearest: geolocation.max_level"),
        (
            [
                "--set",
                "geolocation.max_level=0",
                "--set",
                "geolocation.max_images=[1]",
                "--set",
                "geolocation.min_images=200",
            ],
            "in one cell of at least 200",
        ),
        (["--set", "label_smoothing=0.1"], "label_smoothing is for classes, not for places"),
        (["--set", "augmentation.mixup=0.2"], "augmentation.mixup is not for places"),
        (["--model", "ssd300/1.0"], "ssd300/1.0 detects"),
        (
            ["--set", "fine_tuning.probe=true", "--weights", "RUN"],
            "fine_tuning.probe fits classes, not places",
        ),
    ],
)
def test_what_geolocation_can_not_do_is_one_sentence(
    world, world_run, tmp_path, capsys, more, sentence
):
    words = [str(world_run) if word == "RUN" else word for word in more]
    command = [
        "train",
        str(world),
        "--task",
        "geolocation",
        "--epochs",
        "1",
        "--output",
        str(tmp_path / "run"),
    ]
    if "--model" not in words and "--weights" not in words:
        command += ["--model", "0.25-32"]
    assert cli([*command, *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_other_tasks_know_nothing_of_places(digits_run, tmp_path, capsys):
    Image.new("L", (8, 8)).save(tmp_path / "digit.png")
    assert cli(["predict", str(digits_run), str(tmp_path / "digit.png"), "--geojson"]) == 2
    assert "--finest, --geojson and --map are for geolocation" in capsys.readouterr().err
    assert (
        cli(
            [
                "train",
                "digits",
                "--set",
                "geolocation.max_level=3",
                "--output",
                str(tmp_path / "run"),
            ]
        )
        == 2
    )
    assert "geolocation is for geolocation, not for classification" in capsys.readouterr().err


def test_without_s2_it_is_said_what_to_install(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "s2geometry", None)
    assert (
        cli(["train", str(world), "--task", "geolocation", "--output", str(tmp_path / "run")]) == 2
    )
    assert "pip install 'mobilenets[geo]'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def map_page(world, world_run, tmp_path_factory):
    """A map of a photo from Sydney, whose name would end a script, and one from Chicago."""
    folder = tmp_path_factory.mktemp("map")
    photos = []
    for town, name in (("Sydney", "</script><b>Sydney.png"), ("Chicago", "Chicago.png")):
        photo = folder / name.replace("/", "\u2215")
        photo.write_bytes((world / "images" / f"{town}-0.png").read_bytes())
        photos.append(str(photo))
    page = folder / "map.html"
    assert cli(["predict", str(world_run), *photos, "--map", str(page)]) == 0
    return page


def hot_place(canvas):
    """The middle of what is red on a picture of the map, as shares of its width and height."""
    pixels = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB"), dtype=np.int16)
    y, x = np.nonzero(pixels[..., 0] - pixels[..., 1] > 60)
    assert len(x) > 10
    return float(np.median(x)) / pixels.shape[1], float(np.median(y)) / pixels.shape[0]


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_the_map_is_hot_where_the_photo_was_taken(map_page, chromium, scheme):
    context = chromium.new_context(
        viewport={"width": 1280, "height": 900}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    problems, asked = [], []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(map_page.as_uri())
    canvas = page.locator("#map")
    # Sydney: far to the right, below the middle. Chicago: left of the middle, above it.
    x, y = hot_place(canvas)
    assert 0.82 < x < 0.95
    assert 0.62 < y < 0.8
    box = canvas.bounding_box()
    exact = page.evaluate("map.project([151.21, -33.87])")
    assert x * box["width"] == pytest.approx(exact[0], abs=40)
    assert y * box["height"] == pytest.approx(exact[1], abs=40)
    page.mouse.move(box["x"] + exact[0], box["y"] + exact[1])
    assert "%" in page.locator("#told").inner_text()
    page.locator("#photos button").nth(1).click()
    x, y = hot_place(canvas)
    assert 0.2 < x < 0.4
    assert 0.15 < y < 0.4
    assert "Chicago" in page.locator("#name").inner_text()
    assert "° N" in page.locator("#answer").inner_text()
    assert page.locator("#cells tr").count() >= 1
    page.get_by_role("button", name="Globe").click()
    # A globe is turned so that the answer is in its middle.
    x, y = hot_place(canvas)
    assert (x, y) == pytest.approx((0.5, 0.5), abs=0.08)
    canvas.focus()
    before = page.evaluate("map.view()")
    for key in ("+", "ArrowLeft", "ArrowDown"):
        page.keyboard.press(key)
    after = page.evaluate("map.view()")
    assert after[0] > before[0]
    assert after[1] < before[1]
    assert after[2] < before[2]
    assert page.locator("#photos button").count() == 2
    assert problems == []
    assert [url.split(":")[0] for url in asked if not url.startswith("data:")] == ["file"]
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_keeps_people_from_using_the_map(map_page, chromium, barriers, scheme):
    context = chromium.new_context(color_scheme=scheme, offline=True, bypass_csp=True)
    page = context.new_page()
    page.goto(map_page.as_uri())
    assert barriers(page) == []
    context.close()


def test_a_name_can_not_end_the_script_it_stands_in(tmp_path):
    guess = CellGuess("47c", 48.0, 2.0, 1.0)
    world_map = WorldMap(tmp_path / "map.html", "a <model>")
    prediction = PlacePrediction((guess,), 750.0, "country")
    world_map.add("</script><b>", Image.new("RGB", (8, 8)), prediction)
    world_map.write()
    page = (tmp_path / "map.html").read_text()
    assert "</script><b>" not in page
    assert "a <model>" not in page


def test_the_map_fits_a_phone(map_page, chromium):
    context = chromium.new_context(viewport={"width": 390, "height": 844}, offline=True)
    page = context.new_page()
    page.goto(map_page.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    x, y = hot_place(page.locator("#map"))
    assert 0.82 < x < 0.95
    assert 0.62 < y < 0.8
    context.close()


def test_the_page_to_try_it_puts_photos_on_its_map(world, world_run, trial, capsys, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(world_run, run, ignore=shutil.ignore_patterns("onnx*"))
    assert cli(["export", str(run), "--limit", "16"]) == 0
    images = [world / "images" / f"{town}-0.png" for town, *_ in WORLD]
    capsys.readouterr()
    assert cli(["predict", str(run), *map(str, images), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    page = trial(run)
    for image, wanted in zip(images, told, strict=True):
        found = page.answer(image)
        longitude, latitude = found["place"]
        assert {"lat": latitude, "lon": longitude} == wanted["location"]
        assert found["finest"] == wanted["finest"]
        # The page knows coarse places alone.
        assert found["radius_km"] == pytest.approx(wanted["radius_km"], abs=750)
        scores = {one["cell"]: one["score"] for one in wanted["predictions"]}
        for cell in found["cells"][: len(scores)]:
            assert cell["score"] == pytest.approx(scores[cell["token"]], abs=0.01)
    # Cells that are told, and no place of a photo: neither its cells nor their means.
    model = page.page.evaluate("fetch('model.json').then(answer => answer.json())")
    assert set(model["cells"]["told"][0]) == {"token", "place", "spread_km", "ring"}
    x, _ = hot_place(page.page.locator("#map"))
    assert 0 < x < 1
    page.page.locator("#globe").click()
    assert page.page.locator("#globe").get_attribute("aria-pressed") == "true"
    files = [path for path in (tmp_path / "page-0").iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files if path.name != "model.onnx") < 300_000
