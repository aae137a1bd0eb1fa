"""A squared length of changes of a block's columns, whole or as small factors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Columns, Floats, finite
from cahp_opt.stats.statistic import Arrays


@dataclass(frozen=True, eq=False)
class ColumnForm:
    """``x' R x`` of columns ``x [d]``: ``R`` itself, or its factors in ``R = W' M W``.

    A feed-forward part is several times as wide as what it writes, so that ``W [hidden, d]`` and
    ``M [hidden, hidden]`` are much smaller than ``R``.

    Args:
        inner: ``M``, symmetric ``[hidden, hidden]``; ``R``, ``[d, d]``, where there is no ``projection``.
            None for the identity, which needs a ``projection``.
        projection: ``W``, ``[hidden, d]``; None for none.

    Raises:
        ValueError: for a wrong shape, NaN or infinity.
    """

    inner: Floats | None
    projection: Floats | None = None

    def __post_init__(self) -> None:
        for name in ("inner", "projection"):
            given = getattr(self, name)
            if given is not None:
                array = finite(given, name)
                if array.ndim != 2 or (name == "inner" and array.shape[0] != array.shape[1]):
                    raise ValueError(
                        f"`{name}` of a form has shape {list(array.shape)}; `inner` must be square and "
                        "`projection` [hidden, d]."
                    )
                object.__setattr__(self, name, array)
        rows = {len(given) for given in (self.inner, self.projection) if given is not None}
        if len(rows) != 1:
            raise ValueError(
                "a form needs `inner`, `projection` or both, with as many rows in each, got "
                f"{sorted(rows)}."
            )

    @staticmethod
    def of(given: ColumnForm | npt.ArrayLike) -> ColumnForm:
        """A form as it is, or that of a matrix ``[d, d]``."""
        return given if isinstance(given, ColumnForm) else ColumnForm(finite(given, "inner"))

    @staticmethod
    def small(projection: Floats, inner: Floats | None = None) -> ColumnForm:
        """``W' M W``, kept as the factors if these are smaller.

        Args:
            projection: ``W``, ``[hidden, d]``.
            inner: ``M``, ``[hidden, hidden]``; None for the identity.
        """
        form = ColumnForm(inner, projection)
        own = projection.size + (0 if inner is None else inner.size)
        return form if own < form.width**2 else ColumnForm(form.matrix)

    @property
    def width(self) -> int:
        """The number of columns, ``d``."""
        whole = self.inner if self.projection is None else self.projection
        return 0 if whole is None else whole.shape[1]

    @property
    def matrix(self) -> Floats:
        """``R``, ``[d, d]``."""
        if self.projection is None:
            assert self.inner is not None  # checked above
            return self.inner
        middle = self.projection if self.inner is None else self.inner @ self.projection
        whole: Floats = self.projection.T @ middle
        return whole

    @property
    def factor(self) -> Floats:
        """``F`` with ``F' F = R`` but for rounding, ``[rows, d]``: ``hidden`` rows, or ``d`` where ``R`` is
        held whole."""
        root = None if self.inner is None else _root(self.inner)
        if root is None or self.projection is None:
            found = self.projection if root is None else root
            assert found is not None  # one of them is there
            return found
        through: Floats = root @ self.projection
        return through

    def trace(self, covariance: Floats) -> float:
        """``tr(R C)`` for a symmetric ``C``, ``[d, d]``."""
        if self.projection is None:
            return float(np.vdot(self.matrix, covariance))
        read = self.projection @ covariance @ self.projection.T
        return float(np.trace(read) if self.inner is None else np.vdot(self.inner, read))

    def of_columns(self, columns: Columns) -> ColumnForm:
        """The form of some columns, bool ``[d]``, or of all of them in another order, int ``[d]``."""
        if self.projection is not None:
            return ColumnForm(self.inner, self.projection[:, columns])
        return ColumnForm(self.matrix[np.ix_(columns, columns)])

    def __add__(self, other: ColumnForm) -> ColumnForm:
        """The sum of both; as factors where both have the same projection.

        Raises:
            ValueError: if they are of other numbers of columns.
        """
        mine, theirs = self.projection, other.projection
        if self.inner is None or other.inner is None or mine is None or theirs is None:
            return ColumnForm(self.matrix + other.matrix)
        if mine is not theirs and not np.array_equal(mine, theirs):
            return ColumnForm(self.matrix + other.matrix)
        return ColumnForm(self.inner + other.inner, mine)

    def __truediv__(self, divisor: float) -> ColumnForm:
        """The form divided by a number."""
        if self.inner is not None:
            return ColumnForm(self.inner / divisor, self.projection)
        assert self.projection is not None  # checked above
        return ColumnForm(np.eye(len(self.projection)) / divisor, self.projection)

    def arrays(self, name: str, inner: str) -> Arrays:
        """The content for a statistic's arrays.

        Args:
            name: of the matrix, where it is held whole.
            inner: of ``M``, where there are factors.
        """
        found = {
            name if self.projection is None else inner: self.inner,
            PROJECTION: self.projection,
        }
        return {key: array for key, array in found.items() if array is not None}

    @staticmethod
    def of_arrays(arrays: Arrays, name: str, inner: str) -> ColumnForm:
        """The inverse of :meth:`arrays`.

        Raises:
            KeyError: if they are missing.
        """
        if PROJECTION in arrays:
            return ColumnForm(arrays.get(inner), arrays[PROJECTION])
        return ColumnForm(arrays[name])


PROJECTION = "projection"
"""Name of the matrix ``W`` among the arrays of a statistic."""


def _root(matrix: Floats) -> Floats:
    """``F`` with ``F' F`` a semidefinite matrix ``[hidden, hidden]``, but for rounding."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    root: Floats = (vectors * np.sqrt(np.maximum(values, 0.0))).T
    return root
