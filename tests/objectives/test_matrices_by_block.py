"""An objective of statistics makes the matrices of a block when it needs them, and keeps few of them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from cahp_opt import HeadSpace, HeadStats, Problem, select
from cahp_opt.costs.target import Target
from cahp_opt.objectives import ExplainedVariance, explained_variance
from cahp_opt.objectives.recent import Recent
from cahp_opt.solvers import DynamicProgram
from cahp_opt.space import Block, Unit
from cahp_opt.testing.statistics import random_stats

SPACE = HeadSpace(
    tuple(
        block
        for layer in range(12)
        for block in (
            Block(f"{layer}.attention", 4),
            Block(f"{layer}.mlp", 4, Unit.NEURON_GROUP, tuple(range(128))),
        )
    )
)
STATS = random_stats(SPACE, names=("moments", "sensitivity"))
MATRIX = 8 * 128**2


@pytest.mark.parametrize("make", [ExplainedVariance.from_stats, ExplainedVariance.from_sensitivity])
def test_memory_does_not_grow_with_the_number_of_blocks(
    make: Callable[[HeadStats], ExplainedVariance], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem(make(STATS), Target(heads=24, neurons=0.5).numbers(SPACE))
    expected = select(problem, DynamicProgram())
    assert expected.counts.min() < expected.counts.max()
    monkeypatch.setattr(explained_variance, "_KEPT_BYTES", 0)
    tracemalloc.start()
    objective = make(STATS)
    made = tracemalloc.get_traced_memory()[0]
    found = select(Problem(objective, problem.budget), DynamicProgram())
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made < MATRIX and held < 3 * MATRIX and most < 11 * MATRIX
    assert (found.value, found.bound) == (expected.value, expected.bound)
    assert np.array_equal(found.kept, expected.kept) and found.whole == expected.whole


def test_the_oldest_values_go_first() -> None:
    made = list[int]()

    def make(key: int) -> int:
        made.append(key)
        return -key

    recent = Recent[int](10)
    for key, size in ((1, 4), (2, 6), (1, 4), (3, 2), (2, 6), (1, 4), (9, 99), (9, 99), (3, 2)):
        assert recent.get(key, size, make) == -key
    assert made == [1, 2, 3, 1, 9, 3]
