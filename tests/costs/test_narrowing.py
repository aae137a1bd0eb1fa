"""Budgets of stages: they lead to the budget, and what they leave can meet it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahp_opt import Budget, HeadSpace, Problem, select
from cahp_opt.costs.budget import BudgetError
from cahp_opt.costs.narrowing import on_the_way, over_what_is_left
from cahp_opt.objectives import Modular
from cahp_opt.solvers import DynamicProgram, RandomSubset
from cahp_opt.space import Block, Unit

SPACE = HeadSpace((Block("a", 4), Block("b", 6, Unit.NEURON_GROUP), Block("c", 3)))


def test_limits_lie_at_equal_ratios() -> None:
    costs = [np.arange(units + 1.0) for units in SPACE.units]
    budget = Budget.table(SPACE, costs, 1.0, fixed=0.5, maximum=[1, 6, 3])
    shares = (0, 0.25, 0.5, 0.75, 1)
    limits = [on_the_way(budget, share).tables[0].limit for share in shares]
    assert np.array(limits[1:]) / limits[:-1] == pytest.approx([(1 / 13.5) ** 0.25] * 4)
    assert limits[-1] == pytest.approx(1.0)
    assert [int(on_the_way(budget, share).most[0]) for share in shares] == [4, 3, 2, 1, 1]
    loose = replace(budget, tables=(replace(budget.tables[0], limit=99.0),))
    assert on_the_way(loose, 0.5).tables[0].limit == 99.0
    nothing = Budget.heads(HeadSpace.uniform(2, 4), 0)
    assert [on_the_way(nothing, s).tables[0].limit for s in (0, 0.5, 1)] == [8, 4, 0]


def test_what_blocks_without_units_cost_stays() -> None:
    costs = [1.0 + np.arange(units + 1.0) for units in SPACE.units]
    budget = Budget.table(SPACE, costs, 8.0, fixed=0.1)
    left = SPACE.join({"a": [0, 2], "b": [0, 1, 2, 3, 4]})
    narrow = over_what_is_left(budget, left)
    assert [block.name for block in narrow.space.blocks] == ["a", "b"]
    assert narrow.space.units.tolist() == [2, 5]
    assert narrow.tables[0].cost([1, 2]) == pytest.approx(0.1 + 2 + 3 + 1)
    assert narrow.allows(np.array([1, 3])) and not narrow.allows(np.array([2, 3]))


def test_the_most_that_is_left_need_not_be_a_multiple() -> None:
    budget = Budget.heads(HeadSpace.uniform(2, 8), 8, multiple_of=4)
    left = budget.space.join({"block.0": [0, 1, 2, 3, 4], "block.1": [0, 1, 2]})
    narrow = over_what_is_left(budget, left)
    assert [narrow.allows(np.array(c)) for c in ([4, 0], [5, 0], [4, 3], [5, 3])] == [
        *(True, False, False, False)
    ]
    short = Budget.heads(budget.space, 8, minimum=4)
    with pytest.raises(BudgetError):
        over_what_is_left(short, left)


@given(st.data())
def test_every_budget_can_be_met_in_stages(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    costs = [np.sort(rng.random(units + 1)) for units in SPACE.units]
    most = sum(cost[-1] for cost in costs)
    limits = {"minimum": int(rng.integers(0, 2)), "multiple_of": int(rng.integers(1, 3))}
    try:
        budget = Budget.table(SPACE, costs, float(rng.uniform(0, most)), **limits)  # type: ignore[arg-type]
        if data.draw(st.booleans()):
            budget &= Budget.table(SPACE, [c[::-1] for c in costs], most, name="other")
        if data.draw(st.booleans()):
            budget = replace(budget, even=True)
    except BudgetError:
        return
    left = np.ones(SPACE.n, dtype=np.bool_)
    for share in (0.4, 0.8, 1.0):
        stage = budget if share == 1 else on_the_way(budget, share)
        narrow = over_what_is_left(stage, left)
        solver = data.draw(st.sampled_from([DynamicProgram(), RandomSubset()]))
        kept = select(Problem(Modular(rng.random(narrow.space.n)), narrow), solver).kept
        left[left] = kept
        assert stage.violation(SPACE.counts(left)) is None
        if not left.any():
            return
