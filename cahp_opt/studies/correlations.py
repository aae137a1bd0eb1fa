"""How well objectives rank keep-sets by the damage that they do: rank correlations with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cahp_opt.arrays import Floats
from cahp_opt.studies.differences import LEVEL, RESAMPLES, resampled
from cahp_opt.studies.figures import Figure, RankCorrelation
from cahp_opt.studies.random_sets import RandomSets

_SPEARMAN = RankCorrelation("spearman", True, of="lost", against="damage")


class Correlation(NamedTuple):
    """How well an objective ranks random keep-sets.

    Args:
        by_limit: Spearman's rank correlation of what it says is lost with the damage, by limit, mean over
            seeds; 1 is the same order, and NaN means that there is none, such as where all of its values are equal.
        mean: over the limits; NaN if one of them is.
        interval: in which the mean lies, see :data:`~cahp_opt.studies.differences.LEVEL`, if the keep-sets of every
            limit and seed are drawn again from those there are; None without a mean.
        sets: random keep-sets in all.
    """

    by_limit: Mapping[str, float]
    mean: float
    interval: tuple[float, float] | None
    sets: int


def correlations(
    random_sets: Sequence[RandomSets],
    recovery: str,
    figure: Figure,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Correlation]:
    """How every objective ranks keep-sets, by its name.

    Args:
        random_sets: the keep-sets, at every limit and for every seed.
        recovery: name of the recovery after which they were judged.
        figure: what they were judged by; where higher is better, what is missing is the damage.
        resamples: how often the keep-sets are drawn again.
        seed: of these draws.
    """
    own = [sets for sets in random_sets if figure.name in sets.figures.get(recovery, {})]
    sign = -1.0 if figure.higher_is_better else 1.0
    damages = [sign * sets.figures[recovery][figure.name] for sets in own]
    draws = [
        np.concatenate(list(resampled(len(sets.kept), resamples, [seed, place])))
        for place, sets in enumerate(own)
    ]
    names = dict.fromkeys(name for sets in own for name in sets.objectives)
    return {name: _correlation(name, own, damages, draws) for name in names}


def _correlation(
    name: str, own: Sequence[RandomSets], damages: Sequence[Floats], draws: Sequence[Floats]
) -> Correlation:
    whole, again = dict[str, list[float]](), list[Floats]()
    for sets, damage, weights in zip(own, damages, draws, strict=True):
        if name not in sets.values:
            whole.setdefault(sets.limit, []).append(math.nan)
            continue
        arrays = {"lost": -sets.values[name], "damage": damage}
        found = _SPEARMAN.values(arrays, np.vstack([np.ones((1, len(damage))), weights]))
        whole.setdefault(sets.limit, []).append(float(found[0]))
        again.append(found[1:])
    by_limit = {limit: float(np.mean(each)) for limit, each in whole.items()}
    mean = float(np.mean(list(by_limit.values())))
    interval = None
    if math.isfinite(mean):
        drawn = np.array(again)  # a draw of one keep-set over and over has no order
        means = np.nanmean(drawn[:, np.isfinite(drawn).any(axis=0)], axis=0)
        if len(means):
            low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            interval = float(low), float(high)
    return Correlation(by_limit, mean, interval, sum(len(sets.kept) for sets in own))
