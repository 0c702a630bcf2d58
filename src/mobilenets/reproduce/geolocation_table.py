"""Table 11: PlaNet and its MobileNet on Im2GPS, and the costs that the text beside it tells."""

from __future__ import annotations

from fractions import Fraction

from mobilenets.architecture import MobileNetSpec
from mobilenets.cost import cost, count
from mobilenets.reproduce.inception_v3 import inception_v3
from mobilenets.reproduce.printed import Figure, Misprint, compare

_TABLE, _TEXT = "Howard et al. 2017, Table 11", "Howard et al. 2017, section 4.4"
_PHOTOS = 237
# In the middle of what its counts allow; see `implied_cells`.
CELLS = 9_800
# As the first paper on PlaNet says (Weyand et al. 2016).
PLANETS_CELLS = 26_263
_COLUMNS = ("Im2GPS", "PlaNet", "PlaNet MobileNet")
_ROWS = (
    ("Continent (2500 km)", "51.9", "77.6", "79.3"),
    ("Country (750 km)", "35.4", "64.0", "60.3"),
    ("Region (200 km)", "32.1", "51.1", "45.2"),
    ("City (25 km)", "21.9", "31.7", "31.7"),
    ("Street (1 km)", "2.5", "11.0", "11.4"),
)
_BETTER = "the text calls it slightly decreased, and it is above PlaNet's"


def table_11() -> tuple[Figure, ...]:
    """Shares of Im2GPS's 237 photos, and what Inception V3 and a MobileNet cost with so many cells."""
    figures: list[Figure] = []
    for row, *printed in _ROWS:
        for column, share in zip(_COLUMNS, printed, strict=True):
            better = column == _COLUMNS[2] and Fraction(share) > Fraction(printed[1])
            figures.append(_share(row, column, share, _BETTER if better else ""))
    return (*figures, *_costs())


def implied_cells() -> tuple[int, int]:
    """The least and the most cells with which PlaNet's printed 52 M and the MobileNet's final layer of 10 M agree.

    >>> implied_cells()
    (9637, 9991)
    """

    def agree(printed: str, first: int, second: int) -> set[int]:
        """Parameters grow with each cell by as much as with the second one."""
        return {
            cells
            for cells in range(9_000, 11_000)
            if compare(printed, Fraction(first + (cells - 1) * (second - first), 10**6))
            == "match (rounded)"
        }

    planet = [count(inception_v3(cells, side_head=True)).parameters for cells in (1, 2)]
    both = agree("52", *planet) & agree("10", _final_layer(1), _final_layer(2))
    return min(both), max(both)


def _final_layer(cells: int) -> int:
    return cost(MobileNetSpec(), cells).parameters - cost(MobileNetSpec(), None).parameters


def _share(row: str, column: str, printed: str, note: str) -> Figure:
    photos = round(Fraction(printed) * _PHOTOS / 100)
    share = Fraction(100 * photos, _PHOTOS)
    counted = f"{photos} of {_PHOTOS} photos, the nearest such share"
    if compare(printed, share) is None:
        counted = ""
        note = f"no number of {_PHOTOS} photos is this share: {photos} are {float(share):.2f} %"
    return Figure(
        row=row,
        column=column,
        printed=printed,
        unit="%",
        computed=share,
        counted=counted,
        note=note,
        source=_TABLE,
    )


def _costs() -> tuple[Figure, ...]:
    planet = count(inception_v3(CELLS, side_head=True))
    mobilenet, body = cost(MobileNetSpec(), CELLS), cost(MobileNetSpec(), None)
    low, high = implied_cells()
    implied = f"with {CELLS:,} cells, which the text does not tell: {low:,} to {high:,} agree with 52 and 10 M"
    more = count(inception_v3(PLANETS_CELLS, side_head=True)).parameters
    mobile = cost(MobileNetSpec(), PLANETS_CELLS).parameters
    published = f"the first PlaNet's {PLANETS_CELLS:,} cells would take "
    in_planet = f"Inception V3 with its side head; {implied}"
    return (
        Figure(
            row="text",
            column="parameters of PlaNet",
            printed="52",
            unit="M",
            computed=planet.parameters,
            counted=in_planet,
            note=f"{published}{more / 1e6:.1f} M",
            source=_TEXT,
        ),
        Figure(
            row="text",
            column="mult-adds of PlaNet",
            printed="5.74",
            unit="G",
            computed=planet.mult_adds,
            counted=in_planet,
            source=_TEXT,
        ),
        Figure(
            row="text",
            column="parameters of its MobileNet",
            printed="13",
            unit="M",
            computed=mobilenet.parameters,
            counted=implied,
            note=f"{published}{mobile / 1e6:.1f} M",
            source=_TEXT,
        ),
        Figure(
            row="text",
            column="parameters of the body",
            printed="3",
            unit="M",
            computed=body.parameters,
            counted="classifier left out",
            source=_TEXT,
        ),
        Figure(
            row="text",
            column="parameters of the final layer",
            printed="10",
            unit="M",
            computed=_final_layer(CELLS),
            counted=implied,
            source=_TEXT,
        ),
        Figure(
            row="text",
            column="mult-adds of its MobileNet",
            printed="0.58",
            unit="M",
            computed=mobilenet.mult_adds,
            counted=implied,
            misprint=Misprint(
                should_be="578", why="0.58 million is printed where 0.58 billion is meant"
            ),
            source=_TEXT,
        ),
    )
