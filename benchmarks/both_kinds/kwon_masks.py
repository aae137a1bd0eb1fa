"""The mask search and rearrangement of Kwon et al. 2022, on arrays.

Written from the paper, "A Fast Post-Training Pruning Framework for Transformers" (arXiv 2204.09656). A mask is a
number per attention head and per feed-forward neuron (the paper's filter), and a *block* is one layer's heads or one
layer's neurons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cahp_opt.arrays import Bools, Floats, Ints


class Latency(NamedTuple):
    """The time of a block by the number of its units: flat up to a threshold, then a straight line.

    Args:
        constant: seconds with 1 to ``threshold`` units.
        threshold: units up to which all is as fast.
        slope: seconds of every unit more.
    """

    constant: float
    threshold: int
    slope: float

    def at(self, units: Ints | Floats) -> Floats:
        """The seconds of so many units, of any shape; none cost nothing."""
        beyond = np.maximum(np.asarray(units, dtype=np.float64) - self.threshold, 0.0)
        found: Floats = np.where(np.asarray(units) > 0, self.constant + self.slope * beyond, 0.0)
        return found


def fitted(units: Ints, seconds: Floats) -> Latency:
    """The :class:`Latency` nearest to a measured table, by least squares over every threshold in it.

    Args:
        units: numbers of units above 0, ascending, ``[points]``.
        seconds: their times, ``[points]``.

    Of thresholds that fit as well the lowest is taken, and 0 is one of them.
    """
    found, least = Latency(float(np.mean(seconds)), int(units[-1]), 0.0), np.inf
    for threshold in [0, *units.tolist()[:-1]]:
        beyond = np.maximum(units - threshold, 0).astype(np.float64)
        columns = np.stack([np.ones_like(beyond), beyond], axis=1)
        (constant, slope), *_ = np.linalg.lstsq(columns, seconds, rcond=None)
        error = float(np.sum((columns @ (constant, slope) - seconds) ** 2))
        if slope >= 0 and constant >= 0 and error < least * (1 - 1e-9):
            found, least = Latency(float(constant), int(threshold), float(slope)), error
    return found


def searched(
    importance: Sequence[Floats], heads: Bools, limit: float, head: Latency, neuron: Latency
) -> list[Bools]:
    """The masks that lose the least importance within a limit of the time (section 4.1 of the paper).

    Importance is the diagonal of the empirical Fisher matrix. In every block as many of the most important units
    stay as its latency has no use for giving up; beyond them every unit of a kind costs the same. So for each number
    of heads the most important ones are kept, with as many of the most important neurons as the rest of the time
    allows, and the best of these pairs is the optimum.

    Args:
        importance: of the units of every block, ``[units]`` each.
        heads: which blocks are heads, bool ``[blocks]``; the others are neurons.
        limit: seconds of all blocks together.
        head: the latency of a block of heads.
        neuron: the latency of a block of neurons.

    Returns:
        Which units stay, bool ``[units]`` for every block.

    Raises:
        ValueError: if the time is too short for what every block keeps.
    """
    latencies = [head if of_heads else neuron for of_heads in heads]
    kept = [_largest(one, lat.threshold) for one, lat in zip(importance, latencies, strict=True)]
    left = limit - sum(lat.constant for lat in latencies)
    first, second = (_Ranking.of(importance, kept, heads == kind) for kind in (True, False))
    best, least = (0, 0), np.inf
    for count in range(len(first.order) + 1):
        time = left - count * head.slope
        if time < 0:
            break
        most = len(second.order)
        others = most if neuron.slope <= 0 else min(most, int(time / neuron.slope))
        lost = first.lost[count] + second.lost[others]
        if lost < least:
            best, least = (count, others), float(lost)
    if not np.isfinite(least):
        raise ValueError(
            f"`limit` is {limit:.3g} s, and the blocks take {limit - left:.3g} s whatever they keep."
        )
    for ranking, count in zip((first, second), best, strict=True):
        for block, unit in ranking.order[:count].tolist():
            kept[block][unit] = True
    return kept


class _Ranking(NamedTuple):
    """Units of one kind that may go, the most important first.

    Args:
        order: block and unit, ``[units, 2]``.
        lost: the importance lost with so many of them kept, ``[units + 1]``.
    """

    order: Ints
    lost: Floats

    @staticmethod
    def of(importance: Sequence[Floats], kept: Sequence[Bools], blocks: Bools) -> _Ranking:
        numbers = np.flatnonzero(blocks).tolist()
        free = {b: np.flatnonzero(~kept[b]) for b in numbers}
        places = [np.stack([np.full_like(own, b), own], axis=1) for b, own in free.items()]
        values = np.concatenate([importance[b][own] for b, own in free.items()])
        ranks = np.argsort(-values, kind="stable")
        lost = np.append(np.cumsum(values[ranks][::-1])[::-1], 0.0)
        return _Ranking(np.concatenate(places)[ranks], lost)


def _largest(values: Floats, count: int) -> Bools:
    """The ``count`` largest of ``values``, bool."""
    found = np.zeros(len(values), dtype=np.bool_)
    found[np.argsort(-values, kind="stable")[:count]] = True
    return found


def rearranged(fisher: Floats, kept: Bools) -> Bools:
    """The units of one block after swaps that lower the loss of all that is dropped together (section 4.2).

    The loss of a keep-set is ``d' F d`` with ``d`` 1 where a unit is dropped. Each unit that is dropped at first is
    exchanged once with the kept unit whose exchange lowers the loss most, if any does.

    Args:
        fisher: the block's empirical Fisher matrix ``F``, ``[units, units]``.
        kept: which units stay, bool ``[units]``.

    Returns:
        As many units, bool ``[units]``.
    """
    found, own = kept.copy(), np.diag(fisher)
    slope: Floats = fisher @ (~kept).astype(np.float64)
    for back in np.flatnonzero(~kept):
        change = own[back] - 2 * slope[back] + own + 2 * (slope - fisher[back])
        change[~found] = np.inf
        away = int(np.argmin(change))
        if change[away] < 0:
            found[back], found[away] = True, False
            slope += fisher[away] - fisher[back]
    return found
