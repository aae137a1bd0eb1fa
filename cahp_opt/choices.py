"""What can be named on the command line: objectives, solvers and latency goals; and the choice itself."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from enum import Enum

import numpy as np

import cahp_opt
from cahp_opt import solvers
from cahp_opt.budget import Budget
from cahp_opt.heads import HeadSpace, Unit
from cahp_opt.latency import LatencyTable
from cahp_opt.objectives import ExplainedVariance, FacilityLocation, Modular, Quadratic
from cahp_opt.problem import Objective, Problem
from cahp_opt.selection import Selection, Solver, select
from cahp_opt.stats import HeadStats, Moments, Total


class ObjectiveName(str, Enum):
    """The objectives that are made from calibration statistics."""

    EXPLAINED_VARIANCE = "explained-variance"
    """How much of the dense attention output a refit on the kept units can still explain."""
    SALIENCE = "salience"
    """The sum of the kept units' saliences (Michel et al. 2019)."""
    GAUSS_NEWTON = "gauss-newton"
    """Damage avoided under the Gauss-Newton matrix of the fidelity distance."""
    FACILITY_LOCATION = "facility-location"
    """Every unit is represented by the kept one that attends most alike, weighted by salience."""

    def build(self, stats: HeadStats) -> Objective:
        """The objective.

        Raises:
            ValueError: if the statistics lack what it needs.
        """
        return _BUILDERS[self](stats)

    @property
    def gradients(self) -> bool:
        """Whether it needs gate gradients."""
        return self is not ObjectiveName.EXPLAINED_VARIANCE

    @property
    def divergence(self) -> bool:
        """Whether it needs the divergence of attention maps."""
        return self is ObjectiveName.FACILITY_LOCATION

    @property
    def densities(self) -> tuple[float, ...]:
        """Densities of the random masks it needs Gauss-Newton matrices at."""
        return (0.5,) if self is ObjectiveName.GAUSS_NEWTON else ()


_BUILDERS: dict[ObjectiveName, Callable[[HeadStats], Objective]] = {
    ObjectiveName.EXPLAINED_VARIANCE: ExplainedVariance.from_stats,
    ObjectiveName.SALIENCE: Modular.from_stats,
    ObjectiveName.GAUSS_NEWTON: Quadratic.from_stats,
    ObjectiveName.FACILITY_LOCATION: FacilityLocation.from_stats,
}


def _ready(solver: type[Solver]) -> bool:
    """Whether every option of a solver has a default."""
    return is_dataclass(solver) and all(
        f.default is not MISSING or f.default_factory is not MISSING for f in fields(solver)
    )


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


class SolverName(str, Enum):
    """Every solver of :mod:`cahp_opt.solvers` that has defaults for all of its options."""

    _ignore_ = ["_members", "_name"]  # noqa: RUF012 (read once, by Enum itself)
    _members = vars()
    for _name in solvers.__all__:
        if _ready(getattr(solvers, _name)):
            _members[_name] = _kebab(_name)

    def build(self) -> Solver:
        """The solver with its default options."""
        solver: Solver = getattr(solvers, self.name)()
        return solver


DEFAULT_SOLVER = SolverName("dynamic-program")


class Units(str, Enum):
    """What is kept or dropped as one piece where query heads share key/value heads."""

    AUTO = "auto"
    QUERY_SLOTS = "query-slots"

    @property
    def unit(self) -> Unit | None:
        """As :func:`cahp_opt.torch.find_attention` takes it."""
        return Unit.QUERY_SLOT if self is Units.QUERY_SLOTS else None


