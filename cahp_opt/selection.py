"""The answer: which units are kept, at what value, with which certificate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Bools
from cahp_opt.bounds.certified import MOST_SECONDS, certified_bound
from cahp_opt.costs.basis import Basis
from cahp_opt.costs.budget import Budget
from cahp_opt.costs.checks import Round
from cahp_opt.costs.count_table import Cost, check_counts
from cahp_opt.costs.quantities import unit_of_measure
from cahp_opt.files.records import PathLike, read_json, reading, write_json
from cahp_opt.objective import Objective
from cahp_opt.problem import Problem
from cahp_opt.rounding import relative_gap, rounding_slack
from cahp_opt.solver import Number, Solver, Status
from cahp_opt.space import HeadSpace, Portion

_KIND, _VERSION = "cahp-selection", 1


@dataclass(frozen=True, eq=False)
class Selection:
    """The units to keep, bool ``[n]``, their value, and a certified upper bound on any other's
    value.

    ``value``, ``costs`` and feasibility are computed by :func:`select` from ``kept`` alone, never
    taken from a solver. ``bound`` is infinite if none is known, and ``certificate`` says why.
    """

    space: HeadSpace
    kept: Bools
    value: float = math.nan
    bound: float = math.inf
    costs: Mapping[str, Cost] = field(default_factory=lambda: MappingProxyType({}))
    """By name of the budget's table: the cost, its limit and its unit."""
    status: Status = Status.GIVEN
    certificate: str = "no bound: the keep-set was made by hand"
    solver: str = ""
    seconds: float = 0.0
    stats: Mapping[str, Number] = field(default_factory=lambda: MappingProxyType({}))
    provenance: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Facts that travel with the answer: the model's identity, the objective, its files."""
    rounds: tuple[Round, ...] = ()
    """What sliced models were measured to take while this answer was looked for, in order."""
    basis: Basis = field(default_factory=Basis)
    """What the limits rest on."""
    whole: float = math.nan
    """The objective's value for the unpruned model; NaN if it is unknown."""

    def __post_init__(self) -> None:
        kept = self.space.check(self.kept).copy()
        kept.flags.writeable = False
        object.__setattr__(self, "kept", kept)
        object.__setattr__(
            self,
            "costs",
            {n: Cost(*pair, getattr(pair, "unit", "")) for n, pair in self.costs.items()},
        )
        for name in ("costs", "stats", "provenance"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        for found in self.rounds:
            check_counts(self.space, found.counts)

    def __reduce__(self) -> tuple[type[Selection], tuple[Any, ...]]:
        """Copies and pickles rebuild the record: its read-only mappings cannot be copied as such."""
        values = [getattr(self, f.name) for f in fields(self)]
        plain: list[Any] = [dict(v) if isinstance(v, Mapping) else v for v in values]  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        return Selection, tuple(plain)

    @staticmethod
    def from_kept(space: HeadSpace, kept: npt.ArrayLike) -> Selection:
        """A selection of a keep-set, bool ``[n]``, made by hand; its value is NaN and its bound
        infinite."""
        return Selection(space, space.check(kept))

    @property
    def gap(self) -> float:
        """``|bound - value| / max(|value|, 1e-12)``; infinite without a bound or a value."""
        return relative_gap(self.value, self.bound)

    @property
    def share(self) -> float:
        """The value as a share of the unpruned model's; NaN where that is unknown, or not above 0."""
        return self.of_whole(self.value)

    def of_whole(self, value: float) -> float:
        """A value of the objective as a share of the unpruned model's; NaN where that is unknown, or not
        above 0."""
        known = math.isfinite(self.whole) and self.whole > 0 and math.isfinite(value)
        return value / self.whole if known else math.nan

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Units kept per block, shape ``[blocks]``."""
        return self.space.counts(self.kept)

    @property
    def measured(self) -> Round | None:
        """The round in which a model with these counts was timed last; None if none was."""
        own = tuple(self.counts.tolist())
        return next((found for found in reversed(self.rounds) if found.counts == own), None)

    def heads(self) -> dict[str, list[int]]:
        """The kept unit ids of every block, by block name."""
        return self.space.split(self.kept)

    def __str__(self) -> str:
        blocks, portions = self.space.blocks, self.space.portions(self.counts)
        names = max(len(block.name) for block in blocks)
        digits = max(3, *(len(str(part.of)) for part in portions))
        words = max(len(part.what) for part in portions)
        lines = [
            f"{block.name:<{names}}  {part.kept:>{digits}} of {part.of:<{digits}} {part.what:<{words}}  "
            + listed(part, ids)
            for block, part, ids in zip(blocks, portions, self.heads().values(), strict=True)
        ]
        gap = f"{100 * self.gap:.3g} %" if math.isfinite(self.gap) else "unknown"
        share = (
            "" if math.isnan(self.share) else f", {100 * self.share:.4g} % of the unpruned model's"
        )
        lines.append(f"value {self.value:.6g}{share}   bound {self.bound:.6g}   gap {gap}")
        lines += [
            f"{name}: {cost.value:.6g} of {cost.limit:.6g}" for name, cost in self.costs.items()
        ]
        for name, check in self.measured.goals.items() if self.measured else ():
            limit = "" if check.limit is None else f" of {check.limit:.6g}"
            lines.append(f"{name}, measured: {check.measured:.6g}{limit}")
        lines.append(f"{self.solver or 'by hand'}: {self.status.value}")
        if self.certificate:
            lines.append(f"bound from: {self.certificate}")
        return "\n".join(lines)

    def save(self, path: PathLike) -> None:
        """Write the selection as JSON."""
        write_json(path, _KIND, _VERSION, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file; NaN and infinity become null."""
        return {
            "blocks": self.space.to_json(),
            "kept": self.heads(),
            "value": _number(self.value),
            "bound": _number(self.bound),
            "costs": {name: [*cost, cost.unit] for name, cost in self.costs.items()},
            "status": self.status.name,
            "certificate": self.certificate,
            "solver": self.solver,
            "seconds": self.seconds,
            "stats": dict(self.stats),
            "provenance": dict(self.provenance),
            "rounds": [r.to_json() for r in self.rounds],
            "basis": self.basis.to_json(),
            "whole": _number(self.whole),
        }

    @staticmethod
    def load(path: PathLike) -> Selection:
        """Read a selection.

        Raises:
            RecordError: if the file is not a usable selection.
            OSError: if it cannot be read.
        """
        data = read_json(path, _KIND, _VERSION)
        with reading(path):
            return Selection.from_json(data)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Selection:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError, KeyError, TypeError: if it is not a selection.
        """
        space = HeadSpace.from_json(data["blocks"])
        if not all(isinstance(text, str) for text in data["provenance"].values()):
            raise ValueError(f"`provenance` must hold texts, got {data['provenance']}.")
        if "basis" in data:
            basis, provenance = Basis.from_json(data["basis"]), data["provenance"]
        else:
            basis, provenance = Basis.from_texts(data["provenance"])
        return Selection(
            space,
            space.join(data["kept"]),
            math.nan if data["value"] is None else float(data["value"]),
            math.inf if data["bound"] is None else float(data["bound"]),
            {name: _cost(name, *told) for name, told in data["costs"].items()},
            Status[data["status"]],
            data["certificate"],
            data["solver"],
            data["seconds"],
            data["stats"],
            provenance,
            tuple(Round.from_json(r) for r in data.get("rounds", ())),
            basis,
            math.nan if data.get("whole") is None else float(data["whole"]),
        )


def select(
    problem: Problem, solver: Solver, *, time_limit: float | None = None, seed: int = 0
) -> Selection:
    """Let ``solver`` choose the units to keep, and check what it says.

    The value, the costs and the feasibility are computed here from the proposed keep-set; the bound
    is the tightest of the solver's own and those this library can prove for the objective.

    Args:
        problem: the objective and the budget.
        solver: any of :mod:`cahp_opt.solvers`, or your own.
        time_limit: seconds after which the solver returns the best it has; None for no limit. Proving
            the bound of the answer may take a quarter of it more, and at most about two seconds.
        seed: the only source of randomness.

    Raises:
        ValueError: for a bad argument, or if the solver cannot handle the problem's structure.
        RuntimeError: if the solver's keep-set breaks the budget or its claims contradict themselves;
            this is a bug in the solver.
    """
    if not isinstance(solver, Solver):
        raise TypeError(
            f"`solver` must be a Solver value such as `LazyGreedy()`, got {solver!r}; "
            "cahp_opt.solvers lists them."
        )
    if time_limit is not None and not time_limit > 0:
        raise ValueError(f"`time_limit` must be seconds above 0 or None, got {time_limit}.")
    if problem.budget.even:
        return _select_even(problem, solver, time_limit, seed)
    name = type(solver).__name__
    start = time.monotonic()
    proposal = solver.solve(
        problem,
        deadline=math.inf if time_limit is None else start + time_limit,
        rng=np.random.default_rng(seed),
    )
    kept = problem.space.check(proposal.kept)
    counts = problem.space.counts(kept)
    broken = problem.budget.violation(counts)
    if broken:
        raise RuntimeError(
            f"`{name}` proposed a keep-set outside the budget: {broken} This is a bug."
        )
    value = problem.objective.value(kept)
    if not math.isfinite(value):
        raise ValueError(
            f"the objective `{type(problem.objective).__name__}` has the value {value} for the units "
            f"that `{name}` keeps; values must be finite."
        )
    bound, certificate = proposal.bound, proposal.certificate or f"{name}'s own proof"
    slack = rounding_slack(value, bound)
    if math.isnan(bound) or value > bound + slack:
        raise RuntimeError(
            f"`{name}` claims the upper bound {bound}, and its own keep-set has the value {value}. "
            "This is a bug."
        )
    if proposal.status is Status.OPTIMAL and not bound <= value + slack:
        raise RuntimeError(
            f"`{name}` claims an optimal answer of value {value} with the bound {bound}. This is a bug."
        )
    if proposal.status is not Status.OPTIMAL:
        # Also after solvers that bound: what a deadline cut short is often the looser bound by far.
        proved = certified_bound(problem, kept, value, _bound_seconds(time_limit))
        if proved.value < value - rounding_slack(value, proved.value):
            raise RuntimeError(
                f"`{type(problem.objective).__name__}` declares a fact that does not hold: by "
                f"{proved.certificate} no keep-set exceeds {proved.value}, and one of value {value} was "
                "found; check its `monotone`, `submodular`, `linear` and `quadratic`."
            )
        if proved.value < bound or not math.isfinite(bound):
            bound, certificate = proved.value, proved.certificate
    status = proposal.status
    if status is not Status.OPTIMAL and bound <= value + rounding_slack(value, bound):
        status = Status.OPTIMAL
    return Selection(
        problem.space,
        kept,
        value,
        max(bound, value),
        problem.budget.costs(counts),
        status,
        certificate,
        repr(solver),
        time.monotonic() - start,
        proposal.stats,
        whole=float(problem.objective.whole),
    )


Chooser = Callable[[Budget], Selection]
"""Chooses within a budget."""


def chooser(
    objective: Objective, solver: Solver, *, time_limit: float | None = None, seed: int = 0
) -> Chooser:
    """A function that chooses within any budget over the units of an objective; arguments as for :func:`select`."""

    def choose(budget: Budget) -> Selection:
        return select(Problem(objective, budget), solver, time_limit=time_limit, seed=seed)

    return choose


def _select_even(
    problem: Problem, solver: Solver, time_limit: float | None, seed: int
) -> Selection:
    """The best of the answers for every number that the blocks may have in common.

    Together these problems are the whole one, so the largest of their bounds is its bound. Where more units
    are never worse, a number that another one exceeds in every block need not be tried.
    """
    start = time.monotonic()
    choices = list(problem.budget.even_counts)
    if problem.objective.monotone:
        choices = [c for c in choices if not any((o >= c).all() and (o > c).any() for o in choices)]
    found: list[Selection] = []
    for left, counts in zip(range(len(choices), 0, -1), choices, strict=True):
        share = None
        if time_limit is not None:
            share = max(start + time_limit - time.monotonic(), 0.01 * time_limit) / left
        pinned = Problem(problem.objective, problem.budget.pinned(counts))
        found.append(select(pinned, solver, time_limit=share, seed=seed))
    best = max(found, key=lambda one: one.value)
    highest = max(found, key=lambda one: one.bound)
    status = best.status
    if highest.bound <= best.value + rounding_slack(best.value, highest.bound):
        status = Status.OPTIMAL
    elif any(one.status is Status.TIME_LIMIT for one in found):
        status = Status.TIME_LIMIT
    elif status is Status.OPTIMAL:
        status = Status.FEASIBLE
    return replace(
        best,
        bound=highest.bound,
        status=status,
        certificate=f"the same number of units in all blocks of a kind, {len(found)} such numbers tried; "
        f"{highest.certificate}",
        seconds=time.monotonic() - start,
        stats={**best.stats, "even numbers tried": len(found)},
    )


def listed(part: Portion, ids: Sequence[int]) -> str:
    """The rising ids of a block's kept units, for people; of groups that are counted in neurons as ranges."""
    if part.what != "neurons" or not ids:
        return " ".join(str(i) for i in ids)
    starts = [i for i in ids if i - 1 not in ids]
    ends = [i for i in ids if i + 1 not in ids]
    ranges = (f"{a}-{b}" if a < b else f"{a}" for a, b in zip(starts, ends, strict=True))
    return f"groups {' '.join(ranges)}"


def _bound_seconds(time_limit: float | None) -> float:
    return MOST_SECONDS if time_limit is None else min(MOST_SECONDS, time_limit / 4)


def _cost(name: str, value: float, limit: float, unit: str | None = None) -> Cost:
    """A cost from a file; those of earlier releases lack the unit."""
    unit = unit_of_measure(name) if unit is None else unit
    if not isinstance(unit, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"the unit of the cost {name!r} must be text, got {unit!r}.")
    return Cost(float(value), float(limit), unit)


def _number(x: float) -> float | None:
    return x if math.isfinite(x) else None
