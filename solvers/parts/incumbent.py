"""The best keep-set and the tightest bound so far: what every search that can be cut short holds."""

from __future__ import annotations

import math
import time

from cahp_opt.arrays import Bools
from cahp_opt.problem import Problem
from cahp_opt.rounding import rounding_slack
from cahp_opt.solver import Number, Proposal, Status


class Incumbent:
    """The answer of a search at any moment: what is offered to it makes it never worse, never looser.

    Args:
        problem: the objective and the budget.
        kept: the first keep-set, within the budget, bool ``[n]``.
        deadline: the ``time.monotonic()`` at which the search is to end.
    """

    def __init__(self, problem: Problem, kept: Bools, deadline: float = math.inf) -> None:
        self.problem, self.deadline = problem, deadline
        self.kept, self.value = kept, problem.objective.value(kept)
        self.bound, self.certificate = math.inf, ""
        self.stats: dict[str, Number] = {}
        self.cut_short = False
        """Whether time ended a part of the search before it was through."""

    @staticmethod
    def following(problem: Problem, first: Proposal, deadline: float = math.inf) -> Incumbent:
        """The incumbent of another solver's proposal, with its bound and statistics."""
        self = Incumbent(problem, first.kept, deadline)
        self.bound, self.certificate = first.bound, first.certificate
        self.stats.update(first.stats)
        self.cut_short = first.status is Status.TIME_LIMIT
        return self

    def offer(self, kept: Bools) -> float:
        """Take a keep-set within the budget, bool ``[n]``, if it is better; its value."""
        value = self.problem.objective.value(kept)
        if value > self.value:
            self.kept, self.value = kept, value
        return value

    def tighten(self, bound: float, certificate: str) -> None:
        """Take an upper bound on every keep-set if it is smaller; the certificate says whence it is."""
        if bound < self.bound:
            self.bound, self.certificate = bound, certificate

    def done(self, gap: float = 0.0) -> bool:
        """Whether the bound is within this relative gap of the value, or within rounding."""
        slack = rounding_slack(self.value, self.bound)
        return self.bound - self.value <= max(gap * abs(self.value), slack)

    def share(self, part: float) -> float:
        """A deadline after this part of the time that is left."""
        now = time.monotonic()
        return now + part * (self.deadline - now) if math.isfinite(self.deadline) else math.inf

    def proposal(self) -> Proposal:
        """The best keep-set with what is proved about it.

        A bound below the value by more than rounding stays as it is, for :func:`cahp_opt.select` to
        refuse: somebody's proof was wrong.
        """
        slack = rounding_slack(self.value, self.bound)
        status = Status.FEASIBLE
        if self.bound <= self.value + slack:
            status = Status.OPTIMAL
        elif self.cut_short or time.monotonic() > self.deadline:
            status = Status.TIME_LIMIT
        bound = max(self.bound, self.value) if self.value <= self.bound + slack else self.bound
        return Proposal(self.kept, bound, status, self.certificate, self.stats)
