"""Budgets: constructors, combination, refusals, and the exact oracle over their tables."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cahp_opt import Block, Budget, BudgetError, CountTable, HeadSpace, LatencyTable, Unit
from cahp_opt.costs import knapsack
from cahp_opt.costs.knapsack import best_counts
from cahp_opt.testing import BUDGETS, SPACES

SPACE = HeadSpace.uniform(3, 4)
LINEAR = LatencyTable(SPACE, 1.0, tuple(np.arange(5.0) * np.float64(w) for w in (0.1, 0.2, 0.3)))


def counts_of(budget: Budget) -> list[tuple[int, ...]]:
    ranges = [range(units + 1) for units in budget.space.units]
    return [c for c in itertools.product(*ranges) if budget.allows(np.array(c))]


def test_heads() -> None:
    assert max(sum(c) for c in counts_of(Budget.heads(SPACE, 5))) == 5
    assert counts_of(Budget.heads(SPACE, 3, minimum=1)) == [(1, 1, 1)]


def test_heads_per_block() -> None:
    assert counts_of(Budget.heads_per_block(SPACE, [1, 0, 0])) == [(0, 0, 0), (1, 0, 0)]
    assert set(counts_of(Budget.heads_per_block(SPACE, 1, minimum=1))) == {(1, 1, 1)}


def test_latency_ratio_and_seconds_agree() -> None:
    ratio = Budget.latency(LINEAR, 0.8)
    seconds = Budget.latency(LINEAR, seconds=0.8 * LINEAR.dense)
    assert counts_of(ratio) == counts_of(seconds)
    assert all(LINEAR.predict(c) <= 0.8 * LINEAR.dense for c in counts_of(ratio))
    cost, limit = ratio.costs(np.array([1, 1, 1]))["latency"]
    assert math.isclose(cost, LINEAR.predict([1, 1, 1])) and math.isclose(limit, 0.8 * LINEAR.dense)


@given(st.lists(st.floats(0, 1e-2), min_size=15, max_size=15), st.floats(0, 1))
def test_everything_fits_the_full_time(seconds: list[float], fixed: float) -> None:
    table = LatencyTable(
        SPACE, fixed, tuple(np.array(seconds[5 * b : 5 * b + 5]) for b in range(3))
    )
    if table.dense > 0:
        assert Budget.latency(table, 1.0).allows(SPACE.units)


def test_latency_per_block_limits_each_block() -> None:
    budget = Budget.latency_per_block(LINEAR, 0.5)
    assert set(itertools.chain(*counts_of(budget))) == {0, 1, 2}
    assert set(budget.costs(np.array([1, 2, 0]))) == {f"latency of block.{b}" for b in range(3)}
    assert not budget.coupling


def test_budgets_combine() -> None:
    both = Budget.heads(SPACE, 5) & Budget.latency(LINEAR, 0.7) & Budget(SPACE, minimum=1)
    expected = [
        c for c in itertools.product(range(1, 5), repeat=3)
        if sum(c) <= 5 and LINEAR.predict(c) <= 0.7 * LINEAR.dense
    ]  # fmt: skip
    assert counts_of(both) == expected
    twice = Budget.heads(SPACE, 5) & Budget.heads(SPACE, 4)
    assert list(twice.costs(np.array([1, 1, 1]))) == ["units", "units (2)"]


def test_multiples() -> None:
    """0 or 3 of 4 units, or all 4: everything may always be kept."""
    budget = Budget.heads(SPACE, 12, multiple_of=3)
    assert set(itertools.chain(*counts_of(budget))) == {0, 3, 4}
    assert "keeps 2 of 4 units, which is not a multiple of 3" in str(
        budget.violation(np.array([0, 2, 4]))
    )
    each = Budget.heads_per_block(SPACE, 3, multiple_of=[1, 2, 4])
    assert [np.flatnonzero(a).tolist() for a in each.allowed] == [[0, 1, 2, 3], [0, 2], [0]]
    both = Budget(SPACE, multiple_of=2) & Budget(SPACE, multiple_of=[3, 1, 4])
    assert [np.flatnonzero(a).tolist() for a in both.allowed] == [[0, 4], [0, 2, 4], [0, 4]]
    for kept in (
        Budget.latency(LINEAR, 0.9, multiple_of=2).with_limit(LINEAR.dense),
        Budget.latency_per_block(LINEAR, 1.0, multiple_of=2),
        Budget.table(SPACE, [[0, 1, 2, 3, 4]] * 3, 12, multiple_of=2),
        Budget.heads(SPACE, 12) & Budget(SPACE, multiple_of=2),
    ):
        assert set(itertools.chain(*counts_of(kept))) == {0, 2, 4}
    with pytest.raises(
        BudgetError, match="keep 1 to 2 of its 4 units, and none of that is a multiple"
    ):
        Budget(SPACE, minimum=1, maximum=2, multiple_of=3)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_multiples_combine(units: int, first: int, second: int) -> None:
    space = HeadSpace.uniform(1, units)
    one, two = (Budget(space, multiple_of=m) for m in (first, second))
    expected = [c for c in counts_of(one) if two.allows(np.array(c))]
    assert counts_of(one & two) == expected


def test_floors_are_each_tables_own() -> None:
    budget = Budget.latency(LINEAR, 1.0, minimum=1) & Budget.table(
        SPACE, [[9, 4, 1, 0, 4]] * 3, 30, name="memory", unit="bytes"
    )
    assert budget.floors() == {"latency": LINEAR.predict([1, 1, 1]), "memory": 0}


def test_a_table_of_ones_own() -> None:
    costs = [[0, 3, 1, 1, 4]] * 3
    budget = Budget.table(SPACE, costs, 3, name="memory")
    assert budget.allows(np.array([2, 3, 2])) and not budget.allows(np.array([1, 2, 0]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Budget.latency(LINEAR, 0.1), "smallest reachable is 1 s .*0.294"),
        (lambda: Budget.latency(LINEAR, seconds=1.1, minimum=1), "smallest reachable is 1.6 s"),
        (lambda: Budget.heads(SPACE, 2, minimum=1), "smallest reachable is 3"),
        (lambda: Budget(SPACE, (), 3, 2), "at least 3 units and may keep at most 2"),
        (lambda: Budget(SPACE, (), 5), "at least 5 units"),
        (lambda: Budget.heads(SPACE, -1), "`limit`"),
        (lambda: Budget.heads(SPACE, 2.5), "`limit`"),  # type: ignore[arg-type]
        (lambda: Budget.heads(SPACE, math.inf), "whole number of units"),  # type: ignore[arg-type]
        (lambda: Budget.heads(SPACE, "3"), "whole number of units"),  # type: ignore[arg-type]
        (lambda: Budget.latency(LINEAR), "either `ratio` or `seconds`"),
        (lambda: Budget.latency(LINEAR, 0.5, seconds=1), "either `ratio` or `seconds`"),
        (lambda: Budget.latency(LINEAR, math.nan), "`ratio`"),
        (lambda: Budget.latency(LINEAR, seconds=-1), "`seconds`"),
        (lambda: Budget.table(SPACE, [[0, 1]] * 3, 1), "5 entries"),
        (lambda: Budget.table(SPACE, [[0, 1, 2, 3, math.nan]] * 3, 1), "finite"),
        (lambda: Budget.table(SPACE, [[0, 1, 2, 3, 4]] * 3, math.inf), "`limit`"),
        (lambda: Budget(SPACE, (), [1, 2]), "one per block"),
        (lambda: Budget(SPACE, multiple_of=0), "`multiple_of` must be at least 1"),
        (lambda: Budget(SPACE, multiple_of=1.5), "`multiple_of`"),  # type: ignore[arg-type]
        (lambda: Budget.heads(SPACE, 3) & Budget.heads(SPACES[0], 1), "different models"),
    ],
)
def test_impossible_budgets_are_refused(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]


def test_limits_that_exclude_each_other() -> None:
    up, down = [[0, 1, 2, 3, 4]] * 3, [[4, 3, 2, 1, 0]] * 3
    Budget.table(SPACE, up, 6) & Budget.table(SPACE, down, 6)
    with pytest.raises(BudgetError, match="no counts meet all limits at once"):
        Budget.table(SPACE, up, 5) & Budget.table(SPACE, down, 6)


@given(st.sampled_from(sorted(BUDGETS)), st.sampled_from(SPACES), st.integers(0, 2**32 - 1))
def test_the_cheapest_counts_are_within_the_budget(name: str, space: HeadSpace, seed: int) -> None:
    budget = BUDGETS[name](np.random.default_rng(seed), space)
    assert budget.allows(budget.cheapest)


@settings(max_examples=300)
@given(st.integers(0, 2**32 - 1), st.integers(0, 3), st.booleans())
def test_the_oracle_is_exact(seed: int, tables: int, whole_numbers: bool) -> None:
    """Against every combination of counts, on real and on integer costs, monotone or not."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, size=rng.integers(1, 5))

    def row(units: int) -> np.ndarray:
        return (
            rng.integers(0, 6, units + 1).astype(float) if whole_numbers else rng.random(units + 1)
        )

    values = [rng.normal(size=u + 1) for u in sizes]
    allowed = [(rng.random(u + 1) < 0.8) | (np.arange(u + 1) == 0) for u in sizes]
    limits = []
    for t in range(tables):
        costs = tuple(row(int(u)) for u in sizes)
        limit = float(rng.uniform(0, sum(c.max() for c in costs)))
        limits.append(CountTable(str(t), costs, round(limit) if whole_numbers else limit))
    best = -math.inf
    for counts in itertools.product(*(np.flatnonzero(a) for a in allowed)):
        if all(t.fits(np.array(counts)) for t in limits):
            best = max(best, sum(v[k] for v, k in zip(values, counts, strict=True)))
    found = best_counts(values, allowed, limits)
    if best == -math.inf:
        assert found.counts is None
        return
    assert found.counts is not None and all(t.fits(found.counts) for t in limits)
    assert all(a[k] for a, k in zip(allowed, found.counts, strict=True))
    assert math.isclose(found.value, best, abs_tol=1e-9)
    assert math.isclose(found.bound, best, abs_tol=1e-9)


