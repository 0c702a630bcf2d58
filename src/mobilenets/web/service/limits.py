"""What one client, and all of them together, may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from mobilenets.data.images import MOST_PIXELS

# What files are read as; others of Pillow's readers are rarely used, and one starts a program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of a server.

    Args:
        body_bytes: of one request.
        images: in one request.
        pixels: of one image.
        large: pixels of an image beside which no other such is decoded, as each may take a gigabyte.
        longest: how many times as long as wide an image may be.
        seconds: within which a request is to be sent whole, and a client to go on reading its answer.
        connections: open at the same time.
        waiting: images that are read or wait to be, of all requests together.
        held_bytes: of bodies that are held in memory, of all requests together.
        head_bytes: of a request's first line and headers.
        batch: images that go through the network together.
        wait_ms: how long an idle network waits for images that are just being read, to take them along.
    """

    body_bytes: int = 20_000_000
    images: int = 16
    pixels: int = MOST_PIXELS
    large: int = 16_000_000
    longest: int = 100
    seconds: float = 30.0
    connections: int = 512
    waiting: int = 256
    held_bytes: int = 400_000_000
    head_bytes: int = 32_768
    batch: int = 32
    wait_ms: float = 2.0
