"""What a MobileNet is: width, resolution and the few choices that the paper leaves open."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from decimal import Decimal
from typing import Any, Literal, get_args

from mobilenets.architecture.body import Padding, Variant, body_rows, convolved_size

Rounding = Literal["slim", "keras", "divisible8"]
Activation = Literal["relu", "relu6", "leaky"]

MAX_WIDTH = 16.0
TOTAL_STRIDES = (32, 16, 8, 4)
PUBLISHED_WIDTHS = (1.0, 0.75, 0.5, 0.25)
PUBLISHED_RESOLUTIONS = (224, 192, 160, 128)

_NAME = re.compile(
    r"(?P<width>-?[^-]+)-(?P<height>\d+)(?:x(?P<across>\d+))?(?P<suffixes>(?:-[a-z0-9]+)*)"
)


@dataclass(frozen=True)
class MobileNetSpec:
    """One member of the family, checked when it is made.

    Args:
        width: multiplier of every channel count, above 0 and at most 16 (section 3.3).
        resolution: input size in pixels, one number for a square or `(height, width)` (section 3.4).
        rounding: how `channels * width` becomes a whole number. `slim`: cut off, at least 8
            (TensorFlow-Slim's `mobilenet_v1.py`); `keras`: cut off, at least 1; `divisible8`:
            nearest multiple of 8, never more than 10 % below (torchvision, timm).
        variant: `separable` (Table 1), `fullconv` (each block one full convolution, Table 4) or
            `shallow` (without the five 14x14x512 blocks, Table 5).
        total_stride: input size over final map size: 32 as in the paper; 16, 8 and 4 turn the
            earliest strides to 1, for small images.
        activation: `relu` (the paper's text), `relu6` (TensorFlow-Slim, Keras, timm) or `leaky`
            (slope 0.1).
        padding: `torch` (one pixel all round), `tensorflow` (SAME) or `keras` (SAME for the first
            layer; below and right only, for every other layer of stride 2).
        batch_norm_epsilon: added to the variance; 1e-5 is PyTorch's, 1e-3 TensorFlow's.
        input_channels: 3 for colour, 1 for grey.

    Raises:
        ValueError: one sentence that names the value and what is allowed.

    >>> str(MobileNetSpec(0.5, 160))
    '0.5-160'
    """

    width: float = 1.0
    resolution: int | tuple[int, int] = 224
    rounding: Rounding = "slim"
    variant: Variant = "separable"
    total_stride: int = 32
    activation: Activation = "relu"
    padding: Padding = "torch"
    batch_norm_epsilon: float = 1e-5
    input_channels: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", check_width(self.width))
        object.__setattr__(self, "resolution", _check_resolution(self.resolution))
        _check_choice("rounding", self.rounding, get_args(Rounding))
        _check_choice("variant", self.variant, get_args(Variant))
        _check_choice("activation", self.activation, get_args(Activation))
        _check_choice("padding", self.padding, get_args(Padding))
        if not _is_whole(self.total_stride) or self.total_stride not in TOTAL_STRIDES:
            raise ValueError(f"total stride must be 32, 16, 8 or 4, not {self.total_stride!r}")
        if not isinstance(self.batch_norm_epsilon, float) or not 0 < self.batch_norm_epsilon < 1:
            raise ValueError(
                f"batch-norm epsilon must lie between 0 and 1, not {self.batch_norm_epsilon!r}"
            )
        if not _is_whole(self.input_channels) or self.input_channels < 1:
            raise ValueError(
                f"input channels must be a whole number from 1 up, not {self.input_channels!r}"
            )
        if 0 in self.final_size:
            raise ValueError(
                f"{self} with {self.padding} padding has a feature map that vanishes: "
                f"use at least {self._smallest_side()} pixels a side, or another padding"
            )

    @property
    def height(self) -> int:
        """Input height in pixels."""
        return self.resolution if isinstance(self.resolution, int) else self.resolution[0]

    @property
    def across(self) -> int:
        """Input width in pixels (`width` is the multiplier)."""
        return self.resolution if isinstance(self.resolution, int) else self.resolution[1]

    @property
    def final_size(self) -> tuple[int, int]:
        """Height and width of the last feature map.

        >>> MobileNetSpec(1.0, 224).final_size, MobileNetSpec(1.0, 225).final_size
        ((7, 7), (8, 8))
        """
        return self._final_side(self.height), self._final_side(self.across)

    def _final_side(self, side: int) -> int:
        for index, _, stride in body_rows(self.variant, self.total_stride):
            side = convolved_size(side, stride, self.padding, first=index == 0)
        return side

    def _smallest_side(self) -> int:
        return next(side for side in range(1, 65) if self._final_side(side))

    def channels(self, base: int) -> int:
        """Channels of a layer that has `base` at width 1.

        >>> MobileNetSpec(0.35).channels(32), MobileNetSpec(0.35, rounding="divisible8").channels(32)
        (11, 16)
        """
        scaled = base * self.width
        if self.rounding == "slim":
            return max(int(scaled), 8)
        if self.rounding == "keras":
            return max(int(scaled), 1)
        rounded = max(8, int(scaled + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * scaled else rounded

    def __str__(self) -> str:
        size = str(self.height) if self.height == self.across else f"{self.height}x{self.across}"
        stride = "" if self.total_stride == 32 else f"-s{self.total_stride}"
        variant = "" if self.variant == "separable" else f"-{self.variant}"
        return f"{format(Decimal(repr(self.width)), 'f')}-{size}{stride}{variant}"

    @classmethod
    def parse(cls, name: str, **choices: Any) -> MobileNetSpec:
        """Read a name such as `0.5-160`, `0.5-32-s16`, `1.0-224-shallow` or `0.5-97x161`.

        Args:
            name: width, resolution, then a total stride and a variant where they are not the
                default.
            choices: what a name does not hold, such as `padding="tensorflow"`.

        Raises:
            ValueError: says what is wrong and gives the nearest valid name.

        >>> MobileNetSpec.parse("0.5-32-s16").total_stride
        16
        """
        match = _NAME.fullmatch(name.strip())
        if match is None:
            raise ValueError(
                f"unknown model {name!r}: a name is WIDTH-RESOLUTION, such as {nearest_name(name)}"
            )
        parts: dict[str, Any] = {}
        for suffix in filter(None, match["suffixes"].split("-")):
            key, value = _read_suffix(suffix, name)
            if key in parts:
                raise ValueError(f"unknown model {name!r}: it gives its {key} twice")
            parts[key] = value
        height = int(match["height"])
        size = height if match["across"] is None else (height, int(match["across"]))
        return cls(width=check_width(match["width"]), resolution=size, **(parts | choices))

    def resized(self, height: int, across: int) -> MobileNetSpec:
        """The same for images of another size: no weight depends on it.

        >>> str(MobileNetSpec(0.5, 160).resized(192, 192))
        '0.5-192'
        """
        return replace(self, resolution=(height, across))

    def to_dict(self) -> dict[str, Any]:
        """Every field, for `config.json`; `from_dict` reads it back."""
        values = asdict(self)
        values["resolution"] = [self.height, self.across]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MobileNetSpec:
        """Rebuild a specification from `to_dict`.

        Raises:
            ValueError: a field is unknown, or its value is not allowed.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"a model has no field {unknown[0]!r}: the fields are {', '.join(sorted(known))}"
            )
        return cls(**values)


def check_width(value: object) -> float:
    """Read a width multiplier, from a number or from text.

    Raises:
        ValueError: not a number above 0 and at most 16 (a decimal comma is pointed out).

    >>> check_width("0.25")
    0.25
    """
    try:
        # Python reads the underscore of 0_5 as nothing, and the width as 5.
        width = float("" if isinstance(value, str) and "_" in value else value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        comma = isinstance(value, str) and re.fullmatch(r"\d+,\d+", value.strip())
        hint = (
            f": write {value.strip().replace(',', '.')}" if isinstance(value, str) and comma else ""
        )
        raise ValueError(
            f"width must be a number above 0 and at most 16, not {value!r}{hint}"
        ) from None
    if math.isnan(width) or not 0 < width <= MAX_WIDTH:
        raise ValueError(f"width must be a number above 0 and at most 16, not {value}")
    return width


def nearest_name(wrong: str) -> str:
    """The published name that looks most like `wrong`.

    >>> nearest_name("mobilenet_0.50_160")
    '0.5-160'
    """
    published = [f"{width}-{size}" for width in PUBLISHED_WIDTHS for size in PUBLISHED_RESOLUTIONS]
    numbers = re.findall(r"\d+(?:[.,]\d+)?", wrong)
    sizes = [n for n in numbers if float(n.replace(",", ".")) >= 32]
    widths = [float(n.replace(",", ".")) for n in numbers if 0 < float(n.replace(",", ".")) <= 4]
    if widths or sizes:
        width = min(PUBLISHED_WIDTHS, key=lambda w: abs(w - widths[-1])) if widths else 1.0
        size = min(PUBLISHED_RESOLUTIONS, key=lambda r: abs(r - float(sizes[-1]))) if sizes else 224
        return f"{width}-{size}"
    return difflib.get_close_matches(wrong, published, n=1, cutoff=0)[0]


def _read_suffix(suffix: str, name: str) -> tuple[str, Any]:
    if suffix in get_args(Variant):
        return "variant", suffix
    if suffix[0] == "s" and suffix[1:].isdigit():
        if int(suffix[1:]) not in TOTAL_STRIDES:
            raise ValueError(
                f"unknown model {name!r}: the total stride is s32, s16, s8 or s4, not {suffix}"
            )
        return "total_stride", int(suffix[1:])
    known = ["s16", "s8", "s4", "fullconv", "shallow"]
    close = difflib.get_close_matches(suffix, known, n=1, cutoff=0)[0]
    raise ValueError(
        f"unknown model {name!r}: {suffix!r} is none of {', '.join(known)}; nearest: {close}"
    )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_resolution(value: object) -> int | tuple[int, int]:
    sides = value if isinstance(value, tuple | list) else (value,)
    if len(sides) not in (1, 2) or not all(_is_whole(side) and side >= 1 for side in sides):
        raise ValueError(
            f"resolution must be a whole number of pixels from 1 up, or (height, width), not {value!r}"
        )
    return sides[0] if len(set(sides)) == 1 else (sides[0], sides[1])


def _check_choice(what: str, value: str, allowed: Iterable[str]) -> None:
    options = list(allowed)
    if value not in options:
        close = difflib.get_close_matches(str(value), options, n=1, cutoff=0)[0]
        raise ValueError(
            f"{what} must be one of {', '.join(options)}, not {value!r}; nearest: {close}"
        )