def test_costs_are_never_rounded() -> None:
    """0.1 + 0.2 exceeds 0.3 in exact arithmetic of these floats; the answer must know."""
    space = HeadSpace.uniform(2, 1)
    budget = Budget.table(space, [[0, 0.1], [0, 0.2]], 0.3)
    assert not budget.allows(np.array([1, 1]))
    exact = best_counts([np.array([0, 1.0])] * 2, budget.allowed, budget.coupling)
    assert exact.counts is not None and budget.allows(exact.counts)
    assert exact.value == exact.bound == 1


def test_the_oracle_tells_sums_apart_that_floats_confuse() -> None:
    """Limits exactly at a reachable cost: the answer is exact, although sums of tenths round."""
    for seed in range(300):
        rng = np.random.default_rng(seed)
        sizes = [3, 3, 3, 3]
        values = [np.concatenate([[0], np.cumsum(rng.random(u))]) for u in sizes]
        allowed = [np.ones(u + 1, dtype=np.bool_) for u in sizes]
        tables = []
        for t in range(2):
            costs = tuple(
                np.concatenate([[0], np.cumsum(rng.integers(0, 3, u) * 0.1)]) for u in sizes
            )
            limit = CountTable("", costs, 0).cost(rng.integers(0, 4, 4))
            tables.append(CountTable(str(t), costs, limit))
        best = max(
            sum(v[k] for v, k in zip(values, counts, strict=True))
            for counts in itertools.product(range(4), repeat=4)
            if all(t.fits(counts) for t in tables)
        )
        found = best_counts(values, allowed, tables)
        assert math.isclose(found.value, best) and math.isclose(found.bound, best)


