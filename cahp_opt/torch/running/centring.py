"""Second moments about the mean, added up without cancellation.

``E[x x'] - m m'`` loses every digit if the mean is large against the spread, and is then not a
covariance. So rows are centred before they are multiplied, and parts with means of their own are
pooled as Chan, Golub and LeVeque (1979) do: nothing is ever subtracted from a second moment, so
that what is added up stays positive semidefinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_STRIPE = 256  # columns: wide enough for fast products, and little is multiplied twice


class Centred(NamedTuple):
    """Rows about their mean, in their own precision.

    Args:
        deviations: the rows less their mean, ``[rows, width]``.
        base: the mean, rounded, ``[width]``.
        rest: the rounding error of ``base``, ``[width]``; their sum in double precision is the
            mean.
    """

    deviations: Tensor
    base: Tensor
    rest: Tensor

    def mean(self, device: torch.device) -> Tensor:
        """The mean ``[width]`` in double precision, on a device that has it."""
        return self.base.to(device).double() + self.rest.to(device).double()


def centred(rows: Tensor, weights: Tensor | None = None) -> Centred:
    """Rows ``[rows, width]`` about their mean, weighted by ``weights [rows]`` if given.

    Rows that weigh nothing in all are about zero.
    """
    if weights is None:
        weights = rows.new_ones(len(rows))
    total = weights.sum().clamp(min=torch.finfo(rows.dtype).tiny)
    shares = weights / total
    base = shares @ rows
    deviations = rows - base
    rest = shares @ deviations
    return Centred(deviations.sub_(rest), base, rest)


def has_double(device: torch.device) -> bool:
    """Whether a device has double precision; Apple's GPUs do not."""
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def double_home(device: torch.device) -> torch.device:
    """The device for sums in double precision: ``device``, or the CPU if that lacks it."""
    return device if has_double(device) else torch.device("cpu")


def in_double(values: Tensor) -> Tensor:
    """``values``, ``[...]``, in double precision; on the CPU if their device lacks it."""
    return values.to(double_home(values.device)).double()


def between(weight: float, other: float) -> float:
    """``sqrt(w v / (w + v))``: the factor of the difference of two means in the pooled scatter.

    Args:
        weight: of all rows of one part.
        other: of all rows of the other part.
    """
    total = weight + other
    return math.sqrt(weight * (other / total)) if total else 0.0


def gram(rows: Tensor) -> Tensor:
    """``rows' rows``, ``[width, width]``, of rows ``[rows, width]``.

    Only stripes from the diagonal on are multiplied, and then mirrored: up to half of the work is saved.
    """
    width = rows.shape[1]
    found = rows.new_empty(width, width)
    for start, stripe in _stripes(rows):
        own = slice(start, start + len(stripe))
        found[start:, own] = stripe.T
        found[own, start:] = stripe
    return found


def _stripes(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The stripes of ``rows' rows`` from the diagonal on, and where each begins."""
    for start in range(0, rows.shape[1], _STRIPE):
        yield start, rows[:, start : start + _STRIPE].T @ rows[:, start:]


class GramSums:
    """Running sums of ``rows' rows``, in double precision; every part is multiplied in its own precision.

    Only stripes from the diagonal on are multiplied and added up, each while it is at hand.

    Args:
        width: of the rows.
        device: where the sums live.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self._sums = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, rows: Tensor, more: Tensor | None = None) -> None:
        """Add the products of rows.

        Args:
            rows: ``[rows, width]``.
            more: a further row in double precision on the device of the sums, ``[width]``.
        """
        for start, stripe in _stripes(rows):
            own = slice(start, start + len(stripe))
            part = self._sums[own, start:]
            part += stripe.to(part.device)
            if more is not None:
                part.addr_(more[own], more[start:])

    @property
    def trace(self) -> float:
        """The trace of the sums."""
        return float(self._sums.trace())

    @property
    def matrix(self) -> Tensor:
        """The sums, ``[width, width]``."""
        for start in range(0, len(self._sums), _STRIPE):
            own, behind = slice(start, start + _STRIPE), slice(start + _STRIPE, None)
            self._sums[behind, own] = self._sums[own, behind].T
        return self._sums


class ScatterSums:
    """Running sums of weighted rows about their common mean, in double precision.

    Args:
        width: of the rows.
        device: where the sums live.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.weight = 0.0
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self._scatter = GramSums(width, device)

    def add(self, rows: Tensor, weights: Tensor | None = None) -> None:
        """Add rows ``[rows, width]``, with ``weights [rows]`` or 1 each."""
        part = centred(rows, weights)
        deviations, weight = part.deviations, float(len(rows))
        if weights is not None:
            deviations = deviations.mul_(weights.sqrt()[:, None])
            weight = float(in_double(weights).sum())
        apart = part.mean(self.mean.device) - self.mean
        self._scatter.add(deviations, apart * between(self.weight, weight))
        self.weight += weight
        if weight:
            self.mean += apart * (weight / self.weight)

    @property
    def finite(self) -> bool:
        """Whether everything added was finite."""
        return math.isfinite(self.weight + self._scatter.trace + float(self.mean.sum()))

    @property
    def scatter(self) -> Tensor:
        """The weighted sum of the outer products of deviations from the mean, ``[width, width]``."""
        return self._scatter.matrix
