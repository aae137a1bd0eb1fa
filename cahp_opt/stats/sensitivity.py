"""Second moments of head outputs, each token weighted by how strongly the output depends on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Columns, Floats, constant, finite, scatter_between
from cahp_opt.stats.by_block import ByBlock
from cahp_opt.stats.column_form import ColumnForm
from cahp_opt.stats.statistic import COUNT, Arrays, counted


@dataclass(frozen=True, eq=False, init=False)
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
        metric: sum of ``(W' g) (W' g)'``, shape ``[d, d]``, or the same as a
            :class:`~cahp_opt.stats.column_form.ColumnForm` of ``W`` and the sum of ``g g'``.
        weight: sum of ``g' g``.
        examples: examples added up.

    Raises:
        ValueError: for a wrong shape, NaN, infinity or a negative weight.
    """

    sum: Floats
    scatter: Floats
    form: ColumnForm
    weight: float
    examples: int

    def __init__(
        self,
        sum: npt.ArrayLike,
        scatter: npt.ArrayLike,
        metric: npt.ArrayLike | ColumnForm,
        weight: float,
        examples: int,
    ) -> None:
        d = np.shape(sum)[0] if np.ndim(sum) == 1 else -1
        for name, given in (("sum", sum), ("scatter", scatter)):
            array = finite(given, name)
            _check_shape(name, array.shape, (d,) if name == "sum" else (d, d))
            object.__setattr__(self, name, array)
        if not isinstance(metric, ColumnForm):
            _check_shape("metric", np.shape(metric), (d, d))
            metric = ColumnForm(finite(metric, "metric"))
        _check_shape("metric", (metric.width,) * 2, (d, d))
        object.__setattr__(self, "form", metric)
        if not (np.isfinite(weight) and weight >= 0 and examples >= 0):
            raise ValueError(
                f"`weight` and `examples` must be finite and at least 0, got {weight} and {examples}."
            )
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "examples", examples)

    @property
    def metric(self) -> Floats:
        """Sum of ``(W' g) (W' g)'``, ``[d, d]``."""
        return self.form.matrix

    def __add__(self, other: Sensitivity) -> Sensitivity:
        between = scatter_between(self.sum, self.weight, other.sum, other.weight)
        return Sensitivity(
            self.sum + other.sum,
            constant(self.scatter + other.scatter + between),
            self.form + other.form,
            self.weight + other.weight,
            self.examples + other.examples,
        )

    def arrays(self) -> Arrays:
        return {
            "sum": self.sum,
            "scatter": self.scatter,
            **self.form.arrays("metric", "gradients"),
            "weight": np.array([self.weight]),
            COUNT: counted(self.examples),
        }

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> Sensitivity:
        form = ColumnForm.of_arrays(arrays, "metric", "gradients")
        weight, examples = arrays["weight"].item(), int(arrays[COUNT])
        return cls(arrays["sum"], arrays["scatter"], form, weight, examples)

    def of(self, columns: Columns) -> Sensitivity:
        """The sensitivity of some columns of ``z`` alone, bool ``[d]``, or of all in another order, int
        ``[d]``."""
        scatter = constant(self.scatter[np.ix_(columns, columns)])
        form = self.form.of_columns(columns)
        return Sensitivity(self.sum[columns], scatter, form, self.weight, self.examples)

    @property
    def covariance(self) -> Floats:
        """Weighted covariance of ``z``, shape ``[d, d]``; zeros if the output never depends on the block."""
        if not self.weight:
            return np.zeros_like(self.scatter)
        return constant(self.scatter / self.weight)

    @property
    def second_moment(self) -> Floats:
        """Weighted second moment of ``z`` about zero, shape ``[d, d]``."""
        mean = self.sum / self.weight if self.weight else np.zeros_like(self.sum)
        return constant(self.covariance + np.outer(mean, mean))

    @property
    def constant(self) -> bool:
        """Whether the head outputs are the same at every token that the output depends on, up to rounding."""
        return bool(np.trace(self.scatter) * self.weight <= 1e-12 * (self.sum @ self.sum))

    @property
    def readout(self) -> Floats:
        """``E[(W' g) (W' g)'] / E[g' g]``, shape ``[d, d]``: the metric in which a change of ``z``
        costs, up to the factor :attr:`cost`."""
        return self.readout_form.matrix

    @property
    def readout_form(self) -> ColumnForm:
        """:attr:`readout` in the form that it is held in."""
        if self.weight:
            return self.form / self.weight
        projection = self.form.projection
        rows = self.form.width if projection is None else len(projection)
        return ColumnForm(np.zeros((rows, rows)), projection)

    @property
    def cost(self) -> float:
        """The cost per example of one unit of the block's weighted squared error, in the units of
        the distance (nats for probabilities)."""
        return self.weight / (2 * self.examples) if self.examples else 0.0


class BlockSensitivity(ByBlock[Sensitivity]):
    """The sensitivity of every block."""

    of_block = Sensitivity


def _check_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise ValueError(
            f"`{name}` of a block's sensitivity has shape {list(shape)}; expected sum [d], scatter "
            "[d, d] and metric [d, d]."
        )
