"""Exact selection for quadratic forms and facility location, by mixed-integer linear masters."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from cahp_opt.arrays import Bools, Floats
from cahp_opt.bounds.frank_wolfe import (
    CERTIFICATE,
    Effort,
    FrankWolfe,
    quadratic_frank_wolfe,
)
from cahp_opt.bounds.oracle import Oracle
from cahp_opt.bounds.split_form import SplitForm
from cahp_opt.objective import CoverageForm, QuadraticForm
from cahp_opt.problem import Problem
from cahp_opt.rounding import rounding_slack
from cahp_opt.solver import Proposal, Solver
from cahp_opt.solvers.parts.climbing import climb
from cahp_opt.solvers.parts.incumbent import Incumbent
from cahp_opt.solvers.parts.local_optimum import to_local_optimum
from cahp_opt.solvers.parts.master import Answer, Master, Options, TimeUp, math_opt
from cahp_opt.solvers.parts.neighbourhood import Neighbourhood
from cahp_opt.solvers.parts.polishing import Polisher
from cahp_opt.solvers.parts.pricing import price_rows
from cahp_opt.solvers.parts.terms import Products, Rows, Squares, Terms


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

    Cost: O(n^3) first, masters exponential in n at worst; exact; needs `quadratic()` or `coverage()`.

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
        best = Incumbent(problem, start, deadline)
        search = _Masters(best, self, int(rng.integers(2**31 - 1)))
        try:
            if form is not None:
                search.quadratic(form, rng)
            elif cover is not None:
                search.coverage(cover)
        except TimeUp:  # while a master was built: what was found before stands
            pass
        # A linear master proves up to its solver's tolerance, which a keep-set may show.
        best.bound = max(best.bound, best.value)
        return best.proposal()


def _modular(problem: Problem, weights: Floats, deadline: float) -> Proposal:
    oracle = Oracle(problem.budget, [None] * len(problem.space.blocks), deadline=deadline)
    found = oracle.best(weights)
    best = Incumbent(problem, found.kept, deadline)
    best.tighten(found.bound, "the exact optimum of a sum of weights")
    best.stats["formulation"] = "exact oracle"
    best.stats["because"] = "the objective is a sum of weights"
    return best.proposal()


class _Masters:
    """One run, from the incumbent that it improves."""

    def __init__(self, best: Incumbent, options: MIQP, seed: int) -> None:
        self._best, self._options, self._seed = best, options, seed
        self._problem, self._deadline = best.problem, best.deadline

    def quadratic(self, form: QuadraticForm, rng: np.random.Generator) -> None:
        """Frank-Wolfe, local search, and the master that suits the matrix."""
        best = self._best
        budget = self._problem.budget
        polisher = Polisher(budget, form)
        best.offer(polisher.polish(best.kept, best.share(0.1)))
        fw = quadratic_frank_wolfe(
            budget,
            form,
            best.kept,
            Effort(5, 50, 1e-5),
            deadline=best.share(0.3),
            floor=best.value,
        )
        best.tighten(fw.bound, CERTIFICATE)
        until = best.share(0.3)
        kept, _ = polisher.best_of([best.kept, *fw.met[:8]], until)
        kept, _ = polisher.shaken(kept, rng, 20 if len(kept) > 30 else 3, until)
        best.offer(kept)
        chosen, why = _choose(form, self._options.formulation)
        best.stats["formulation"], best.stats["because"] = chosen.value, why
        if best.done(self._options.gap):
            return
        scale = best.bound - best.value
        if chosen is Formulation.LINEARISED:
            master = Master(
                budget,
                form.linear + np.diagonal(form.pairwise),
                [None] * len(budget.space.blocks),
                best.value - form.constant,
                scale,
                self._deadline,
            )
            terms: Terms = Products(master, form.pairwise - np.diag(np.diagonal(form.pairwise)))
            self._iterate(master, terms, form.constant)
            return
        master, options, weights = self._subsets(form, fw, scale)
        terms = Squares(master, fw.split.rest)
        for point in [fw.point, *fw.met[:20].astype(np.float64), best.kept.astype(np.float64)]:
            terms.cut(point)

        def own(y: Floats) -> float:
            return float(weights @ y) + terms.value(y)

        listed = sum(len(o.worth) for o in options if o is not None)
        best.stats["subsets"] = listed
        self._sharpen(master, terms, form.constant, None if listed else own)
        self._iterate(master, terms, form.constant)

    def coverage(self, form: CoverageForm) -> None:
        """Lagrangian prices, and the master with cuts per row."""
        best, problem, budget = self._best, self._problem, self._problem.budget
        best.stats["formulation"] = "assignment bounds by cuts per row"
        best.stats["because"] = "the objective is a weighted coverage"
        here = Neighbourhood(problem, best.kept)
        to_local_optimum(here, 2, best.share(0.3))
        best.offer(here.kept)
        priced = price_rows(best, form, 600, best.share(0.5))
        if best.done(self._options.gap):
            return
        n = self._problem.space.n
        master = Master(
            budget,
            np.zeros(n),
            [None] * len(budget.space.blocks),
            best.value,
            max(best.bound - best.value, 1e-6 * abs(best.value)),
            self._deadline,
        )
        rows = Rows(master, form)
        for row, price in enumerate(priced.prices):
            rows.cut_at(row, float(price))
        rows.cut(best.kept.astype(np.float64))
        self._sharpen(master, rows, 0.0, rows.value)
        self._iterate(master, rows, 0.0)

    # -- inside ------------------------------------------------------------------------------------

    def _subsets(
        self, form: QuadraticForm, fw: FrankWolfe, scale: float
    ) -> tuple[Master, list[Options | None], Floats]:
        """A master whose blocks list the subsets that the Frank-Wolfe bound cannot exclude."""
        best, budget = self._best, self._problem.budget
        terms = SplitForm.of(budget, form, fw.split, self._deadline)
        floor = best.value - rounding_slack(best.value, best.bound)
        hopeful = terms.hopeful(fw.point, floor).oracle.listed()
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
                best.value - form.constant,
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
        best, last = self._best, math.inf
        for _ in range(30):
            answer = master.relaxed(best.share(0.3))
            if answer.point is None:
                return
            bound = answer.bound + constant
            best.tighten(bound, "the linear master of an outer approximation")
            true = None if own is None else own(answer.point) + constant
            small = 1e-3 * max(best.bound - best.value, 0.0)
            if bound > last - small or (true is not None and bound - true <= small):
                return
            last = bound
            terms.cut(answer.point)

    def _iterate(self, master: Master, terms: Terms, constant: float) -> None:
        """Branch and bound on the master, cuts where it was too hopeful, and again."""
        best, problem = self._best, self._problem
        seen = set[bytes]()
        for turn in range(self._options.rounds):
            if best.done(self._options.gap) or time.monotonic() > self._deadline:
                return
            answer: Answer = master.solve(self._deadline, self._seed)
            best.stats["masters"] = turn + 1
            if answer.bound == -math.inf:
                # Only what is worth less than the incumbent was left out of the master.
                best.tighten(best.value, "exhausted subsets of an outer approximation")
                return
            best.tighten(
                max(answer.bound + constant, best.value),
                "branch and bound on a linear master, to its solver's tolerance",
            )
            if answer.point is None:
                return
            kept: Bools = answer.point > 0.5
            counts = problem.space.counts(kept)
            if not problem.budget.allows(counts):
                master.forbid(counts)
                continue
            value = best.offer(kept)
            hoped = answer.bound + constant
            terms.cut(kept.astype(np.float64))
            if kept.tobytes() in seen or hoped - value <= 1e-9 * max(abs(value), abs(hoped)):
                return  # the master is exact there already, to its solver's tolerance
            seen.add(kept.tobytes())


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
