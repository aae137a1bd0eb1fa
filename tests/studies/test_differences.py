"""Two seeds of a method are a tie, and a planted difference is found."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from scores_by_hand import scores_of

from cahp_opt.arrays import Floats
from cahp_opt.studies.differences import Difference, Draws, Verdict, difference_between, holm
from cahp_opt.studies.figures import Judging
from cahp_opt.studies.scores import Scores

N = 600


def scores(right: float, rng: np.random.Generator, ease: Floats | None = None) -> Scores:
    """Of a classifier that is right this often; some examples are easier than others."""
    ease = rng.random(N) if ease is None else ease
    hit = rng.random(len(ease)) < np.clip(right + 0.5 * (ease - 0.5), 0, 1)
    label = np.arange(len(ease)) % 3
    return scores_of(
        Judging.CLASSES, kl=rng.random(len(ease)), predicted=np.where(hit, label, 3), label=label
    )


def seeds(right: Sequence[float], rng: np.random.Generator, ease: Floats) -> dict[int, Scores]:
    return {seed: scores(share, rng, ease) for seed, share in enumerate(right)}


@pytest.mark.parametrize("figure", [None, "kl", "f1"])
def test_two_seeds_of_a_method_are_a_tie(figure: str | None) -> None:
    rng = np.random.default_rng(0)
    ease = rng.random(N)
    found = difference_between({0: scores(0.6, rng, ease)}, {1: scores(0.6, rng, ease)}, figure)
    assert found.verdict is Verdict.TIE and found.low < 0 < found.high
    same = scores(0.6, rng, ease)
    none = difference_between({0: same}, {0: same}, figure)
    assert (none.value, none.low, none.high, none.p) == (0, 0, 0, 1)


@pytest.mark.parametrize("figure", ["accuracy", "f1"])
def test_a_planted_difference_is_found(figure: str) -> None:
    rng = np.random.default_rng(1)
    ease = rng.random(N)
    one, other = scores(0.7, rng, ease), scores(0.5, rng, ease)
    found = difference_between({0: one}, {0: other}, figure)
    assert found.verdict is Verdict.BETTER and 0 < found.low < found.value < found.high
    assert difference_between({0: other}, {0: one}, figure).verdict is Verdict.WORSE
    three = difference_between(seeds([0.7] * 3, rng, ease), seeds([0.5] * 3, rng, ease), figure)
    assert three.verdict is Verdict.BETTER


def test_lower_is_better_for_divergences() -> None:
    low, high = (scores_of(Judging.SPANS, kl=np.linspace(0, end, 50)) for end in (1.0, 2.0))
    assert difference_between({0: low}, {0: high}).verdict is Verdict.BETTER
    broken = scores_of(Judging.SPANS, kl=np.full(50, np.nan))
    assert difference_between({0: low}, {0: broken}).verdict is Verdict.BETTER
    assert difference_between({0: broken}, {0: low}).verdict is Verdict.WORSE
    assert difference_between({0: broken}, {0: broken}).verdict is Verdict.TIE


def test_pairing_removes_what_both_share() -> None:
    """Both are wrong on the same examples but for a few: without pairs, chance would explain these."""
    label = np.zeros(500)
    predicted = (np.arange(500) < 200).astype(float)
    better = (np.arange(500) < 190).astype(float)
    one, other = (scores_of(Judging.CLASSES, predicted=p, label=label) for p in (better, predicted))
    found = difference_between({0: one}, {0: other})
    assert found.value == pytest.approx(0.02) and found.verdict is Verdict.BETTER


def test_the_interval_is_that_of_the_mean() -> None:
    """Of a mean the bootstrap is known: the standard error, and the normal quantile."""
    rng = np.random.default_rng(2)
    one, other = (scores_of(Judging.SPANS, kl=rng.random(N)) for _ in range(2))
    apart = one.arrays["kl"] - other.arrays["kl"]
    found = difference_between({0: one}, {0: other}, resamples=20000)
    error = apart.std() / np.sqrt(N)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.03)


def test_seeds_that_scatter_widen_the_interval() -> None:
    """All examples alike: nothing but the seeds is uncertain, by Student's distribution."""
    ours = {s: scores_of(Judging.SPANS, kl=np.full(9, v)) for s, v in enumerate((1.0, 2.0, 3.0))}
    theirs = {s: scores_of(Judging.SPANS, kl=np.full(9, 0.5)) for s in range(3)}
    found = difference_between(ours, theirs, resamples=100000)
    assert found.value == 1.5
    assert (found.high - found.low) / 2 == pytest.approx(4.303 / np.sqrt(3), rel=0.03)
    alone = difference_between({0: ours[0]}, {0: theirs[0]})
    assert (alone.low, alone.high) == (0.5, 0.5)


