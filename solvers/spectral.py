"""Group similar units by a similarity graph, and keep representatives of the groups."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from typing import Any

import numpy as np

from cahp_opt.arrays import Floats
from cahp_opt.costs.budget import Budget
from cahp_opt.costs.knapsack import best_counts
from cahp_opt.objective import Objective
from cahp_opt.problem import Problem
from cahp_opt.solver import Proposal, Solver, Status
from cahp_opt.solvers.parts.embedding import spectral_clusters
from cahp_opt.solvers.parts.filling import fill_in_order, filled_up
from cahp_opt.solvers.parts.neighbourhood import Neighbourhood
from cahp_opt.solvers.parts.swaps import flip_while_better


class Grouping(Enum):
    """How groups of similar units are found."""

    LOUVAIN = "Louvain communities (Blondel et al. 2008)"
    EMBEDDING = "k-means in the spectral embedding (Ng, Jordan and Weiss 2002)"
    GREEDY_MODULARITY = "greedy modularity communities (Clauset, Newman and Moore 2004)"


@dataclass(frozen=True)
class Spectral(Solver):
    """Groups in the similarity graph of the units, one representative of each, then more by gain.

    The graph comes from the objective: pairs that lower a quadratic form together, or the similarity
    of a coverage. Of every community the unit that gains most alone is its representative;
    representatives enter in the order of that gain as long as the budget holds, and what is left of it
    is filled by gain beside them. So more communities than the budget holds lose their weakest
    representatives, and fewer leave room for second ones. The spectral embedding makes as many clusters
    as the budget holds units at most; communities find their number themselves, by modularity. Groups
    are found whole, whatever the time limit: communities of a thousand units take half a minute.

    Cost: O(n^2) for communities, O(n^3) for the embedding; heuristic; needs `quadratic()` or `coverage()`.

    Args:
        grouping: how the groups are found; communities need networkx.
        resolution: of communities: above 1 finds more and smaller communities, below 1 fewer and larger ones.

    Raises:
        ValueError: if networkx is missing, or the objective offers no similarity.
    """

    grouping: Grouping = Grouping.LOUVAIN
    resolution: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.grouping, Grouping):
            raise TypeError(f"`grouping` must be a Grouping, got {self.grouping!r}.")
        if not 0 < self.resolution < np.inf:
            raise ValueError(f"`resolution` must be above 0 and finite, got {self.resolution}.")

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        weights = similarity(problem.objective)
        if weights is None:
            raise ValueError(
                "`Spectral` needs a similarity of units, which "
                f"`{type(problem.objective).__name__}` does not offer (neither a quadratic nor a "
                "coverage form); use `LazyGreedy` or `Greedy`."
            )
        if self.grouping is Grouping.EMBEDDING:
            labels = spectral_clusters(weights, max(1, _most_units(problem.budget)), rng)
            groups = [set(np.flatnonzero(labels == c).tolist()) for c in np.unique(labels)]
        else:
            groups = self._communities(weights, int(rng.integers(2**31)))
        nothing = np.zeros(problem.space.n, dtype=np.bool_)
        alone = problem.objective.gains(nothing)
        representative = nothing.copy()
        for group in groups:
            representative[max(sorted(group), key=lambda unit: float(alone[unit]))] = True
        order = np.argsort(-alone, kind="stable")
        order = np.concatenate([order[representative[order]], order[~representative[order]]])
        useful = representative & ((alone > 0) | problem.objective.monotone)
        here = Neighbourhood(problem, fill_in_order(problem.budget, order, useful))
        in_time = flip_while_better(here, deadline)
        kept = here.kept if in_time else filled_up(problem, here.kept, here.tracker.gains())
        return Proposal(
            kept,
            status=Status.FEASIBLE if in_time else Status.TIME_LIMIT,
            stats={"communities": len(groups)},
        )

    def _communities(self, weights: Floats, seed: int) -> list[set[int]]:
        try:
            networkx: Any = import_module("networkx")
        except ImportError:
            raise ValueError(
                "`Spectral` needs networkx; install it with `pip install 'cahp-opt[spectral]'`, or use "
                "`LazyGreedy`."
            ) from None
        if not weights.any():
            return [{unit} for unit in range(len(weights))]
        graph: Any = networkx.Graph()
        graph.add_nodes_from(range(len(weights)))
        rows, columns = np.nonzero(np.triu(weights, 1))
        graph.add_weighted_edges_from(
            zip(rows.tolist(), columns.tolist(), weights[rows, columns].tolist(), strict=True)
        )
        community: Any = networkx.community
        if self.grouping is Grouping.LOUVAIN:
            return list(
                community.louvain_communities(
                    graph, weight="weight", resolution=self.resolution, seed=seed
                )
            )
        return [
            set(group)
            for group in community.greedy_modularity_communities(
                graph, weight="weight", resolution=self.resolution
            )
        ]


def _most_units(budget: Budget) -> int:
    """How many units the budget holds at most."""
    counts: list[Floats] = [np.arange(units + 1.0) for units in budget.space.units.tolist()]
    found = best_counts(counts, budget.allowed, budget.coupling).counts
    return int((budget.cheapest if found is None else found).sum())


def similarity(objective: Objective) -> Floats | None:
    """How alike two units are to an objective, ``[n, n]``, symmetric, at least 0, with a zero diagonal;
    None if it offers no such structure."""
    cover = objective.coverage()
    form = objective.quadratic() if cover is None else None
    if cover is not None:
        # Units are alike if they serve the same rows, also where rows are not the units themselves.
        columns = cover.similarity * np.sqrt(cover.weights)[:, None]
        length = np.linalg.norm(columns, axis=0)
        columns = columns / np.where(length > 0, length, 1.0)
        weights: Floats = columns.T @ columns
    elif form is not None:
        weights = np.maximum(-form.pairwise, 0.0)
    else:
        return None
    np.fill_diagonal(weights, 0.0)
    return weights
