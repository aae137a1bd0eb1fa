"""Clusters of a weighted graph by k-means in its spectral embedding."""

from __future__ import annotations

import numpy as np

from cahp_opt.arrays import Floats, Ints

_ROUNDS = 50


def spectral_clusters(weights: Floats, clusters: int, rng: np.random.Generator) -> Ints:
    """A cluster for every node (Ng, Jordan and Weiss 2002, "On spectral clustering").

    The nodes are embedded by the leading eigenvectors of the normalised adjacency matrix (the last ones
    of the normalised Laplacian), their rows scaled to length 1, and clustered by Lloyd's k-means from
    far-apart starts.

    Args:
        weights: symmetric, at least 0, ``[n, n]``; nodes without edges are clusters of their own kind.
        clusters: at least 1; some may end empty.
        rng: of the first start.

    Returns:
        Cluster numbers below ``clusters``, ``[n]``.
    """
    n = len(weights)
    clusters = min(clusters, n)
    degree = weights.sum(axis=1)
    scale = 1 / np.sqrt(np.where(degree > 0, degree, 1.0))
    _, vectors = np.linalg.eigh(scale[:, None] * weights * scale)
    places = vectors[:, n - clusters :]
    length = np.linalg.norm(places, axis=1, keepdims=True)
    places = places / np.where(length > 0, length, 1.0)
    centres = places[[int(rng.integers(n))]]
    for _ in range(clusters - 1):  # the node farthest from all centres so far
        centres = np.vstack([centres, places[np.argmax(_distances(places, centres).min(axis=1))]])
    labels = np.full(n, -1, dtype=np.int64)
    for _ in range(_ROUNDS):
        nearest = _distances(places, centres).argmin(axis=1)
        if np.array_equal(nearest, labels):
            break
        labels = nearest
        for c in range(clusters):
            if np.any(labels == c):
                centres[c] = places[labels == c].mean(axis=0)
    return labels


def _distances(places: Floats, centres: Floats) -> Floats:
    """Squared distances ``[nodes, centres]``."""
    squares = (places**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1)
    distances: Floats = squares - 2 * places @ centres.T
    return distances
