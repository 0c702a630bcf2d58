"""Reading and writing quantities as people do: 150M, 2M, 3MB."""

from __future__ import annotations

import re

_POWERS = {"": 0, "k": 1, "M": 2, "G": 3}
_QUANTITY = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<prefix>[kKMG]?)(?P<binary>i?)B?")

_MILLISECONDS = {"": 1.0, "us": 1e-3, "ms": 1.0, "s": 1e3}
_TIME = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>us|ms|s|)")


def parse_quantity(text: str, what: str = "a quantity") -> float:
    """Read `150M`, `2.5k`, `3MB` or `512KiB` into a number.

    Raises:
        ValueError: one sentence that says what is expected.

    >>> parse_quantity("150M"), parse_quantity("512KiB")
    (150000000.0, 524288.0)
    """
    match = _QUANTITY.fullmatch(text.strip())
    value = 0.0
    if match is not None:
        base = 1024 if match["binary"] else 1000
        value = float(match["number"]) * base ** _POWERS[match["prefix"].replace("K", "k")]
    if not value > 0:
        raise ValueError(f"{what} must be a number above 0 such as 150M, 2.5k or 3MB, not {text!r}")
    return value


def parse_milliseconds(text: str) -> float:
    """Read `5ms`, `0.2 s` or `800us` into milliseconds; a bare number is milliseconds.

    Raises:
        ValueError: one sentence that says what is expected.

    >>> parse_milliseconds("5ms"), parse_milliseconds("0.2 s")
    (5.0, 200.0)
    """
    match = _TIME.fullmatch(text.strip())
    value = 0.0 if match is None else float(match["number"]) * _MILLISECONDS[match["unit"]]
    if not value > 0:
        raise ValueError(f"--max-latency must be a time above 0 such as 5ms, not {text!r}")
    return value


def format_quantity(value: float, unit: str = "") -> str:
    """Write a number in three or four digits.

    >>> format_quantity(568740352), format_quantity(5326368, "B")
    ('568.7M', '5.33MB')
    """
    for prefix in ("G", "M", "k"):
        factor = 1000 ** _POWERS[prefix]
        scaled = value / factor
        # From where three digits round up to the next prefix: 999,960 is 1.00M, not 1000.0k.
        if scaled >= 0.99995:
            return f"{scaled:.{1 if scaled >= 10 else 2}f}{prefix}{unit}"
    return f"{value:g}{unit}"
