"""The order of neurons is that of backward elimination with a refit, and changes nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from cahp_opt import HeadSpace, HeadStats
from cahp_opt.arrays import Floats
from cahp_opt.objectives import ExplainedVariance
from cahp_opt.space import Block, Unit
from cahp_opt.stats.column_form import ColumnForm
from cahp_opt.stats.moments import Moments
from cahp_opt.stats.neuron_order import in_order_of_price, loss, removal
from cahp_opt.stats.sensitivity import Sensitivity
from cahp_opt.stats.totals import Total


def problem(seed: int, d: int, rows: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(3 * d, d)) @ rng.normal(size=(d, d)) * rng.pareto(2, d)
    return np.cov(z.T), rng.normal(size=(rows, d))


def test_one_by_one_is_backward_elimination_with_a_refit() -> None:
    covariance, factor = problem(0, 9, 3)
    objective = ExplainedVariance([covariance], [factor.T @ factor], [9], ridge=0.05)
    kept = np.ones(9, dtype=np.bool_)
    removed: list[int] = []
    prices: list[float] = []
    while kept.any():
        loss = np.where(kept, -objective.gains(kept), np.inf)
        removed.append(int(np.argmin(loss)))
        prices.append(float(loss.min()))
        kept[removed[-1]] = False
    found = removal(covariance, factor, ridge=0.05, at_once=1)
    assert found.order.tolist() == removed[::-1]
    np.testing.assert_allclose(found.prices, prices[::-1], rtol=1e-7)


@pytest.mark.parametrize("at_once", [1, 5, 16, 100])
def test_prices_are_what_goes_with_every_column_however_late_the_matrices_follow(
    at_once: int,
) -> None:
    covariance, factor = problem(1, 40, 6)
    found = removal(covariance, factor, at_once=at_once)
    assert found.order.tolist() == removal(covariance, factor, at_once=1).order.tolist()
    objective = ExplainedVariance([covariance], [factor.T @ factor], [40])
    for k in (1, 7, 20, 40):
        first = np.isin(np.arange(40), found.order[:k])
        assert found.prices[:k].sum() == pytest.approx(objective.value(first), rel=1e-9)


def test_of_two_columns_that_say_the_same_one_stays() -> None:
    rng = np.random.default_rng(0)
    once = rng.normal(size=(300, 50))
    twice = once + 0.01 * once.std(axis=0) * rng.normal(size=once.shape)
    found = removal(np.cov(np.hstack([once, twice]).T), rng.normal(size=(10, 100)))
    assert len({*(found.order[:50] % 50).tolist()}) == 50
    assert found.prices[:50].sum() > 0.99 * found.prices.sum()


def test_columns_that_never_vary_have_an_order_too() -> None:
    found = removal(np.zeros((4, 4)), np.ones((2, 4)))
    assert sorted(found.order.tolist()) == [0, 1, 2, 3] and not found.prices.any()


def test_without_a_refit_the_next_to_go_adds_least_to_what_is_missing() -> None:
    rng = np.random.default_rng(4)
    z = rng.normal(size=(60, 9)) @ rng.normal(size=(9, 9)) + rng.normal(size=9)
    second, factor = z.T @ z / 60, rng.normal(size=(3, 9))
    found = loss(second, ColumnForm.small(factor))

    def missing(gone: list[int]) -> float:
        return float(np.mean(np.square(z[:, gone] @ factor[:, gone].T).sum(axis=1)))

    gone: list[int] = []
    for column, price in zip(found.order[::-1].tolist(), found.prices[::-1], strict=True):
        left = [c for c in range(9) if c not in gone]
        assert column == min(left, key=lambda c: missing([*gone, c]))
        assert price == pytest.approx(missing([*gone, column]) - missing(gone), abs=1e-9)
        gone.append(column)


def test_columns_that_cancel_each_other_go_together_where_nothing_is_refitted() -> None:
    base = np.random.default_rng(0).normal(size=(400, 3)) * [3.0, 1.0, 0.5]
    z = np.stack([base[:, 0], -base[:, 0], base[:, 1], base[:, 2]], axis=1)
    found = loss(z.T @ z / 400, ColumnForm.small(np.ones((1, 4))))
    assert {*found.order[-2:].tolist()} == {2, 3}  # each alone costs less than one of the pair
    assert found.prices[:2].sum() == pytest.approx(0, abs=1e-9)


def stats_of(order: tuple[int, ...] | None, *, weighted: bool = True) -> HeadStats:
    """One attention block and one feed-forward part of 3 groups of 4 neurons."""
    rng = np.random.default_rng(3)
    moments: list[Moments] = []
    sensitivity: list[Sensitivity] = []
    for d in (6, 12):
        covariance, factor = problem(d, d, 2)
        moments.append(Moments(rng.normal(size=d), covariance, ColumnForm.small(factor), 20))
        inner = np.diag(rng.random(2))
        form = ColumnForm.small(factor[::-1], inner)
        sensitivity.append(Sensitivity(rng.normal(size=d), covariance[::-1, ::-1], form, 3.0, 20))
    space = HeadSpace((Block("heads", 3), Block("part", 3, Unit.NEURON_GROUP, order)))
    return HeadStats(
        space, "m", 20, 200, moments=moments, sensitivity=sensitivity if weighted else ()
    )


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("refitted", [True, False])
def test_statistics_in_order_say_the_same_of_every_neuron(weighted: bool, refitted: bool) -> None:
    before = tuple(np.random.default_rng(1).permutation(12).tolist())
    stats = stats_of(before, weighted=weighted)
    ordered = in_order_of_price(stats, refitted=refitted)
    heads, part = ordered.space.blocks
    assert heads == stats.space.blocks[0] and part[:3] == stats.space.blocks[1][:3]
    assert part.order is not None and part.order != before
    place = [before.index(neuron) for neuron in part.order]  # where each of them stood
    pairs: list[tuple[Moments | Sensitivity, Moments | Sensitivity]] = [
        *zip(stats.moments, ordered.moments, strict=True),
        *zip(stats.sensitivity, ordered.sensitivity, strict=True),
    ]
    for old, new in pairs:
        if len(new.sum) == 6:
            assert new is old
        else:
            np.testing.assert_array_equal(new.sum, old.sum[place])
            np.testing.assert_array_equal(new.covariance, old.covariance[np.ix_(place, place)])
            np.testing.assert_allclose(new.readout, old.readout[np.ix_(place, place)])
    again = in_order_of_price(ordered, refitted=refitted)
    assert again.space == ordered.space
    deciding = (stats.sensitivity or stats.moments)[1]
    expected = removal(deciding.covariance, deciding.form.factor).order
    if not refitted:
        expected = loss(deciding.second_moment, deciding.form).order
    for group in range(0, 12, 4):
        assert {*place[group : group + 4]} == {*expected[group : group + 4].tolist()}
        assert sorted(part.order[group : group + 4]) == list(part.order[group : group + 4])


def test_an_order_that_is_not_stated_is_that_of_the_model() -> None:
    stated = in_order_of_price(stats_of(tuple(range(12)))).space
    assert in_order_of_price(stats_of(None)).space == stated


def test_statistics_of_whole_groups_cannot_be_put_into_others() -> None:
    stats = stats_of(None)
    salience = HeadStats(
        stats.space, "m", 20, 200, Total(np.ones(6), 1), statistics=stats.statistics
    )
    with pytest.raises(
        ValueError, match=r"salience, which is about whole groups.*order the neurons"
    ):
        in_order_of_price(salience)
    with pytest.raises(ValueError, match="neither moments nor sensitivity"):
        in_order_of_price(stats.without("moments", "sensitivity"))
