"""``check_method`` finds planted lies with its defaults, and says where."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from cahp_opt import Budget, HeadSpace, HeadStats, Prune, Selection, Total
from cahp_opt.methods import Michel, Random
from cahp_opt.runs.method import Method, Needs, Task
from cahp_opt.selection import Chooser
from cahp_opt.stats.registry import STATISTICS
from cahp_opt.testing import BUDGETS, TRIALS, BrokenLaw, RandomTrial, check_method, random_stats
from cahp_opt.testing.statistics import MADE, OF_ATTENTION_MAPS

FEW = {name: BUDGETS[name] for name in ("heads", "staircase", "everything fits")}


@dataclass(frozen=True)
class Mine(Michel):
    """A good method, for others to spoil."""

    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        inner = super().chooser(stats, task)
        return lambda budget: self.spoilt(inner(budget), budget, task)

    def spoilt(self, selection: Selection, budget: Budget, task: Task) -> Selection:
        """What is made of a good selection."""
        return selection


class OverBudget(Mine):
    """Keeps everything."""

    def spoilt(self, selection: Selection, budget: Budget, task: Task) -> Selection:
        return Selection.from_kept(budget.space, np.ones(budget.space.n, dtype=np.bool_))


class Unseeded(Mine):
    """Draws from a generator of its own."""

    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        seed = int(np.random.default_rng().integers(2**31))
        return Random().chooser(stats, replace(task, seed=seed))


class Counting(Mine):
    """Remembers how often it was asked."""

    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        seeds = iter(range(100))
        return lambda budget: Random().chooser(stats, replace(task, seed=next(seeds)))(budget)


class Flattering(Mine):
    """States a larger value where the budget has limits."""

    def spoilt(self, selection: Selection, budget: Budget, task: Task) -> Selection:
        value = selection.value + 0.01 * len(budget.tables)
        return replace(selection, value=value, bound=max(value, selection.bound))


class LowBound(Mine):
    """Claims a bound below its value."""

    def spoilt(self, selection: Selection, budget: Budget, task: Task) -> Selection:
        return replace(selection, bound=selection.value - 1)


class ModestBound(Mine):
    """Keeps other units of the same number, and says that there are none better."""

    def spoilt(self, selection: Selection, budget: Budget, task: Task) -> Selection:
        if not budget.tables:
            return selection
        kept = np.concatenate(
            [np.arange(u) < k for u, k in zip(budget.space.units, selection.counts, strict=True)]
        )
        low = selection.value - 0.5
        return replace(selection, kept=kept, value=low, bound=low)


class Cheap(Mine):
    """Tells half of what its selection costs."""

    def spoilt(self, selection: Selection, budget: Budget, task: Task) -> Selection:
        costs = budget.costs(selection.counts)
        told = {name: type(c)(c.value / 2 - 1, c.limit, c.unit) for name, c in costs.items()}
        return replace(selection, costs=told)


class Elsewhere(Mine):
    """Chooses from other blocks."""

    def spoilt(self, selection: Selection, budget: Budget, task: Task) -> Selection:
        return Selection.from_kept(HeadSpace.uniform(1, 2), np.ones(2, dtype=np.bool_))


class Crashing(Mine):
    """Has a bug."""

    def spoilt(self, selection: Selection, budget: Budget, task: Task) -> Selection:
        raise IndexError("list index out of range")


class Greedy(Mine):
    """Reads what it has not asked for."""

    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        stats.moments[0].sum.sum()
        return super().chooser(stats, task)


class Inventing(Mine):
    """Needs a statistic that there is not."""

    def needs(self, task: Task) -> Needs:
        return Needs(frozenset({"importance"}))


class Dense(Mine):
    """Needs more than all units."""

    def needs(self, task: Task) -> Needs:
        return Needs(frozenset({"salience", "gauss_newton"}), (1.5,))


class Fickle(Mine):
    """Needs something else each time."""

    def needs(self, task: Task) -> Needs:
        return Needs(frozenset({"salience"}), (float(np.random.default_rng().random()),))


class Unlabelled(Mine):
    """Needs labels, and does not say so."""

    def needs(self, task: Task) -> Needs:
        return Needs(frozenset({"salience", "fisher"}), (1.0,))


class HeadsAlone(Mine):
    """Takes neurons all the same."""

    prunes: ClassVar[Prune] = Prune.HEADS

    def check(self, task: Task) -> None:
        pass


class Lazy(Mine):
    """Refuses everything."""

    def check(self, task: Task) -> None:
        raise ValueError("`Lazy` takes nothing.")


class Curt(Mine):
    """Refuses without a sentence."""

    def check(self, task: Task) -> None:
        raise ValueError("no")


class Shouting(Mine):
    """Has a name that the command line cannot take."""

    @property
    def name(self) -> str:
        return "SHOUTING"


class Sourceless(Mine):
    """Was published nowhere."""

    source: ClassVar[str] = ""


@dataclass
class Loose(Method):
    """Its options can change."""

    steps: int = 3
    source: ClassVar[str] = "nowhere"

    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        return Random().chooser(stats, task)


@dataclass(frozen=True)
class Texts(Mine):
    """Takes a string."""

    kind: str = "greedy"


@dataclass(frozen=True)
class Demanding(Mine):
    """Has an option without a default."""

    steps: int = field(kw_only=True)


@dataclass(frozen=True)
class Ordered(Mine):
    """Prefers the first units of all."""

    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        weights = 1.0 / (1 + np.arange(stats.space.n))
        first = HeadStats(stats.space, stats.model, 1, 1, Total(weights, 1))
        return Michel().chooser(first, task)


def test_a_good_method_passes() -> None:
    checked = check_method(Mine(), ignores_names=True)
    assert checked == (len(BUDGETS), 0)
    heads = [trial for trial in TRIALS if trial.space.of_attention.all()]
    assert check_method(Mine(), trials=heads, budgets=FEW, rounds=2) == (2 * len(FEW), 0)


@pytest.mark.parametrize(
    ("liar", "sentence"),
    [
        (OverBudget(), "`OverBudget` keeps|the selection of `OverBudget` costs"),
        (Unseeded(), "`Unseeded` must repeat itself with the same seed"),
        (Counting(), "`Counting` must repeat itself with the same seed"),
        (Flattering(), "`Flattering` states the values .* for one keep-set"),
        (LowBound(), "`LowBound` states the value .* no bound is below it"),
        (ModestBound(), "`ModestBound` claims that no keep-set within the budget exceeds"),
        (Cheap(), "the selection of `Cheap` costs .* and tells"),
        (Elsewhere(), "`Elsewhere` must return a Selection of the blocks that it was given"),
        (Crashing(), "`Crashing` must choose within any budget, got IndexError"),
        (Greedy(), "`Greedy` must choose from what it needs, got IndexError.*tiny_trial"),
        (Inventing(), r"`Inventing` needs \['importance'\]"),
        (Dense(), r"`Dense` needs the densities \(1.5,\)"),
        (Fickle(), "`Fickle` must need the same"),
        (Unlabelled(), "`Unlabelled` needs labelled texts, and must refuse a task without"),
        (HeadsAlone(), "`HeadsAlone` prunes heads only, and must refuse"),
        (Lazy(), "`Lazy` refuses all that it is tried on"),
        (Curt(), "`Curt` must refuse a task with a sentence .* got 'no'"),
        (Shouting(), "the name of `Shouting` must be words in lower case"),
        (Sourceless(), "`source` of `Sourceless` must be a str and not empty"),
        (Loose(), "`Loose` must be a frozen dataclass"),
        (Texts(), r"the options \['kind'\] of `Texts` are strings"),
        (Demanding(steps=1), r"the options \['steps'\] of `Demanding` must have defaults"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Method) else "",
)
def test_a_lying_method_is_found(liar: Method, sentence: str) -> None:
    with pytest.raises(BrokenLaw, match=sentence) as broken:
        check_method(liar)
    assert str(broken.value).endswith(".")


def test_a_method_that_heeds_the_order_of_blocks_is_found() -> None:
    timed = {name: BUDGETS[name] for name in ("linear latency", "two tables")}
    assert check_method(Ordered(), budgets=timed).answered
    with pytest.raises(BrokenLaw, match="`Ordered` finds the value .* come in the order"):
        check_method(Ordered(), budgets=timed, rounds=3, ignores_names=True)


def test_nothing_to_check_is_refused() -> None:
    with pytest.raises(TypeError, match="`method` must be a Method value"):
        check_method(Mine)  # type: ignore[arg-type]
    lacking: list[dict[str, Any]] = [{"budgets": {}}, {"trials": []}, {"rounds": 0}]
    for given in lacking:
        with pytest.raises(ValueError, match="must hold at least one each"):
            check_method(Mine(), **given)


def test_every_statistic_can_be_made() -> None:
    assert MADE.keys() == STATISTICS.keys()
    heads, neurons, both = (random_stats(trial.space) for trial in TRIALS)
    assert heads.statistics.keys() == STATISTICS.keys()
    for other in (neurons, both):
        assert other.statistics.keys() == STATISTICS.keys() - OF_ATTENTION_MAPS
    with pytest.raises(ValueError, match=r"`names` has \['importance'\]"):
        random_stats(TRIALS[0].space, names=["importance"])


def test_the_statistics_of_a_block_follow_it() -> None:
    trial = TRIALS[2]
    turned = trial.reordered([2, 0, 3, 1])
    assert turned == RandomTrial(turned.space) and turned.space != trial.space
    first, second = random_stats(trial.space), random_stats(turned.space)
    own = {
        block.name: where
        for block, where in zip(trial.space.blocks, trial.space.slices, strict=True)
    }
    units = np.concatenate([np.arange(first.space.n)[own[b.name]] for b in turned.space.blocks])
    np.testing.assert_array_equal(first.salience.mean[units], second.salience.mean)
    np.testing.assert_allclose(
        first.fisher[0.5].mean[np.ix_(units, units)], second.fisher[0.5].mean
    )
    np.testing.assert_array_equal(first.moments[2].scatter, second.moments[0].scatter)
    assert random_stats(trial.space, 1).salience.mean[0] != first.salience.mean[0]