def test_the_same_seeds_are_paired() -> None:
    """Both methods gain as much on a good draw of texts."""
    ours = {s: scores_of(Judging.SPANS, kl=np.full(9, s + 0.1)) for s in range(4)}
    theirs = {s: scores_of(Judging.SPANS, kl=np.full(9, float(s))) for s in range(4)}
    assert difference_between(ours, theirs).verdict is Verdict.WORSE
    others = {s + 1: each for s, each in theirs.items()}
    assert difference_between(ours, others).verdict is Verdict.TIE


def from_best(arms: Sequence[Mapping[int, Scores]], resamples: int = 1000) -> list[Difference]:
    """All methods against the one with the highest mean accuracy."""
    means = [np.mean([each.value("accuracy") for each in arm.values()]) for arm in arms]
    scores, places = list[Scores](), list[dict[int, int]]()
    for arm in arms:
        places.append({seed: len(scores) + i for i, seed in enumerate(arm)})
        scores += arm.values()
    draws = Draws(scores, scores[0].figure("accuracy"), resamples=resamples)
    return draws.from_picked(int(np.argmax(means)), places)


def test_holm_multiplies_by_the_number_that_is_left() -> None:
    made = [Difference("kl", 1.0, 0.5, 1.5, p, False) for p in (0.03, 0.01, 0.02, 0.9)]
    assert [d.p for d in holm(made)] == pytest.approx([0.06, 0.04, 0.06, 0.9])
    assert holm([]) == []


def test_the_best_of_many_that_do_as_well_is_seldom_called_better() -> None:
    rng, tries = np.random.default_rng(5), 40
    wrong = 0
    for _ in range(tries):
        ease = rng.random(150)
        found = from_best([{0: scores(0.6, rng, ease)} for _ in range(15)], resamples=2000)
        wrong += any(each.verdict is not Verdict.TIE for each in found)
    assert wrong <= 3, wrong  # 2 are expected; corrected for the comparisons alone it is 6


def test_what_differs_from_the_best_is_found_among_many() -> None:
    rng = np.random.default_rng(6)
    ease = rng.random(N)
    arms = [seeds([0.6] * 3, rng, ease) for _ in range(9)] + [seeds([0.3] * 3, rng, ease)]
    *alike, worse = from_best(arms)
    assert worse.verdict is Verdict.WORSE
    assert all(each.verdict is Verdict.TIE for each in alike)
    two = from_best([arms[0], arms[-1]])[0]
    assert two.p == pytest.approx(difference_between(arms[-1], arms[0], resamples=1000).p, abs=0.02)


def test_equal_and_infinite_methods_among_several() -> None:
    one = scores_of(Judging.CLASSES, predicted=np.zeros(9), label=np.zeros(9))
    other = scores_of(Judging.CLASSES, predicted=np.ones(9), label=np.zeros(9))
    same, worse = from_best([{0: one}, {0: one}, {0: other}])
    assert same.p == 1 and worse.verdict is Verdict.WORSE


def test_scores_of_other_examples_are_refused() -> None:
    rng = np.random.default_rng(0)
    few, many = (scores(0.5, rng, rng.random(n)) for n in (5, 6))
    with pytest.raises(ValueError, match="of 5 examples by classes and of 6 by classes"):
        difference_between({0: few}, {0: many})
    other = scores_of(few.judging, **{**few.arrays, "label": few.arrays["label"] + 1})
    with pytest.raises(ValueError, match="other labels"):
        difference_between({0: few}, {0: other})
    with pytest.raises(ValueError, match="at least one seed"):
        difference_between({}, {0: few})
    with pytest.raises(ValueError, match="`resamples` must be at least 1, got 0"):
        difference_between({0: few}, {0: few}, resamples=0)


def test_two_thousand_resamples_of_a_test_set_are_fast() -> None:
    rng = np.random.default_rng(0)
    one, other = (scores(0.6, rng, rng.random(2210)) for _ in range(2))
    for figure in ("accuracy", "f1"):
        start = time.process_time()
        difference_between({0: one}, {0: other}, figure)
        assert time.process_time() - start < 1


@pytest.mark.slow
@pytest.mark.parametrize(("count", "spread"), [(1, 0.0), (2, 0.03), (3, 0.0), (3, 0.02), (5, 0.05)])
def test_a_tie_is_called_a_difference_as_rarely_as_the_level_says(
    count: int, spread: float
) -> None:
    rng, tries = np.random.default_rng(3), 400
    wrong = 0
    for _ in range(tries):
        ease = rng.random(N)
        one, other = (
            seeds(list(0.6 + spread * rng.normal(size=count)), rng, ease) for _ in range(2)
        )
        wrong += difference_between(one, other, resamples=1000).verdict is not Verdict.TIE
    assert 0.005 < wrong / tries < 0.08, wrong / tries


@pytest.mark.slow
def test_small_differences_are_found_in_large_test_sets() -> None:
    rng = np.random.default_rng(4)
    found = 0
    for _ in range(50):
        ease = rng.random(2210)
        found += (
            difference_between(
                seeds([0.55] * 5, rng, ease), seeds([0.50] * 5, rng, ease), resamples=1000
            ).verdict
            is Verdict.BETTER
        )
    assert found > 40, found
