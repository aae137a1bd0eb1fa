"""Exact selection for quadratic forms and facility location, by mixed-integer linear masters."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from cahp_opt.arrays import Bools, Floats
from cahp_opt.bounds.frank_wolfe import Effort, FrankWolfe, quadratic_frank_wolfe, split_oracle
from cahp_opt.bounds.oracle import Oracle
from cahp_opt.objective import CoverageForm, QuadraticForm
from cahp_opt.problem import Problem
from cahp_opt.rounding import rounding_slack
from cahp_opt.solver import Number, Proposal, Solver, Status
from cahp_opt.solvers.local_search import improve
from cahp_opt.solvers.parts.climbing import climb
from cahp_opt.solvers.parts.master import Answer, Master, Options, TimeUp, math_opt
from cahp_opt.solvers.parts.neighbourhood import Neighbourhood
from cahp_opt.solvers.parts.polishing import Polisher
from cahp_opt.solvers.parts.terms import Products, Rows, Squares, Terms
from cahp_opt.solvers.row_prices import CERTIFICATE, price_rows


class Formulation(Enum):
    """How a quadratic form becomes a linear master; the value says it in words."""

    AUTO = "chosen from the matrix"
    OUTER_APPROXIMATION = "outer approximation: tangent cuts of a convex rest, exact inside blocks"
    LINEARISED = "linearised products (Glover 1975)"


@dataclass(frozen=True)
class MIQP(Solver):
    """The optimum, or a good answer with a tight bound, of a quadratic form or facility location.

    First a Frank-Wolfe or Lagrangian bound and local search from what it met; what that leaves open
    goes to a mixed-integer master in OR-Tools (HiGHS, one thread). Dense interactions: outer
    approximation (Duran and Grossmann 1986), where each block chooses among the subsets that the
    bound cannot exclude. Weak or sparse pairs: linearised products. Facility location: cuts per row
    (Fischetti, Ljubic and Sinnl 2017). Sums of weights are exact at once. ``stats`` says which
    formulation was taken and why.

    Args:
        gap: relative gap, of the bound to the value, at which to stop; at least 0.
        formulation: how a quadratic form becomes linear.
        rounds: how often the master is solved anew with more cuts; at least 1.

    Raises:
        ValueError: if the objective offers neither a quadratic form nor a coverage, or OR-Tools is
            missing.
    """

    gap: float = 1e-7
    formulation: Formulation = Formulation.AUTO
    rounds: int = 50

    def __post_init__(self) -> None:
        if not self.gap >= 0:
            raise ValueError(f"`gap` must be at least 0, got {self.gap}.")
        if self.rounds < 1:
            raise ValueError(f"`rounds` must be at least 1, got {self.rounds}.")

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        objective = problem.objective
        weights = objective.linear()
        if weights is not None:
            return _modular(problem, weights, deadline)
        form = objective.quadratic()
        cover = objective.coverage() if form is None else None
        if form is None and cover is None:
            raise ValueError(
                f"`MIQP` needs a quadratic form or a coverage, and "
                f"`{type(objective).__name__}` offers neither; use `LazyGreedy` or `Greedy`."
            )
        math_opt()
        began = time.monotonic()
        start = climb(
            problem, 3, lazy=objective.submodular, deadline=began + (deadline - began) / 4
        ).kept
        search = _Search(problem, start, self.gap, deadline, int(rng.integers(2**31 - 1)))
        try:
            if form is not None:
                search.quadratic(form, self.formulation, self.rounds, rng)
            elif cover is not None:
                search.coverage(cover, self.rounds)
        except TimeUp:  # while a master was built: what was found before stands
            pass
        return search.proposal()


def _modular(problem: Problem, weights: Floats, deadline: float) -> Proposal:
    oracle = Oracle(problem.budget, [None] * len(problem.space.blocks), deadline=deadline)
    found = oracle.best(weights)
    value = problem.objective.value(found.kept)
    exact = found.bound <= value + rounding_slack(value, found.bound)
    return Proposal(
        found.kept,
        max(found.bound, value) if exact else found.bound,
        Status.OPTIMAL if exact else _unproved(deadline),
        "the exact optimum of a sum of weights",
        {"formulation": "exact oracle", "because": "the objective is a sum of weights"},
    )


class _Search:
    """One run: the best keep-set and the smallest bound so far."""

    def __init__(
        self, problem: Problem, start: Bools, gap: float, deadline: float, seed: int
    ) -> None:
        self._problem, self._gap, self._deadline, self._seed = problem, gap, deadline, seed
        self._kept, self._value = start, problem.objective.value(start)
        self._bound, self._certificate = math.inf, ""
        self._stats: dict[str, Number] = {}
        self._began = time.monotonic()

    def quadratic(
        self, form: QuadraticForm, wanted: Formulation, rounds: int, rng: np.random.Generator
    ) -> None:
        """Frank-Wolfe, local search, and the master that suits the matrix."""
        budget = self._problem.budget
        polisher = Polisher(budget, form)
        self._offer(polisher.polish(self._kept, self._share(0.1)))
        fw = quadratic_frank_wolfe(
            budget,
            form,
            self._kept,
            Effort(5, 50, 1e-5),
            deadline=self._share(0.3),
            floor=self._value,
        )
        self._tighten(fw.bound, "Frank-Wolfe over the exact oracle")
        until = self._share(0.3)
        kept, _ = polisher.best_of([self._kept, *fw.met[:8]], until)
        kept, _ = polisher.shaken(kept, rng, 20 if len(kept) > 30 else 3, until)
        self._offer(kept)
        chosen, why = _choose(form, wanted)
        self._stats["formulation"], self._stats["because"] = chosen.value, why
        if self._done():
            return
        scale = self._bound - self._value
        if chosen is Formulation.LINEARISED:
            master = Master(
                budget,
                form.linear + np.diagonal(form.pairwise),
                [None] * len(budget.space.blocks),
                self._value - form.constant,
                scale,
                self._deadline,
            )
            terms: Terms = Products(master, form.pairwise - np.diag(np.diagonal(form.pairwise)))
            self._iterate(master, terms, form.constant, rounds)
            return
        master, options, weights = self._subsets(form, fw, scale)
        terms = Squares(master, fw.split.rest)
        for point in [fw.point, *fw.met[:20].astype(np.float64), self._kept.astype(np.float64)]:
            terms.cut(point)

        def own(y: Floats) -> float:
            return float(weights @ y) + terms.value(y)

        listed = sum(len(o.worth) for o in options if o is not None)
        self._stats["subsets"] = listed
        self._sharpen(master, terms, form.constant, None if listed else own)
        self._iterate(master, terms, form.constant, rounds)

    def coverage(self, form: CoverageForm, rounds: int) -> None:
        """Lagrangian prices, and the master with cuts per row."""
        problem, budget = self._problem, self._problem.budget
        self._stats["formulation"] = "assignment bounds by cuts per row"
        self._stats["because"] = "the objective is a weighted coverage"
        here = Neighbourhood(problem, self._kept)
        improve(here, 2, self._share(0.3))
        self._offer(here.kept)
        priced = price_rows(problem, form, self._kept, 600, self._share(0.5))
        self._tighten(priced.bound, CERTIFICATE)
        self._offer(priced.kept)
        if self._done():
            return
        n = self._problem.space.n
        master = Master(
            budget,
            np.zeros(n),
            [None] * len(budget.space.blocks),
            self._value,
            max(self._bound - self._value, 1e-6 * abs(self._value)),
            self._deadline,
        )
        rows = Rows(master, form)
        for row, price in enumerate(priced.prices):
            rows.cut_at(row, float(price))
        rows.cut(self._kept.astype(np.float64))
        self._sharpen(master, rows, 0.0, rows.value)
        self._iterate(master, rows, 0.0, rounds)

    # -- inside ------------------------------------------------------------------------------------

    def _subsets(
        self, form: QuadraticForm, fw: FrankWolfe, scale: float
    ) -> tuple[Master, list[Options | None], Floats]:
        """A master whose blocks list the subsets that the Frank-Wolfe bound cannot exclude."""
        budget, y, rest = self._problem.budget, fw.point, fw.split.rest
        oracle = split_oracle(budget, form, fw.split, self._deadline)
        pull = rest @ y
        fixed = form.constant + float(y @ pull) + fw.split.excess
        floor = self._value - rounding_slack(self._value, self._bound)
        hopeful = oracle.hopeful(-2 * pull, floor - fixed).listed()
        options = [None if h is None else Options(h[0].astype(np.float64), h[1]) for h in hopeful]
        weights = form.linear + np.diagonal(fw.split.inside)
        for where, listed in zip(budget.space.slices, options, strict=True):
            if listed is not None:
                weights[where] = 0.0
        return (
            Master(
                budget,
                weights,
                options,
                self._value - form.constant,
                scale,
                self._deadline,
            ),
            options,
            weights,
        )

    def _sharpen(
        self, master: Master, terms: Terms, constant: float, own: Callable[[Floats], float] | None
    ) -> None:
        """Cuts at solutions of the linear relaxation, which are cheap, before branching."""
        last = math.inf
        for _ in range(30):
            answer = master.relaxed(self._share(0.3))
            if answer.point is None:
                return
            bound = answer.bound + constant
            self._tighten(bound, "the linear master of an outer approximation")
            true = None if own is None else own(answer.point) + constant
            small = 1e-3 * max(self._bound - self._value, 0.0)
            if bound > last - small or (true is not None and bound - true <= small):
                return
            last = bound
            terms.cut(answer.point)

    def _iterate(self, master: Master, terms: Terms, constant: float, rounds: int) -> None:
        """Branch and bound on the master, cuts where it was too hopeful, and again."""
        problem = self._problem
        seen = set[bytes]()
        for turn in range(rounds):
            if self._done() or time.monotonic() > self._deadline:
                return
            answer: Answer = master.solve(self._deadline, self._seed)
            self._stats["masters"] = turn + 1
            if answer.bound == -math.inf:
                # Only what is worth less than the incumbent was left out of the master.
                self._tighten(self._value, "exhausted subsets of an outer approximation")
                return
            self._tighten(
                max(answer.bound + constant, self._value),
                "branch and bound on a linear master, to its solver's tolerance",
            )
            if answer.point is None:
                return
            kept: Bools = answer.point > 0.5
            counts = problem.space.counts(kept)
            if not problem.budget.allows(counts):
                master.forbid(counts)
                continue
            value = problem.objective.value(kept)
            self._offer(kept)
            hoped = answer.bound + constant
            terms.cut(kept.astype(np.float64))
            if kept.tobytes() in seen or hoped - value <= 1e-9 * max(abs(value), abs(hoped)):
                return  # the master is exact there already, to its solver's tolerance
            seen.add(kept.tobytes())

    def _share(self, part: float) -> float:
        """A deadline after this part of the time that is left."""
        now = time.monotonic()
        return now + part * (self._deadline - now) if math.isfinite(self._deadline) else math.inf

    def _offer(self, kept: Bools) -> None:
        value = self._problem.objective.value(kept)
        if value > self._value:
            self._kept, self._value = kept, value

    def _tighten(self, bound: float, certificate: str) -> None:
        if bound < self._bound:
            self._bound, self._certificate = bound, certificate

    def _done(self) -> bool:
        return self._bound - self._value <= max(
            self._gap * abs(self._value), rounding_slack(self._value, self._bound)
        )

    def proposal(self) -> Proposal:
        """The best keep-set with what is proved about it."""
        slack = rounding_slack(self._value, self._bound)
        exact = self._bound <= self._value + slack
        status = Status.OPTIMAL if exact else _unproved(self._deadline)
        return Proposal(
            self._kept, max(self._bound, self._value), status, self._certificate, self._stats
        )


def _unproved(deadline: float) -> Status:
    return Status.TIME_LIMIT if time.monotonic() > deadline else Status.FEASIBLE


def _choose(form: QuadraticForm, wanted: Formulation) -> tuple[Formulation, str]:
    """The formulation for a matrix, and why."""
    if wanted is not Formulation.AUTO:
        return wanted, "asked for"
    off = np.abs(form.pairwise - np.diag(np.diagonal(form.pairwise)))
    alone = np.abs(form.linear + np.diagonal(form.pairwise))
    partners = float(np.count_nonzero(off)) / len(off)
    share = float(off.sum()) / max(float(alone.sum()), 1e-300)
    if partners <= 4:
        return (
            Formulation.LINEARISED,
            f"units have {partners:.1f} partners on average: sparse pairs",
        )
    if share <= 0.5:
        return (
            Formulation.LINEARISED,
            f"pairs hold {share:.2g} of what units are worth alone: weak pairs",
        )
    return (
        Formulation.OUTER_APPROXIMATION,
        f"units have {partners:.0f} partners, and pairs hold {share:.2g} of what units are worth "
        "alone: dense pairs",
    )
