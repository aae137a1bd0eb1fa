"""The protocol of a solver, which takes a problem and makes a proposal."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from cahp_opt.arrays import Bools
from cahp_opt.problem import Problem

Number = float | int | str


class Status(Enum):
    """How far the answer is proved; the value is a sentence for people."""

    OPTIMAL = "Proved optimal: no keep-set within the budget has a larger value (beyond rounding)."
    FEASIBLE = "Within the budget; the gap bounds how far it is from the optimum."
    TIME_LIMIT = "The time limit ended the search; more time may find a better answer."
    GIVEN = "A keep-set made by hand; no solver chose it."


@dataclass(frozen=True, eq=False)
class Proposal:
    """A solver's answer to :func:`select`: a keep-set and, if it proved one, an upper bound.

    Args:
        kept: the keep-set, bool ``[n]``.
        bound: an upper bound on the optimum that the solver has proved; infinity if none.
        status: ``OPTIMAL`` only if the solver proved it.
        certificate: where the bound comes from, in words.
        stats: anything worth reporting, such as counts of evaluations.
    """

    kept: Bools
    bound: float = math.inf
    status: Status = Status.FEASIBLE
    certificate: str = ""
    stats: Mapping[str, Number] = field(default_factory=dict[str, Number])


class Solver(ABC):
    """A way to choose the units to keep. Subclasses are frozen dataclasses of options, without state."""

    @abstractmethod
    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        """A keep-set within the budget.

        Args:
            problem: the objective and the budget.
            deadline: the ``time.monotonic()`` at which to return the best found so far; may be
                infinite.
            rng: the only source of randomness.

        Raises:
            ValueError: if the solver cannot handle the structure of the problem; the sentence names
                an alternative.
        """
