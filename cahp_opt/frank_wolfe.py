"""Frank-Wolfe bounds for quadratic forms over the exact oracle.

With ``f(x) = q(x) - x' R x``, ``q`` exact in the oracle and ``R`` positive semidefinite, every point
``y`` proves ``max f <= y' R y + max over the budget of q(x) - 2 (R y) @ x``. The best ``y`` is a mean
of keep-sets: the maximum of a concave function over their convex hull, found by fully corrective
Frank-Wolfe steps (Lacoste-Julien and Jaggi 2015, "On the global linear convergence of Frank-Wolfe
optimization variants") whose inner problem takes pairwise steps.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from cahp_opt.budget import Budget
from cahp_opt.heads import Bools, Floats
from cahp_opt.oracle import MOST_TABULATED, Oracle, Vertex
from cahp_opt.problem import QuadraticForm
from cahp_opt.splitting import Split, best_split, shifted, single_parts, tabulated_parts


@dataclass(frozen=True)
class Effort:
    """How much work a bound may take.

    Args:
        splits: how often the split is fitted to the point found.
        steps: oracle calls per split.
        precision: relative gap between the bound and the concave maximum at which steps stop.
    """

    splits: int = 2
    steps: int = 12
    precision: float = 1e-3


@dataclass(frozen=True, eq=False)
class FrankWolfe:
    """The outcome: the bound, the point ``y`` that proves it, its split, and the keep-sets met."""

    bound: float
    point: Floats
    split: Split
    met: Bools
    """Keep-sets within the budget whose mean the point is, bool ``[m, n]``; good places to start."""
    steps: int


def quadratic_frank_wolfe(
    budget: Budget,
    form: QuadraticForm,
    start: Bools,
    effort: Effort | None = None,
    *,
    deadline: float = float("inf"),
    tabulate: bool = True,
    floor: float = -float("inf"),
) -> FrankWolfe:
    """The smallest bound that Frank-Wolfe finds for a quadratic form within a budget.

    Args:
        budget: the limits.
        form: the objective.
        start: a keep-set within the budget; good ones save steps.
        effort: how much work.
        deadline: the ``time.monotonic()`` at which to stop, between two steps.
        tabulate: use exact tables of all subsets in blocks small enough.
        floor: stop once the bound is this small; the value of a keep-set, say.
    """
    effort = Effort() if effort is None else effort
    n = len(form.linear)
    parts = tabulated_parts(budget.space) if tabulate else single_parts(0, n)
    active = _Active(form, start)
    kept = start.astype(np.float64)
    best = float("inf")
    point = kept
    density = max(float(kept.mean()), 0.05)
    covariance = np.eye(n) * max(density * (1 - density), 0.01)
    split: Split | None = None
    chosen: Split | None = None
    taken = 0
    for turn in range(max(effort.splits, 1)):
        if effort.splits == 0:
            split = shifted(form.pairwise)
        else:
            split = best_split(form.pairwise, parts, covariance, split)
        chosen = split if chosen is None else chosen
        oracle = split_oracle(budget, form, split)
        active.use(split.rest)
        for _ in range(effort.steps):
            y = active.point
            bound, vertex = bound_at(oracle, form, split, y)
            taken += 1
            if bound < best:
                best, point, chosen = bound, y, split
            if best <= floor or time.monotonic() > deadline:
                break
            if bound - form.constant - active.value <= effort.precision * max(
                abs(bound), abs(bound - active.worst), 1e-300
            ):
                break
            active.add(vertex.kept)
            active.correct()
        if best <= floor or time.monotonic() > deadline:
            break
        seen = active.covariance(parts)
        covariance = (covariance * (turn + 1) + seen) / (turn + 2)
    assert chosen is not None
    return FrankWolfe(best, point, chosen, active.met, taken)


def subset_values(linear: Floats, pairwise: Floats) -> Floats:
    """``linear @ x + x' pairwise x`` of every subset, by code (bit ``u`` set: unit ``u`` kept).

    Doubling: the subsets with unit ``u`` are those without it plus the gain of ``u`` beside them.
    """
    values = np.zeros(1)
    beside = np.zeros((1, len(linear)))
    for u in range(len(linear)):
        gain = linear[u] + pairwise[u, u] + 2 * beside[:, u]
        values = np.concatenate([values, values + gain])
        beside = np.concatenate([beside, beside + pairwise[u]])
    return values


def bound_at(
    oracle: Oracle, form: QuadraticForm, split: Split, point: Floats
) -> tuple[float, Vertex]:
    """The bound that any point ``[n]`` of the unit cube proves, and the keep-set that attains it.

    Args:
        oracle: that of the split, from :func:`split_oracle`.
        form: the objective.
        split: any split of it.
        point: the point at which the rest is linearised.
    """
    pull = split.rest @ point
    vertex = oracle.best(-2 * pull)
    bound = form.constant + float(point @ pull) + vertex.bound + split.excess
    return bound + _rounding(form, split), vertex


def split_oracle(budget: Budget, form: QuadraticForm, split: Split) -> Oracle:
    """The oracle of ``linear @ x + x' inside x`` plus weights."""
    inside = split.inside
    off = inside - np.diag(np.diagonal(inside))
    values: list[Floats | None] = []
    weights = form.linear + np.diagonal(inside)
    for where in budget.space.slices:
        units = where.stop - where.start
        if units <= MOST_TABULATED and np.any(off[where, where]):
            values.append(subset_values(form.linear[where], inside[where, where]))
            weights[where] = 0.0
        else:
            values.append(None)
    return Oracle(budget, values, weights)


