"""Where a photo was taken, as its camera wrote it into EXIF."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from mobilenets.data.images import BadImageError

_SIDES = {"latitude": ("NS", 90), "longitude": ("EW", 180)}


class NoPlaceError(ValueError):
    """A photo that does not tell where it was taken; the message starts with its path."""


def read_gps(path: Path) -> tuple[float, float]:
    """Latitude and longitude in degrees, north and east positive.

    Seconds of 0/0, which cameras write that put fractions into minutes, are none.

    Raises:
        NoPlaceError: the photo has no GPS, or what it has is no place, and why.
        BadImageError: the file is missing or no image.
    """
    try:
        with Image.open(path) as image:
            gps = image.getexif().get_ifd(ExifTags.IFD.GPSInfo)
    except FileNotFoundError:
        raise BadImageError(f"{path}: there is no such image") from None
    # EXIF is damaged in many ways, and decoders say so in as many.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImageError(f"{path}: its EXIF can't be read ({reason})") from None
    latitude = _degrees(path, gps, "latitude", ExifTags.GPS.GPSLatitude)
    longitude = _degrees(path, gps, "longitude", ExifTags.GPS.GPSLongitude)
    if latitude == 0 and longitude == 0:
        raise NoPlaceError(
            f"{path}: its GPS says 0, 0, which cameras write that do not know where they are"
        )
    return latitude, longitude


def _degrees(path: Path, gps: dict[int, Any], name: str, tag: int) -> float:
    if not gps:
        raise NoPlaceError(f"{path}: it has no GPS in its EXIF")
    sides, most = _SIDES[name]
    if tag not in gps:
        raise NoPlaceError(f"{path}: its GPS tells no {name}")
    # The tag before each tells the side.
    told = gps.get(tag - 1, "")
    side = (told.decode("ascii", "replace") if isinstance(told, bytes) else str(told)).strip("\0 ")
    if side.upper() not in tuple(sides):
        raise NoPlaceError(
            f"{path}: its GPS does not say whether the {name} is {sides[0]} or {sides[1]}"
        )
    try:
        degrees, minutes, seconds = (float(part) for part in gps[tag])
    except (TypeError, ValueError, ZeroDivisionError):
        raise NoPlaceError(
            f"{path}: the {name} of its GPS is no degrees, minutes and seconds"
        ) from None
    value = degrees + minutes / 60 + (0.0 if math.isnan(seconds) else seconds) / 3600
    if not 0 <= value <= most:
        raise NoPlaceError(
            f"{path}: the {name} of its GPS is {value:g} degrees, between 0 and {most} it is a place"
        )
    return -value if side.upper() == sides[1] else value
