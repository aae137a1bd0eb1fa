"""Run several solvers and keep the best answer."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from cahp_opt.problem import Problem
from cahp_opt.solver import Number, Proposal, Solver, Status
from cahp_opt.solvers.parts.incumbent import Incumbent


@dataclass(frozen=True)
class BestOf(Solver):
    """The best keep-set of several solvers, with the tightest of their bounds (an algorithm portfolio,
    Gomes and Selman 2001).

    Solvers that refuse the structure of the problem are passed over. Until the deadline, each solver
    gets an equal share of the time that is left. The answer counts as optimal only if a bound proves it.

    Cost: the sum of its solvers' costs; exact if one proves the best answer; needs what any one needs.

    Args:
        solvers: at least one solver.
    """

    solvers: tuple[Solver, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "solvers", tuple(self.solvers))
        if not self.solvers or not all(isinstance(solver, Solver) for solver in self.solvers):
            raise ValueError(
                "`solvers` must be one or more Solver values such as `(LazyGreedy(), Greedy())`, got "
                f"{self.solvers!r}."
            )

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        best: Incumbent | None = None
        winner, cut_short = "", False
        refusals: list[str] = []
        stats: dict[str, Number] = {}
        for place, solver in enumerate(self.solvers):
            now = time.monotonic()
            if best is not None and now > deadline:
                cut_short = True
                break
            share = now + (deadline - now) / (len(self.solvers) - place)
            # Its randomness does not depend on how much the others drew.
            own = np.random.default_rng(rng.integers(2**31, size=1, dtype=np.int64))
            try:
                proposal = solver.solve(problem, deadline=share, rng=own)
            except ValueError as refusal:
                refusals.append(str(refusal))
                continue
            broken = problem.budget.violation(problem.space.counts(proposal.kept))
            if broken:
                raise RuntimeError(
                    f"`{type(solver).__name__}` proposed a keep-set outside the budget: {broken} "
                    "This is a bug."
                )
            if best is None:
                best, winner = Incumbent(problem, proposal.kept), repr(solver)
            before = best.value
            value = best.offer(proposal.kept)
            winner = repr(solver) if value > before else winner
            stats[f"value of {place + 1}: {solver!r}"] = value
            cut_short |= proposal.status is Status.TIME_LIMIT
            best.tighten(
                proposal.bound, proposal.certificate or f"{type(solver).__name__}'s own proof"
            )
        if best is None:
            raise ValueError(
                "`BestOf` has no solver that takes this problem, add `LazyGreedy()`: "
                + " ".join(refusals)
            )
        best.cut_short = cut_short
        best.stats |= {**stats, "best": winner, "refused": len(refusals)}
        return best.proposal()
