"""Log-determinants: units that no others can predict."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Bools, Floats, Ints, finite
from cahp_opt.objective import Objective


@dataclass(frozen=True, eq=False)
class LogDet(Objective):
    """``log det(I + K_SS / ridge)``: twice the information, in nats, that observing the kept units
    under noise of variance ``ridge`` gives about a Gaussian process with the kernel ``K`` (Krause,
    Singh and Guestrin 2008, "Near-optimal sensor placements in Gaussian processes").
    :meth:`determinantal` makes the unnormalised ``log det(K_SS + ridge I)``.

    Args:
        kernel: symmetric positive semidefinite, shape ``[n, n]``.
        ridge: above 0.
        normalised: whether each kept unit is charged ``log ridge``, as above.

    Raises:
        ValueError: for NaN, infinity, a wrong shape, or a matrix that is not symmetric and positive
            semidefinite.
    """

    kernel: Floats
    ridge: float
    normalised: bool

    def __init__(
        self, kernel: npt.ArrayLike, ridge: float = 1.0, *, normalised: bool = True
    ) -> None:
        matrix = finite(kernel, "kernel")
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
            raise ValueError(f"`kernel` must have shape [n, n], got {list(matrix.shape)}.")
        scale = float(np.abs(matrix).max())
        if not np.allclose(matrix, matrix.T, rtol=0, atol=1e-9 * scale):
            raise ValueError("`kernel` must be symmetric; pass (K + K.T) / 2.")
        if not (np.isfinite(ridge) and ridge > 0):
            raise ValueError(f"`ridge` must be finite and above 0, got {ridge}.")
        matrix = finite((matrix + matrix.T) / 2, "kernel")
        try:
            np.linalg.cholesky(matrix + max(1e-9 * scale, 1e-300) * np.eye(len(matrix)))
        except np.linalg.LinAlgError:
            raise ValueError(
                "`kernel` must be positive semidefinite, and has a negative eigenvalue; add to its "
                "diagonal or use a kernel such as exp(-distance^2)."
            ) from None
        object.__setattr__(self, "kernel", matrix)
        object.__setattr__(self, "ridge", float(ridge))
        object.__setattr__(self, "normalised", bool(normalised))

    @staticmethod
    def determinantal(kernel: npt.ArrayLike, ridge: float = 1e-6) -> LogDet:
        """``log det(K_SS + ridge I)`` for a kernel ``[n, n]``: the log-likelihood of the keep-set
        under a determinantal point process, up to a constant (Kulesza and Taskar 2012,
        "Determinantal point processes for machine learning")."""
        return LogDet(kernel, ridge, normalised=False)

    @property
    def n(self) -> int:
        return len(self.kernel)

    @cached_property
    def matrix(self) -> Floats:
        """``K + ridge I``, ``[n, n]``."""
        return self.kernel + self.ridge * np.eye(self.n)

    @property
    def charge(self) -> float:
        """The amount subtracted for each kept unit."""
        return float(np.log(self.ridge)) if self.normalised else 0.0

    @property
    def monotone(self) -> bool:
        """True if every unit still gains beside all others; always, when normalised."""
        return self.normalised or self._last_unit_gains

    @cached_property
    def _last_unit_gains(self) -> bool:
        return bool(np.all(np.diagonal(np.linalg.inv(self.matrix)) <= 1))

    @property
    def submodular(self) -> bool:
        return True

    def value(self, kept: Bools) -> float:
        factor = np.linalg.cholesky(self.matrix[np.ix_(kept, kept)])
        log_determinant = 2 * float(np.log(np.diagonal(factor)).sum())
        return log_determinant - self.charge * int(np.count_nonzero(kept))

    def tracker(self, kept: Bools) -> LogDetTracker:
        return LogDetTracker(self, kept)


class LogDetTracker:
    """Follows a log-determinant by the matrix swept on the kept units (Goodnight 1979, "A tutorial on
    the sweep operator").

    Its diagonal holds, for units that are out, their variance given the kept; for kept ones, minus
    the diagonal of the inverse among the kept. A flip is an update of rank one: no factorisation.
    """

    def __init__(self, objective: LogDet, kept: Bools) -> None:
        self._charge = objective.charge
        self.kept: Bools = np.array(kept, dtype=np.bool_)
        self.value = objective.value(self.kept)
        self._swept = objective.matrix.copy()
        inside, outside = np.flatnonzero(self.kept), np.flatnonzero(~self.kept)
        if inside.size:
            inverse = np.linalg.inv(objective.matrix[np.ix_(inside, inside)])
            across = objective.matrix[np.ix_(inside, outside)]
            solved = inverse @ across
            self._swept[np.ix_(inside, inside)] = -inverse
            self._swept[np.ix_(inside, outside)] = solved
            self._swept[np.ix_(outside, inside)] = solved.T
            self._swept[np.ix_(outside, outside)] -= across.T @ solved

    def gain(self, unit: int) -> float:
        pivot = float(np.log(abs(self._swept[unit, unit])))
        return pivot + self._charge if self.kept[unit] else pivot - self._charge

    def gains(self, units: Ints | None = None) -> Floats:
        some = slice(None) if units is None else units
        pivots = np.log(np.abs(np.diagonal(self._swept)[some]))
        return np.where(self.kept[some], pivots + self._charge, pivots - self._charge)

    def add(self, unit: int) -> None:
        self._flip(unit)

    def remove(self, unit: int) -> None:
        self._flip(unit)

    def _flip(self, unit: int) -> None:
        self.value += self.gain(unit)
        row, pivot = self._swept[unit].copy(), float(self._swept[unit, unit])
        sign = -1.0 if self.kept[unit] else 1.0
        self._swept -= np.outer(row, row / pivot)
        self._swept[unit] = self._swept[:, unit] = sign * row / pivot
        self._swept[unit, unit] = -1 / pivot
        self.kept[unit] ^= True
