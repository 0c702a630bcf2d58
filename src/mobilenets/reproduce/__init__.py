"""The paper's tables and figures, computed and compared with what it prints; no torch import."""

from mobilenets.reproduce.neighbours import alexnet, googlenet, squeezenet, vgg16
from mobilenets.reproduce.printed import (
    VERDICTS,
    Alternative,
    Figure,
    Misprint,
    Verdict,
    compare,
    show,
    verdict_counts,
)
from mobilenets.reproduce.tables import TABLES, Table, find_table

__all__ = [
    "TABLES",
    "VERDICTS",
    "Alternative",
    "Figure",
    "Misprint",
    "Table",
    "Verdict",
    "alexnet",
    "compare",
    "find_table",
    "googlenet",
    "show",
    "squeezenet",
    "verdict_counts",
    "vgg16",
]
