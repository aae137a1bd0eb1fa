"""k-medoids by PAM (Kaufman and Rousseeuw 1987): BUILD, then SWAP until nothing is gained."""

from __future__ import annotations

import math
import time
from functools import cached_property

import numpy as np

from cahp_opt.arrays import Floats, Ints


class Medoids:
    """Medoids of ``n`` points for any number of clusters.

    BUILD adds the point that lowers the sum of distances to the nearest medoid most, so that what it
    finds for ``k`` begins with what it finds for ``k - 1`` and is found once. SWAP then makes the best
    swap of a medoid for another point as long as one lowers the sum; all swaps are evaluated at once
    from the nearest and second nearest medoid of every point, ``O(n^2)`` per swap (the FastPAM1 idea of
    Schubert and Rousseeuw 2019, whose answer is PAM's own).

    Args:
        distances: symmetric, shape ``[n, n]``, at least 0, with a zero diagonal.
        deadline: the ``time.monotonic()`` from which on nothing is swapped any more.
    """

    def __init__(self, distances: Floats, deadline: float = math.inf) -> None:
        self.distances, self.deadline = distances, deadline
        self._tolerance = 1e-12 * float(distances.sum())
        self._found: dict[int, Ints] = {}

    def of(self, k: int) -> Ints:
        """The medoids of ``k`` clusters, rising, ``[k]``."""
        if k not in self._found:
            self._found[k] = np.sort(self._swap(self._built[:k].copy()))
        return self._found[k]

    @cached_property
    def _built(self) -> Ints:
        """All points in the order in which BUILD takes them, ``[n]``."""
        n = len(self.distances)
        order = np.empty(n, dtype=np.int64)
        nearest = np.full(n, np.inf)
        left = np.ones(n, dtype=np.bool_)
        for place in range(n):
            cost = np.minimum(self.distances, nearest[:, None]).sum(axis=0)
            order[place] = best = int(np.where(left, cost, np.inf).argmin())
            left[best] = False
            nearest = np.minimum(nearest, self.distances[:, best])
        return order

    def _swap(self, medoids: Ints) -> Ints:
        n, k = len(self.distances), len(medoids)
        rows = np.arange(n)
        while k < n and time.monotonic() < self.deadline:
            near = self.distances[:, medoids]
            owner = near.argmin(axis=1)
            first = near[rows, owner]
            near[rows, owner] = np.inf
            second = near.min(axis=1)  # infinity for a single medoid
            # A point gains where the newcomer is nearer than its own medoid; where that medoid is the
            # one that leaves, it falls back on the newcomer or the second nearest.
            gained = np.minimum(self.distances - first[:, None], 0)
            fallback = np.minimum(self.distances, second[:, None]) - first[:, None] - gained
            change = np.zeros((k, n))
            order = np.argsort(owner, kind="stable")
            owners, starts = np.unique(owner[order], return_index=True)
            change[owners] = np.add.reduceat(fallback[order], starts, axis=0)
            change += gained.sum(axis=0)
            change[:, medoids] = 0
            leaving, entering = divmod(int(change.argmin()), n)
            if change[leaving, entering] >= -self._tolerance:
                break
            medoids[leaving] = entering
        return medoids


def assigned(distances: Floats, medoids: Ints) -> Ints:
    """For every point the place of its nearest medoid in ``medoids``, ``[n]``; a medoid is its own."""
    owner: Ints = distances[:, medoids].argmin(axis=1).astype(np.int64)
    owner[medoids] = np.arange(len(medoids))
    return owner


def simplified_silhouette(distances: Floats, medoids: Ints) -> float:
    """How well the points sit with their medoids: the mean of ``(b - a) / max(a, b)``.

    ``a`` is the distance of a point to its own medoid, and ``b`` the mean distance to the others, as the
    seed method takes it (arXiv 2606.19150). Points on their medoid are left out; 1 if all are.

    Args:
        distances: shape ``[n, n]``.
        medoids: at least two, ``[k]``.
    """
    near = distances[:, medoids]
    own = near.min(axis=1)
    others = (near.sum(axis=1) - own) / (len(medoids) - 1)
    off = own > 0
    if not off.any():
        return 1.0
    a, b = own[off], others[off]
    how_well: Floats = (b - a) / np.maximum(a, b)
    return float(how_well.mean())
