"""A quadratic form at every subset of a few units."""

from __future__ import annotations

import numpy as np

from cahp_opt.space import Floats


def subset_values(linear: Floats, pairwise: Floats) -> Floats:
    """``linear @ x + x' pairwise x`` of every subset, by code (bit ``u`` set: unit ``u`` kept).

    Doubling: the subsets with unit ``u`` are those without it plus the gain of ``u`` beside them.
    """
    values = np.zeros(1)
    beside = np.zeros((1, len(linear)))  # pairwise @ x of every subset
    for u in range(len(linear)):
        gain = linear[u] + pairwise[u, u] + 2 * beside[:, u]
        values = np.concatenate([values, values + gain])
        beside = np.concatenate([beside, beside + pairwise[u]])
    return values
