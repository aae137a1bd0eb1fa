"""Whether two methods differ: a paired bootstrap over the examples, and over seeds where there are several."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import combinations

import numpy as np

from cahp_opt.arrays import Floats
from cahp_opt.studies.figures import Figure
from cahp_opt.studies.scores import Scores

LEVEL = 0.95
"""Of the intervals; a difference is one if its probability by chance is below one minus this."""
RESAMPLES = 2000
"""How many times the examples are drawn again."""
_AT_ONCE = 2**21  # numbers of examples that are drawn together: 16 MiB


class Verdict(str, Enum):
    """What a difference says of the first of two methods."""

    BETTER = "better"
    WORSE = "worse"
    TIE = "tie"
    """The difference is no larger than chance explains."""


@dataclass(frozen=True)
class Difference:
    """A figure of one method less that of another.

    Args:
        figure: name of the figure.
        value: the difference; infinite where only one figure is a number, NaN where neither is.
        low: the lower end of its interval, see :data:`LEVEL`.
        high: the upper end.
        p: how probable a difference this far from 0, in either direction, would be if there were none.
        higher_is_better: whether a larger figure is better.
    """

    figure: str
    value: float
    low: float
    high: float
    p: float
    higher_is_better: bool

    @property
    def verdict(self) -> Verdict:
        """Whether the first method is better or worse than the second, or ties with it."""
        if not self.p < 1 - LEVEL:
            return Verdict.TIE
        return Verdict.BETTER if (self.value > 0) == self.higher_is_better else Verdict.WORSE


class Draws:
    """A figure of several scores on examples that are drawn again and again, the same for all of them.

    The examples of a resample are drawn with replacement, as many as there are (Efron and Tibshirani 1993,
    chapter 16; paired, because every model is judged on the same ones: Koehn 2004, Dror et al. 2018).

    Args:
        scores: scores on the same examples.
        figure: the figure.
        resamples: how often the examples are drawn.
        seed: of the draws.

    Raises:
        ValueError: for scores of other examples, or fewer than one resample.
    """

    def __init__(
        self,
        scores: Sequence[Scores],
        figure: Figure,
        *,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> None:
        if resamples < 1:
            raise ValueError(f"`resamples` must be at least 1, got {resamples}.")
        check_same_examples(scores)
        self._figure, self._seed = figure, seed
        self._whole = [_value(each, figure) for each in scores]
        parts = [
            [figure.values(each.arrays, weights) for each in scores]
            for weights in resampled(scores[0].examples, resamples, seed)
        ]
        self._drawn = np.concatenate(parts, axis=1)

    def difference(self, ours: Mapping[int, int], theirs: Mapping[int, int]) -> Difference:
        """The mean over the seeds of one method less that of another, with its interval.

        Seeds are as uncertain as examples: every resample also moves the mean over seeds, by its standard error
        times a draw from Student's distribution with one degree of freedom less than there are seeds. They are
        not drawn again themselves: of three seeds such a bootstrap sees two thirds of the variance. How
        differently the seeds do on the same examples is in their scatter already, and is taken out of the
        resamples, or it would count twice (Owen 2007). The seeds of both methods are paired if they are the same
        ones. One seed says nothing about others: the interval is then that of this seed.

        Args:
            ours: by seed of the first method, the place of its scores among those given.
            theirs: the same of the second method.
        """
        one, other = (
            np.array([self._whole[at] for at in each.values()]) for each in (ours, theirs)
        )
        value = float(one.mean()) - float(other.mean())
        if not math.isfinite(value):
            return self._told(value, value, value, 0.0 if math.isinf(value) else 1.0)
        rng = np.random.default_rng([self._seed, 1])
        ours_drawn, theirs_drawn = (self._drawn[list(each.values())] for each in (ours, theirs))
        with np.errstate(invalid="ignore"):  # some figures are not defined on every resample
            if set(ours) == set(theirs):
                same = [list(theirs).index(seed) for seed in ours]
                drawn = _of_all(one - other[same], ours_drawn - theirs_drawn[same], rng)
            else:
                drawn = _of_all(one, ours_drawn, rng) - _of_all(other, theirs_drawn, rng)
        drawn = drawn[np.isfinite(drawn)]
        if not len(drawn):
            return self._told(value, -math.inf, math.inf, 1.0)
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        p = min(1.0, 2 * (1 + beyond) / (1 + len(drawn)))
        return self._told(value, float(low), float(high), p)

    def from_picked(self, picked: int, arms: Sequence[Mapping[int, int]]) -> list[Difference]:
        """The differences of all others from one of several methods that was picked by these very scores, such as
        the best one, in their order.

        Corrected for the number of comparisons alone (:func:`holm`), probabilities would be too small, because
        being picked makes a method look better than it is. So none is smaller than that of *any* two of the
        methods being as far apart on examples drawn again, each pair relative to its own standard error, if none
        differed from another (Westfall and Young 1993, single-step maxT).

        Args:
            picked: the place of that method.
            arms: by method, the places of its scores by seed.
        """
        values = np.array([np.mean([self._whole[at] for at in arm.values()]) for arm in arms])
        with np.errstate(invalid="ignore"):
            drawn = np.stack([self._drawn[list(arm.values())].mean(axis=0) for arm in arms])
            moved = drawn - values[:, None]
        furthest = np.zeros(moved.shape[1])
        for one, other in combinations(moved[np.isfinite(moved).all(axis=1)], 2):
            error = float((one - other).std())
            if error > 0:
                furthest = np.maximum(furthest, np.abs(one - other) / error)
        others = [place for place in range(len(arms)) if place != picked]
        found = holm([self.difference(arms[each], arms[picked]) for each in others])
        for number, each in enumerate(others):
            error = float((moved[each] - moved[picked]).std())
            if error > 0 and math.isfinite(error):
                as_far = furthest >= abs(found[number].value) / error
                least = (1 + int(as_far.sum())) / (1 + len(furthest))
                found[number] = replace(found[number], p=max(found[number].p, least))
        return found

    def _told(self, value: float, low: float, high: float, p: float) -> Difference:
        return Difference(self._figure.name, value, low, high, p, self._figure.higher_is_better)


def difference_between(
    ours: Mapping[int, Scores],
    theirs: Mapping[int, Scores],
    figure: str | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """A figure of one method less that of another, see :meth:`Draws.difference`.

    Args:
        ours: the scores of one method, by seed.
        theirs: those of the other, on the same examples.
        figure: its name; None for the headline figure.
        resamples: how often the examples are drawn again.
        seed: of the draws.

    Raises:
        ValueError: without scores, for scores of other examples, or without numbers for the figure.
    """
    if not (ours and theirs):
        raise ValueError("`ours` and `theirs` must each hold the scores of at least one seed.")
    scores = [*ours.values(), *theirs.values()]
    draws = Draws(scores, scores[0].figure(figure), resamples=resamples, seed=seed)
    return draws.difference(
        {each: place for place, each in enumerate(ours)},
        {each: place for place, each in enumerate(theirs, start=len(ours))},
    )


def holm(differences: Sequence[Difference]) -> list[Difference]:
    """The differences with probabilities that hold for all of them together (Holm 1979), in the same
    order.

    The smallest of ``m`` is multiplied by ``m``, the next by ``m - 1`` and so on, and none is smaller than
    one before it. Intervals stay those of each difference alone.
    """
    adjusted, least = list(differences), 0.0
    order = sorted(range(len(differences)), key=lambda i: differences[i].p)
    for rank, place in enumerate(order):
        least = min(1.0, max(least, (len(order) - rank) * differences[place].p))
        adjusted[place] = replace(differences[place], p=least)
    return adjusted


def _value(scores: Scores, figure: Figure) -> float:
    """The figure; where it is not a number, the worst there is."""
    value = scores.value(figure.name)
    if math.isnan(value):
        return -math.inf if figure.higher_is_better else math.inf
    return value


def resampled(examples: int, resamples: int, seed: int | Sequence[int]) -> Iterator[Floats]:
    """How often every example is drawn, ``[some of the resamples, examples]``, until all are there.

    Args:
        examples: how many there are, and are drawn with replacement.
        resamples: how often they are drawn.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    some = max(1, _AT_ONCE // examples)
    for start in range(0, resamples, some):
        rows = min(some, resamples - start)
        drawn = rng.integers(examples, size=(rows, examples)) + examples * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * examples)
        yield counts.reshape(rows, examples).astype(np.float64)


