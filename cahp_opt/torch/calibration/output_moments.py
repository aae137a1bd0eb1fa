"""Second moments of the head outputs of every block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cahp_opt.arrays import Floats, Ints, constant
from cahp_opt.runs.measuring import Measuring
from cahp_opt.stats.column_form import ColumnForm
from cahp_opt.stats.moments import BlockMoments, Moments
from cahp_opt.stats.statistic import Statistic
from cahp_opt.torch.blocks.finder import Prunable, PrunableBlock
from cahp_opt.torch.blocks.out_weight import readout_weight
from cahp_opt.torch.calibration.collector import Collecting, Collector, Subject
from cahp_opt.torch.running.batches import Batch, wide
from cahp_opt.torch.running.centring import ScatterSums
from cahp_opt.torch.running.padding import Padding

_SHARE = 4  # running sums may use 1 / _SHARE of a device's free memory


@dataclass(frozen=True)
class HeadOutputs(Collector):
    """Asks for the second moments of the head outputs of every block."""

    by_block = True

    @classmethod
    def wanted(cls, measuring: Measuring) -> HeadOutputs | None:
        return cls() if "moments" in measuring else None

    def start(self, subject: Subject) -> MomentSums:
        return MomentSums(subject.prunable)


class MomentSums(Collecting):
    """Adds up the inputs of the output projections over real tokens.

    A batch is centred and multiplied in the precision of the model, at least single, and added up in
    double: one batch is short enough for single precision (about 1e-6 of the largest entry), the data are
    not. Sums are about the mean, so that a large mean costs no precision.
    The sums of a block stay on the device that computes it, ``8 * width ** 2`` bytes each, unless they
    would take much of its free memory; then they live in main memory. Their size does not depend on
    the amount of data. A block that runs several times per pass adds up its runs.

    Args:
        prunable: the blocks of the model.
    """

    def __init__(self, prunable: Prunable) -> None:
        self._blocks, self._padding = prunable.blocks, Padding(prunable)
        self._order = [column_order(block) for block in prunable]
        self._sums: list[ScatterSums | None] = [None] * len(prunable)
        self._all = sum(8 * block.width**2 for block in prunable)

    def see(self, block: int, outputs: Tensor, batch: Batch) -> None:
        """Add the head outputs ``[batch, tokens, width]`` of one block.

        Raises:
            ValueError: naming the block if a real token's outputs are not finite.
        """
        z = wide(self._padding.rows(block, outputs.detach(), batch))
        sums = self._sums[block]
        if sums is None:
            sums = ScatterSums(z.shape[1], _home(z.device, self._all))
            self._sums[block] = sums
        sums.add(z)
        if not sums.finite:
            raise ValueError(
                f"the head outputs of block {self._blocks[block].name!r} hold NaN or infinite "
                "values; check the model's weights and precision."
            )

    def result(self) -> Mapping[str, Statistic]:
        """The moments of every block, with the readout ``W' W`` of its output projection.

        The columns stand unit by unit, whatever their order in the model. The sums of a block are given up as its
        moments are made, so that nothing is there twice; there is one result.
        """
        made: list[Moments] = []
        for number, (block, order) in enumerate(zip(self._blocks, self._order, strict=True)):
            sums, self._sums[number] = self._sums[number], None
            weight: Floats = readout_weight(block.out, block.width).cpu().double().numpy()
            readout = ColumnForm.small(weight[:, order])
            if sums is None:  # the data never reached it
                empty = np.zeros((block.width, block.width))
                made.append(Moments(empty[0], empty, readout, 0))
                continue
            scatter: Floats = sums.scatter.cpu().numpy()
            first: Floats = (sums.mean * sums.weight).cpu().numpy()
            count = round(sums.weight)
            made.append(Moments(first[order], in_order(scatter, order), readout, count))
        return {"moments": BlockMoments(made)}


def column_order(block: PrunableBlock) -> Ints:
    """The input columns of a block's output projection, unit by unit, ``[width]``."""
    return np.argsort(block.columns, kind="stable")


def in_order(matrix: Floats, order: Ints) -> Floats:
    """A matrix of columns, ``[width, width]``, with these in another order, ``[width]``."""
    if np.array_equal(order, np.arange(len(order))):
        return matrix  # the usual case needs no copy
    return constant(matrix[np.ix_(order, order)])


def _home(device: torch.device, needed: int) -> torch.device:
    """The device for sums of ``needed`` bytes whose terms ``device`` computes."""
    if device.type == "cuda" and needed * _SHARE <= torch.cuda.mem_get_info(device)[0]:
        return device
    return torch.device("cpu")
