"""Objectives: set functions over keep-sets, their sums, and trackers that follow single flips."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.space import HeadSpace
from cahp_opt.subsets import BestSubsets, modular_subsets


class QuadraticForm(NamedTuple):
    """``constant + linear @ x + x @ pairwise @ x`` over 0/1 vectors ``x``; ``linear`` is ``[n]``,
    ``pairwise`` symmetric ``[n, n]``."""

    linear: Floats
    pairwise: Floats
    constant: float = 0.0


class CoverageForm(NamedTuple):
    """``sum_i weights[i] * max over kept j of similarity[i, j]``; similarity ``[m, n]``, at least
    0; weights ``[m]``."""

    similarity: Floats
    weights: Floats


class BehaviourForm(NamedTuple):
    """For clustering: units as points ``[n, d]``, as far apart as they behave differently, and
    their salience ``[n]``."""

    features: Floats
    salience: Floats


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

    def gains(self, units: Ints | None = None) -> Floats:
        """The change of value from flipping each unit (adding it if out, removing it if in), ``[n]``.

        Args:
            units: only these units, in or out, ``[m]``; the answer is then ``[m]``, in their order.
        """
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

    A subclass needs ``n`` and ``value``; everything else has a correct, slow default. Solvers and
    bounds rely on ``monotone`` and ``submodular``: declare only what holds for every keep-set.
    """

    @property
    @abstractmethod
    def n(self) -> int:
        """The number of units."""

    @abstractmethod
    def value(self, kept: Bools) -> float:
        """The value of a keep-set, bool ``[n]``."""

    @property
    def whole(self) -> float:
        """The value of the unpruned model, which keeps every unit: other values are shares of it."""
        return self.value(np.ones(self.n, dtype=np.bool_))

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
        """A tracker that starts at this keep-set, bool ``[n]``."""
        return DirectTracker(self, kept)

    def linear(self) -> Floats | None:
        """Weights ``[n]`` if the value is ``weights @ kept`` exactly; None otherwise."""
        return None

    def quadratic(self) -> QuadraticForm | None:
        """The objective as a quadratic form if it is one; None otherwise."""
        return None

    def coverage(self) -> CoverageForm | None:
        """The objective as a weighted coverage by the best kept unit if it is one; None
        otherwise."""
        return None

    def behaviour(self) -> BehaviourForm | None:
        """How differently the units behave, if the objective is about that; None otherwise."""
        return None

    def separable(self, space: HeadSpace) -> tuple[BestSubsets, ...] | None:
        """Best subsets of every block, if the value is a sum over blocks; None otherwise.

        ``value(kept)`` must equal the sum over blocks of the tables' values when every block holds
        its best subset. A table either holds the best of all subsets, or says in its ``bound`` how much
        better others may be.

        Raises:
            ValueError: if the value separates, but a block has too many units to tabulate.
        """
        weights = self.linear()
        return None if weights is None else modular_subsets(weights, space)

    def __add__(self, other: Objective) -> Objective:

        return WeightedSum(((1.0, self), (1.0, other)))

    def __mul__(self, weight: float) -> Objective:

        return WeightedSum(((float(weight), self),))

    __rmul__ = __mul__


class DirectTracker:
    """The default tracker of an objective: evaluates the value each time."""

    def __init__(self, objective: Objective, kept: Bools) -> None:
        self._objective = objective
        self.kept: Bools = np.array(kept, dtype=np.bool_)
        self.value = float(objective.value(self.kept))

    def gain(self, unit: int) -> float:
        self.kept[unit] ^= True
        flipped = float(self._objective.value(self.kept))
        self.kept[unit] ^= True
        return flipped - self.value

    def gains(self, units: Ints | None = None) -> Floats:
        asked = range(len(self.kept)) if units is None else units.tolist()
        return np.array([self.gain(unit) for unit in asked], dtype=np.float64)

    def add(self, unit: int) -> None:
        self.kept[unit] = True
        self.value = float(self._objective.value(self.kept))

    def remove(self, unit: int) -> None:
        self.kept[unit] = False
        self.value = float(self._objective.value(self.kept))


