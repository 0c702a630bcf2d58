"""The index of tasks: a folder here with a `task.py` that defines `TASK` is a task. No torch."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import Any


def names() -> tuple[str, ...]:
    """The tasks there are.

    >>> "classification" in names()
    True
    """
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg))


def find(name: str) -> Any:
    """The task class of that name.

    Raises:
        ValueError: there is none; names those there are.
    """
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1, cutoff=0)[0]
        raise ValueError(
            f"unknown task {name!r}: the tasks are {', '.join(names())}; nearest: {close}"
        )
    return importlib.import_module(f"{__name__}.{name}.task").TASK
