"""The paper's tables by number: what each holds, and its figures with their verdicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from mobilenets.reproduce.application_tables import table_10, table_12, table_14
from mobilenets.reproduce.detection_table import table_13
from mobilenets.reproduce.geolocation_table import table_11
from mobilenets.reproduce.imagenet_tables import (
    table_4,
    table_5,
    table_6,
    table_7,
    table_8,
    table_9,
)
from mobilenets.reproduce.layer_tables import table_1, table_2, table_3
from mobilenets.reproduce.printed import Figure


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of the paper; `computed` says what of it is."""

    number: int
    title: str
    computed: str
    build: Callable[[], tuple[Figure, ...]]

    @cached_property
    def figures(self) -> tuple[Figure, ...]:
        """Every printed figure with its verdict."""
        return self.build()


_COSTS = "mult-adds and parameters"

TABLES: tuple[Table, ...] = (
    Table(number=1, title="The body", computed="every row", build=table_1),
    Table(number=2, title="Cost by layer type", computed="every share", build=table_2),
    Table(number=3, title="One layer made cheaper", computed=_COSTS, build=table_3),
    Table(number=4, title="Full or separable convolutions", computed=_COSTS, build=table_4),
    Table(number=5, title="Thin or shallow", computed=_COSTS, build=table_5),
    Table(number=6, title="Width", computed=_COSTS, build=table_6),
    Table(number=7, title="Resolution", computed=_COSTS, build=table_7),
    Table(number=8, title="Beside GoogLeNet and VGG-16", computed=_COSTS, build=table_8),
    Table(number=9, title="Beside SqueezeNet and AlexNet", computed=_COSTS, build=table_9),
    Table(number=10, title="Stanford Dogs", computed="MobileNet's costs", build=table_10),
    Table(number=11, title="Photo geolocation", computed="every cost", build=table_11),
    Table(number=12, title="Face attributes", computed="MobileNet's costs", build=table_12),
    Table(
        number=13, title="COCO detection", computed="MobileNet's and VGG's costs", build=table_13
    ),
    Table(number=14, title="Face embeddings", computed="MobileNet's costs", build=table_14),
)


def find_table(number: int) -> Table:
    """One table with all its figures.

    Raises:
        ValueError: the paper has no such table.

    >>> [f.verdict for f in find_table(4).figures if f.printed == "4866"]
    ['other convention']
    """
    for table in TABLES:
        if table.number == number:
            return table
    raise ValueError(f"the paper has no table {number}: it has 1 to {len(TABLES)}")
