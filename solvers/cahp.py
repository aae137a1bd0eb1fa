"""Cluster the units by how they behave, and keep the most salient one of every cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from typing import Any

import numpy as np

from cahp_opt.arrays import Bools, Floats
from cahp_opt.costs.budget import Budget
from cahp_opt.knees import knee
from cahp_opt.objective import BehaviourForm
from cahp_opt.problem import Problem
from cahp_opt.solver import Number, Proposal, Solver, Status
from cahp_opt.solvers.parts.filling import fill_in_order
from cahp_opt.solvers.parts.medoids import Medoids, assigned, simplified_silhouette
from cahp_opt.stats.class_distances import euclidean

_PERPLEXITY = 10.0


class Reduction(Enum):
    """Where the clusters are looked for."""

    TSNE = "a plane that t-SNE lays the units out in (van der Maaten and Hinton 2008)"
    NONE = "the space of the features itself"


@dataclass(frozen=True)
class CAHP(Solver):
    """The seed method ("Complementary Attention Head Pruning for Efficient Transformers",
    arXiv 2606.19150), on the distances of :class:`~cahp_opt.objectives.Complementarity`.

    t-SNE lays the units out in a plane, k-medoids clusters them there, and of every cluster the most
    salient unit is kept. The number of clusters is the knee of a polynomial through the silhouettes of
    all numbers of clusters. Every block left empty gets its most salient unit back.

    The budget limits what the method wants: where that many clusters and the units given back do not
    fit, it takes the largest smaller number that fits, then one that fits if empty blocks stay empty,
    and at last fills the budget with the representatives by salience. It never keeps more than it wants,
    so its answer may leave most of the budget. ``Selection.stats`` holds the knee, the clusters
    taken, the units given back and the blocks left empty.

    The seed of :func:`~cahp_opt.select` is that of t-SNE, whose plane, and so the answer, depends on it.

    Cost: O(n^2) per step of t-SNE and per swap of medoids; heuristic; needs `behaviour()`.

    Args:
        degree: of the polynomial, at least 1: the dial of sparsity, 2 to 6 in the paper; a larger one
            keeps fewer.
        reduction: where the clusters are looked for; t-SNE needs scikit-learn. Without it the curve of
            silhouettes is often not concave, and its knee at an end: give ``clusters``.
        clusters: how many to make, instead of the knee: for a curve of measured quality against units
            kept, the result of :func:`~cahp_opt.knee` on it.

    Raises:
        ValueError: if scikit-learn is missing, or the objective does not say how units behave.
    """

    degree: int = 4
    reduction: Reduction = Reduction.TSNE
    clusters: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.reduction, Reduction):
            raise TypeError(f"`reduction` must be a Reduction, got {self.reduction!r}.")
        for name, value in (("degree", self.degree), ("clusters", self.clusters)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        form = problem.objective.behaviour()
        if form is None:
            raise ValueError(
                "`CAHP` needs to know how differently units behave, which "
                f"`{type(problem.objective).__name__}` does not say; maximise `Complementarity`, or use "
                "`Spectral` or `LazyGreedy`."
            )
        points = form.features
        if self.reduction is Reduction.TSNE:
            points = plane(points, int(rng.integers(2**31)))
        medoids = Medoids(euclidean(points), deadline)
        wanted = self.clusters or silhouette_knee(medoids, self.degree)
        wanted = min(wanted, problem.objective.n)
        kept, stats = _within(problem.budget, form, medoids, wanted)
        in_time = time.monotonic() < deadline
        return Proposal(
            kept,
            status=Status.FEASIBLE if in_time else Status.TIME_LIMIT,
            stats={"knee" if self.clusters is None else "wanted": wanted, **stats},
        )


def plane(features: Floats, seed: int) -> Floats:
    """Where t-SNE lays units out in two dimensions, with perplexity 10 and 1000 iterations, ``[n, 2]``.

    It starts at random, as in van der Maaten and Hinton (2008).
    The gradient is computed exactly rather than by the Barnes-Hut tree: a few hundred units are quick,
    and the result does not depend on the number of threads. Features of fewer than four units, or of
    units that are all alike, are handed back as they are.

    Raises:
        ValueError: if scikit-learn is missing.
    """
    try:
        manifold: Any = import_module("sklearn.manifold")
    except ImportError:
        raise ValueError(
            "`CAHP` needs scikit-learn for t-SNE; install it with `pip install 'cahp-opt[cahp]'`, or use "
            "`CAHP(reduction=Reduction.NONE)`."
        ) from None
    n = len(features)
    if n < 4 or not np.ptp(features, axis=0).any():
        return features
    tsne: Any = manifold.TSNE(
        perplexity=min(_PERPLEXITY, (n - 1) / 3), method="exact", init="random", random_state=seed
    )
    laid: Floats = np.asarray(tsne.fit_transform(features), dtype=np.float64)
    return laid


def silhouette_knee(medoids: Medoids, degree: int) -> int:
    """Where more clusters stop raising the silhouette: the knee of a polynomial through its curve.

    All points where there are fewer than five.
    """
    n = len(medoids.distances)
    numbers = np.arange(2, n)
    if len(numbers) < 3:
        return n
    curve = [simplified_silhouette(medoids.distances, medoids.of(k)) for k in numbers.tolist()]
    return int(knee(numbers, curve, degree=min(degree, len(numbers) - 1)))


def _within(
    budget: Budget, form: BehaviourForm, medoids: Medoids, wanted: int
) -> tuple[Bools, dict[str, Number]]:
    """The keep-set of the most clusters up to ``wanted`` that the budget holds, and what was done."""
    for guarded in (True, False):
        for k, chosen in _choices(form, medoids, wanted):
            kept = _guarded(budget, form.salience, chosen) if guarded else chosen
            if budget.allows(budget.space.counts(kept)):
                return kept, _told(budget, k, chosen, kept)
    _, chosen = next(_choices(form, medoids, wanted))
    order = np.argsort(-form.salience, kind="stable")
    kept = fill_in_order(
        budget, np.concatenate([order[chosen[order]], order[~chosen[order]]]), chosen
    )
    return kept, _told(budget, 0, kept, kept)


def _choices(form: BehaviourForm, medoids: Medoids, wanted: int) -> Iterator[tuple[int, Bools]]:
    """The representatives of ever fewer clusters."""
    for k in range(wanted, 0, -1):
        chosen = np.zeros(len(form.salience), dtype=np.bool_)
        found = medoids.of(k)
        owner = assigned(medoids.distances, found)
        for cluster in range(k):
            members = np.flatnonzero(owner == cluster)
            chosen[members[form.salience[members].argmax()]] = True
        yield k, chosen


def _guarded(budget: Budget, salience: Floats, chosen: Bools) -> Bools:
    """``chosen`` with the most salient unit of every empty block that may keep any."""
    kept = chosen.copy()
    for where, allowed in zip(budget.space.slices, budget.allowed, strict=True):
        if not kept[where].any() and allowed[1:].any():
            kept[where.start + int(salience[where].argmax())] = True
    return kept


def _told(budget: Budget, clusters: int, chosen: Bools, kept: Bools) -> dict[str, Number]:
    return {
        "clusters": clusters,
        "given_back": int(kept.sum() - chosen.sum()),
        "empty_blocks": int((budget.space.counts(kept) == 0).sum()),
    }