def _rounding(form: QuadraticForm, split: Split) -> float:
    """What floating-point sums of these terms may be off by."""
    size = float(
        np.abs(form.linear).sum() + np.abs(split.inside).sum() + 3 * np.abs(split.rest).sum()
    )
    return 4 * float(np.finfo(np.float64).eps) * (size + abs(form.constant))


class _Active:
    """A distribution over keep-sets: weights on those met, improved by pairwise steps."""

    def __init__(self, form: QuadraticForm, start: Bools) -> None:
        self._form = form
        self._sets = start.astype(np.float64)[None]
        self._share = np.ones(1)
        self._seen = {start.tobytes()}
        self._true = self._values(self._sets)
        self._rest = np.zeros_like(form.pairwise)
        self._gram = np.zeros((1, 1))
        self._own = self._true

    @property
    def met(self) -> Bools:
        """The keep-sets met, those of the largest share first."""
        result: Bools = self._sets[np.argsort(-self._share, kind="stable")] > 0.5
        return result

    @property
    def point(self) -> Floats:
        """The mean keep-set."""
        result: Floats = self._share @ self._sets
        return result

    @property
    def value(self) -> float:
        """The concave function at the mean (a lower bound on its maximum), without the constant."""
        return float(self._share @ self._own - self._share @ self._gram @ self._share)

    @property
    def worst(self) -> float:
        """The least value among the keep-sets met: gives the scale of a gap."""
        return float(self._true.min())

    def use(self, rest: Floats) -> None:
        """Take another split; the true values of the keep-sets stay what they are."""
        self._rest = rest
        self._gram = self._sets @ rest @ self._sets.T
        self._own = self._true + np.diagonal(self._gram)
        self.correct()

    def add(self, kept: Bools) -> None:
        """Another keep-set, with no share yet."""
        if kept.tobytes() in self._seen:
            return
        self._seen.add(kept.tobytes())
        new = kept.astype(np.float64)
        across = self._sets @ (self._rest @ new)
        corner = float(new @ self._rest @ new)
        self._gram = np.block([[self._gram, across[:, None]], [across[None], np.array([[corner]])]])
        self._sets = np.concatenate([self._sets, new[None]])
        self._true = np.concatenate([self._true, self._values(new[None])])
        self._own = self._true + np.diagonal(self._gram)
        self._share = np.append(self._share, 0.0)

    def correct(self, most: int = 300) -> None:
        """Pairwise steps: move share from the worst keep-set that has some to the best one."""
        share, gram = self._share, self._gram
        slope = self._own - 2 * gram @ share
        for _ in range(most):
            to = int(np.argmax(slope))
            away = int(np.argmin(np.where(share > 0, slope, np.inf)))
            gain = float(slope[to] - slope[away])
            if gain <= 1e-9 * max(1.0, abs(float(slope[to]))):
                break
            curve = float(gram[to, to] + gram[away, away] - 2 * gram[to, away])
            limit = float(share[away])
            step = limit if curve <= gain / (2 * limit) else gain / (2 * curve)
            share[to] += step
            share[away] = 0.0 if step == limit else share[away] - step
            slope -= 2 * step * (gram[:, to] - gram[:, away])
        share /= share.sum()

    def covariance(self, parts: list[slice]) -> Floats:
        """The covariance of the distribution inside each part, made definite."""
        n = self._sets.shape[1]
        mean = self.point
        result = np.zeros((n, n))
        for part in parts:
            own = self._sets[:, part]
            moment = (own * self._share[:, None]).T @ own
            result[part, part] = moment - np.outer(mean[part], mean[part])
        result[np.diag_indices(n)] += 0.01
        return result

    def _values(self, sets: Floats) -> Floats:
        result: Floats = sets @ self._form.linear + ((sets @ self._form.pairwise) * sets).sum(
            axis=1
        )
        return result
