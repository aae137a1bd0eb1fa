"""One selection for every limit of a range, and its knee."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Floats
from cahp_opt.files.records import PathLike, read_json, reading, write_json
from cahp_opt.knees import knee
from cahp_opt.problem import Problem
from cahp_opt.progress import Progress, silent
from cahp_opt.selection import Selection, select
from cahp_opt.solver import Proposal, Solver

_KIND, _VERSION = "cahp-frontier", 1


@dataclass(frozen=True, eq=False)
class Frontier:
    """Selections over a range of limits of one table of the budget, by rising limit.

    Args:
        table: name of the table whose limit varies.
        limits: its limits, rising, ``[points]``.
        selections: one per limit.
    """

    table: str
    limits: Floats
    selections: tuple[Selection, ...]

    @property
    def values(self) -> Floats:
        """The value at every limit, ``[points]``."""
        return np.array([selection.value for selection in self.selections])

    @property
    def bounds(self) -> Floats:
        """The certified bound at every limit, ``[points]``."""
        return np.array([selection.bound for selection in self.selections])

    @property
    def costs(self) -> Floats:
        """The cost of every selection, ``[points]``."""
        return np.array([selection.costs[self.table].value for selection in self.selections])

    def __len__(self) -> int:
        return len(self.selections)

    def __iter__(self) -> Iterator[Selection]:
        return iter(self.selections)

    def knee(
        self, measured: npt.ArrayLike | None = None, *, degree: int | None = None
    ) -> Selection:
        """The selection at the knee of quality against cost; see :func:`knee` for what that means.

        Args:
            measured: the quality of every selection, larger is better, ``[points]``; None for the
                values of the objective.
            degree: of the polynomial that smooths the curve; None for the points themselves.

        Raises:
            ValueError: as :func:`knee`, or for another number of qualities than of selections.
        """
        cost = knee(self.costs, self._quality(measured), degree=degree)
        return self.selections[int(np.argmin(np.abs(self.costs - cost)))]

    def cheapest_within(self, loss: float, measured: npt.ArrayLike | None = None) -> Selection:
        """The cheapest selection whose quality is at most ``loss`` below the best of the frontier.

        Unlike a knee, it does not depend on where the frontier begins, and states the loss.

        Args:
            loss: at least 0, in the unit of the quality: 0.01 for a point of accuracy.
            measured: the quality of every selection, larger is better (a divergence with its sign
                changed), ``[points]``; None for the values of the objective.

        Raises:
            ValueError: for a negative or infinite loss, NaN, or another number of qualities than of
                selections.
        """
        if not 0 <= loss < np.inf:
            raise ValueError(f"`loss` must be a finite number of at least 0, got {loss}.")
        quality = self._quality(measured)
        enough = np.flatnonzero(quality >= quality.max() - loss)
        return self.selections[int(enough[np.argmin(self.costs[enough])])]

    def _quality(self, measured: npt.ArrayLike | None) -> Floats:
        """The values, or what was measured, one number per selection."""
        if measured is None:
            return self.values
        quality = np.asarray(measured, dtype=np.float64)
        if quality.shape != (len(self),) or not np.all(np.isfinite(quality)):
            raise ValueError(
                f"`measured` must be {len(self)} finite numbers, one per selection, got shape "
                f"{list(quality.shape)} with {int((~np.isfinite(quality)).sum())} not finite."
            )
        return quality

    def save(self, path: PathLike) -> None:
        """Write the frontier as JSON."""
        body = {
            "table": self.table,
            "limits": self.limits.tolist(),
            "selections": [selection.to_json() for selection in self.selections],
        }
        write_json(path, _KIND, _VERSION, body)

    @staticmethod
    def load(path: PathLike) -> Frontier:
        """Read a frontier.

        Raises:
            RecordError: if the file is not a usable frontier.
            OSError: if it cannot be read.
        """
        data = read_json(path, _KIND, _VERSION)
        with reading(path):
            return Frontier(
                data["table"],
                np.array(data["limits"], dtype=np.float64),
                tuple(Selection.from_json(selection) for selection in data["selections"]),
            )


def frontier(
    problem: Problem,
    solver: Solver,
    limits: Iterable[float],
    *,
    table: str | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Frontier:
    """Solve a problem for every limit of a range.

    From the smallest limit up, every answer is a candidate for the next limit too, which it also
    meets: the value never falls along the frontier, whatever the solver.

    Args:
        problem: the objective and a budget whose table's limit varies.
        solver: asked once per limit.
        limits: in any order; each must be reachable.
        table: name of the table that varies; None for the budget's first.
        time_limit: seconds per limit.
        seed: of every run.
        progress: called once per limit.

    Raises:
        BudgetError: if nothing meets one of the limits.
        ValueError: without limits or a table, or if the solver cannot handle the problem.
    """
    rising = sorted({float(limit) for limit in limits})
    if not rising:
        raise ValueError("`limits` is empty; give at least one limit.")
    name = problem.budget.table_named(table).name
    budgets = [problem.budget.with_limit(limit, table=name) for limit in rising]
    found: list[Selection] = []
    for done, budget in enumerate(budgets, start=1):
        here = Problem(problem.objective, budget)
        selection = select(here, solver, time_limit=time_limit, seed=seed)
        if found and found[-1].value > selection.value:
            # A bound for all keep-sets is one for even ones too.
            free = Problem(problem.objective, replace(budget, even=False))
            selection = select(free, _Known(found[-1].kept, solver), seed=seed)
        found.append(selection)
        progress("frontier", done, len(budgets))
    return Frontier(name, np.array(rising), tuple(found))


@dataclass(frozen=True, eq=False)
class _Known(Solver):
    """Proposes the answer to a smaller limit, under the name of the solver that found it."""

    kept: npt.NDArray[np.bool_]
    solver: Solver

    def __repr__(self) -> str:
        return repr(self.solver)

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        return Proposal(self.kept)
