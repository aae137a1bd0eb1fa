"""How every unit attends to each class of labelled texts: running means and variances that merge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.space import HeadSpace
from cahp_opt.stats.statistic import Arrays


@dataclass(frozen=True, eq=False)
class Signatures:
    """Mean and spread of every unit's attention map, cell by cell, for each class; ``a + b`` pools.

    A map is cropped to the real tokens and resized to ``size`` by ``size`` cells, so that texts of any
    length compare ("Complementary Attention Head Pruning for Efficient Transformers",
    arXiv 2606.19150). Two runs merge exactly, up to rounding (Chan, Golub and LeVeque 1979).

    Args:
        counts: examples of every class, shape ``[classes]``.
        mean: shape ``[classes, n, size, size]``; 0 for a class without examples.
        squares: sums of squared deviations from the mean, of the same shape.

    Raises:
        ValueError: for a wrong shape, NaN, infinity, or negative counts or squares.
    """

    counts: Ints
    mean: Floats
    squares: Floats

    def __post_init__(self) -> None:
        counts = np.asarray(self.counts)
        if counts.ndim != 1 or not np.issubdtype(counts.dtype, np.integer) or np.any(counts < 0):
            raise ValueError(
                f"`counts` must be one whole number of at least 0 per class, got {self.counts!r}."
            )
        counts = counts.astype(np.int64)
        counts.flags.writeable = False
        object.__setattr__(self, "counts", counts)
        for name in ("mean", "squares"):
            array = np.array(getattr(self, name), dtype=np.float64)
            if (
                array.ndim != 4
                or array.shape[0] != len(counts)
                or array.shape[2] != array.shape[3]
                or array.shape != np.shape(self.mean)
            ):
                raise ValueError(
                    f"`{name}` of the signatures must have shape [{len(counts)}, n, size, size], the "
                    f"same as `mean`, got {list(array.shape)}."
                )
            if not np.all(np.isfinite(array)):
                raise ValueError(f"`{name}` of the signatures holds NaN or infinite values.")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if np.any(self.squares < 0):
            raise ValueError(
                "`squares` of the signatures must be at least 0: they sum squared numbers."
            )

    @property
    def n(self) -> int:
        """The number of units."""
        return int(self.mean.shape[1])

    @property
    def size(self) -> int:
        """Cells along each side of a resized map."""
        return int(self.mean.shape[2])

    @property
    def variance(self) -> Floats:
        """Variance of every cell, ``[classes, n, size, size]``; 0 for a class without examples."""
        variance: Floats = self.squares / np.maximum(self.counts, 1)[:, None, None, None]
        return variance

    def arrays(self) -> Arrays:
        return {"counts": self.counts, "mean": self.mean, "squares": self.squares}

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> Signatures:
        return cls(arrays["counts"], arrays["mean"], arrays["squares"])

    def restricted(self, space: HeadSpace, kept: Bools) -> Signatures:
        del space
        return Signatures(self.counts, self.mean[:, kept], self.squares[:, kept])

    def check(self, name: str, space: HeadSpace) -> None:
        if self.n != space.n:
            raise ValueError(f"`{name}` are of {self.n} units, and the model has {space.n}.")

    def padded(self, classes: int) -> Signatures:
        """The same with this many classes; the new ones have no examples."""
        more = classes - len(self.counts)
        if more <= 0:
            return self
        widths = ((0, more), (0, 0), (0, 0), (0, 0))
        return Signatures(
            np.pad(self.counts, (0, more)), np.pad(self.mean, widths), np.pad(self.squares, widths)
        )

    def __add__(self, other: Signatures) -> Signatures:
        """Both runs together.

        Raises:
            ValueError: if they are of other numbers of units or cells.
        """
        if self.mean.shape[1:] != other.mean.shape[1:]:
            raise ValueError(
                f"signatures of shapes {list(self.mean.shape[1:])} and {list(other.mean.shape[1:])} "
                "cannot be added; calibrate both with the same model and `signature_size`."
            )
        classes = max(len(self.counts), len(other.counts))
        a, b = self.padded(classes), other.padded(classes)
        total = a.counts + b.counts
        share = (b.counts / np.maximum(total, 1))[:, None, None, None]
        apart = b.mean - a.mean
        between = apart**2 * (a.counts[:, None, None, None] * share)
        return Signatures(total, a.mean + apart * share, a.squares + b.squares + between)
