"""Sums of objectives with weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cahp_opt.problem import BestSubsets, Objective, QuadraticForm, Tracker
from cahp_opt.space import Bools, Floats, HeadSpace


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
                raise ValueError(f"a weight of an objective must be finite, got {weight}.")
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
        return tables and tuple(BestSubsets(weight * t.values, t.kept) for t in tables)

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

    def gains(self) -> Floats:
        total = np.zeros(len(self.kept))
        for weight, part in self._parts:
            total += weight * part.gains()
        return total

    def add(self, unit: int) -> None:
        self.kept[unit] = True
        for _, part in self._parts:
            part.add(unit)

    def remove(self, unit: int) -> None:
        self.kept[unit] = False
        for _, part in self._parts:
            part.remove(unit)
