"""The knowledge that every unit holds of a model that is pruned in part: of its output, and of its own block's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cahp_opt.arrays import Bools, Floats
from cahp_opt.torch.blocks.blocks import out_weight
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.calibration.gate_gradients import run_gated
from cahp_opt.torch.evaluation.fidelity import Fidelity
from cahp_opt.torch.methods.unpruned_outputs import UnprunedOutputs
from cahp_opt.torch.running.batches import Batch, batch_size
from cahp_opt.torch.running.gates import capture_head_outputs, gated
from cahp_opt.torch.running.padding import Padding


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What a model loses if a unit goes.

    Args:
        predictive: to second order the mean over examples of the distance to the unpruned model's output, with half the
            squared gate gradient for the curvature, ``[units]``.
        representational: the mean over tokens of the squares of what the unit writes, per feature, ``[units]``.
    """

    predictive: Floats
    representational: Floats


def knowledge(
    small: Prunable,
    unpruned: UnprunedOutputs,
    masks: Bools,
    parts: Sequence[Batch],
    fidelity: Fidelity,
    *,
    temperature: float,
    first: int = 0,
) -> Knowledge:
    """Measure the knowledge of the units of a block and of those behind it.

    Args:
        small: the blocks of a model that is pruned in part, in evaluation mode; its weights may be other ones.
        unpruned: the outputs of the unpruned model.
        masks: which units of ``small`` are left, bool ``[n]``.
        parts: batches ready for both models.
        fidelity: compares outputs.
        temperature: at which probabilities are compared.
        first: the number of the block.

    Raises:
        ValueError: if a gradient is not finite.
    """
    before, behind = (
        replace(small, blocks=b) for b in (small.blocks[:first], small.blocks[first:])
    )
    start = small.space.slices[first].start
    predictive, energies, examples = np.zeros(behind.space.n), _Energies(behind), 0
    for number, part in enumerate(parts):
        size = batch_size(part)
        with ExitStack() as stack:
            if first:
                stack.enter_context(gated(before, masks[:start]))
            stack.enter_context(capture_head_outputs(behind, energies.listener(part)))
            run = run_gated(behind, fidelity, part, np.repeat(masks[None, start:], size, axis=0))
        dense = unpruned.of(part, number)
        distance = fidelity.softened(dense, run.output, part, temperature)
        predictive += np.square(run.gradients(distance.sum())).sum(axis=0) / 2
        examples += size
    return Knowledge(predictive / max(examples, 1), energies.means())


class _Energies:
    """Adds up the squares of what units write."""

    def __init__(self, prunable: Prunable) -> None:
        self._prunable, self._padding = prunable, Padding(prunable)
        self._moments: list[Tensor | None] = [None] * len(prunable)
        self._rows = [0] * len(prunable)

    def listener(self, part: Batch) -> Callable[[int, Tensor], None]:
        """Takes the head outputs of a batch."""
        return lambda number, outputs: self._add(number, outputs, part)

    def _add(self, number: int, outputs: Tensor, part: Batch) -> None:
        """Add the inputs ``[..., width]`` of a block's output layer: the products of those of one unit."""
        rows = self._padding.rows(number, outputs.detach(), part).float()
        block = self._prunable.blocks[number]
        alone = block.units == block.width  # then only the squares are needed
        found = rows.square().sum(dim=0) if alone else rows.T @ rows
        before = self._moments[number]
        self._moments[number] = found if before is None else before + found
        self._rows[number] += len(rows)

    def means(self) -> Floats:
        """The means over tokens, per feature that is written, ``[n]``."""
        parts = list[Floats]()
        for block, moments, rows in zip(self._prunable, self._moments, self._rows, strict=True):
            weight = out_weight(block).detach().float()
            if moments is None:
                parts.append(np.zeros(block.units))
                continue
            columns = torch.tensor(block.columns, device=weight.device)
            if moments.ndim == 1:
                by_column = moments * weight.square().sum(dim=0)
            else:
                same = columns[:, None] == columns[None, :]
                by_column = (moments * (weight.T @ weight) * same).sum(dim=1)
            total = torch.zeros(block.units, device=weight.device).index_add_(0, columns, by_column)
            parts.append(total.cpu().double().numpy() / (max(rows, 1) * len(weight)))
        return np.concatenate(parts)
