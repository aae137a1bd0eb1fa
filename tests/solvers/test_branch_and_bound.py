"""BranchAndBound on dense quadratic forms; the laws cover the small ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import make_problem
from instances_exact import damage_problem, redundancy_problem
from work_clock import WorkClock

from cahp_opt import HeadSpace, Status, select
from cahp_opt.bounds import split_form
from cahp_opt.solvers import MIQP, Auto, BranchAndBound, BruteForce
from cahp_opt.solvers.parts import polishing


def test_dense_damage_of_some_size_is_proved() -> None:
    problem = damage_problem(0, blocks=4, units=6)
    found = select(problem, BranchAndBound())
    assert found.status is Status.OPTIMAL
    other = select(problem, MIQP())
    assert math.isclose(found.value, other.value, rel_tol=1e-9)


def test_blocks_too_large_for_tables_are_proved_too() -> None:
    problem = damage_problem(1, blocks=1, units=14)
    found = select(problem, BranchAndBound())
    assert found.status is Status.OPTIMAL
    assert math.isclose(found.value, select(problem, BruteForce()).value, rel_tol=1e-9)


def test_a_deadline_or_few_nodes_leave_a_bound() -> None:
    problem = damage_problem(1)
    with WorkClock() as clock:
        late = select(problem, BranchAndBound(), time_limit=0.5)
    assert clock.now < 0.6
    few = select(damage_problem(1, blocks=6, units=8), BranchAndBound(nodes=3))
    for found in (late, few):
        assert found.value < found.bound < math.inf
    assert few.status is Status.FEASIBLE
    assert int(few.stats["nodes"]) >= 3


def test_a_gap_stops_it_early() -> None:
    problem = redundancy_problem(1, blocks=4, units=6)
    loose = select(problem, BranchAndBound(gap=0.05))
    assert loose.gap <= 0.05
    tight = select(problem, BranchAndBound())
    assert int(loose.stats["nodes"]) <= int(tight.stats["nodes"])


def test_refusal_and_bad_options() -> None:
    problem = make_problem("facility location", "heads", HeadSpace.uniform(2, 3), 0)
    with pytest.raises(ValueError, match=r"use `MIQP` for a coverage, or `LazyGreedy`\.$"):
        select(problem, BranchAndBound())
    with pytest.raises(ValueError, match="`gap` must be at least 0"):
        BranchAndBound(gap=-1)
    with pytest.raises(ValueError, match="`nodes` must be at least 1"):
        BranchAndBound(nodes=0)


@pytest.mark.slow
def test_acceptance_of_144_units() -> None:
    found = select(damage_problem(0), BranchAndBound(), time_limit=120)
    assert found.status is Status.OPTIMAL


def test_large_blocks_are_never_tabulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of a block with 32 heads, as decoders have, would take terabytes."""

    def refuse(linear: np.ndarray, pairwise: np.ndarray) -> np.ndarray:
        raise AssertionError(f"a table of 2^{len(linear)} subsets")

    for module in (polishing, split_form):
        monkeypatch.setattr(module, "subset_values", refuse)
    found = select(damage_problem(1, blocks=2, units=20), Auto(nodes=2), time_limit=2)
    assert found.value < found.bound < math.inf
