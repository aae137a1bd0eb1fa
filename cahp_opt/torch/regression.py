"""Ridge regression from running sums, so that memory does not grow with the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Solution = tuple[Tensor, Tensor | None]
"""Weights ``[targets, inputs]``, and the intercept ``[targets]`` where there is one."""


class RidgeSums:
    """Adds up what a linear fit of targets ``y`` on inputs ``x`` needs, and what judging one needs.

    A batch is multiplied in its own precision and added up in double.

    Args:
        inputs: width of ``x``.
        targets: width of ``y``.
        device: where the sums live.
    """

    def __init__(self, inputs: int, targets: int, device: torch.device) -> None:
        self._x = torch.zeros(inputs, dtype=torch.float64, device=device)
        self._y = torch.zeros(targets, dtype=torch.float64, device=device)
        self._xx = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)
        self._xy = torch.zeros(inputs, targets, dtype=torch.float64, device=device)
        self._yy = torch.zeros((), dtype=torch.float64, device=device)
        self.inputs = inputs
        self.count = 0.0
        """Rows added, each counted with its weight."""

    def add(self, x: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """Add rows ``x [rows, inputs]`` and ``y [rows, targets]``, with ``weights [rows]`` or 1 each."""
        if weights is None:
            weights = x.new_ones(len(x))
        weights = weights.to(x)
        weighted, goals = x * weights[:, None], y * weights[:, None]
        self._x += weighted.sum(dim=0).double()
        self._y += goals.sum(dim=0).double()
        self._xx += (weighted.T @ x).double()
        self._xy += (weighted.T @ y).double()
        self._yy += (goals * y).sum().double()
        self.count += float(weights.double().sum())

    def merge(self, other: RidgeSums) -> None:
        """Add the rows of ``other``."""
        for name in ("_x", "_y", "_xx", "_xy", "_yy", "count"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def finite(self) -> bool:
        """Whether everything added was finite."""
        return bool(torch.isfinite(self._xx.sum() + self._xy.sum() + self._y.sum() + self._yy))

    def nothing(self) -> Tensor:
        """Weights of 0, ``[targets, inputs]``."""
        return torch.zeros_like(self._xy.T)

    def solve(self, ridge: float, *, intercept: bool) -> Solution:
        """The ridge regression.

        The penalty is ``ridge`` times the mean diagonal of the second moment of ``x``, which is centred
        where there is an intercept. Directions in which ``x`` does not vary get the weight 0.
        """
        return next(self.solutions((ridge,), intercept=intercept))

    def solutions(self, ridges: Sequence[float], *, intercept: bool) -> Iterator[Solution]:
        """:meth:`solve` for several penalties."""
        xx, xy, x, y = self._moments(intercept)
        if not len(x):  # nothing to fit on: the intercept is the mean target
            yield from ((xy.T, y if intercept else None) for _ in ridges)
            return
        for ridge in ridges:
            weights = _solved(xx, xy, ridge * float(xx.diagonal().mean())).T
            yield weights, y - weights @ x if intercept else None

    def error(self, weights: Tensor, intercept: Tensor | None) -> float:
        """Mean over the rows of ``|y - weights x - intercept|^2``, of a solution of any sums."""
        square = self._yy + (weights * (weights @ self._xx - 2 * self._xy.T)).sum()
        if intercept is not None:
            square += intercept @ (self.count * intercept + 2 * (weights @ self._x - self._y))
        return float(square.clamp(min=0)) / self.count

    def _moments(self, intercept: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Second moments of ``x`` and with ``y``, centred where there is an intercept, and the means."""
        xx, xy = self._xx / self.count, self._xy / self.count
        x, y = self._x / self.count, self._y / self.count
        if intercept:
            xx, xy = xx - torch.outer(x, x), xy - torch.outer(x, y)
        return (xx + xx.T) / 2, xy, x, y


def _solved(xx: Tensor, xy: Tensor, penalty: float) -> Tensor:
    """``(xx + penalty)^-1 xy``, with weights of 0 where ``xx`` and the penalty are 0."""
    linalg: Any = torch.linalg
    penalised = xx.clone()
    penalised.diagonal().add_(penalty)
    if penalty > 0:
        factor, failed = linalg.cholesky_ex(penalised)
        if not failed:
            found: Tensor = torch.cholesky_solve(xy, factor)
            return found
    pair: tuple[Tensor, Tensor] = linalg.eigh(xx)
    eigenvalues, vectors = pair
    varies = eigenvalues > 1e-12 * eigenvalues[-1].clamp(min=0)
    inverse = torch.where(varies, 1 / (eigenvalues + penalty), 0)
    return vectors @ (inverse[:, None] * (vectors.T @ xy))
