"""The bytes of statistics, from the shapes of a model alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.blocks.out_weight import readout_weight

_NUMBER = 8  # bytes in double precision


class ReadShape(NamedTuple):
    """The shape of the linear layer that reads the units of a block.

    Args:
        width: the columns of its input, ``d``.
        hidden: the features that it writes.
        attention: whether it is the output projection of attention rather than of a feed-forward part.
    """

    width: int
    hidden: int
    attention: bool


def read_shapes(prunable: Prunable) -> list[ReadShape]:
    """The shapes of the layers that read the units of every block."""
    return [
        ReadShape(block.width, len(readout_weight(block.out, block.width)), block.unit.of_attention)
        for block in prunable
    ]


def moments_bytes(shape: ReadShape) -> int:
    """The bytes of the :class:`~cahp_opt.stats.moments.Moments` of a block: the sum, the scatter and the
    readout, whole or as ``W``, whichever is smaller, and the count."""
    d, readout = shape.width, min(shape.width, shape.hidden) * shape.width
    return _NUMBER * (d + d**2 + readout + 1)


def sensitivity_bytes(shape: ReadShape) -> int:
    """The bytes of the :class:`~cahp_opt.stats.sensitivity.Sensitivity` of a block: the sum, the scatter and
    the metric, whole or by the gradients, the weight and the count."""
    d = shape.width
    metric = d**2 if whole_metric(shape) else shape.hidden * (shape.hidden + d)
    return _NUMBER * (d + d**2 + metric + 2)


def whole_metric(shape: ReadShape) -> bool:
    """Whether the metric of a block's sensitivity is held as ``[d, d]`` rather than as the factors of a
    :class:`~cahp_opt.stats.column_form.ColumnForm`, which are smaller for wide blocks."""
    return shape.hidden * (shape.hidden + shape.width) >= shape.width**2


def pairs_bytes(units: int) -> int:
    """The bytes of a number for every pair of units, and their count."""
    return _NUMBER * (units**2 + 1)


def units_bytes(units: int) -> int:
    """The bytes of a number for every unit, and their count."""
    return _NUMBER * (units + 1)


def signatures_bytes(units: int, size: int, classes: int) -> int:
    """The bytes of :class:`~cahp_opt.stats.signatures.Signatures`: the mean and the squares of every cell, and
    the counts of the classes."""
    return _NUMBER * classes * (1 + 2 * units * size**2)


def by_kind(shapes: Sequence[ReadShape], sizes: Sequence[int]) -> dict[str, int]:
    """Bytes of blocks added up by their kind."""
    found = {"attention": 0, "feed-forward": 0}
    for shape, size in zip(shapes, sizes, strict=True):
        found["attention" if shape.attention else "feed-forward"] += size
    return {kind: size for kind, size in found.items() if size}
