"""Ridge regression from running sums, so that memory does not grow with the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RidgeSums:
    """Adds up what a linear fit of targets ``y`` on inputs ``x`` needs.

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
        self._count = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows ``x [rows, inputs]`` and ``y [rows, targets]``."""
        self._x += x.sum(dim=0).double()
        self._y += y.sum(dim=0).double()
        self._xx += (x.T @ x).double()
        self._xy += (x.T @ y).double()
        self._count += len(x)

    @property
    def finite(self) -> bool:
        """Whether everything added was finite."""
        return bool(torch.isfinite(self._xx.sum() + self._xy.sum() + self._y.sum()))

    def solve(self, ridge: float, *, intercept: bool) -> tuple[Tensor, Tensor | None]:
        """Weights ``[targets, inputs]`` and intercept ``[targets]`` of the ridge regression.

        The penalty is ``ridge`` times the mean diagonal of the second moment of ``x``, which is centred
        where there is an intercept. Directions in which ``x`` does not vary get the weight 0.
        """
        xx, xy = self._xx / self._count, self._xy / self._count
        x, y = self._x / self._count, self._y / self._count
        if intercept:
            xx, xy = xx - torch.outer(x, x), xy - torch.outer(x, y)
        if not len(x):  # nothing to fit on: the intercept is the mean target
            return xy.T, y if intercept else None
        linalg: Any = torch.linalg
        found: tuple[Tensor, Tensor] = linalg.eigh((xx + xx.T) / 2)
        eigenvalues, vectors = found
        floor = 1e-12 * eigenvalues[-1].clamp(min=0)
        shifted = eigenvalues + ridge * xx.diagonal().mean()
        inverse = torch.where(eigenvalues > floor, 1 / shifted, 0)
        weights = (vectors @ (inverse[:, None] * (vectors.T @ xy))).T
        return weights, y - weights @ x if intercept else None
