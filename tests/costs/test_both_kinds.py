"""Budgets and tables over attention and feed-forward blocks together."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahp_opt import (
    Block,
    Budget,
    BudgetError,
    HeadSpace,
    LatencyGoal,
    LatencyTable,
    Problem,
    Profile,
    Provenance,
    ResourceGoal,
    ResourceTable,
    Target,
    Unit,
    select,
)
from cahp_opt.objectives import Modular
from cahp_opt.solvers import DynamicProgram

GROUP = Unit.NEURON_GROUP


def backwards(neurons: int) -> tuple[int, ...]:
    return tuple(reversed(range(neurons)))


MIXED = HeadSpace(
    (
        Block("attention.0", 3),
        Block("mlp.0", 4, GROUP, backwards(8)),
        Block("attention.1", 2, Unit.KV_GROUP),
        Block("mlp.1", 2, GROUP, backwards(12)),
    )
)
HEADS = HeadSpace(MIXED.blocks[::2])
NEURONS = HeadSpace(MIXED.blocks[1::2])
LATENCY = LatencyTable(
    MIXED,
    1.0,
    tuple(w * np.arange(units + 1.0) for w, units in zip((1, 2, 3, 4), MIXED.units, strict=True)),
    Provenance(device="cpu", model="Bert/0"),
)
CACHE = ResourceTable(MIXED, 0, (np.arange(4.0), np.zeros(5), np.arange(3.0), np.zeros(3)), "bytes")
PROFILE = Profile(MIXED, {"prefill": LATENCY}, {"kv_cache": CACHE})


def counts_of(budget: Budget) -> list[tuple[int, ...]]:
    ranges = [range(units + 1) for units in budget.space.units]
    return [c for c in itertools.product(*ranges) if budget.allows(np.array(c))]


# -- numbers of units ------------------------------------------------------------------------------


def test_heads_counts_attention_alone() -> None:
    budget = Budget.heads(MIXED, 2)
    assert {(a, c) for a, _, c, _ in counts_of(budget)} == {
        (a, c) for a in range(4) for c in range(3) if a + c <= 2
    }
    assert {(b, d) for _, b, _, d in counts_of(budget)} == set(
        itertools.product(range(5), range(3))
    )
    assert budget.costs(np.array([1, 4, 1, 2])) == {"attention units": (2, 2)}


def test_neurons_are_counted_where_orders_state_the_widths() -> None:
    """Groups of 2 and of 6 neurons; 12 of the 20 may stay."""
    budget = Budget.neurons(MIXED, 0.6)
    assert counts_of(budget) == [
        c
        for c in itertools.product(range(4), range(5), range(3), range(3))
        if 2 * c[1] + 6 * c[3] <= 12
    ]
    (table,) = budget.tables
    assert table.unit == "neurons" and budget.costs(MIXED.units)["neurons"] == (20, 12)


def test_without_orders_feed_forward_blocks_count_alike() -> None:
    """Groups are quarters and halves of blocks that are taken for equally wide."""
    budget = Budget.neurons(MIXED.unordered(), 0.6)
    assert {(b, d) for _, b, _, d in counts_of(budget)} == {
        (b, d) for b in range(5) for d in range(3) if b / 4 + d / 2 <= 0.6 * 2
    }
    equal = HeadSpace((Block("a", 4, GROUP), Block("b", 4, GROUP)))
    assert Budget.neurons(equal, 0.5).tables[0].unit == "neuron groups"
    assert Budget.neurons(equal, 0.5).tables[0].limit == 4


@given(st.integers(1, 1000), st.integers(1, 60))
def test_a_share_is_the_decimal_number_that_was_written(thousandths: int, groups: int) -> None:
    """As floats, 0.29 * 100 is below 29, and 0.07 * 100 above 7."""
    space = HeadSpace((Block("mlp", groups, GROUP),))
    fits = Budget.neurons(space, thousandths / 1000).allowed[0]
    expected = [Fraction(k, groups) <= Fraction(thousandths, 1000) for k in range(groups + 1)]
    assert fits.tolist() == expected


def test_ranges_of_one_number() -> None:
    """A minimum is about both kinds; a maximum and multiples are about attention."""
    assert counts_of(Budget(MIXED, minimum=2, maximum=2)) == [(2, b, 2, 2) for b in range(2, 5)]
    wide = Budget(MIXED, multiple_of=2)
    assert [np.flatnonzero(a).tolist() for a in wide.allowed] == [
        [0, 2, 3],
        [0, 1, 2, 3, 4],
        [0, 2],
        [0, 1, 2],
    ]
    each = Budget(MIXED, maximum=[3, 2, 2, 1], multiple_of=[1, 2, 1, 1])
    assert [np.flatnonzero(a).tolist() for a in each.allowed] == [
        [0, 1, 2, 3],
        [0, 2],
        [0, 1, 2],
        [0, 1],
    ]
    assert Budget.heads_per_block(MIXED, 1).most.tolist() == [1, 4, 1, 2]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Budget.heads(NEURONS, 3), "limit those with `Budget.neurons`"),
        (lambda: Budget.neurons(HEADS, 0.5), "limit those with `Budget.heads`"),
        (lambda: Budget.neurons(MIXED, 1.5), "`share` must be a share of the feed-forward neurons"),
        (lambda: Budget.neurons(MIXED, 0), "`share`"),
        (lambda: Budget.neurons(MIXED, float("nan")), "`share`"),
        (lambda: Budget(NEURONS, maximum=1), "`maximum` as one number, 1, is about attention"),
        (lambda: Budget(NEURONS, multiple_of=2), "`multiple_of` as one number, 2, is about"),
    ],
)
def test_limits_on_a_kind_that_is_not_there_are_refused(
    make: Callable[[], object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_too_few_neurons_are_refused_with_the_floor() -> None:
    with pytest.raises(BudgetError, match=r"smallest reachable is 8 neurons \(0.4 of the unpruned"):
        Budget.neurons(MIXED, 0.2, minimum=1)


def test_a_combined_budget_keeps_the_orders() -> None:
    assert (Budget.latency(LATENCY, 0.9) & Budget.heads(MIXED, 4)).space == MIXED


@given(st.integers(0, 2**32 - 1))
def test_both_kinds_against_all_counts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    seconds = tuple(np.cumsum(rng.random(units + 1)) for units in MIXED.units)
    table = LatencyTable(MIXED, float(rng.random()), seconds)
    limit = table.floor + rng.uniform(0.1, 1) * (table.dense - table.floor)
    budget = (
        Budget.latency(table, seconds=limit)
        & Budget.heads(MIXED, int(rng.integers(0, 6)))
        & Budget.neurons(MIXED, float(rng.choice([0.3, 0.5, 0.8])))
    )
    values = rng.normal(0.5, size=MIXED.n)
    largest = [np.sort(values[where])[::-1] for where in MIXED.slices]
    best = max(
        sum(float(v[:k].sum()) for v, k in zip(largest, counts, strict=True))
        for counts in counts_of(budget)
    )
    found = select(Problem(Modular(values), budget), DynamicProgram())
    assert found.value == pytest.approx(best) and found.bound == pytest.approx(best)


# -- tables ----------------------------------------------------------------------------------------


def test_tables_drop_orders_and_profiles_do_not_save_them(tmp_path: Path) -> None:
    assert LATENCY.space == MIXED.unordered() and PROFILE.space == MIXED
    PROFILE.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json").space == MIXED.unordered()


@given(st.lists(st.integers(0, 2), min_size=2, max_size=2), st.sampled_from([HEADS, NEURONS]))
def test_a_table_of_both_kinds_serves_one(counts: list[int], space: HeadSpace) -> None:
    """What is not chosen among stays whole, and its cost is there."""
    every, names = MIXED.units.copy(), [block.name for block in MIXED.blocks]
    for block, count in zip(space.blocks, counts, strict=True):
        every[names.index(block.name)] = count
    for table in (LATENCY, CACHE):
        own = table.restricted(space)
        assert own.space == space.unordered() and type(own) is type(table)
        assert own.predict(counts) == table.predict(every)
        assert own.dense == table.dense


def test_a_table_of_the_same_blocks_is_itself() -> None:
    assert LATENCY.restricted(MIXED) is LATENCY
    assert PROFILE.restricted(HEADS).space == HEADS
    loaded = Profile(MIXED.unordered(), {"prefill": LATENCY})
    assert loaded.restricted(MIXED).space == MIXED


@pytest.mark.parametrize(
    ("table", "space", "words"),
    [
        (LATENCY.restricted(HEADS), MIXED, "has no feed-forward blocks"),
        (LATENCY.restricted(HEADS), NEURONS, "has no feed-forward blocks"),
        (LATENCY.restricted(NEURONS), HEADS, "has no attention blocks"),
        (LATENCY, HeadSpace(MIXED.blocks[:1]), "different models .1 blocks against 2"),
        (LATENCY, HeadSpace(MIXED.blocks[:3]), "different models .3 blocks against 4"),
        (LATENCY, HeadSpace((Block("mlp.0", 2, GROUP), *MIXED.blocks[3:])), "different models"),
    ],
)
def test_a_table_of_other_blocks_is_refused(
    table: LatencyTable, space: HeadSpace, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        table.restricted(space)


# -- targets ---------------------------------------------------------------------------------------


def test_a_target_takes_the_tables_of_the_kinds_it_chooses_among() -> None:
    target = Target((LatencyGoal(ratio=0.9),), minimum=0)
    both = target.budget(MIXED, PROFILE)
    heads = target.budget(HEADS, PROFILE, "Bert/0")
    assert both.space == MIXED and heads.space == HEADS
    assert counts_of(heads) == [(a, c) for a, b, c, d in counts_of(both) if (b, d) == (4, 2)]
    neurons = target.budget(NEURONS, PROFILE)
    assert counts_of(neurons) == [(b, d) for a, b, c, d in counts_of(both) if (a, c) == (3, 2)]


def test_a_target_limits_both_numbers() -> None:
    budget = Target(heads=3, neurons=0.5, maximum=2).budget(MIXED, None)
    assert counts_of(budget) == [
        c
        for c in itertools.product(range(1, 3), range(1, 5), range(1, 3), range(1, 3))
        if c[0] + c[2] <= 3 and 2 * c[1] + 6 * c[3] <= 10
    ]


@pytest.mark.parametrize(
    ("target", "space", "words"),
    [
        (Target(neurons=0.5), HEADS, "`--neurons 0.5` is about feed-forward parts"),
        (Target(heads=5), NEURONS, "`--heads 5` is about attention"),
        (Target(maximum=1, neurons=0.5), NEURONS, "`--maximum 1` is about attention"),
        (Target(multiple_of=2, neurons=0.5), NEURONS, "`--multiple-of 2` is about attention"),
    ],
)
def test_a_number_of_what_is_not_pruned_is_refused(
    target: Target, space: HeadSpace, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        target.budget(space, None)


def test_the_cache_is_of_attention_alone() -> None:
    target = Target((ResourceGoal("kv_cache", 0.5),), minimum=0)
    assert counts_of(target.budget(MIXED, PROFILE)) == [
        c for c in itertools.product(range(4), range(5), range(3), range(3)) if c[0] + c[2] <= 2.5
    ]
    with pytest.raises(BudgetError, match="smallest reachable is 5 bytes"):
        target.budget(NEURONS, PROFILE)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target(neurons=1), "`--neurons 1` limits nothing: all neurons may stay."),
        (Target(heads=5), "`--heads 5` limits nothing: there are 5 units."),
        (Target(maximum=3), "`--maximum 3` limits nothing: no attention block has more than 3"),
        (Target(heads=2, multiple_of=4), "`--multiple-of 4` leaves attention whole or empty"),
        (Target((LatencyGoal(ratio=1),)), "`--latency 1` limits nothing"),
        (Target(heads=4, neurons=0.99), ""),
    ],
)
def test_limits_that_limit_nothing(target: Target, words: str) -> None:
    found = " ".join(target.loose(MIXED, PROFILE if target.goals else None))
    assert found.startswith(words) and bool(found) == bool(words)
