"""A linear master problem over keep-sets for OR-Tools: choices per block, budget rows, concave terms.

Every block chooses one option: one of a few whole subsets where those are listed, otherwise a count
with one 0/1 variable per unit. The objective is what the options are worth, plus weights of units,
plus terms that cuts bound from above.
"""

from __future__ import annotations

import datetime
import importlib
import logging
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.costs.budget import Budget

_log = logging.getLogger(__name__)


class Options(NamedTuple):
    """Listed subsets of one block, 0/1 ``[m, units]``, and what each is worth, ``[m]``."""

    subsets: Floats
    worth: Floats


class Answer(NamedTuple):
    """The result of a solve: a point ``[n]`` (None if none), and an upper bound on the master."""

    point: Floats | None
    bound: float


def math_opt() -> Any:
    """OR-Tools' MathOpt.

    Raises:
        ValueError: if OR-Tools is not installed.
    """
    try:
        return importlib.import_module("ortools.math_opt.python.mathopt")
    except ImportError as error:
        raise ValueError(
            "`MIQP` needs OR-Tools, which is not installed; `pip install 'cahp-opt[miqp]'` brings it."
        ) from error


class TimeUp(Exception):
    """The deadline came while a model was being built."""


class Master:
    """The model; the objective is divided by ``scale``, so that 1 is a difference that matters.

    Args:
        budget: the limits.
        weights: worth of every unit, ``[n]``.
        options: for every block its listed subsets, or None for counts and 0/1 units.
        origin: a value that is subtracted from the objective.
        scale: the unit of the objective.
        deadline: the ``time.monotonic()`` until which it must stand.

    Raises:
        TimeUp: where it does not stand until the deadline.
    """

    def __init__(
        self,
        budget: Budget,
        weights: Floats,
        options: Sequence[Options | None],
        origin: float,
        scale: float,
        deadline: float = math.inf,
    ) -> None:
        self._mo = math_opt()
        self._deadline = deadline
        self._model = self._mo.Model()
        self._budget, self._origin, self._scale = budget, origin, scale
        self._binaries: list[Any] = []
        self._counts: list[list[tuple[int, Any]]] = []  # per block: count and the option's variable
        self._objective: list[Any] = [-origin / scale]
        model, space = self._model, budget.space
        self.units: list[Any] = []
        for b, (where, listed) in enumerate(zip(space.slices, options, strict=True)):
            self._in_time()
            own: list[tuple[int, Any]] = []
            if listed is None:
                units = [self._binary() for _ in range(where.stop - where.start)]
                own = [(int(k), self._binary()) for k in np.flatnonzero(budget.allowed[b])]
                weighted = self._mo.fast_sum(k * z for k, z in own)
                model.add_linear_constraint(self._mo.fast_sum(units) - weighted == 0)
            else:
                for subset, worth in zip(listed.subsets, listed.worth, strict=True):
                    z = self._binary()
                    own.append((int(subset.sum()), z))
                    self._objective.append(float(worth) / scale * z)
                units = [model.add_variable(lb=0, ub=1) for _ in range(where.stop - where.start)]
                for u, unit in enumerate(units):
                    self._in_time()
                    with_unit = [z for (_, z), s in zip(own, listed.subsets, strict=True) if s[u]]
                    model.add_linear_constraint(self._mo.fast_sum(with_unit) - unit == 0)
            model.add_linear_constraint(self._mo.fast_sum(z for _, z in own) == 1)
            self._counts.append(own)
            self.units += units
        for w, unit in zip(weights, self.units, strict=True):
            self._objective.append(float(w) / scale * unit)
        for table in budget.coupling:
            size = max(float(c.max()) for c in table.costs)
            room = table.limit - table.fixed
            room += 1e-9 * (abs(table.limit) + table.fixed + size * len(table.costs))
            spent = self._mo.fast_sum(
                float(table.costs[b][k]) / size * z
                for b, own in enumerate(self._counts)
                for k, z in own
            )
            model.add_linear_constraint(spent <= room / size)

    def term(self, low: float, high: float) -> Any:
        """A term of the objective, free between two values until cuts bound it; in its own unit."""
        variable = self._model.add_variable(lb=low / self._scale, ub=high / self._scale)
        self._objective.append(variable)
        return variable

    def expression(self, coefficients: Floats) -> Any:
        """A variable that equals ``coefficients @ x``, ``[n]``."""
        self._in_time()
        size = float(np.abs(coefficients).sum()) + 1
        variable = self._model.add_variable(lb=-size, ub=size)
        self._model.add_linear_constraint(self._sum(coefficients) - variable == 0)
        return variable

    def cut(self, term: Any, constant: float, slope: Floats) -> None:
        """``term <= constant + slope @ x`` for a slope ``[n]``."""
        self._model.add_linear_constraint(
            term - self._sum(slope / self._scale) <= constant / self._scale
        )

    def cut_along(self, term: Any, constant: float, slope: float, variable: Any) -> None:
        """``term <= constant + slope * variable``."""
        self._model.add_linear_constraint(
            term - slope / self._scale * variable <= constant / self._scale
        )

    def forbid(self, counts: Ints) -> None:
        """Exclude these counts, ``[blocks]``."""
        chosen = [z for own, c in zip(self._counts, counts, strict=True) for k, z in own if k == c]
        self._model.add_linear_constraint(self._mo.fast_sum(chosen) <= len(counts) - 1)

    def relaxed(self, deadline: float) -> Answer:
        """The linear relaxation."""
        for variable in self._binaries:
            variable.integer = False
        answer = self._solve(self._mo.SolverType.GLOP, deadline, None, None)
        for variable in self._binaries:
            variable.integer = True
        return answer

    def solve(self, deadline: float, seed: int, hint: Bools | None = None) -> Answer:
        """Branch and bound with HiGHS, one thread, from a hint, bool ``[n]``; with SCIP if HiGHS
        fails; no answer if both do."""
        for kind in (self._mo.SolverType.HIGHS, self._mo.SolverType.GSCIP):
            try:
                return self._solve(kind, deadline, seed, hint)
            except (AttributeError, RuntimeError) as failure:
                # Both sometimes end in an internal error, which OR-Tools 9.15 turns to AttributeError.
                _log.info("%s failed (%s).", kind.name, failure)
        return Answer(None, math.inf)

    def _in_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise TimeUp

    def _binary(self) -> Any:
        variable = self._model.add_binary_variable()
        self._binaries.append(variable)
        return variable

    def _sum(self, coefficients: Floats) -> Any:
        return self._mo.fast_sum(
            float(c) * unit for c, unit in zip(coefficients, self.units, strict=True) if c
        )

    def _solve(self, kind: Any, deadline: float, seed: int | None, hint: Bools | None) -> Answer:
        mo = self._mo
        left = deadline - time.monotonic()
        if left <= 0:
            return Answer(None, math.inf)
        self._model.maximize(mo.fast_sum(self._objective))
        parameters = mo.SolveParameters(random_seed=seed)
        if math.isfinite(left):
            parameters.time_limit = datetime.timedelta(seconds=left)
        if seed is not None:
            parameters.relative_gap_tolerance = 0.0
            parameters.absolute_gap_tolerance = 1e-7
            if kind == mo.SolverType.HIGHS:
                parameters.highs.string_options["parallel"] = "off"
                parameters.highs.double_options["mip_feasibility_tolerance"] = 1e-8
        result = mo.solve(self._model, kind, params=parameters)
        reason = result.termination.reason
        if reason == mo.TerminationReason.INFEASIBLE:
            return Answer(None, -math.inf)
        dual = float(result.termination.objective_bounds.dual_bound)
        bound = self._origin + self._scale * (dual + _TOLERANCE)
        point = None
        if result.has_primal_feasible_solution():
            point = np.array(result.variable_values(self.units), dtype=np.float64)
        return Answer(point, bound)


_TOLERANCE = 1e-5
"""The loss that the solver's tolerances allow, in units of the objective."""
