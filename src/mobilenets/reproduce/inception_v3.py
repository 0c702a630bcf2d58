"""Inception V3, which Table 11 compares with, as layer rows that `cost.count` can count (Szegedy et al. 2015, Table 1)."""

from __future__ import annotations

from collections.abc import Iterator

from mobilenets.architecture.layer_rows import Layer

_SIDE = 299
_AUXILIARY = 768
# Channels of the pooled branch, and of the first ones of a branch of 7x1 and 1x7.
_POOLED_35 = (32, 64, 64)
_NARROW_17 = (128, 160, 160, 192)

# Channels, kernel (height, width), stride; at stride 1 the size stays, at stride 2 nothing is padded.
_Step = tuple[int, tuple[int, int], int]
_TALL, _WIDE = (7, 1), (1, 7)


def inception_v3(classes: int, *, side_head: bool) -> tuple[Layer, ...]:
    """Inception V3 for 299 pixels.

    Args:
        side_head: with the second classifier, which only training needs.

    >>> from mobilenets.cost import count
    >>> count(inception_v3(1000, side_head=False)).parameters
    23834568
    """
    return tuple(_inception_v3(classes, side_head))


def _inception_v3(classes: int, side_head: bool) -> Iterator[Layer]:
    # The first two and the fifth of the stem's are not padded.
    yield _conv("stem.1", 3, (32, (3, 3), 2), _SIDE, 149)
    yield _conv("stem.2", 32, (32, (3, 3), 1), 149, 147)
    yield _conv("stem.3", 32, (64, (3, 3), 1), 147, 147)
    yield _conv("stem.4", 64, (80, (1, 1), 1), 73, 73)
    yield _conv("stem.5", 80, (192, (3, 3), 1), 73, 71)
    channels = 192
    for number, pooled in enumerate(_POOLED_35, 1):
        name = f"35.{number}"
        yield from _branch(f"{name}.one", channels, 35, [_step(64)])
        yield from _branch(f"{name}.five", channels, 35, [_step(48), _step(64, (5, 5))])
        yield from _branch(
            f"{name}.three", channels, 35, [_step(64), _step(96, (3, 3)), _step(96, (3, 3))]
        )
        yield from _branch(f"{name}.pool", channels, 35, [_step(pooled)])
        channels = 64 + 64 + 96 + pooled
    yield from _branch("17.reduce.three", channels, 35, [(384, (3, 3), 2)])
    yield from _branch(
        "17.reduce.double", channels, 35, [_step(64), _step(96, (3, 3)), (96, (3, 3), 2)]
    )
    channels += 384 + 96
    for number, narrow in enumerate(_NARROW_17, 1):
        name = f"17.{number}"
        yield from _branch(f"{name}.one", channels, 17, [_step(192)])
        yield from _branch(
            f"{name}.seven", channels, 17, [_step(narrow), _step(narrow, _WIDE), _step(192, _TALL)]
        )
        double = [_step(narrow), *(_step(narrow, kernel) for kernel in (_TALL, _WIDE, _TALL))]
        yield from _branch(f"{name}.double", channels, 17, [*double, _step(192, _WIDE)])
        yield from _branch(f"{name}.pool", channels, 17, [_step(192)])
    if side_head:
        # Of what a pool of 5x5 at stride 3 leaves.
        yield _conv("side.1", channels, (128, (1, 1), 1), 5, 5)
        yield _conv("side.2", 128, (_AUXILIARY, (5, 5), 1), 5, 1)
        yield _linear("side.classifier", _AUXILIARY, classes)
    yield from _branch("8.reduce.three", channels, 17, [_step(192), (320, (3, 3), 2)])
    seven = [_step(192), _step(192, _WIDE), _step(192, _TALL), (192, (3, 3), 2)]
    yield from _branch("8.reduce.seven", channels, 17, seven)
    channels += 320 + 192
    for number in (1, 2):
        name = f"8.{number}"
        yield from _branch(f"{name}.one", channels, 8, [_step(320)])
        for branch, steps in (
            ("three", [_step(384)]),
            ("double", [_step(448), _step(384, (3, 3))]),
        ):
            yield from _branch(f"{name}.{branch}", channels, 8, steps)
            for kernel in ((1, 3), (3, 1)):
                yield _conv(
                    f"{name}.{branch}.{kernel[0]}x{kernel[1]}", 384, _step(384, kernel), 8, 8
                )
        yield from _branch(f"{name}.pool", channels, 8, [_step(192)])
        channels = 320 + 2 * 2 * 384 + 192
    yield _linear("classifier", channels, classes)


def _step(channels: int, kernel: tuple[int, int] = (1, 1)) -> _Step:
    return channels, kernel, 1


def _branch(name: str, channels: int, side: int, steps: list[_Step]) -> Iterator[Layer]:
    for number, step in enumerate(steps, 1):
        width, kernel, stride = step
        after = side if stride == 1 else (side - kernel[0]) // stride + 1
        yield _conv(f"{name}.{number}", channels, step, side, after)
        channels, side = width, after


def _conv(name: str, channels: int, step: _Step, side: int, after: int) -> Layer:
    width, kernel, stride = step
    return Layer(
        name=name,
        type="pointwise" if kernel == (1, 1) else "conv",
        in_channels=channels,
        out_channels=width,
        kernel=kernel,
        stride=stride,
        in_size=(side, side),
        out_size=(after, after),
        batch_norm=True,
    )


def _linear(name: str, channels: int, classes: int) -> Layer:
    return Layer(name=name, type="linear", in_channels=channels, out_channels=classes, bias=True)
