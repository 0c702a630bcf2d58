"""Image models that fit a phone: the MobileNet family, its exact cost, and trained models.

The names below are imported when they are first used, so `import mobilenets` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mobilenets import tasks
from mobilenets.training import registry

if TYPE_CHECKING:
    from mobilenets.architecture.network import MobileNet
    from mobilenets.architecture.preprocessing import Preprocessing
    from mobilenets.architecture.spec import MobileNetSpec
    from mobilenets.cost.budget import Budget, pick
    from mobilenets.cost.count import Cost
    from mobilenets.training.run import Run
    from mobilenets.weights.create import create_model

__all__ = [
    "Budget",
    "Cost",
    "MobileNet",
    "MobileNetSpec",
    "Preprocessing",
    "Run",
    "create_model",
    "pick",
]

_HOMES = {
    "Budget": "mobilenets.cost.budget",
    "Cost": "mobilenets.cost.count",
    "MobileNet": "mobilenets.architecture.network",
    "MobileNetSpec": "mobilenets.architecture.spec",
    "Preprocessing": "mobilenets.architecture.preprocessing",
    "Run": "mobilenets.training.run",
    "create_model": "mobilenets.weights.create",
    "pick": "mobilenets.cost.budget",
}

registry.use_index(tasks.find)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mobilenets' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