@pytest.mark.parametrize("cap", [1, 2, 5])
def test_a_capped_oracle_still_bounds(cap: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """States given up keep their hope in the bound, and nothing is said to fit that does not."""
    monkeypatch.setattr(knapsack, "_MOST_STATES", cap)
    capped = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        values = [rng.normal(size=5) for _ in range(4)]
        allowed = [np.ones(5, dtype=np.bool_)] * 4
        tables = [
            CountTable(str(t), tuple(rng.random(5) for _ in range(4)), rng.uniform(1, 2.5))
            for t in range(2)
        ]
        fitting = [
            sum(v[k] for v, k in zip(values, counts, strict=True))
            for counts in itertools.product(range(5), repeat=4)
            if all(t.fits(counts) for t in tables)
        ]
        found = best_counts(values, allowed, tables)
        best = max(fitting, default=-math.inf)
        assert found.bound >= best - 1e-9
        assert found.counts is None or all(t.fits(found.counts) for t in tables)
        assert found.value <= best + 1e-9
        capped += found.bound > best + 1e-9
    assert capped  # the cap was reached


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-200, 1e200])
def test_costs_of_any_magnitude(scale: float) -> None:
    space = HeadSpace.uniform(2, 2)
    budget = Budget.table(space, [[0, scale, 2 * scale]] * 2, 3 * scale)
    values = [np.array([0, 3.0, 4.0]), np.array([0, 2.0, 2.5])]
    assert best_counts(values, budget.allowed, budget.coupling).value == 6


