"""The law that names are only names: the same problem with its blocks and units in another order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.costs.budget import Budget
from cahp_opt.objective import CoverageForm, Objective, QuadraticForm
from cahp_opt.problem import Problem
from cahp_opt.solver import Solver
from cahp_opt.space import HeadSpace
from cahp_opt.testing.answers import CLOSE, answer
from cahp_opt.testing.broken_law import require


def check_relabelling(solver: Solver, problem: Problem, rng: np.random.Generator) -> None:
    """Another order of the blocks, and of the units in them, leaves the value as it is.

    Not where units tie, since ties are broken by order.
    """
    first = None if _has_ties(problem.objective) else answer(solver, problem)
    if first is None:
        return
    space = problem.space
    blocks: list[int] = rng.permutation(len(space.blocks)).tolist()
    order: Ints = np.concatenate(
        [space.slices[b].start + rng.permutation(space.units[b]) for b in blocks]
    )
    budget = reordered(problem.budget, blocks)
    second = answer(solver, Problem(_Relabelled(problem.objective, order), budget))
    # The relabelled view hides structure, which an exact solver may need.
    require(
        second is None or math.isclose(first.value, second.value, **CLOSE),
        f"`{type(solver).__name__}` finds the value {first.value}, and {second and second.value} where "
        f"blocks and units come in the order {order.tolist()}.",
    )


def reordered(budget: Budget, blocks: Sequence[int]) -> Budget:
    """The same budget with its blocks in another order.

    Args:
        budget: the limits and ranges.
        blocks: the number of the block at every place.
    """
    chosen = list(blocks)
    return Budget(
        HeadSpace(tuple(budget.space.blocks[b] for b in chosen)),
        tuple(
            dataclasses.replace(t, costs=tuple(t.costs[b] for b in chosen)) for t in budget.tables
        ),
        budget.fewest[chosen],
        budget.most[chosen],
        budget.multiples[chosen],
        budget.even,
    )


class _Relabelled(Objective):
    """The same objective with its units in another order."""

    def __init__(self, inner: Objective, order: Ints) -> None:
        self._inner, self._order = inner, order

    @property
    def n(self) -> int:
        return self._inner.n

    @property
    def monotone(self) -> bool:
        return self._inner.monotone

    @property
    def submodular(self) -> bool:
        return self._inner.submodular

    def value(self, kept: Bools) -> float:
        inner = np.empty(self.n, dtype=np.bool_)
        inner[self._order] = kept
        return self._inner.value(inner)

    def linear(self) -> Floats | None:
        weights = self._inner.linear()
        return None if weights is None else weights[self._order]

    def quadratic(self) -> QuadraticForm | None:
        form = self._inner.quadratic()
        if form is None:
            return None
        pairs = form.pairwise[np.ix_(self._order, self._order)]
        return QuadraticForm(form.linear[self._order], pairs, form.constant)

    def coverage(self) -> CoverageForm | None:
        form = self._inner.coverage()
        if form is None:
            return None
        return CoverageForm(form.similarity[:, self._order], form.weights)


def _has_ties(objective: Objective) -> bool:
    ends = (np.zeros(objective.n, dtype=np.bool_), np.ones(objective.n, dtype=np.bool_))
    return any(bool(np.any(np.diff(np.sort(objective.gains(end))) < 1e-9)) for end in ends)