class Precision(str, Enum):
    """Precision of the weights; the values are PyTorch's names."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


@dataclass(frozen=True)
class LatencyGoal:
    """A latency to reach: a share of the unpruned end-to-end time, or seconds."""

    ratio: float | None = None
    seconds: float | None = None

    @staticmethod
    def parse(text: str) -> LatencyGoal:
        """``0.8`` is a ratio; ``12.5ms`` and ``0.0125s`` are times.

        Raises:
            ValueError: for anything else.
        """
        found = re.fullmatch(r"\s*([-+.0-9e]+?)\s*(ms|s|)\s*", text)
        try:
            number = float(found[1]) if found else math.nan
        except ValueError:
            number = math.nan
        if found is None or not (math.isfinite(number) and number > 0):
            raise ValueError(
                f"`--latency` must be a ratio of the unpruned time such as 0.8, or a time such as 12.5ms "
                f"or 0.0125s, above 0, got {text!r}."
            )
        if not found[2]:
            return LatencyGoal(ratio=number)
        return LatencyGoal(seconds=number / 1000 if found[2] == "ms" else number)

    def __str__(self) -> str:
        return f"{self.ratio:g}" if self.ratio is not None else f"{self.seconds!r}s"


@dataclass(frozen=True)
class Target:
    """What the selection has to keep to.

    Args:
        latency: end to end; needs a latency table.
        heads: units kept in all, at most.
        minimum: units kept per block, at least.
    """

    latency: LatencyGoal | None = None
    heads: int | None = None
    minimum: int = 1

    def budget(self, space: HeadSpace, table: LatencyTable | None) -> Budget:
        """The budget over ``space``.

        Raises:
            BudgetError: if nothing meets it.
            ValueError: without any limit, or if the table is missing or of another model.
        """
        if self.latency is None and self.heads is None:
            raise ValueError("nothing limits the selection; give `--latency`, `--heads` or both.")
        parts: list[Budget] = []
        if self.latency is not None:
            if table is None:
                raise ValueError("`--latency` needs a latency table; give `--latency-table` too.")
            difference = space.difference(table.space)
            if difference:
                raise ValueError(
                    "the statistics and the latency table are of different models "
                    f"({difference}); measure both on the same one."
                )
            goal = self.latency
            parts.append(
                Budget.latency(table, goal.ratio, seconds=goal.seconds, minimum=self.minimum)
            )
        if self.heads is not None:
            parts.append(Budget.heads(space, self.heads, minimum=self.minimum))
        return parts[0] if len(parts) == 1 else parts[0] & parts[1]


@dataclass(frozen=True)
class Method:
    """How the units are chosen.

    Args:
        objective: what is maximised.
        solver: by what.
        time_limit: seconds that the solver may take; None for no limit.
        seed: of the solver.
    """

    objective: ObjectiveName = ObjectiveName.EXPLAINED_VARIANCE
    solver: SolverName = DEFAULT_SOLVER
    time_limit: float | None = None
    seed: int = 0

    def choose(
        self, stats: HeadStats, target: Target, table: LatencyTable | None = None
    ) -> Selection:
        """The selection; its provenance tells what it was made from.

        Raises:
            BudgetError: if nothing meets the target.
            ValueError: if the records do not fit each other, the objective or the solver.
        """
        budget = target.budget(stats.space, table)
        problem = Problem(self.objective.build(stats), budget)
        selection = select(problem, self.solver.build(), time_limit=self.time_limit, seed=self.seed)
        provenance = {
            "model": stats.model,
            "objective": self.objective.value,
            "solver": self.solver.value,
            "cahp-opt": cahp_opt.__version__,
        }
        if target.latency is not None and table is not None:
            where = table.provenance
            provenance |= {
                "latency": str(target.latency),
                "dense_seconds": repr(table.dense),
                "device": where.device,
                "batch_size": str(where.batch),
                "sequence_length": str(where.sequence_length),
            }
        return replace(selection, provenance=provenance)

    def rehearse(self, space: HeadSpace) -> None:
        """Let the solver see the objective's structure, before minutes of measuring go into it.

        Raises:
            ValueError: if the solver cannot handle the objective over this space.
        """
        n = space.n
        ones, tied = (
            Total(np.ones(n), 1),
            Total(np.eye(n) + 1 / n, 1),
        )  # units of all blocks interact
        units = [block.units for block in space.blocks]
        moments = tuple(Moments(np.zeros(u), np.eye(u), np.eye(u), 1) for u in units)
        blank = HeadStats(space, "", 1, 1, ones, {0.5: tied}, moments, Total(np.zeros((n, n)), 1))
        problem = Problem(self.objective.build(blank), Budget.heads(space, n))
        select(problem, self.solver.build(), time_limit=0.1, seed=self.seed)