def _of_all(values: Floats, drawn: Floats, rng: np.random.Generator) -> Floats:
    """Draws of the mean of a figure over all seeds, ``[resamples]``, by some of them.

    Args:
        values: the figure by seed, ``[seeds]``.
        drawn: the same on resamples, ``[seeds, resamples]``.
        rng: what draws.
    """
    seeds = len(values)
    mean: Floats = drawn.mean(axis=0)
    if seeds < 2:
        return mean
    whole = float(mean.var())
    shared = whole - float((drawn - mean).var(axis=1).sum()) / (seeds * (seeds - 1))
    share = math.sqrt(max(0.0, shared) / whole) if whole > 0 else 1.0
    error = float(values.std(ddof=1)) / math.sqrt(seeds)
    middle = float(values.mean())
    student: Floats = np.asarray(rng.standard_t(seeds - 1, drawn.shape[1]), dtype=np.float64)
    return middle + share * (mean - middle) + error * student


def check_same_examples(scores: Sequence[Scores]) -> None:
    """Refuse scores that cannot be compared example by example.

    Raises:
        ValueError: for other numbers of examples, kinds of output or labels.
    """
    first = scores[0]
    for other in scores[1:]:
        if other.judging is not first.judging or other.examples != first.examples:
            raise ValueError(
                f"`scores` are of {first.examples} examples by {first.judging.value} and of {other.examples} by "
                f"{other.judging.value}; judge all models on the same held-out examples."
            )
        ours, theirs = (each.arrays.get("label", np.empty(0)) for each in (first, other))
        if not np.array_equal(ours, theirs, equal_nan=True):
            raise ValueError(
                "`scores` have other labels; judge all models on the same examples in the same order."
            )
