"""Figures of how well a model does: what each is called, and how it comes from numbers per example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np

from cahp_opt.arrays import Bools, Floats

Arrays = Mapping[str, Floats]


class Judging(str, Enum):
    """What outputs a model is judged by; every kind has figures of its own."""

    CLASSES = "classes"
    """One class per example."""
    LABELS = "labels"
    """Yes or no to each of several labels per example."""
    NUMBERS = "numbers"
    """Numbers, of a regression."""
    NEXT_TOKENS = "next-tokens"
    """The next token at every token: causal language models."""
    TOKENS = "tokens"
    """A class or a token at every token."""
    FRAMES = "frames"
    """A class at every frame of a recording, or every place of an image."""
    SPANS = "spans"
    """The start and the end of an answer."""
    EMBEDDINGS = "embeddings"
    """A vector per text."""


@dataclass(frozen=True)
class Figure(ABC):
    """A figure over examples.

    Args:
        name: as tables show it.
        higher_is_better: whether a larger number is better.
        unit: of the figure; empty for shares, correlations and other plain numbers.
        of_one_model: whether it says how well a model does by itself, rather than how close it is to the
            unpruned model.
    """

    name: str
    higher_is_better: bool
    unit: str = ""
    of_one_model: bool = False

    @property
    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """The names of the arrays that it is computed from."""

    @abstractmethod
    def values(self, arrays: Arrays, weights: Floats) -> Floats:
        """The figure for several weightings of the examples at once, ``[weightings]``.

        A weighting holds how many times every example counts: 1 for the examples as they are, and the
        number of draws for a bootstrap. The figure is NaN where no example counts that it can be taken of.

        Args:
            arrays: numbers per example, ``[examples]``, by name.
            weights: ``[weightings, examples]``.
        """


@dataclass(frozen=True, kw_only=True)
class Ratio(Figure):
    """A sum over examples by another: a mean per example, token or answer.

    Args:
        of: the array that is summed.
        per: the array whose sum it is divided by; None for the number of examples.
        then: what turns the ratio into the figure, ``[...]`` to ``[...]``; None for nothing.
    """

    of: str
    per: str | None = None
    then: Callable[[Floats], Floats] | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """Both arrays."""
        return (self.of,) if self.per is None else (self.of, self.per)

    def values(self, arrays: Arrays, weights: Floats) -> Floats:
        """The ratio of both sums, ``[weightings]``; weights are ``[weightings, examples]``."""
        whole = weights.sum(axis=1) if self.per is None else weights @ arrays[self.per]
        ratio = _divided(weights @ arrays[self.of], whole)
        return ratio if self.then is None else self.then(ratio)


@dataclass(frozen=True, kw_only=True)
class _OfClasses(Figure):
    """A figure of predicted classes beside labels; examples whose label is NaN do not count."""

    @property
    def reads(self) -> tuple[str, ...]:
        return ("predicted", "label")


@dataclass(frozen=True, kw_only=True)
class Accuracy(_OfClasses):
    """The share of examples whose predicted class is the label."""

    def values(self, arrays: Arrays, weights: Floats) -> Floats:
        """The shares, ``[weightings]``; weights are ``[weightings, examples]``."""
        right = (arrays["predicted"] == arrays["label"]).astype(np.float64)
        return _divided(weights @ right, weights @ _known(arrays).astype(np.float64))


@dataclass(frozen=True, kw_only=True)
class MacroF1(_OfClasses):
    """The mean over classes of the harmonic mean of precision and recall.

    The classes are all that occur among labels and predictions; in a weighting, those that still do.
    """

    def values(self, arrays: Arrays, weights: Floats) -> Floats:
        """The means, ``[weightings]``; weights are ``[weightings, examples]``."""
        known = _known(arrays)
        predicted, label = arrays["predicted"][known], arrays["label"][known]
        classes = np.union1d(predicted, label)
        of_class = predicted[:, None] == classes, label[:, None] == classes
        hits, said, there = (
            weights[:, known] @ each.astype(np.float64)
            for each in (of_class[0] & of_class[1], *of_class)
        )
        scores = _divided(2 * hits, said + there)
        counted = said + there > 0
        return _divided(np.where(counted, scores, 0.0).sum(axis=1), counted.sum(axis=1))


@dataclass(frozen=True, kw_only=True)
class RankCorrelation(Figure):
    """Spearman's correlation of two arrays: Pearson's of their ranks, equal numbers with their mean rank.

    Args:
        of: one array.
        against: the other; examples where it is NaN do not count.
    """

    of: str
    against: str

    @property
    def reads(self) -> tuple[str, ...]:
        """Both arrays."""
        return (self.of, self.against)

    def values(self, arrays: Arrays, weights: Floats) -> Floats:
        """The correlations, ``[weightings]``; weights are ``[weightings, examples]``."""
        known = ~np.isnan(arrays[self.against])
        used = np.ascontiguousarray(weights[:, known])
        whole = used.sum(axis=1)
        apart: list[Floats] = []
        for name in (self.of, self.against):
            ranks = _ranks(arrays[name][known], used)
            mean = _divided((used * ranks).sum(axis=1), whole)
            apart.append(ranks - mean[:, None])
        covariance, one, other = (
            (used * left * right).sum(axis=1)
            for left, right in ((apart[0], apart[1]), (apart[0],) * 2, (apart[1],) * 2)
        )
        return _divided(covariance, np.sqrt(one * other))


def _ranks(values: Floats, weights: Floats) -> Floats:
    """The mean ranks of numbers ``[examples]`` that occur as many times as weights
    ``[weightings, examples]`` say, in the same shape."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[starts, len(values)])
    equal = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = np.cumsum(equal, axis=1) - (equal - 1) / 2
    ranks = np.empty_like(weights)
    ranks[:, order] = np.repeat(middle, sizes, axis=1)
    return ranks


