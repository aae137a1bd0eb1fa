"""The incumbent: never worse, never looser, and no wrong proof hidden."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from cahp_opt import Budget, HeadSpace, Problem, Proposal, Solver, Status, select
from cahp_opt.objectives import Modular
from cahp_opt.solvers import BestOf, Greedy, LocalSearch, Tabu
from cahp_opt.solvers.parts.incumbent import Incumbent

SPACE = HeadSpace.uniform(2, 2)
PROBLEM = Problem(Modular(np.array([1.0, 2.0, 3.0, 4.0])), Budget.heads(SPACE, 2))


def _keep(*units: int) -> np.ndarray:
    return np.isin(np.arange(4), units)


def test_it_takes_only_what_is_better() -> None:
    best = Incumbent(PROBLEM, _keep(1, 2))
    assert best.offer(_keep(0, 1)) == 3.0 and best.value == 5.0
    assert best.offer(_keep(2, 3)) == 7.0 and best.value == 7.0
    best.tighten(9.0, "nine")
    best.tighten(12.0, "twelve")
    best.tighten(math.nan, "nothing")
    assert (best.bound, best.certificate) == (9.0, "nine")
    assert not best.done() and best.done(gap=0.5)
    found = best.proposal()
    assert found.kept.tolist() == _keep(2, 3).tolist()
    assert (found.bound, found.status, found.certificate) == (9.0, Status.FEASIBLE, "nine")
    best.tighten(7.0 - 1e-12, "seven")
    assert best.done() and best.proposal().status is Status.OPTIMAL
    assert best.proposal().bound == 7.0


def test_it_tells_that_time_ended_the_search() -> None:
    late = Incumbent(PROBLEM, _keep(1, 2), time.monotonic() - 1)
    assert late.proposal().status is Status.TIME_LIMIT
    late.tighten(5.0, "five")
    assert late.proposal().status is Status.OPTIMAL
    first = Proposal(_keep(1, 2), 8.0, Status.TIME_LIMIT, "eight", {"moves": 3})
    after = Incumbent.following(PROBLEM, first).proposal()
    assert (after.bound, after.status, after.certificate) == (8.0, Status.TIME_LIMIT, "eight")
    assert after.stats == {"moves": 3}


def test_its_shares_are_of_the_time_that_is_left() -> None:
    assert Incumbent(PROBLEM, _keep()).share(0.3) == math.inf
    now = time.monotonic()
    assert now + 500 <= Incumbent(PROBLEM, _keep(), now + 1000).share(0.5) <= now + 1000


class Boaster(Solver):
    """Claims that nothing is worth more than 5."""

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        return Proposal(_keep(0, 1), 5.0)


@pytest.mark.parametrize(
    "solver",
    [BestOf((Boaster(), Greedy())), LocalSearch(Boaster()), Tabu(Boaster(), iterations=5)],
    ids=["best of", "local search", "tabu"],
)
def test_a_wrong_proof_is_not_hidden_by_a_better_answer(solver: Solver) -> None:
    with pytest.raises(RuntimeError, match="claims the upper bound 5"):
        select(PROBLEM, solver)
