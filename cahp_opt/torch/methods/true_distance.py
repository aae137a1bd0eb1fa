"""The distance of a model with some units removed from the unpruned model, by running it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.objective import Objective
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.evaluation.fidelity import Fidelity
from cahp_opt.torch.methods.layer_runs import LayerRuns
from cahp_opt.torch.methods.unpruned_outputs import UnprunedOutputs
from cahp_opt.torch.running.batches import Batch, batch_size
from cahp_opt.torch.running.gates import gated
from cahp_opt.torch.running.undisturbed import evaluating


class TrueDistance(Objective):
    """Minus the mean distance of the masked model's output from the unpruned model's.

    No model of the damage, and as slow as that: every value runs the model on all batches. Values are
    remembered. The model is left as it was found.

    Args:
        prunable: the blocks of the model.
        fidelity: the distance.
        batches: prepared for the model, at least one.
    """

    def __init__(self, prunable: Prunable, fidelity: Fidelity, batches: Sequence[Batch]) -> None:
        self._prunable, self._fidelity, self._batches = prunable, fidelity, batches
        self._examples = sum(map(batch_size, batches))
        self._known: dict[bytes, float] = {}
        self._unpruned = UnprunedOutputs(prunable, fidelity)
        with torch.no_grad(), evaluating(prunable.model):
            self._runs = LayerRuns(prunable, fidelity, batches[0])

    @property
    def n(self) -> int:
        return self._prunable.space.n

    def value(self, kept: Bools) -> float:
        key = kept.tobytes()
        if key not in self._known:
            total = 0.0
            with torch.no_grad(), evaluating(self._prunable.model):
                for number, batch in enumerate(self._batches):
                    dense = self._unpruned.of(batch, number)
                    with gated(self._prunable, kept):
                        output, _ = self._runs.whole(batch)
                    total += float(self._fidelity.distance(dense, output, batch).double().sum())
            self._known[key] = self._mean(total)
        return -self._known[key]

    def without(self, kept: Bools, units: Ints) -> Floats:
        """The distance with one unit less, for each of some kept units, ``[units]``.

        A run with a unit less begins at the layer of its block.

        Args:
            kept: the keep-set, bool ``[n]``.
            units: flat indices of kept units, ``[units]``.
        """
        there = {int(unit): kept & (np.arange(self.n) != unit) for unit in units}
        unknown = [unit for unit, fewer in there.items() if fewer.tobytes() not in self._known]
        totals = dict.fromkeys(unknown, 0.0)
        block_of = self._prunable.space.block_of
        with torch.no_grad(), evaluating(self._prunable.model):
            for number, batch in enumerate(self._batches if unknown else ()):
                dense = self._unpruned.of(batch, number)
                with gated(self._prunable, kept):
                    _, passed = self._runs.whole(batch)
                for unit in unknown:
                    with gated(self._prunable, there[unit]):
                        output = self._runs.from_block(int(block_of[unit]), batch, passed)
                    totals[unit] += float(
                        self._fidelity.distance(dense, output, batch).double().sum()
                    )
        for unit, total in totals.items():
            self._known[there[unit].tobytes()] = self._mean(total)
        return np.array([self._known[fewer.tobytes()] for fewer in there.values()])

    def _mean(self, total: float) -> float:
        return max(0.0, total / self._examples)  # a distance; rounding may take it below 0