def _known(arrays: Arrays) -> Bools:
    known: Bools = ~np.isnan(arrays["label"])
    return known


def _divided(part: Floats, whole: Floats) -> Floats:
    """The ratios, NaN for 0 of 0 and without a warning."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = np.divide(part, whole)
    return ratio


def _exp(values: Floats) -> Floats:
    with np.errstate(over="ignore"):
        raised: Floats = np.exp(values)
    return raised


def _root(values: Floats) -> Floats:
    root: Floats = np.sqrt(values)
    return root


def _kl(name: str = "kl", per: str | None = None) -> Figure:
    return Ratio(name, False, "nats", of="kl", per=per)


def _agreement(per: str | None = None) -> Figure:
    return Ratio("agreement", True, of="agreement", per=per)


def _accuracy_of_counts() -> Figure:
    return Ratio("accuracy", True, of_one_model=True, of="right", per="labelled")


def _root_mean(name: str, of: str, per: str, of_one_model: bool = False) -> Figure:
    return Ratio(name, False, of_one_model=of_one_model, of=of, per=per, then=_root)


NEIGHBOURS = 10
"""The most nearest neighbours of a text that are compared."""

FIGURES: Mapping[Judging, tuple[Figure, ...]] = {
    Judging.CLASSES: (
        _kl(),
        _agreement(),
        Accuracy("accuracy", True, of_one_model=True),
        MacroF1("f1", True, of_one_model=True),
    ),
    Judging.LABELS: (_kl(), _agreement(per="answers"), _accuracy_of_counts()),
    Judging.NUMBERS: (
        _root_mean("rms_difference", "squared_difference", "values"),
        _root_mean("rms_error", "squared_error", "labelled", True),
    ),
    Judging.NEXT_TOKENS: (
        _kl("kl_per_token", per="tokens"),
        _agreement(per="tokens"),
        Ratio("perplexity", False, of_one_model=True, of="nll", per="targets", then=_exp),
    ),
    Judging.TOKENS: (
        _kl("kl_per_token", per="tokens"),
        _agreement(per="tokens"),
        _accuracy_of_counts(),
    ),
    Judging.FRAMES: (_kl(), _agreement(per="frames")),
    Judging.SPANS: (_kl(), _agreement()),
    Judging.EMBEDDINGS: (
        Ratio("cosine_distance", False, of="cosine_distance"),
        *(
            Ratio(f"neighbour_agreement_at_{k}", True, of=f"neighbour_agreement_at_{k}")
            for k in range(1, NEIGHBOURS + 1)
        ),
        RankCorrelation("spearman", True, of_one_model=True, of="similarity", against="label"),
    ),
}
"""The figures of every kind, in the order of tables.

- :attr:`Judging.CLASSES`: ``kl``, the mean KL divergence from the unpruned model's probabilities;
  ``agreement``, the share of examples with the unpruned model's answer; ``accuracy``; ``f1``, the macro F1.
- :attr:`Judging.LABELS`: the same over examples and labels, without ``f1``.
- :attr:`Judging.NUMBERS`: ``rms_difference`` from the unpruned model; ``rms_error``.
- :attr:`Judging.NEXT_TOKENS`: ``kl_per_token``, ``agreement`` of the likeliest token, ``perplexity``.
- :attr:`Judging.TOKENS`: ``kl_per_token``, ``agreement``, ``accuracy`` of the tokens that have a label.
- :attr:`Judging.FRAMES`, :attr:`Judging.SPANS`: ``kl``, ``agreement``.
- :attr:`Judging.EMBEDDINGS`: ``cosine_distance``; ``neighbour_agreement_at_10``, the mean share of a text's
  nearest other texts that are those of the unpruned model; for scored pairs ``spearman``, the rank
  correlation of cosines with scores.
"""

HEADLINES: Mapping[Judging, tuple[str, ...]] = {
    Judging.CLASSES: ("accuracy", "kl"),
    Judging.LABELS: ("accuracy", "kl"),
    Judging.NUMBERS: ("rms_error", "rms_difference"),
    Judging.NEXT_TOKENS: ("perplexity", "kl_per_token"),
    Judging.TOKENS: ("accuracy", "kl_per_token"),
    Judging.FRAMES: ("kl",),
    Judging.SPANS: ("kl",),
    Judging.EMBEDDINGS: ("spearman", "cosine_distance"),
}
"""The figure that models are ranked by: the first that there are numbers for."""
