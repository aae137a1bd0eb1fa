"""Kwon et al. 2022: which heads and neurons stay.

Written from the paper, "A Fast Post-Training Pruning Framework for Transformers" (arXiv 2204.09656); the arithmetic is
in ``kwon_masks.py``, and its mask tuning is :func:`cahp_opt.torch.tune_masks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.both_kinds.kwon_masks import Latency, fitted, rearranged, searched
from cahp_opt import LatencyTable
from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.running.batches import Batch, inputs_of
from cahp_opt.torch.running.gates import gated

EXAMPLES = 2048
"""Labelled texts of the paper's samples."""


def slopes(prunable: Prunable, batches: Sequence[Batch]) -> list[Floats]:
    """The gradient of every example's task loss by the mask of every unit, for each block ``[examples, units]``.

    Args:
        prunable: blocks of a classifier.
        batches: labelled.
    """
    model: Any = prunable.model
    found = list[Tensor]()
    for batch in batches:
        gates = torch.ones(len(batch["labels"]), prunable.space.n, requires_grad=True)
        with gated(prunable, gates):
            logits = model(**inputs_of(batch)).logits
        loss = functional.cross_entropy(logits, batch["labels"], reduction="sum")
        found.append(torch.autograd.grad(loss, gates)[0])
    every = torch.cat(found).numpy()
    return [every[:, where].astype(np.float64) for where in prunable.space.slices]


@dataclass(frozen=True, eq=False)
class Fisher:
    """The empirical Fisher matrices of the masks of every block.

    Args:
        matrices: for every block ``[units, units]``.
        heads: which blocks are heads, bool ``[blocks]``; the others are neurons.
    """

    matrices: Sequence[Floats]
    heads: Bools

    @staticmethod
    def of(prunable: Prunable, batches: Sequence[Batch]) -> Fisher:
        """The means over labelled examples of the products of their gradients, as of :func:`slopes`."""
        found = [one.T @ one / len(one) for one in slopes(prunable, batches)]
        return Fisher(found, prunable.space.of_attention)

    def searched(self, limit: float, head: Latency, neuron: Latency) -> list[Bools]:
        """Which units stay, for every block bool ``[units]``, as by :func:`kwon_masks.searched`."""
        diagonal = [np.diag(one) for one in self.matrices]
        return searched(diagonal, self.heads, limit, head, neuron)

    def rearranged(self, kept: Sequence[Bools]) -> list[Bools]:
        """As many units of every block, as by :func:`kwon_masks.rearranged`."""
        return [rearranged(one, own) for one, own in zip(self.matrices, kept, strict=True)]


def within(fisher: Fisher, table: LatencyTable, limit: float) -> list[Bools]:
    """Which single heads and neurons stay if a model may take so many seconds.

    The latencies that the search plans with are lines fitted to the table, one for each kind. So that they cost the
    method nothing where they are wrong, it plans with the largest limit whose outcome keeps to the table.

    Args:
        fisher: of single heads and neurons.
        table: of heads, and of groups of neurons, equal in all blocks of a kind.
        limit: of the whole model, in seconds.

    Returns:
        For every block bool ``[units]``.

    Raises:
        ValueError: if no limit gives such masks.
    """
    sizes = np.array([len(one) for one in fisher.matrices])
    width = sizes // table.space.units
    head, neuron = (
        fitted(width[b] * np.arange(1, table.space.units[b] + 1), np.mean(costs, axis=0)[1:])
        for kind in (True, False)
        for b, costs in [_of_kind(table, fisher.heads == kind)]
    )
    best: list[Bools] | None = None
    low, high = 0.0, table.dense
    for _ in range(24):
        middle = (low + high) / 2
        try:
            found = fisher.searched(middle, head, neuron)
        except ValueError:  # too short for any masks
            low = middle
            continue
        if seconds(table, [int(own.sum()) for own in found], sizes) <= limit:
            best, low = found, middle
        else:
            high = middle
    if best is None:
        raise ValueError(f"`limit` is {limit:.3g} s, which no masks of this search keep to.")
    return fisher.rearranged(best)


def _of_kind(table: LatencyTable, blocks: Bools) -> tuple[int, list[Floats]]:
    """The first of some blocks, and the costs of all of them."""
    numbers = np.flatnonzero(blocks).tolist()
    return numbers[0], [table.costs[b] for b in numbers]


def seconds(table: LatencyTable, kept: Sequence[int] | Ints, sizes: Sequence[int] | Ints) -> float:
    """The time by a table of a model with numbers of units between those that the table has.

    Args:
        table: the table.
        kept: units kept in every block, finer than the table's.
        sizes: such units in every block.
    """
    found = table.fixed
    for costs, count, size in zip(table.costs, kept, sizes, strict=True):
        found += float(np.interp(count * (len(costs) - 1) / size, np.arange(len(costs)), costs))
    return max(table.least, found)
