"""How an image becomes the network's input; it travels with every model and every exported file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal, get_args

Resize = Literal["squash", "crop"]
Interpolation = Literal["bilinear", "bicubic", "nearest"]
ChannelOrder = Literal["RGB", "BGR", "L", "RGBA"]
CHANNELS: dict[str, int] = {"L": 1, "RGB": 3, "BGR": 3, "RGBA": 4}


def channel_order(count: int) -> ChannelOrder:
    """The usual order of that many channels.

    Raises:
        ValueError: images have no such number of channels.

    >>> channel_order(1), channel_order(3)
    ('L', 'RGB')
    """
    orders: dict[int, ChannelOrder] = {1: "L", 3: "RGB", 4: "RGBA"}
    if count not in orders:
        raise ValueError(f"images have 1 (grey), 3 (RGB) or 4 (RGBA) channels, not {count}")
    return orders[count]


@dataclass(frozen=True)
class Preprocessing:
    """Resize, then `(pixel / 255 - mean) / std`, channel by channel.

    Args:
        height, width: size of the input in pixels.
        channels: `RGB`, `BGR`, `L` (grey) or `RGBA`.
        resize: `squash` scales to the size whatever the shape; `crop` scales until the centre
            `crop_fraction` of the shorter side fills the size, and cuts the rest off.
        interpolation: always with antialiasing when it shrinks.
        mean, std: in the unit of `pixel / 255`; 0.5 and 0.5 give [-1, 1] (TensorFlow-Slim, Keras).

    >>> Preprocessing(224, 224).scaled(255.0), Preprocessing(224, 224).scaled(0.0)
    (1.0, -1.0)
    """

    height: int
    width: int
    channels: ChannelOrder = "RGB"
    resize: Resize = "crop"
    crop_fraction: float = 0.875
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("channels", get_args(ChannelOrder)),
            ("resize", get_args(Resize)),
            ("interpolation", get_args(Interpolation)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"preprocessing: {name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}"
                )
        if self.height < 1 or self.width < 1:
            raise ValueError(
                f"preprocessing: height and width must be at least 1, not {self.height} and {self.width}"
            )
        count = CHANNELS[self.channels]
        if len(self.mean) != count or len(self.std) != count:
            raise ValueError(
                f"preprocessing: {self.channels} needs {count} means and {count} deviations, "
                f"not {len(self.mean)} and {len(self.std)}"
            )
        if not all(isfinite(value) for value in self.mean):
            raise ValueError(f"preprocessing: the means must be finite, not {self.mean}")
        if not all(isfinite(value) and value > 0 for value in self.std):
            raise ValueError(f"preprocessing: the deviations must be above 0, not {self.std}")
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(
                f"preprocessing: crop_fraction must lie in (0, 1], not {self.crop_fraction}"
            )

    @property
    def channel_count(self) -> int:
        """Channels of the input: 1, 3 or 4."""
        return CHANNELS[self.channels]

    def scaled(self, pixel: float, channel: int = 0) -> float:
        """The network's input for one pixel value from 0 to 255."""
        return (pixel / 255 - self.mean[channel]) / self.std[channel]

    def to_dict(self) -> dict[str, Any]:
        """Every field as JSON writes it."""
        values = asdict(self)
        return values | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Rebuild from `to_dict`."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
