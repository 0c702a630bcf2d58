"""The nearest of many embeddings: exact, by faiss where it is installed.

Shapes: Q that are asked for, N among which they are looked up, D values of an embedding, M found.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

_ROWS = 1024


def nearest(
    asked_QD: NDArray[np.float32], known_ND: NDArray[np.float32], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cosines and places of the most similar, best first: (Q, M) each.

    Args:
        asked_QD, known_ND: of length 1.

    >>> known = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    >>> nearest(known[:1], known, 2)[1].tolist()
    [[0, 2]]
    """
    count = min(count, len(known_ND))
    if find_spec("faiss") is not None:
        import faiss

        index = faiss.IndexFlatIP(known_ND.shape[1])
        index.add(known_ND)
        cosines_QM, places_QM = index.search(asked_QD, count)
        return cosines_QM, places_QM
    cosines, places = [], []
    for start in range(0, len(asked_QD), _ROWS):
        alike_RN = asked_QD[start : start + _ROWS] @ known_ND.T
        best_RM = np.argsort(-alike_RN, axis=1, kind="stable")[:, :count]
        places.append(best_RM)
        cosines.append(np.take_along_axis(alike_RN, best_RM, axis=1))
    return np.concatenate(cosines), np.concatenate(places)
