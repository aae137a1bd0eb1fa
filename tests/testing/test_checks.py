"""``check_solver`` and ``check_objective`` find planted lies with their defaults, and say where."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from cahp_opt import HeadSpace, Objective, Problem, Proposal, Solver, Status, select
from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.objective import CoverageForm, DirectTracker, QuadraticForm
from cahp_opt.solvers import BruteForce, DynamicProgram, Greedy, LazyGreedy, TopK
from cahp_opt.subsets import BestSubsets
from cahp_opt.testing import (
    BUDGETS,
    OBJECTIVES,
    SPACES,
    BrokenLaw,
    check_objective,
    check_solver,
    make_problem,
)

SPACE = HeadSpace.uniform(2, 4)
FEW = {name: BUDGETS[name] for name in ("heads", "staircase")}


# --- solvers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mine(Solver):
    """A good solver, for others to spoil."""

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        return LazyGreedy().solve(problem, deadline=deadline, rng=rng)

    def kept(self, problem: Problem) -> Bools:
        """What it keeps."""
        return self.solve(problem, deadline=math.inf, rng=np.random.default_rng(0)).kept


class OverBudget(Mine):
    """Keeps everything."""

    def solve(self, problem: Problem, **_: Any) -> Proposal:
        return Proposal(np.ones(problem.space.n, dtype=np.bool_))


class LowBound(Mine):
    """Claims that no answer reaches its own."""

    def solve(self, problem: Problem, **_: Any) -> Proposal:
        kept = Mine().kept(problem)
        return Proposal(kept, bound=problem.objective.value(kept) - 1)


class ModestBound(Mine):
    """Contradicts nothing in its own run: its bound is its value, if that is no optimum."""

    def solve(self, problem: Problem, **_: Any) -> Proposal:
        kept = Mine().kept(problem)
        return Proposal(kept, bound=problem.objective.value(kept), certificate="a guess")


class Proud(Mine):
    """Claims an optimum with a bound to match."""

    def solve(self, problem: Problem, **_: Any) -> Proposal:
        kept = Mine().kept(problem)
        return Proposal(kept, problem.objective.value(kept), Status.OPTIMAL, "pride")


class ProudOfNothing(Mine):
    """Claims an optimum without a bound."""

    def solve(self, problem: Problem, **_: Any) -> Proposal:
        return Proposal(Mine().kept(problem), status=Status.OPTIMAL)


class Forgetful(Mine):
    """Draws from a generator of its own."""

    def solve(self, problem: Problem, **_: Any) -> Proposal:
        fits = [np.zeros(problem.space.n, dtype=np.bool_), Mine().kept(problem)]
        allowed = [kept for kept in fits if problem.budget.allows(problem.space.counts(kept))]
        return Proposal(allowed[np.random.default_rng().integers(len(allowed))])


class Lazy(Mine):
    """Refuses everything."""

    def solve(self, problem: Problem, **_: Any) -> Proposal:
        raise ValueError("`Lazy` takes no problem of this kind; use `Greedy`.")


class Curt(Mine):
    """Refuses without a sentence."""

    def solve(self, problem: Problem, **_: Any) -> Proposal:
        raise ValueError("no")


class Crashing(Mine):
    """Has a bug."""

    def solve(self, problem: Problem, **_: Any) -> Proposal:
        raise IndexError("list index out of range")


class LaunchShy(Mine):
    """Keeps nothing where launching takes a time."""

    def solve(self, problem: Problem, **_: Any) -> Proposal:
        shy = any(table.least for table in problem.budget.tables)
        return Proposal(np.zeros(problem.space.n, dtype=np.bool_) if shy else Mine().kept(problem))


class FirstUnits(Mine):
    """Keeps as many units as the best answer does, but those that come first."""

    def solve(self, problem: Problem, **_: Any) -> Proposal:
        counts = problem.space.counts(select(problem, Greedy()).kept)
        first = [np.arange(u) < k for u, k in zip(problem.space.units, counts, strict=True)]
        return Proposal(np.concatenate(first))


@dataclass
class Loose(Solver):
    """Its options can change."""

    steps: int = 3

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        return Mine().solve(problem, deadline=deadline, rng=rng)


@dataclass(frozen=True)
class Texts(Mine):
    """Takes a string."""

    kind: str = "greedy"


@dataclass(frozen=True)
class Undocumented(Mine):
    steps: int = 3


@dataclass(frozen=True, eq=False)
class OneOfAKind(Solver):
    """Equals only itself."""

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        return Mine().solve(problem, deadline=deadline, rng=rng)


def test_a_good_solver_passes_and_the_count_tells_how_good_it_is() -> None:
    checked = check_solver(Mine(), budgets=FEW)
    assert checked.answered == len(OBJECTIVES) * len(FEW) and checked.refused == 0
    assert checked.answered / 2 < checked.best < checked.answered
    perfect = check_solver(BruteForce(), budgets=FEW)
    assert perfect.best == perfect.answered == checked.answered
    twice = check_solver(DynamicProgram(), budgets=FEW, rounds=2)
    assert twice.answered + twice.refused == 2 * checked.answered and twice.refused


@pytest.mark.parametrize(
    ("liar", "sentence"),
    [
        (OverBudget(), "`OverBudget` proposed a keep-set outside the budget"),
        (LowBound(), "`LowBound` claims the upper bound"),
        (ModestBound(), "`ModestBound` claims that no keep-set exceeds"),
        (Proud(), "`Proud` claims"),
        (ProudOfNothing(), "`ProudOfNothing` claims an optimal answer"),
        (Forgetful(), "`Forgetful` must repeat itself with the same seed"),
        (Lazy(), f"`Lazy` refuses each of the {len(OBJECTIVES) * len(BUDGETS)} problems"),
        (Curt(), "`Curt` must refuse a problem with a sentence .* got 'no'"),
        (Crashing(), "`Crashing` must answer or refuse, got IndexError"),
        (LaunchShy(), "`LaunchShy` must not heed a launch time"),
        (Loose(), "`Loose` must be a frozen dataclass"),
        (OneOfAKind(), "`OneOfAKind` must be a frozen dataclass"),
        (Texts(), r"the options \['kind'\] of `Texts` are strings"),
        (Undocumented(), "`Undocumented` must have a docstring"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Solver) else "",
)
def test_a_lying_solver_is_found(liar: Solver, sentence: str) -> None:
    with pytest.raises(BrokenLaw, match=sentence) as broken:
        check_solver(liar)
    assert str(broken.value).endswith(".")


def test_a_solver_that_heeds_the_order_of_units_is_found() -> None:
    assert check_solver(FirstUnits(), budgets=FEW).answered
    check_solver(Mine(), budgets=FEW, ignores_names=True)
    with pytest.raises(BrokenLaw, match="`FirstUnits` finds the value .* come in the order"):
        check_solver(FirstUnits(), budgets=FEW, ignores_names=True)


def test_the_sentence_makes_the_problem_again() -> None:
    with pytest.raises(BrokenLaw) as broken:
        check_solver(Proud(), seed=40)
    found = re.search(
        r"Found on (make_problem\(.*\)), solved with the same seed", str(broken.value)
    )
    assert found
    names = {"objectives": OBJECTIVES, "budgets": BUDGETS, "spaces": SPACES}
    problem: Problem = eval(found[1], {"make_problem": make_problem, **names})
    best = select(problem, BruteForce()).value
    assert problem.objective.value(Proud().kept(problem)) < best
    assert f"{best}" in str(broken.value)


def test_objectives_of_ones_own_take_part() -> None:
    def refused(rng: np.random.Generator, space: HeadSpace) -> Objective:
        return Convex(space.n)

    with pytest.raises(
        BrokenLaw, match=r"`Convex` declares a fact that does not hold.*objectives\['mine'\]"
    ):
        check_solver(Mine(), objectives={"mine": refused})


# --- objectives -----------------------------------------------------------------------------------


class Convex(Objective):
    """The square of the number of units: monotone, but not submodular."""

    monotone, submodular = True, True

    def __init__(self, n: int = SPACE.n) -> None:
        self._n = n

    @property
    def n(self) -> int:
        return self._n

    def value(self, kept: Bools) -> float:
        return float(kept.sum()) ** 2


class Concave(Convex):
    """What holds for the root of the number of units, for others to spoil."""

    def value(self, kept: Bools) -> float:
        return math.sqrt(kept.sum())


class Peaked(Concave):
    """Submodular, but the last unit of all takes something away."""

    def value(self, kept: Bools) -> float:
        return math.sqrt(kept.sum()) - float(kept.all())


class Drifting(DirectTracker):
    """Forgets a little at every removal."""

    def remove(self, unit: int) -> None:
        before = self.value
        super().remove(unit)
        self.value += 1e-6 * (before - self.value)


class Drifts(Concave):
    def tracker(self, kept: Bools) -> DirectTracker:
        return Drifting(self, kept)


class WrongGains(DirectTracker):
    def gains(self, units: Ints | None = None) -> Floats:
        return np.abs(super().gains(units))


class WrongSome(DirectTracker):
    """Answers for the first units rather than for those asked."""

    def gains(self, units: Ints | None = None) -> Floats:
        return super().gains() if units is None else super().gains()[: len(units)]


class GainsWithoutSign(Concave):
    def tracker(self, kept: Bools) -> DirectTracker:
        return WrongGains(self, kept)


class ConfusesUnits(Concave):
    def tracker(self, kept: Bools) -> DirectTracker:
        return WrongSome(self, kept)


class Borrowing(DirectTracker):
    def __init__(self, objective: Objective, kept: Bools) -> None:
        super().__init__(objective, kept)
        self.kept = kept


class Borrows(Concave):
    def tracker(self, kept: Bools) -> DirectTracker:
        return Borrowing(self, kept)


class OwnGains(Concave):
    def gains(self, kept: Bools) -> Floats:
        return self.tracker(kept).gains() * np.where(kept, 2, 1)


class Spoils(Concave):
    def value(self, kept: Bools) -> float:
        kept[0] = True
        return super().value(kept)


class Infinite(Concave):
    def value(self, kept: Bools) -> float:
        return super().value(kept) if kept.any() else -math.inf


class Linear(Concave):
    def linear(self) -> Floats:
        return np.ones(self.n)


class QuadraticOne(Concave):
    def quadratic(self) -> QuadraticForm:
        return QuadraticForm(np.ones(self.n), np.zeros((self.n, self.n)))


class Coverage(Concave):
    def coverage(self) -> CoverageForm:
        return CoverageForm(np.ones((1, self.n)), np.ones(1))


class Weights(Objective):
    """A sum of weights, which separates; its tables are those of the first units."""

    n = SPACE.n

    def value(self, kept: Bools) -> float:
        return float(np.arange(1, self.n + 1) @ kept)

    def separable(self, space: HeadSpace) -> tuple[BestSubsets, ...]:
        kept = np.tri(5, 4, -1, dtype=np.bool_)
        weights = np.arange(1, self.n + 1).reshape(2, 4)
        return tuple(BestSubsets((kept @ own).astype(np.float64), kept) for own in weights)


class Separable(Concave):
    def separable(self, space: HeadSpace) -> tuple[BestSubsets, ...]:
        kept = np.tri(5, 4, -1, dtype=np.bool_)
        return (BestSubsets(np.sqrt(kept.sum(axis=1)), kept),) * 2


def test_a_true_objective_passes() -> None:
    check_objective(Concave(), SPACE)
    for make in OBJECTIVES.values():
        check_objective(make(np.random.default_rng(0), SPACE), SPACE, chains=2)


@pytest.mark.parametrize(
    ("liar", "sentence"),
    [
        (Convex(), "`Convex` declares `submodular`, and"),
        (Peaked(), "`Peaked` declares `monotone`, and"),
        (Drifts(), "the tracker of `Drifts`, from .* after .* says"),
        (GainsWithoutSign(), "the tracker of `GainsWithoutSign`, .* has the gains"),
        (ConfusesUnits(), "the tracker of `ConfusesUnits`, .* has the gains .* for "),
        (Borrows(), "`Borrows`"),
        (OwnGains(), "`OwnGains` has the gains"),
        (Spoils(), "`Spoils.value` changes the keep-set"),
        (Infinite(), "`Infinite` has the value -inf at"),
        (Linear(), "but .* by its `linear`"),
        (QuadraticOne(), "but .* by its `quadratic`"),
        (Coverage(), "but .* by its `coverage`"),
        (Weights(), "`Weights` gives .* in `separable`"),
        (Separable(), "`Separable` gives .* in `separable`"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Objective) else "",
)
def test_a_lying_objective_is_found(liar: Objective, sentence: str) -> None:
    with pytest.raises(BrokenLaw, match=f"(?s){sentence}.*Found on the chain of seed"):
        check_objective(liar, SPACE)


# --- the door -------------------------------------------------------------------------------------


def test_what_cannot_be_checked_is_refused() -> None:
    with pytest.raises(TypeError, match="`solver` must be a Solver value"):
        check_solver(TopK)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`rounds` must be at least 1, got .* and 0"):
        check_solver(TopK(), rounds=0)
    with pytest.raises(ValueError, match="must hold at least one each"):
        check_solver(TopK(), objectives={})
    with pytest.raises(TypeError, match="`objective` must be an Objective"):
        check_objective(Concave, SPACE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`chains` must be at least 1"):
        check_objective(Concave(), SPACE, chains=0)
    with pytest.raises(BrokenLaw, match="`Concave` has n = 3, and `space` has 8 units"):
        check_objective(Concave(3), SPACE)


def test_the_checks_need_numpy_only() -> None:
    code = "import sys, cahp_opt.testing; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"pytest", "hypothesis", "torch", "scipy"} & set(loaded.stdout.split())
