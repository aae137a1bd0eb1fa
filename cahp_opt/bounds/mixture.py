"""A mean of keep-sets, moved to the maximum of a concave function over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cahp_opt.arrays import Bools, Floats
from cahp_opt.objective import QuadraticForm


class Mixture:
    """A distribution over keep-sets: shares of those met, improved by pairwise steps.

    Args:
        form: the objective.
        start: the first keep-set, bool ``[n]``.
    """

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
        """The keep-sets met, bool ``[m, n]``, those of the largest share first."""
        result: Bools = self._sets[np.argsort(-self._share, kind="stable")] > 0.5
        return result

    @property
    def point(self) -> Floats:
        """The mean keep-set, ``[n]``."""
        result: Floats = self._share @ self._sets
        return result

    @property
    def value(self) -> float:
        """The concave function at the mean (a lower bound on its maximum), without the constant."""
        return float(self._share @ self._own - self._share @ self._gram @ self._share)

    @property
    def worst(self) -> float:
        """The least value among the keep-sets met, for the scale of a gap."""
        return float(self._true.min())

    def use(self, rest: Floats) -> None:
        """Take the rest ``[n, n]`` of another split; the true values of the keep-sets do not
        change."""
        self._rest = rest
        self._gram = self._sets @ rest @ self._sets.T
        self._own = self._true + np.diagonal(self._gram)
        self.correct()

    def add(self, kept: Bools) -> None:
        """Add a keep-set, bool ``[n]``, with no share yet."""
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

    def correct(self, enough: float = 0.0, most: int = 300) -> None:
        """Pairwise steps: move share from the worst keep-set that has some to the best one.

        Args:
            enough: the difference of slopes at which to stop.
            most: the largest number of steps.
        """
        share, gram = self._share, self._gram
        slope = self._own - 2 * gram @ share
        for _ in range(most):
            to = int(np.argmax(slope))
            away = int(np.argmin(np.where(share > 0, slope, np.inf)))
            gain = float(slope[to] - slope[away])
            if gain <= max(enough, 1e-9 * max(1.0, abs(float(slope[to])))):
                break
            curve = float(gram[to, to] + gram[away, away] - 2 * gram[to, away])
            limit = float(share[away])
            step = limit if curve <= gain / (2 * limit) else gain / (2 * curve)
            share[to] += step
            share[away] = 0.0 if step == limit else share[away] - step
            slope -= 2 * step * (gram[:, to] - gram[:, away])
        share /= share.sum()

    def covariance(self, parts: Sequence[slice]) -> Floats:
        """The covariance of the distribution inside each part, ``[n, n]``, made positive
        definite."""
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
