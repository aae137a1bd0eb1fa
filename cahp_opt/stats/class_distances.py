"""How well each cell of a unit's attention map separates two classes: Jeffries-Matusita
distances."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from cahp_opt.arrays import Floats
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.signatures import Signatures

_LEAST_VARIANCE = 1e-6


def jeffries_matusita(signatures: Signatures) -> Floats:
    """The features by which the seed method compares units (arXiv 2606.19150).

    For every pair of classes and every cell it is the Jeffries-Matusita distance of two normal
    distributions, ``2 (1 - exp(-b))`` with the Bhattacharyya distance
    ``b = (m1 - m2)^2 / (4 (v1 + v2)) + ln((v1 + v2) / (2 sqrt(v1 v2))) / 2``: 0 if the classes look
    the same, 2 if they never overlap. Variances are at least 1e-6.

    Args:
        signatures: of labelled examples; classes without examples are left out.

    Returns:
        Features of every unit, ``[n, pairs of classes * size ** 2]``.

    Raises:
        ValueError: for examples of fewer than two classes.
    """
    present = np.flatnonzero(signatures.counts)
    if len(present) < 2:
        raise ValueError(
            f"the examples are of {len(present)} class{'' if len(present) == 1 else 'es'}, and units are "
            "compared by how differently they attend to two or more; calibrate with examples of "
            "other classes too."
        )
    mean = signatures.mean.reshape(len(signatures.counts), signatures.n, -1)
    variance = np.maximum(signatures.variance.reshape(mean.shape), _LEAST_VARIANCE)
    features: list[Floats] = []
    for a, b in combinations(present.tolist(), 2):
        both = variance[a] + variance[b]
        apart = (mean[a] - mean[b]) ** 2 / (4 * both)
        apart += np.log(both / (2 * np.sqrt(variance[a] * variance[b]))) / 2
        features.append(-2 * np.expm1(-np.maximum(apart, 0)))  # below 0 by rounding only
    return np.hstack(features)


def euclidean(points: Floats) -> Floats:
    """Distances of points ``[n, d]`` from one another, ``[n, n]``: exactly 0 between equal points."""
    n = len(points)
    distances = np.zeros((n, n))
    for i in range(n - 1):
        distances[i, i + 1 :] = np.sqrt(((points[i + 1 :] - points[i]) ** 2).sum(axis=1))
    return distances + distances.T


def signature_features(stats: HeadStats) -> Floats:
    """Jeffries-Matusita features of every unit, ``[n, d]``.

    Raises:
        ValueError: if signatures were not measured, or of one class only, or feed-forward parts are among
            the blocks.
    """
    stats.check_attention_alone()
    if stats.signatures is None:
        raise ValueError(
            "`stats` has no signatures of attention maps; calibrate labelled texts with "
            "`signature_size=32`."
        )
    return jeffries_matusita(stats.signatures)


def closeness(features: Floats) -> Floats:
    """``1 - distance / largest distance`` of every two rows of ``features``, ``[n, n]``."""
    distances = euclidean(features)
    largest = float(distances.max())
    return 1 - distances / largest if largest > 0 else np.ones_like(distances)
