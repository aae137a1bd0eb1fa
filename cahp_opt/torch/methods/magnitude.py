"""The sizes of weights: the oldest way of choosing what stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cahp_opt.arrays import Floats
from cahp_opt.costs.budget import Budget
from cahp_opt.selection import Chooser, Selection
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.methods.model_method import Evidence, ModelMethod
from cahp_opt.torch.methods.single_units import SingleUnits


@dataclass(frozen=True)
class Magnitude(ModelMethod):
    """Keeps the single heads and neurons whose weights have the largest sum of squares, by the library's dynamic
    program over any budget.

    All weights count that would be cut with a unit. It looks at no text.
    """

    source: ClassVar[str] = (
        "as a baseline since Li et al. 2017, Pruning Filters for Efficient ConvNets, ICLR, arXiv 1608.08710"
    )

    def chooser_on(self, evidence: Evidence) -> Chooser:
        """Reads the weights once."""
        units = SingleUnits(evidence.prunable)
        sizes = magnitudes(units.prunable)

        def choose(budget: Budget) -> Selection:
            return units.best(sizes, budget, evidence.task)

        return choose


def magnitudes(prunable: Prunable) -> Floats:
    """The sum of the squares of all weights that are cut with each unit, ``[n]``."""
    found = list[Floats]()
    for block in prunable:
        total = np.zeros(block.units)
        for piece, weight in zip(block.pieces, block.weights, strict=True):
            squares = weight.detach().cpu().double().square()
            others = [axis for axis in range(squares.ndim) if axis != piece.axis]
            entries = (squares.sum(dim=others) if others else squares).numpy()
            own = piece.unit_of >= 0
            total += np.bincount(piece.unit_of[own], entries[own], minlength=block.units)
        found.append(total)
    return np.concatenate(found)
