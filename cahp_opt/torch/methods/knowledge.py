"""The knowledge that every unit holds of a model that is pruned in part: of its output, and of its own block's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cahp_opt.arrays import Bools, Floats
from cahp_opt.torch.blocks.blocks import out_weight
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.calibration.gate_gradients import run_gated
from cahp_opt.torch.evaluation.fidelity import Fidelity
from cahp_opt.torch.running.batches import Batch, batch_size, inputs_of
from cahp_opt.torch.running.gates import capture_head_outputs
from cahp_opt.torch.running.padding import Padding


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What a model loses if a unit goes.

    Args:
        predictive: to second order the mean over examples of the distance to the unpruned model's output, with half the
            squared gate gradient for the curvature, ``[n]``.
        representational: the mean over tokens of the squares of what the unit writes, per feature, ``[n]``.
    """

    predictive: Floats
    representational: Floats


def knowledge(
    small: Prunable,
    whole: Prunable,
    masks: Bools,
    parts: Sequence[Batch],
    fidelity: Fidelity,
    *,
    temperature: float,
) -> Knowledge:
    """Measure the knowledge of all units.

    Args:
        small: the blocks of a model that is pruned in part, in evaluation mode; its weights may be other ones.
        whole: those of the unpruned model, in evaluation mode.
        masks: which units of ``small`` are left, bool ``[n]``.
        parts: batches ready for both models.
        fidelity: compares outputs.
        temperature: at which probabilities are compared.

    Raises:
        ValueError: if a gradient is not finite.
    """
    predictive, energies = np.zeros(small.space.n), _Energies(small)
    examples = 0
    for part in parts:
        with torch.no_grad():
            dense = fidelity.output(whole.model(**inputs_of(part)), part)
        with capture_head_outputs(small, energies.listener(part)):
            run = run_gated(small, fidelity, part, np.repeat(masks[None], batch_size(part), axis=0))
        distance = fidelity.softened(dense, run.output, part, temperature)
        predictive += np.square(run.gradients(distance.sum())).sum(axis=0) / 2
        examples += batch_size(part)
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
