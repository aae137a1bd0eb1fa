"""Fitting a latency table to whole models that were timed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cahp_opt.arrays import Floats

_CLEAR = 0.5
"""A launch time is only accepted if it halves the squared error: noise alone makes small kinks."""


_APART = 0.05
"""The kinds of blocks get factors of their own if the smallest singular value of the models' shares of
time, each column of length 1, is at least this: otherwise noise alone would tell them apart."""


class Fit(NamedTuple):
    """``max(least, fixed + sum over kinds of scales[kind] * blocks[kind])``, in seconds.

    Args:
        scales: by kind of blocks, the factor of their summed times.
        fixed: the time outside the blocks.
        least: the lowest possible time of the whole; 0 without evidence for it.
    """

    scales: tuple[float, ...]
    fixed: float
    least: float = 0.0

    def at(self, blocks: Floats) -> Floats:
        """The whole models' predicted times, ``[models]``, from the summed times of their blocks of every
        kind, ``[models, kinds]`` (or ``[models]`` of a single kind)."""
        rising: Floats = self.fixed + _by_kind(blocks) @ np.array(self.scales)
        return np.maximum(self.least, rising)


def fit_whole_models(blocks: Floats, measured: Floats) -> Fit:
    """The factors, the offset and the least time that predict whole models best::

        min over scales, fixed, least >= 0 of
            sum_i (max(least, fixed + sum_k scales_k * blocks_ik) / measured_i - 1)^2

    fitted to every split of the models, by size, into a flat and a rising part. A factor is how many
    times slower blocks of its kind are in the model than alone, with warm caches and in runs too
    short to be interrupted. If the whole models do not tell the kinds apart, all have one factor; if they
    do not determine that either, it is 1 and only ``fixed`` is fitted. ``least`` is the time to
    launch all operations, on a fast device that waits for that: the smallest models then all take equally
    long.

    Args:
        blocks: summed time of the blocks of each kind in every whole model, ``[models, kinds]``, or
            ``[models]`` if they are all of one kind.
        measured: time of every whole model, ``[models]``.
    """
    blocks = _by_kind(blocks)
    kinds = blocks.shape[1]
    best = _line(blocks, measured)
    error = _error(best, blocks, measured)
    order = np.argsort(blocks.sum(axis=1), kind="stable")
    for flat in range(2, len(order) + 1):
        low, high = order[:flat], order[flat:]
        least = _mean(measured[low])
        if not len(high):
            line = Fit((1.0,) * kinds, max(0.0, least - float(blocks.sum(axis=1).max())))
        elif measured[high].min() <= least:
            continue  # no rise behind the flat part
        elif len(high) == 1:  # one point above: the line through it and the end of the flat part
            both = order[flat - 1 :]
            line = _line(blocks[both], np.array([least, float(measured[high[0]])]))
        else:
            line = _line(blocks[high], measured[high])
        trial = line._replace(least=least)
        found = _error(trial, blocks, measured)
        if found < _CLEAR * error:
            best, error = trial, found
    return best


def _by_kind(blocks: Floats) -> Floats:
    """Summed times as ``[models, kinds]``."""
    return blocks.reshape(len(blocks), -1)


def _line(blocks: Floats, measured: Floats) -> Fit:
    kinds = blocks.shape[1]
    several = _factors(blocks, measured) if kinds > 1 else None
    if several is not None:
        return several
    total = blocks.sum(axis=1)
    if np.ptp(total) > 1e-3 * total.max():
        rows = np.stack([total, np.ones_like(total)], axis=1) / measured[:, None]
        scale, fixed = (float(x) for x in np.linalg.lstsq(rows, np.ones_like(measured))[0])
        if scale > 0 and fixed >= 0:
            return Fit((scale,) * kinds, fixed)
        if scale > 0:  # nothing outside the blocks: the factor alone
            share = total / measured
            return Fit((float(share.sum() / (share**2).sum()),) * kinds, 0.0)
    rest, weights = measured - total, measured**-2.0
    return Fit((1.0,) * kinds, max(0.0, float((rest * weights).sum() / weights.sum())))


def _factors(blocks: Floats, measured: Floats) -> Fit | None:
    """A factor for every kind; None if the models do not tell them apart, or say that one costs
    nothing."""
    rows = np.column_stack([blocks, np.ones_like(measured)]) / measured[:, None]
    length = np.linalg.norm(rows, axis=0)
    if len(rows) <= rows.shape[1] or not length.all():
        return None  # as many numbers as models would fit noise exactly
    if np.linalg.svd(rows / length, compute_uv=False)[-1] < _APART:
        return None
    for free in (rows, rows[:, :-1]):  # the second if there is nothing outside the blocks
        found = [float(x) for x in np.linalg.lstsq(free, np.ones_like(measured))[0]]
        scales, fixed = tuple(found[: blocks.shape[1]]), sum(found[blocks.shape[1] :])
        if fixed >= 0:
            return Fit(scales, fixed) if min(scales) > 0 else None
    return None


def _mean(measured: Floats) -> float:
    """The constant with the least squared relative error."""
    return float((1 / measured).sum() / (measured**-2.0).sum())


def _error(fit: Fit, blocks: Floats, measured: Floats) -> float:
    return float(((fit.at(blocks) / measured - 1) ** 2).sum()) + 1e-18
