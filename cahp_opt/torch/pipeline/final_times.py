"""The saved model's measured time against its prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from cahp_opt.costs.checks import TOLERANCE, Check
from cahp_opt.costs.goals import LatencyGoal, goals_from_text
from cahp_opt.costs.provenance import Provenance
from cahp_opt.costs.workloads import Workload, recorded_tables
from cahp_opt.progress import Progress, silent
from cahp_opt.runs.report import LatencyReport, verdict
from cahp_opt.selection import Selection
from cahp_opt.studies.promise import Pair, foreign, named_goals
from cahp_opt.torch.latency.measured_selection import here, time_pairs

NOTED_DRIFT = 0.1
"""If the machine has drifted further than this since the table was measured, a note says so."""


class FinalTimes(NamedTuple):
    """Times of the saved model.

    Args:
        workloads: by name.
        goals: the checked limits, by name of the budget's table.
        notes: sentences that the user should read.
    """

    workloads: dict[str, LatencyReport]
    goals: dict[str, Check]
    notes: list[str]


def final_times(
    dense: nn.Module,
    small: nn.Module,
    selection: Selection,
    workloads: Sequence[Workload],
    batches: Mapping[str, Mapping[str, Tensor]],
    *,
    progress: Progress = silent,
) -> FinalTimes:
    """Time the unpruned and the sliced model alternately, and compare with predictions and goals.

    Args:
        dense: the unpruned model.
        small: the sliced model.
        selection: the units that it keeps; its record holds the goals, the predictions and the
            tables.
        workloads: the workloads to time; goals of others are left out.
        batches: of the workloads, by name, tensors ``[batch, tokens]``.
        progress: called once per round of timing.

    Raises:
        ValueError: if the selection's record cannot be understood.
    """
    wanted = {w.name: Provenance(phase=w.phase, execution=w.execution) for w in workloads}
    facts = here(dense, wanted, batches)
    repeats = max(3, *(w.repeats for w in workloads))
    pairs = time_pairs(dense, small, facts, batches, repeats=repeats, progress=progress)
    recorded = recorded_tables(selection.provenance)
    known = {name: table for name, (_, table) in recorded.items() if name in facts}
    notes = foreign(known, {name: facts[name] for name in known})
    goals = [
        (name, goal)
        for name, goal in named_goals(recorded_goals(selection.provenance))
        if name in selection.costs and recorded and goal.runs(recorded).keys() <= pairs.keys()
    ]
    predicted = _predictions(
        selection, goals, {name: taken for name, (taken, _) in recorded.items()}
    )
    for name in known:
        drift = pairs[name].dense / recorded[name][0] - 1
        if abs(drift) > NOTED_DRIFT and not known[name].estimated:
            notes.append(
                f"the unpruned model took {100 * abs(drift):.0f} % {'more' if drift > 0 else 'less'} than "
                f"in the latency table of {name}: the speed of the machine has changed since; judge by "
                "sliced / dense."
            )
    checks = {
        name: _check(
            goal,
            selection.costs[name].value,
            {workload: pairs[workload] for workload in goal.runs(recorded)},
            predicted,
        )
        for name, goal in goals
    }
    for name, check in checks.items():
        if (check.over or 0.0) > TOLERANCE:
            notes.append(
                f"the goal {name} was {verdict(check)}, as measured in the end; run again on a quiet machine "
                "or with more rounds, or ask for less time."
            )
    return FinalTimes(
        {
            name: _report(pair, facts[name], *predicted.get(name, (None, None)))
            for name, pair in pairs.items()
        },
        checks,
        notes,
    )


def recorded_goals(told: Mapping[str, str]) -> list[LatencyGoal]:
    """The latency goals in a selection's provenance.

    Raises:
        ValueError: if it cannot be understood.
    """
    if "goals" in told:
        return [g for g in goals_from_text(told["goals"]) if isinstance(g, LatencyGoal)]
    return [LatencyGoal.parse(told["latency"])] if "latency" in told else []


def _predictions(
    selection: Selection, goals: Sequence[tuple[str, LatencyGoal]], dense: Mapping[str, float]
) -> dict[str, tuple[float | None, float]]:
    """By workload, the predictions for the sliced (if known) and for the unpruned model."""
    found = dict[str, tuple[float | None, float]]()
    for name, taken in dense.items():
        found[name] = (None, taken)
        for table, goal in goals:
            if goal.runs(dense) == {name: 1.0}:
                found[name] = (selection.costs[table].value, taken)
    if selection.measured is not None:  # by tables that were corrected since
        for name, check in selection.measured.workloads.items():
            found[name] = (check.predicted, check.dense_predicted)
    return found


def _check(
    goal: LatencyGoal,
    predicted: float,
    pairs: Mapping[str, Pair],
    predictions: Mapping[str, tuple[float | None, float]],
) -> Check:
    dense = {name: pair.dense for name, pair in pairs.items()}
    return Check(
        predicted=predicted,
        measured=goal.cost({name: pair.sliced for name, pair in pairs.items()}),
        dense_predicted=goal.cost({name: predictions[name][1] for name in pairs}),
        dense_measured=goal.cost(dense),
        spread=max(pair.spread for pair in pairs.values()),
        limit=goal.limit(dense),
    )


def _report(
    pair: Pair, facts: Provenance, predicted: float | None, predicted_dense: float | None
) -> LatencyReport:
    return LatencyReport(
        pair.dense,
        pair.sliced,
        pair.spread,
        predicted_dense,
        predicted,
        facts.device,
        facts.dtype,
        facts.threads,
        facts.batch,
        facts.sequence_length,
        facts.phase.value,
        facts.execution.value,
    )