@dataclass(frozen=True, eq=False)
class WeightedSum(Objective):
    """``sum of weight * objective``; ``0.7 * f + 0.3 * g`` makes one (Lin and Bilmes 2012, "Learning
    mixtures of submodular shells").

    Args:
        parts: pairs of a finite weight and an objective; sums inside are flattened.

    Raises:
        ValueError: if there is no part, a weight is not finite, or the parts have different ``n``.
    """

    parts: tuple[tuple[float, Objective], ...]

    def __post_init__(self) -> None:
        flat: list[tuple[float, Objective]] = []
        for weight, part in self.parts:
            if not np.isfinite(weight):
                raise ValueError(f"the weight of an objective must be finite, got {weight}.")
            inner = part.parts if isinstance(part, WeightedSum) else ((1.0, part),)
            flat += [(float(weight) * w, p) for w, p in inner]
        sizes = sorted({part.n for _, part in flat})
        if len(sizes) != 1:
            raise ValueError(f"objectives to be added must have the same units, got n = {sizes}.")
        object.__setattr__(self, "parts", tuple(flat))

    @property
    def n(self) -> int:
        return self.parts[0][1].n

    @property
    def whole(self) -> float:
        return sum(weight * part.whole for weight, part in self.parts)

    @property
    def monotone(self) -> bool:
        return all(weight >= 0 and part.monotone for weight, part in self.parts)

    @property
    def submodular(self) -> bool:
        return all(
            (weight >= 0 and part.submodular) or part.linear() is not None
            for weight, part in self.parts
        )

    def value(self, kept: Bools) -> float:
        return sum(weight * part.value(kept) for weight, part in self.parts)

    def tracker(self, kept: Bools) -> WeightedSumTracker:
        return WeightedSumTracker(self, kept)

    def linear(self) -> Floats | None:
        total = np.zeros(self.n)
        for weight, part in self.parts:
            own = part.linear()
            if own is None:
                return None
            total += weight * own
        return total

    def separable(self, space: HeadSpace) -> tuple[BestSubsets, ...] | None:
        modular = super().separable(space)
        if modular is not None or len(self.parts) != 1:
            return modular  # the best subsets of a sum are not those of its parts
        ((weight, part),) = self.parts
        tables = part.separable(space) if weight >= 0 else None
        return tables and tuple(t.times(weight) for t in tables)

    def quadratic(self) -> QuadraticForm | None:
        forms: list[tuple[float, QuadraticForm]] = []
        for weight, part in self.parts:
            own = part.quadratic()
            if own is None:
                return None
            forms.append((weight, own))
        linear, pairwise, constant = np.zeros(self.n), np.zeros((self.n, self.n)), 0.0
        for weight, own in forms:
            linear += weight * own.linear
            pairwise += weight * own.pairwise
            constant += weight * own.constant
        return QuadraticForm(linear, pairwise, constant)


class WeightedSumTracker:
    """Follows every part with the part's own tracker."""

    def __init__(self, objective: WeightedSum, kept: Bools) -> None:
        self._parts: list[tuple[float, Tracker]] = [
            (weight, part.tracker(kept)) for weight, part in objective.parts
        ]
        self.kept: Bools = np.array(kept, dtype=np.bool_)

    @property
    def value(self) -> float:
        return sum(weight * part.value for weight, part in self._parts)

    def gain(self, unit: int) -> float:
        return sum(weight * part.gain(unit) for weight, part in self._parts)

    def gains(self, units: Ints | None = None) -> Floats:
        total = np.zeros(len(self.kept) if units is None else len(units))
        for weight, part in self._parts:
            total += weight * part.gains(units)
        return total

    def add(self, unit: int) -> None:
        self.kept[unit] = True
        for _, part in self._parts:
            part.add(unit)

    def remove(self, unit: int) -> None:
        self.kept[unit] = False
        for _, part in self._parts:
            part.remove(unit)
