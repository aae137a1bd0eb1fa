"""Fitting a latency table to whole models that were timed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cahp_opt.arrays import Floats

_CLEAR = 0.5
"""A launch time is only accepted if it halves the squared error: noise alone makes small kinks."""


class Fit(NamedTuple):
    """``max(least, fixed + scale * blocks)``, in seconds.

    Args:
        scale: the factor of the summed block times.
        fixed: the time outside the blocks.
        least: the lowest possible time of the whole; 0 without evidence for it.
    """

    scale: float
    fixed: float
    least: float = 0.0

    def at(self, blocks: Floats) -> Floats:
        """The whole models' predicted times, from the summed times of their blocks, both ``[models]``."""
        return np.maximum(self.least, self.fixed + self.scale * blocks)


def fit_whole_models(blocks: Floats, measured: Floats) -> Fit:
    """The factor, the offset and the least time that predict whole models best::

        min over scale, fixed, least >= 0 of
            sum_i (max(least, fixed + scale * blocks_i) / measured_i - 1)^2

    fitted to every split of the models, by size, into a flat and a rising part. ``scale`` is how
    many times slower blocks are in the model than alone, with warm caches and in runs too short to
    be interrupted; if the whole models do not determine it, it is 1 and only ``fixed`` is fitted.
    ``least`` is the time to launch all operations, on a fast device that waits for that: the
    smallest models then all take equally long.

    Args:
        blocks: summed time of the blocks of every whole model, ``[models]``.
        measured: time of every whole model, ``[models]``.
    """
    best = _line(blocks, measured)
    error = _error(best, blocks, measured)
    order = np.argsort(blocks, kind="stable")
    for flat in range(2, len(order) + 1):
        low, high = order[:flat], order[flat:]
        least = _mean(measured[low])
        if not len(high):
            line = Fit(1.0, max(0.0, least - float(blocks.max())))
        elif measured[high].min() <= least:
            continue  # no rise behind the flat part
        elif len(high) == 1:  # one point above: the line through it and the end of the flat part
            both = order[flat - 1 :]
            line = _line(blocks[both], np.array([least, float(measured[high[0]])]))
        else:
            line = _line(blocks[high], measured[high])
        trial = Fit(line.scale, line.fixed, least)
        found = _error(trial, blocks, measured)
        if found < _CLEAR * error:
            best, error = trial, found
    return best


def _line(blocks: Floats, measured: Floats) -> Fit:
    if np.ptp(blocks) > 1e-3 * blocks.max():
        rows = np.stack([blocks, np.ones_like(blocks)], axis=1) / measured[:, None]
        scale, fixed = (float(x) for x in np.linalg.lstsq(rows, np.ones_like(measured))[0])
        if scale > 0 and fixed >= 0:
            return Fit(scale, fixed)
        if scale > 0:  # nothing outside the blocks: the factor alone
            share = blocks / measured
            return Fit(float(share.sum() / (share**2).sum()), 0.0)
    rest, weights = measured - blocks, measured**-2.0
    return Fit(1.0, max(0.0, float((rest * weights).sum() / weights.sum())))


def _mean(measured: Floats) -> float:
    """The constant with the least squared relative error."""
    return float((1 / measured).sum() / (measured**-2.0).sum())


def _error(fit: Fit, blocks: Floats, measured: Floats) -> float:
    return float(((fit.at(blocks) / measured - 1) ** 2).sum()) + 1e-18
