"""Whether an exported file answers what the run answers, on real images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_RELATIVE_DIFFERENCE = 1e-3
MIN_AGREEMENT = 0.999


@dataclass(frozen=True)
class Agreement(ABC):
    """How far two sets of answers are apart.

    Args:
        images: on which they were compared.
    """

    images: int

    @property
    @abstractmethod
    def share(self) -> float:
        """Of the answers, those that agree."""

    @property
    @abstractmethod
    def holds(self) -> bool:
        """Whether they are the same but for rounding."""

    def to_dict(self) -> dict[str, Any]:
        """The figures and the verdict."""
        return asdict(self) | {"holds": self.holds}


@dataclass(frozen=True)
class Near(Agreement):
    """How far two sets of numbers are apart, and what is told from them.

    `relative_difference` is the largest difference over the largest reference value.
    """

    largest_difference: float
    relative_difference: float

    @property
    def holds(self) -> bool:
        """Whether the difference is under 1e-3 and 99.9 % of the answers agree."""
        return self.relative_difference < MAX_RELATIVE_DIFFERENCE and self.share >= MIN_AGREEMENT


@dataclass(frozen=True)
class Parity(Near):
    """How far two sets of outputs (N, K) are apart, and whether the first guesses agree."""

    top1_agreement: float

    @property
    def share(self) -> float:
        """Of the first guesses, those that agree."""
        return self.top1_agreement

    def __str__(self) -> str:
        return (
            f"largest difference {self.largest_difference:.2g} "
            f"(relative {self.relative_difference:.2g}), top-1 agrees on "
            f"{100 * self.top1_agreement:.2f} % of {self.images} images"
        )


def differences(reference: NDArray[np.float32], other: NDArray[np.float32]) -> tuple[float, float]:
    """The largest difference, and that over the largest reference value.

    >>> differences(np.array([[1.0, 4.0]]), np.array([[1.0, 3.0]]))
    (1.0, 0.25)
    """
    largest = float(np.abs(reference - other).max(initial=0))
    return largest, largest / float(np.abs(reference).max(initial=1e-12))


def compare(reference_NK: NDArray[np.float32], other_NK: NDArray[np.float32]) -> Parity:
    """Compare outputs (N, K) with those of the run; values that are no numbers never agree.

    >>> a = np.array([[1.0, 2.0]], dtype=np.float32)
    >>> compare(a, a).holds
    True
    """
    agreement = float((reference_NK.argmax(1) == other_NK.argmax(1)).mean())
    return Parity(len(reference_NK), *differences(reference_NK, other_NK), agreement)
