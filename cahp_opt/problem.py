"""The problem: an objective to be maximised within a budget."""

from __future__ import annotations

from dataclasses import dataclass

from cahp_opt.costs.budget import Budget
from cahp_opt.objective import Objective
from cahp_opt.space import HeadSpace


@dataclass(frozen=True, eq=False)
class Problem:
    """Maximise an objective within a budget.

    Raises:
        ValueError: if the two are over different numbers of units.
    """

    objective: Objective
    budget: Budget

    def __post_init__(self) -> None:
        if self.objective.n != self.budget.space.n:
            raise ValueError(
                f"`objective` is over {self.objective.n} units and `budget` over "
                f"{self.budget.space.n}; both must describe the same model."
            )

    @property
    def space(self) -> HeadSpace:
        """The blocks and their units."""
        return self.budget.space
