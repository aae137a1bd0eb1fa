"""A quadratic form as exact values inside parts of the units, less a convex rest.

``x' P x = x' Q x - x' R x`` with ``Q`` nonzero only inside parts and ``R = Q - P`` positive
semidefinite. Inside a block of few units, ``Q`` may be any matrix, since an oracle can tabulate all
subsets; elsewhere ``Q`` is diagonal, which on 0/1 vectors is a sum of weights (Hammer and Rubin
1970). Linearising the rest at a point ``y`` gives a bound whose gap is governed by ``<C, Q>``, with
``C`` the covariance inside parts of a distribution with mean ``y``; the ``Q`` that minimises it is
the solution of a semidefinite program, as in Billionnet, Elloumi and Plateau (2009).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cahp_opt.arrays import Floats
from cahp_opt.bounds.oracle import MOST_TABULATED
from cahp_opt.space import HeadSpace


class ConvexSplit(NamedTuple):
    """``pairwise = inside - rest``, each ``[n, n]``; ``excess`` bounds ``-(x - y)' rest (x - y)``
    over the unit cube."""

    inside: Floats
    rest: Floats
    excess: float


def tabulated_parts(space: HeadSpace) -> list[slice]:
    """Whole blocks where their subsets can be tabulated, single units elsewhere."""
    parts: list[slice] = []
    for where in space.slices:
        if where.stop - where.start <= MOST_TABULATED:
            parts.append(where)
        else:
            parts += single_parts(where.start, where.stop)
    return parts


def single_parts(start: int, stop: int) -> list[slice]:
    """One part per unit."""
    return [slice(i, i + 1) for i in range(start, stop)]


def shifted(pairwise: Floats) -> ConvexSplit:
    """The simplest split of ``pairwise``, ``[n, n]``: its largest eigenvalue on the diagonal."""
    n = len(pairwise)
    return _certified(pairwise, np.eye(n) * float(np.linalg.eigvalsh(pairwise)[-1]))


def best_split(
    pairwise: Floats,
    parts: Sequence[slice],
    covariance: Floats,
    start: ConvexSplit | None = None,
    *,
    precision: float = 1e-3,
    sweeps: int = 3,
    deadline: float = math.inf,
) -> ConvexSplit:
    """The ``inside`` that minimises ``<covariance, inside>`` with a semidefinite ``rest``.

    Minimises ``<C, Q> - mu log det(Q - P)`` for falling ``mu`` by exact block-coordinate steps: the
    best ``Q_b`` makes the block of the inverse of ``Q - P`` equal to ``C_b / mu`` (a block form of
    the coordinate step of Dong 2016, "Relaxing nonconvex quadratic functions by multiple adaptive
    diagonal perturbations").

    Args:
        pairwise: ``P``, symmetric ``[n, n]``.
        parts: disjoint slices that cover the units; ``Q`` is zero outside of them.
        covariance: positive definite inside every part, ``[n, n]``; the rest is not read.
        start: a split to start from.
        precision: the relative suboptimality at which ``mu`` stops falling.
        sweeps: passes over the parts for each ``mu``.
        deadline: the ``time.monotonic()`` at which to return the split found so far.
    """
    n = len(pairwise)
    scale = max(float(np.abs(pairwise).max()), 1e-300)
    first = (shifted(pairwise) if start is None else start).inside
    rest = first - pairwise + np.eye(n) * (1e-3 * scale)
    own = [covariance[p, p] for p in parts]
    inverted = [np.linalg.inv(c) for c in own]
    spread = sum(float(np.trace(c)) for c in own)
    mu = 0.1 * spread * scale / n
    late = False
    while mu > precision * 1e-1 * spread * scale / n and not late:
        for _ in range(sweeps):
            late = time.monotonic() > deadline
            if late:
                break
            inverse = np.linalg.inv(rest)
            for part, c, inverted_c in zip(parts, own, inverted, strict=True):
                late = time.monotonic() > deadline
                if late:
                    break
                w = np.linalg.inv(inverse[part, part])
                step = mu * inverted_c - w
                step = (step + step.T) / 2
                columns = inverse[:, part]
                inverse -= columns @ (step @ c @ w / mu) @ columns.T
                rest[part, part] += step
        mu /= 10
    return _certified(pairwise, rest + pairwise, parts)


def _certified(
    pairwise: Floats, inside: Floats, parts: Sequence[slice] | None = None
) -> ConvexSplit:
    """Clean ``inside`` outside of the parts, and measure how far the rest is from semidefinite."""
    if parts is not None:
        clean = np.zeros_like(inside)
        for part in parts:
            clean[part, part] = (inside[part, part] + inside[part, part].T) / 2
        inside = clean
    rest = inside - pairwise
    lowest = float(np.linalg.eigvalsh(rest)[0])
    norm = float(np.abs(rest).sum(axis=1).max())
    n = len(rest)
    # The computed eigenvalue is within a small multiple of n * eps * norm of the exact one.
    below = max(0.0, 10 * n * float(np.finfo(np.float64).eps) * norm - lowest)
    return ConvexSplit(inside, rest, n * below)
