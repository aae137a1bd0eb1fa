"""Ridge regression from running sums, so that memory does not grow with the data."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cahp_opt.torch.running.centring import between, centred, double_home, gram, in_double

Solution = tuple[Tensor, Tensor | None]
"""Weights ``[targets, inputs]``, and the intercept ``[targets]`` where there is one."""


class RidgeSums:
    """Running sums for fitting targets ``y`` linearly on inputs ``x``, and for the error of a fit.

    A batch is centred and multiplied in its own precision, and added up in double precision about
    the mean, so that large means cost no precision.

    Args:
        inputs: width of ``x``.
        targets: width of ``y``.
        device: the device of the rows; the sums live there, or in main memory if it lacks double
            precision.
    """

    def __init__(self, inputs: int, targets: int, device: torch.device) -> None:
        device = double_home(device)
        self._x = torch.zeros(inputs, dtype=torch.float64, device=device)
        self._y = torch.zeros(targets, dtype=torch.float64, device=device)
        self._xx = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)
        self._xy = torch.zeros(inputs, targets, dtype=torch.float64, device=device)
        self._yy = torch.zeros((), dtype=torch.float64, device=device)
        self.inputs = inputs
        self.count = 0.0
        """The sum of the weights of the rows added. Beside it are the means ``_x`` and ``_y``, and
        the weighted sums ``_xx`` of ``(x - _x)(x - _x)'``, and ``_xy`` and ``_yy`` likewise."""

    def add(self, x: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """Add rows ``x [rows, inputs]`` and ``y [rows, targets]``, with ``weights [rows]`` or 1 each."""
        if weights is None:
            weights = x.new_ones(len(x))
        weights, home = weights.to(x), self._x.device
        inputs, goals = centred(x, weights), centred(y, weights.to(y))
        root = weights.sqrt()[:, None]
        xs, ys = inputs.deviations.mul_(root), goals.deviations.mul_(root.to(y))
        self._pool(
            float(in_double(weights).sum()),
            (inputs.mean(home), goals.mean(home)),
            (gram(xs).to(home), (xs.T @ ys).to(home), ys.square().sum().to(home)),
        )

    def merge(self, other: RidgeSums) -> None:
        """Add the rows of ``other``."""
        self._pool(other.count, (other._x, other._y), (other._xx, other._xy, other._yy))

    def _pool(
        self, count: float, means: tuple[Tensor, Tensor], parts: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """Add rows that weigh ``count``, by their means and their sums about these."""
        x, y = means[0] - self._x, means[1] - self._y
        root = between(self.count, count)
        across, up = x * root, y * root
        self._xx += parts[0]
        self._xx.addr_(across, across)
        self._xy += parts[1]
        self._xy.addr_(across, up)
        self._yy += parts[2] + up @ up
        self.count += count
        if count:
            self._x += x * (count / self.count)
            self._y += y * (count / self.count)

    @property
    def finite(self) -> bool:
        """Whether everything added was finite."""
        parts = (self._x, self._y, self._xx, self._xy, self._yy)
        return bool(torch.isfinite(torch.stack([part.sum() for part in parts]).sum()))

    def nothing(self) -> Tensor:
        """Weights of 0, ``[targets, inputs]``."""
        return torch.zeros_like(self._xy.T)

    def solve(self, ridge: float, *, intercept: bool) -> Solution:
        """The ridge regression over rows ``t`` with weights ``w_t``::

            min over D, d: sum_t w_t |y_t - D x_t - d|^2 / sum_t w_t + ridge * mean(diag C) * |D|^2

        ``C`` is the weighted covariance of ``x``; without an intercept ``d`` is 0 and ``C`` the
        second moment about 0. Directions in which ``x`` does not vary get the weight 0.

        Args:
            ridge: the penalty, at least 0.
            intercept: whether there is a ``d``.

        Returns:
            ``D``, ``[targets, inputs]``, and ``d``, ``[targets]``, or None.
        """
        return self.equations(intercept=intercept).solution(ridge)

    def equations(self, *, intercept: bool) -> NormalEquations:
        """What :meth:`solve` solves, for any penalty."""
        return NormalEquations(*self._moments(intercept), intercept)

    def error(self, weights: Tensor, intercept: Tensor | None) -> float:
        """``sum_t w_t |y_t - D x_t - d|^2 / sum_t w_t`` over these rows, for weights ``D``,
        ``[targets, inputs]``, and an intercept ``d``, ``[targets]``, such as a solution of other
        sums."""
        about = self._yy + (weights * (weights @ self._xx - 2 * self._xy.T)).sum()
        off = self._y - weights @ self._x
        if intercept is not None:
            off = off - intercept
        return float(about.clamp(min=0)) / self.count + float(off @ off)

    def _moments(self, intercept: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Second moments of ``x``, and of ``x`` with ``y``, centred if there is an intercept; the
        means."""
        xx, xy = self._xx / self.count, self._xy / self.count
        x, y = self._x, self._y
        if not intercept:
            xx, xy = xx + torch.outer(x, x), xy + torch.outer(x, y)
        return (xx + xx.T) / 2, xy, x, y


class NormalEquations(NamedTuple):
    """The equations of a ridge regression.

    Args:
        xx: second moments of ``x``, ``[inputs, inputs]``, centred if there is an intercept.
        xy: those of ``x`` with ``y``, ``[inputs, targets]``.
        x: the means of ``x``, ``[inputs]``.
        y: the means of ``y``, ``[targets]``.
        intercept: whether there is one.
    """

    xx: Tensor
    xy: Tensor
    x: Tensor
    y: Tensor
    intercept: bool

    def solution(self, ridge: float) -> Solution:
        """The weights and the intercept for a penalty, as :meth:`RidgeSums.solve` states them."""
        if not len(self.x):  # no inputs: the intercept is the mean target
            return self.xy.T, self.y if self.intercept else None
        weights = _solved(self.xx, self.xy, ridge * float(self.xx.diagonal().mean())).T
        return weights, self.y - weights @ self.x if self.intercept else None


class RowBuffer:
    """Adds rows to sums many at a time, because every addition goes through matrices as wide as the inputs.

    Args:
        sums: to add to.
        most: rows to wait for.
    """

    def __init__(self, sums: RidgeSums, most: int = 4096) -> None:
        self._sums, self._most = sums, most
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, x: Tensor, y: Tensor, weights: Tensor) -> None:
        """Add rows ``x [rows, inputs]`` and ``y [rows, targets]`` with ``weights [rows]``."""
        self._rows.append((x, y, weights))
        if sum(len(rows) for rows, _, _ in self._rows) >= self._most:
            self.finish()

    def finish(self) -> RidgeSums:
        """The sums of all rows."""
        if self._rows:
            self._sums.add(*(torch.cat(parts) for parts in zip(*self._rows, strict=True)))
            self._rows.clear()
        return self._sums


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
