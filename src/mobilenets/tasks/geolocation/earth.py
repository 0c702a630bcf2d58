"""Distances on the Earth, taken as a sphere of its mean radius, and the shares that are told of them.

Latitudes and longitudes are degrees, north and east positive. Shapes: N places, K groups of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

EARTH_RADIUS_KM = 6371.0088
# Street, city, region, country and continent (Hays and Efros 2008; Table 11 of the paper).
SCALES_KM = (1, 25, 200, 750, 2500)


def distance_km(
    latitude: ArrayLike, longitude: ArrayLike, to_latitude: ArrayLike, to_longitude: ArrayLike
) -> NDArray[np.float64]:
    """Great-circle distances in km by the haversine formula; the arguments broadcast.

    On the ellipsoid that maps use distances differ by up to 0.56 %.

    >>> round(float(distance_km(51.5074, -0.1278, 48.8566, 2.3522)), 1)
    343.6
    """
    latitude_1, longitude_1, latitude_2, longitude_2 = (
        np.radians(np.asarray(degrees, dtype=np.float64))
        for degrees in (latitude, longitude, to_latitude, to_longitude)
    )
    haversine = (
        np.sin((latitude_2 - latitude_1) / 2) ** 2
        + np.cos(latitude_1) * np.cos(latitude_2) * np.sin((longitude_2 - longitude_1) / 2) ** 2
    )
    # Rounding takes antipodes beyond 1, where there is no arc.
    return np.asarray(2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(haversine.clip(0, 1))))


def shares_within(
    true_lat: ArrayLike, true_lon: ArrayLike, predicted_lat: ArrayLike, predicted_lon: ArrayLike
) -> dict[int, float]:
    """Of N photos the shares that were placed within 1, 25, 200, 750 and 2,500 km, by those distances.

    Raises:
        ValueError: there are no photos, or not as many predictions, or a place is none on Earth.

    >>> shares_within([51.5074, 0], [-0.1278, 179.9], [48.8566, 0], [2.3522, -179.9])
    {1: 0.0, 25: 0.5, 200: 0.5, 750: 1.0, 2500: 1.0}
    """
    places = [
        np.asarray(degrees, dtype=np.float64).ravel()
        for degrees in (true_lat, true_lon, predicted_lat, predicted_lon)
    ]
    counts = {len(degrees_N) for degrees_N in places}
    if len(counts) > 1 or counts == {0}:
        raise ValueError(
            "shares_within takes as many predicted places as true ones, and at least one: "
            + ", ".join(f"{len(degrees_N):,}" for degrees_N in places)
        )
    for name, (latitude_N, longitude_N) in (("true", places[:2]), ("predicted", places[2:])):
        bad_N = ~((np.abs(latitude_N) <= 90) & (np.abs(longitude_N) <= 180))
        if bad_N.any():
            row = int(bad_N.argmax())
            raise ValueError(
                f"{name} place {row} is {latitude_N[row]:g}, {longitude_N[row]:g}: "
                "a latitude is within ±90 degrees and a longitude within ±180"
            )
    distances_N = distance_km(*places)
    return {scale: float((distances_N <= scale).mean()) for scale in SCALES_KM}


def coarse_place(latitude: float, longitude: float, km: float) -> tuple[float, float]:
    """The nearest point of a grid whose lines are so far apart, and nothing finer.

    >>> [round(degrees, 3) for degrees in coarse_place(64.1466, -21.9426, 750)]
    [67.449, -18.0]
    """
    step = float(np.degrees(km / EARTH_RADIUS_KM))
    rounded = max(-90.0, min(90.0, step * round(latitude / step)))
    # As many on each circle as go round it.
    across = 360 / max(1, round(360 * float(np.cos(np.radians(rounded))) / step))
    east = across * round(longitude / across)
    return rounded, (east + 180) % 360 - 180


def unit_vectors(latitude_N: NDArray[Any], longitude_N: NDArray[Any]) -> NDArray[np.float64]:
    """Places as points (N, 3) on a sphere of radius 1.

    >>> unit_vectors(np.array([0.0]), np.array([90.0])).round(6).tolist()
    [[0.0, 1.0, 0.0]]
    """
    latitude_N, longitude_N = np.radians(latitude_N), np.radians(longitude_N)
    across_N = np.cos(latitude_N)
    return np.stack(
        [across_N * np.cos(longitude_N), across_N * np.sin(longitude_N), np.sin(latitude_N)],
        axis=-1,
    )


def places_of(points_N3: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Latitudes and longitudes of points in any directions from the centre.

    >>> [float(degrees) for degrees in places_of(np.array([0.0, 2.0, 0.0]))]
    [0.0, 90.0]
    """
    x_N, y_N, z_N = np.moveaxis(np.asarray(points_N3, dtype=np.float64), -1, 0)
    return np.degrees(np.arctan2(z_N, np.hypot(x_N, y_N))), np.degrees(np.arctan2(y_N, x_N))


def centres(
    latitude_N: NDArray[np.float64],
    longitude_N: NDArray[np.float64],
    group_N: NDArray[np.int64],
    groups: int,
    weights_N: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Of each group the mean place, as degrees (K, 2), across the date line and the poles too."""
    points_N3 = unit_vectors(latitude_N, longitude_N)
    sums = [
        np.bincount(group_N, values_N if weights_N is None else values_N * weights_N, groups)
        for values_N in points_N3.T
    ]
    return np.stack(places_of(np.stack(sums, axis=-1)), axis=-1)
