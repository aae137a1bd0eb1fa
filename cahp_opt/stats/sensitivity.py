"""Second moments of head outputs, each token weighted by how strongly the output depends on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cahp_opt.arrays import Bools, Floats, finite, scatter_between
from cahp_opt.stats.by_block import ByBlock
from cahp_opt.stats.statistic import COUNT, Arrays, counted


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """The effect of an error of one block's output on the model's output; ``a + b`` pools two runs.

    For every real token ``z`` is the input of the block's output projection ``W``, and ``g`` the gradient
    of a random probe of the model's output by the block's output ``W z``, so that an error ``e`` there
    costs ``E[(g' e)^2] / 2`` (see :mod:`cahp_opt.torch.evaluation.fidelity`). The weight of a token
    is ``g' g``. As in K-FAC (Martens and Grosse 2015), but with these weights, the expectation of a
    product over tokens is approximated by a product: ``E[g g' (x) z z'] = E[g g'] (x) E[(g' g) z
    z'] / E[g' g]``.

    Args:
        sum: sum of ``(g' g) z``, shape ``[d]``; units own columns as in :class:`~cahp_opt.stats.moments.Moments`.
        scatter: sum of ``(g' g) (z - m) (z - m)'`` about the weighted mean ``m``, shape ``[d, d]``.
        metric: sum of ``(W' g) (W' g)'``, shape ``[d, d]``.
        weight: sum of ``g' g``.
        examples: examples added up.

    Raises:
        ValueError: for a wrong shape, NaN, infinity or a negative weight.
    """

    sum: Floats
    scatter: Floats
    metric: Floats
    weight: float
    examples: int

    def __post_init__(self) -> None:
        d = np.shape(self.sum)[0] if np.ndim(self.sum) == 1 else -1
        for name in ("sum", "scatter", "metric"):
            array = finite(getattr(self, name), name)
            if array.shape != ((d,) if name == "sum" else (d, d)):
                raise ValueError(
                    f"`{name}` of a block's sensitivity has shape {list(array.shape)}; expected sum "
                    "[d], scatter [d, d] and metric [d, d]."
                )
            object.__setattr__(self, name, array)
        if not (np.isfinite(self.weight) and self.weight >= 0 and self.examples >= 0):
            raise ValueError(
                f"`weight` and `examples` must be finite and at least 0, got {self.weight} and "
                f"{self.examples}."
            )

    def __add__(self, other: Sensitivity) -> Sensitivity:
        between = scatter_between(self.sum, self.weight, other.sum, other.weight)
        return Sensitivity(
            self.sum + other.sum,
            self.scatter + other.scatter + between,
            self.metric + other.metric,
            self.weight + other.weight,
            self.examples + other.examples,
        )

    def arrays(self) -> Arrays:
        return {
            "sum": self.sum,
            "scatter": self.scatter,
            "metric": self.metric,
            "weight": np.array([self.weight]),
            COUNT: counted(self.examples),
        }

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> Sensitivity:
        first, scatter, metric = (arrays[name] for name in ("sum", "scatter", "metric"))
        return cls(first, scatter, metric, arrays["weight"].item(), int(arrays[COUNT]))

    def of(self, columns: Bools) -> Sensitivity:
        """The sensitivity of some columns of ``z`` alone, bool ``[d]``."""
        both = np.ix_(columns, columns)
        return Sensitivity(
            self.sum[columns], self.scatter[both], self.metric[both], self.weight, self.examples
        )

    @property
    def covariance(self) -> Floats:
        """Weighted covariance of ``z``, shape ``[d, d]``; zeros if the output never depends on the block."""
        if not self.weight:
            return np.zeros_like(self.scatter)
        return self.scatter / self.weight

    @property
    def readout(self) -> Floats:
        """``E[(W' g) (W' g)'] / E[g' g]``, shape ``[d, d]``: the metric in which a change of ``z``
        costs, up to the factor :attr:`cost`."""
        return self.metric / self.weight if self.weight else np.zeros_like(self.metric)

    @property
    def cost(self) -> float:
        """The cost per example of one unit of the block's weighted squared error, in the units of
        the distance (nats for probabilities)."""
        return self.weight / (2 * self.examples) if self.examples else 0.0


class BlockSensitivity(ByBlock[Sensitivity]):
    """The sensitivity of every block."""

    of_block = Sensitivity
