"""Choosing units, measuring the sliced model, and choosing again until the measured time is met."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cahp_opt.costs.budget import Budget, BudgetError
from cahp_opt.costs.checks import SLACK, TOLERANCE, Check, Round
from cahp_opt.costs.count_table import Cost
from cahp_opt.costs.goals import Goal, LatencyGoal, checked
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.provenance import Provenance
from cahp_opt.costs.prune import Prune
from cahp_opt.costs.target import Target
from cahp_opt.selection import Chooser, Selection

_CAREFUL = 3
"""Time a model at most this often, as long as the noise is as large as the miss."""

_APART, _APART_NOISE = 0.02, 3.0
"""Measured models must differ by this share of the unpruned time, and by this many times the noise,
to show that pruning does not help further."""

_FACTS = ("device", "dtype", "batch", "sequence_length", "phase", "execution", "threads", "quota")


_PARTS = {
    Prune.HEADS: ("attention heads", " alone"),
    Prune.NEURONS: ("feed-forward neurons", " alone"),
    Prune.BOTH: ("attention heads and feed-forward neurons", ""),
}


class ForeignTableWarning(UserWarning):
    """A latency table was measured on another machine, or with other work, than it is verified with."""


Measure = Callable[[Selection, int], Mapping[str, Check]]
"""Measures the unpruned model and the one sliced to the selection alternately, each this many
times; by name of the measured table."""


class _Attempt(NamedTuple):
    selection: Selection
    found: Round


@dataclass(frozen=True, kw_only=True)
class Promise:
    """How hard to try to keep a latency goal as measured.

    Args:
        rounds: the most sliced models that are timed.
        tolerance: relative excess over the limit that still meets it.
        repeats: timed runs of each model per round; more where the noise could decide.

    Raises:
        ValueError: for a number that makes no sense.
    """

    rounds: int = 3
    tolerance: float = TOLERANCE
    repeats: int = 20

    def __post_init__(self) -> None:
        for name in ("rounds", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not (isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(
                f"`tolerance` must be a relative excess of at least 0 such as 0.01, got {self.tolerance}."
            )

    def keep(
        self,
        choose: Chooser,
        profile: Profile,
        target: Target,
        measure: Measure,
        *,
        device: str = "",
        reached: Round | None = None,
    ) -> Selection:
        """The most valuable selection whose measured time keeps to the latency goals.

        Every round chooses with the tables in force, measures the result, and fits the tables to
        all that was measured, until the goals are met closely, the same counts come again, or the rounds
        are used up. A ratio is relative to the unpruned time of the same run. If by the tables
        nothing meets the goals, the fastest model that the other limits allow is measured before
        they are refused.

        Args:
            choose: chooses within a budget, as :func:`~cahp_opt.selection.chooser` makes it of an objective and
                a solver.
            profile: the tables to begin with, over the units that are chosen from; see
                :meth:`Profile.restricted`.
            target: the goals and limits, with at least one latency goal.
            measure: times the unpruned and the sliced model.
            device: name of the processor it measures on, for the record.
            reached: the measurement of :meth:`reach`, if any; it does not count as one of the
                rounds.

        Returns:
            The best selection that met its limits, or the one least over them, with all rounds. Its costs
            are those of the tables that it was chosen with.

        Raises:
            BudgetError: if nothing meets the target, as measured.
            ValueError: for a target without a latency goal, or what ``target.budget`` and ``choose`` refuse.
        """
        goals = target.verified(profile)
        if not goals:
            raise ValueError(
                "`target` has no latency goal to verify; choose with `select` instead."
            )
        tried, tables, free = dict[tuple[int, ...], _Attempt](), profile, 0
        if reached is not None:
            selection = _choose_fastest(choose, profile, target)
            tried[reached.counts], free = _Attempt(selection, reached), 1
            tables = corrected(profile, [reached])
        while len(tried) < self.rounds + free:
            selection, fastest = _choose(choose, tables, target)
            counts = tuple(selection.counts.tolist())
            again = counts in tried
            if not again:
                found = self._measured(selection, tables, goals, measure, device, fastest)
                tried[counts] = _Attempt(selection, found)
            found, rounds = tried[counts].found, [a.found for a in tried.values()]
            tables = corrected(profile, rounds)
            if fastest and not any(r.over <= self.tolerance for r in rounds):
                raise BudgetError(_refusal(found, goals, tables))
            if again or -SLACK <= found.over <= self.tolerance:
                break
        attempts = list(tried.values())
        met = [a for a in attempts if a.found.over <= self.tolerance]
        if met:
            best = max(met, key=lambda a: (a.selection.value, -a.found.over))
        else:
            best = min(attempts, key=lambda a: a.found.over)
        return replace(best.selection, rounds=tuple(a.found for a in attempts))

    def reach(
        self, profile: Profile, target: Target, measure: Measure, *, device: str = ""
    ) -> Round | None:
        """Refuse a target that nothing meets, before long work goes into its objective.

        Args:
            profile: the tables.
            target: the goals and limits.
            measure: times the unpruned and the sliced model.
            device: name of the processor it measures on.

        Returns:
            None if the target can be met by the tables, and nothing was measured. Otherwise the
            measurement of the fastest model, which meets it, so that the tables are wrong.

        Raises:
            BudgetError: if nothing meets the target, as measured.
            ValueError: as ``target.budget``.
        """
        try:
            target.budget(profile.space, profile)
            return None
        except BudgetError:
            goals = target.verified(profile)
            if not goals:
                raise
            space, counts = profile.space, _fastest(target, profile).fewest
        kept = space.join({b.name: range(k) for b, k in zip(space.blocks, counts, strict=True)})
        selection = Selection.from_kept(space, kept)
        found = self._measured(selection, profile, goals, measure, device, True)
        if found.over > self.tolerance:
            raise BudgetError(_refusal(found, goals, corrected(profile, [found])))
        return found

    def _measured(
        self,
        selection: Selection,
        tables: Profile,
        goals: Sequence[tuple[str, Goal]],
        measure: Measure,
        device: str,
        fastest: bool,
    ) -> Round:
        def summed_up(runs: Sequence[Mapping[str, Check]]) -> Round:
            counts, known = selection.counts, tables.measured
            found = {
                name: replace(
                    _mean([run[name] for run in runs]),
                    predicted=known[name].predict(counts),
                    dense_predicted=known[name].dense,
                )
                for name in runs[0]
            }
            return Round(
                counts=tuple(counts.tolist()),
                goals={
                    name: checked(goal, {table: found[table] for table in goal.measured(tables)})
                    for name, goal in goals
                },
                workloads=found,
                device=device,
                repeats=len(runs) * self.repeats,
                fastest=fastest,
            )

        runs = list[Mapping[str, Check]]()
        while True:
            runs.append(measure(selection, self.repeats))
            found = summed_up(runs)
            beside = max(found.over - self.tolerance, -SLACK - found.over)
            # Noise is an excuse only for a time that is not close to the limit, and not far from it.
            if len(runs) == _CAREFUL or not 0 < beside <= found.spread:
                return found


def _mean(checks: Sequence[Check]) -> Check:
    """Several measurements of the same two models as one, whose noise is that of a mean."""
    measured, unpruned = (
        float(np.mean([getattr(check, name) for check in checks]))
        for name in ("measured", "dense_measured")
    )
    spread = max(check.spread for check in checks) / sqrt(len(checks))
    return Check(measured=measured, dense_measured=unpruned, spread=spread)


def _choose(choose: Chooser, tables: Profile, target: Target) -> tuple[Selection, bool]:
    """The answer by these tables; or, if nothing meets the goals, the fastest model, and True."""
    try:
        budget = target.budget(tables.space, tables)
    except BudgetError:
        return _choose_fastest(choose, tables, target), True
    return choose(budget), False


def _choose_fastest(choose: Chooser, tables: Profile, target: Target) -> Selection:
    """The best of the fastest models; raises if latency is not what cannot be met."""
    selection = choose(_fastest(target, tables))
    limits = {n: goal.limit(_dense(tables)) for n, goal in target.verified(tables)}
    costs = {n: Cost(c.value, limits.get(n, c.limit), c.unit) for n, c in selection.costs.items()}
    return replace(selection, costs=costs)


def foreign(tables: Mapping[str, Provenance], here: Mapping[str, Provenance]) -> list[str]:
    """Sentences on how the tables were measured otherwise than they are verified.

    An estimated table always gets one.

    Args:
        tables: by name of the workload, where and how its table was measured.
        here: by name of the workload, where and how the verification measures; unknown facts (empty or 0)
            are not compared.
    """
    found = list[str]()
    for name, facts in here.items():
        there = tables[name]
        if there.estimated:
            found.append(
                f"the {'' if ' ' in name else 'latency '}table of {name} is an {there.device or 'estimate'}, and is verified on "
                f"{facts.device}: its predictions may be far off; measure it where the model will run."
            )
            continue
        differences = [
            (fact.replace("_", " "), _text(getattr(there, fact)), _text(getattr(facts, fact)))
            for fact in _FACTS
            if getattr(there, fact)
            and getattr(facts, fact)
            and getattr(there, fact) != getattr(facts, fact)
        ]
        if differences:
            then = ", ".join(f"{fact} {old}" for fact, old, _ in differences)
            now = ", ".join(f"{fact} {new}" for fact, _, new in differences)
            found.append(
                f"the {'' if ' ' in name else 'latency '}table of {name} was measured with {then}, and is verified with {now}: its "
                "predictions may be far off; measure it again where the model will run."
            )
    return found


def _text(fact: object) -> str:
    return str(getattr(fact, "value", fact))


def _dense(tables: Profile) -> dict[str, float]:
    return {name: table.dense for name, table in tables.measured.items()}


def corrected(profile: Profile, rounds: Sequence[Round]) -> Profile:
    """The tables, fitted to all measurements.

    A slow moment of the machine slows both models of a round: every round counts in units of its own
    unpruned time, so that a drift is not taken for an error of the table.

    Args:
        profile: the tables as they were measured.
        rounds: at least one.
    """
    tables = profile.measured
    for name in rounds[0].workloads:
        table, runs = tables[name], [r.workloads[name] for r in rounds]
        dense = float(np.median([run.dense_measured for run in runs]))
        evidence: list[tuple[npt.ArrayLike, float]] = [(table.space.units, dense)]
        evidence += [(r.counts, run.ratio * dense) for r, run in zip(rounds, runs, strict=True)]
        fitted = table.corrected(evidence)
        sizes = [table.predict(r.counts) for r in rounds]
        noise = max(run.spread for run in runs)
        if max(sizes) - min(sizes) <= (_APART + _APART_NOISE * noise) * dense:
            # Models of almost the same size take almost the same time: that is no evidence of a least
            # time.
            fitted = replace(fitted, least=table.least)
        tables[name] = fitted
    return profile.replacing(tables)


def _fastest(target: Target, tables: Profile) -> Budget:
    """The budget that allows only the counts that are fastest by the tables, within all other limits.

    Raises:
        BudgetError: if the other limits alone cannot be met.
    """
    budget = target.budget(tables.space, tables, unlimited=True)
    worst, counts = 0.0, budget.cheapest
    for name, goal in target.verified(tables):
        table = budget.table_named(name)
        cheapest = budget.cheapest_by(table)
        share = table.cost(cheapest) / goal.limit(_dense(tables))
        if share > worst and budget.allows(cheapest):
            worst, counts = share, cheapest
    return budget.pinned(counts)


def _refusal(found: Round, goals: Sequence[tuple[str, Goal]], tables: Profile) -> str:
    """Why the goals cannot be met, with what was measured on the fastest model."""
    name, worst = max(found.goals.items(), key=lambda item: item[1].over or 0.0)
    goal = dict(goals)[name]
    there = goal.measured(tables)
    what = "time" if isinstance(goal, LatencyGoal) else goal.name
    if any(table.predict(found.counts) == table.least for table in there.values()):
        reason = (
            "launching this model's operations alone takes that long, however few units are kept: run it "
            "with CUDA graphs, torch.compile or a larger batch, or raise the limit to at least that."
        )
    else:
        blocks = {name: sum(float(c[-1]) for c in table.costs) for name, table in there.items()}
        share = goal.cost(blocks) / goal.cost(_dense(tables))
        parts, alone = _PARTS[Prune.in_space(tables.space)]
        reason = (
            f"{parts} take only {100 * share:.0f} % of this model's {what}, so removing them{alone} "
            "cannot go below that; raise the limit to at least that, or lower `minimum`."
        )
    fewest, most = min(found.counts), max(found.counts)
    kept = f"{fewest} to {most} units" if fewest < most else f"{most} unit{'s' * (most != 1)}"
    limit = worst.limit or 0.0
    unit = next(iter(there.values())).unit
    return (
        f"`{name}` of at most {_milli(limit, unit)} ({limit / worst.dense_measured:.3f} of the unpruned "
        f"{what}) cannot be met: the fastest model that the other limits allow, with {kept} per block, was "
        f"measured to take {_milli(worst.measured, unit)}, {worst.ratio:.3f} of the unpruned "
        f"{_milli(worst.dense_measured, unit)}; {reason}"
    )


def _milli(cost: float, unit: str) -> str:
    return f"{1000 * cost:.4g} m{unit}"
