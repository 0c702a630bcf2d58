"""How the engine finds a task by the name that a run keeps, without importing the floor above.

The package hands over the index of tasks when it is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilenets.training.task import Task

_find: Callable[[str], Any] | None = None


def use_index(find: Callable[[str], Any]) -> None:
    """Give the function that finds a task class by name."""
    global _find
    _find = find


def find_task(name: str) -> type[Task]:
    """The task class of that name.

    Raises:
        ValueError: there is no such task; names those there are.
    """
    assert _find is not None, "the package hands over its index of tasks"
    task: type[Task] = _find(name)
    return task