def test_even_budgets_allow_the_same_number_in_all_blocks_of_a_kind() -> None:
    budget = Budget(SPACE, even=True) & Budget.heads(SPACE, 7)
    assert counts_of(budget) == [(0, 0, 0), (1, 1, 1), (2, 2, 2)]
    assert [tuple(c) for c in budget.even_counts] == counts_of(budget)
    assert "'block.0' keeps 2 units and block 'block.1' 1, and all blocks of a kind" in str(
        budget.violation(np.array([2, 1, 1]))
    )
    assert counts_of(budget.with_limit(12)) == [(k, k, k) for k in range(5)]
    neurons = Unit.NEURON_GROUP
    kinds = (Block("a", 4), Block("b", 4, neurons), Block("c", 3), Block("d", 2, neurons))
    mixed = Budget(HeadSpace(kinds), minimum=1, multiple_of=[1, 1, 2, 1], even=True)
    assert set(counts_of(mixed)) == {(h, n, h, n) for h in (2, 3) for n in (1, 2)}


def test_even_budgets_have_a_floor_of_their_own() -> None:
    """The cheapest counts of every block cost less, and are not the same."""
    costs = [[0, 5, 1], [0, 1, 5]]
    space = HeadSpace.uniform(2, 2)
    budget = Budget.table(space, costs, 6, minimum=1) & Budget(space, even=True)
    assert budget.floors() == {"cost": 6} and set(counts_of(budget)) == {(1, 1), (2, 2)}
    with pytest.raises(BudgetError, match="smallest reachable is 6"):
        budget.with_limit(2)
    with pytest.raises(BudgetError, match="no number of units is allowed in all blocks of a kind"):
        Budget(space, minimum=[0, 2], maximum=[1, 2], even=True)
    other = Budget.table(space, [[0, 1, 0], [0, 1, 0]], 1, name="other")
    with pytest.raises(BudgetError, match="all limits at once: cost alone can reach 6"):
        Budget.table(space, [[0, 3, 9], [0, 3, 9]], 6, minimum=1) & Budget(space, even=True) & other
