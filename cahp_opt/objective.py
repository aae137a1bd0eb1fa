"""What is maximised, within what: objectives, their trackers, and the problem."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from cahp_opt.costs.budget import Budget
from cahp_opt.space import Bools, Floats, HeadSpace


class QuadraticForm(NamedTuple):
    """``constant + linear @ x + x @ pairwise @ x`` over 0/1 vectors ``x``; ``pairwise`` symmetric."""

    linear: Floats
    pairwise: Floats
    constant: float = 0.0


class CoverageForm(NamedTuple):
    """``sum_i weights[i] * max over kept j of similarity[i, j]``; similarity ``[m, n]``, at least 0."""

    similarity: Floats
    weights: Floats


class BehaviourForm(NamedTuple):
    """Units as points ``[n, d]`` that lie apart as far as they behave differently, and their salience
    ``[n]``: what clustering needs."""

    features: Floats
    salience: Floats


class BestSubsets(NamedTuple):
    """For one block and every count ``k``, the best set of ``k`` units and its value.

    ``values`` has shape ``[units + 1]``, ``kept`` is bool ``[units + 1, units]``.
    """

    values: Floats
    kept: Bools


class Tracker(Protocol):
    """An objective followed through single additions and removals, faster than from scratch."""

    @property
    def kept(self) -> Bools:
        """The current keep-set, bool ``[n]``; a view that the tracker owns: copy it to keep it."""
        ...

    @property
    def value(self) -> float:
        """The objective at the current keep-set."""
        ...

    def gains(self) -> Floats:
        """The change of value from flipping each unit, shape ``[n]``."""
        ...

    def gain(self, unit: int) -> float:
        """The change of value from flipping one unit."""
        ...

    def add(self, unit: int) -> None:
        """Keep a unit that is out."""
        ...

    def remove(self, unit: int) -> None:
        """Drop a unit that is kept."""
        ...


class Objective(ABC):
    """A set function over keep-sets, to be maximised.

    A subclass needs ``n`` and ``value``; everything else has a correct, slow default. What it
    declares in ``monotone`` and ``submodular`` solvers and bounds rely on: declare only what holds
    for every keep-set.
    """

    @property
    @abstractmethod
    def n(self) -> int:
        """The number of units."""

    @abstractmethod
    def value(self, kept: Bools) -> float:
        """The value of a keep-set, bool ``[n]``."""

    @property
    def monotone(self) -> bool:
        """Whether adding a unit never lowers the value."""
        return False

    @property
    def submodular(self) -> bool:
        """Whether a unit gains no more when more others are kept (diminishing returns)."""
        return False

    def gains(self, kept: Bools) -> Floats:
        """The change of value from flipping each unit (adding it if out, removing it if in), ``[n]``."""
        return self.tracker(kept).gains()

    def tracker(self, kept: Bools) -> Tracker:
        """A tracker that starts at this keep-set."""
        return DirectTracker(self, kept)

    def linear(self) -> Floats | None:
        """Weights ``[n]`` if the value is ``weights @ kept`` exactly; None otherwise."""
        return None

    def quadratic(self) -> QuadraticForm | None:
        """The objective as a quadratic form, if it is one."""
        return None

    def coverage(self) -> CoverageForm | None:
        """The objective as a weighted coverage by the best kept unit, if it is one."""
        return None

    def behaviour(self) -> BehaviourForm | None:
        """How differently the units behave, if the objective is about that."""
        return None

    def separable(self, space: HeadSpace) -> tuple[BestSubsets, ...] | None:
        """Best subsets of every block, if the value is a sum over blocks; None otherwise.

        ``value(kept)`` must equal the sum over blocks of the tables' values when every block holds
        its best subset.

        Raises:
            ValueError: if the value separates, but a block has too many units to tabulate.
        """
        weights = self.linear()
        return None if weights is None else modular_subsets(weights, space)

    def __add__(self, other: Objective) -> Objective:
        from cahp_opt.objectives.weighted_sum import WeightedSum  # objectives build on this module

        return WeightedSum(((1.0, self), (1.0, other)))

    def __mul__(self, weight: float) -> Objective:
        from cahp_opt.objectives.weighted_sum import WeightedSum

        return WeightedSum(((float(weight), self),))

    __rmul__ = __mul__


class DirectTracker:
    """The tracker of an objective that has none of its own: evaluates the value each time."""

    def __init__(self, objective: Objective, kept: Bools) -> None:
        self._objective = objective
        self.kept: Bools = np.array(kept, dtype=np.bool_)
        self.value = float(objective.value(self.kept))

    def gain(self, unit: int) -> float:
        self.kept[unit] ^= True
        flipped = float(self._objective.value(self.kept))
        self.kept[unit] ^= True
        return flipped - self.value

    def gains(self) -> Floats:
        return np.array([self.gain(unit) for unit in range(len(self.kept))])

    def add(self, unit: int) -> None:
        self.kept[unit] = True
        self.value = float(self._objective.value(self.kept))

    def remove(self, unit: int) -> None:
        self.kept[unit] = False
        self.value = float(self._objective.value(self.kept))


@dataclass(frozen=True, eq=False)
class Problem:
    """Maximise an objective within a budget.

    Raises:
        ValueError: if the two are over different numbers of units.
    """

    objective: Objective
    budget: Budget

    def __post_init__(self) -> None:
        if self.objective.n != self.budget.space.n:
            raise ValueError(
                f"`objective` is over {self.objective.n} units and `budget` over "
                f"{self.budget.space.n}; both must describe the same model."
            )

    @property
    def space(self) -> HeadSpace:
        """The blocks and their units."""
        return self.budget.space


def modular_subsets(weights: Floats, space: HeadSpace) -> tuple[BestSubsets, ...]:
    """Best subsets per block of a sum of weights: the ``k`` heaviest units, for every ``k``."""
    tables: list[BestSubsets] = []
    for where in space.slices:
        own = weights[where]
        order = np.argsort(-own, kind="stable")
        values = np.concatenate([[0.0], np.cumsum(own[order])])
        rank = np.empty(len(own), dtype=np.int64)
        rank[order] = np.arange(len(own))
        kept: Bools = rank[None, :] < np.arange(len(own) + 1)[:, None]
        tables.append(BestSubsets(values, kept))
    return tuple(tables)


def join_subsets(
    tables: Sequence[BestSubsets],
    counts: Sequence[int] | np.ndarray[tuple[int, ...], np.dtype[np.int64]],
) -> Bools:
    """The keep-set that takes every block's best subset of these counts, bool ``[n]``."""
    return np.concatenate([t.kept[k] for t, k in zip(tables, counts, strict=True)])
