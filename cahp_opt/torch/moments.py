"""Second moments of the head outputs of every block."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cahp_opt.heads import Floats
from cahp_opt.stats import Moments
from cahp_opt.torch.attention import Attention, out_weight
from cahp_opt.torch.batching import Batch, rows_of
from cahp_opt.torch.fidelity import wide


class MomentSums:
    """Adds up the inputs of the output projections over real tokens.

    A batch is multiplied in the precision of the model, at least single, and added up in double: one
    batch is short enough for single precision (about 1e-6 of the largest entry), the data are not.
    """

    def __init__(self, attention: Attention) -> None:
        self._attention = attention
        self._sum: list[Floats] = [np.zeros(block.width) for block in attention]
        self._outer: list[Floats] = [np.zeros((block.width, block.width)) for block in attention]
        self._count = [0] * len(attention)

    def add(self, block: int, outputs: Tensor, batch: Batch) -> None:
        """Add the head outputs ``[batch, tokens, width]`` of one block.

        Raises:
            ValueError: naming the block if a real token's outputs are not finite.
        """
        z = wide(rows_of(outputs.detach(), batch))
        total, outer = z.sum(dim=0), z.T @ z
        if not bool(torch.isfinite(outer.diagonal().sum() + total.sum())):
            raise ValueError(
                f"the head outputs of block {self._attention.blocks[block].name!r} hold NaN or infinite "
                "values; check the model's weights and precision."
            )
        self._sum[block] += total.cpu().double().numpy()
        self._outer[block] += outer.cpu().double().numpy()
        self._count[block] += len(z)

    def result(self) -> tuple[Moments, ...]:
        """The moments of every block, with the readout ``W' W`` of its output projection."""
        made: list[Moments] = []
        for b, block in enumerate(self._attention):
            weight = out_weight(block).detach().cpu().double()
            readout: Floats = (weight.T @ weight).numpy()
            made.append(Moments(self._sum[b], self._outer[b], readout, self._count[b]))
        return tuple(made)
