"""Cost without torch: counts from layer rows, published accuracies, budgets and the picker."""

from mobilenets.cost.accuracy import AccuracyFit, fit_accuracy
from mobilenets.cost.budget import Budget, Candidate, NothingFitsError, pick
from mobilenets.cost.count import CONVENTION, Cost, LayerCost, cost, count
from mobilenets.cost.latency import LatencyProfile, read_profile
from mobilenets.cost.published import PUBLISHED, SOURCES, Published
from mobilenets.cost.quantities import format_quantity, parse_milliseconds, parse_quantity

__all__ = [
    "CONVENTION",
    "PUBLISHED",
    "SOURCES",
    "AccuracyFit",
    "Budget",
    "Candidate",
    "Cost",
    "LatencyProfile",
    "LayerCost",
    "NothingFitsError",
    "Published",
    "cost",
    "count",
    "fit_accuracy",
    "format_quantity",
    "parse_milliseconds",
    "parse_quantity",
    "pick",
    "read_profile",
]
