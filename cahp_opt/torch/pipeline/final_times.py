"""The saved model's measured time against its prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor, nn

from cahp_opt.costs.checks import TOLERANCE, Check
from cahp_opt.costs.count_table import distinct
from cahp_opt.costs.goals import Goal, LatencyGoal, checked
from cahp_opt.costs.provenance import Provenance
from cahp_opt.costs.quantities import workload_of
from cahp_opt.costs.workloads import Workload
from cahp_opt.progress import Progress, silent
from cahp_opt.runs.report import verdict
from cahp_opt.selection import Selection
from cahp_opt.studies.promise import foreign
from cahp_opt.torch.latency.measured_selection import here, time_pairs

NOTED_DRIFT = 0.1
"""If the machine has drifted further than this since the table was measured, a note says so."""


class FinalTimes(NamedTuple):
    """Times of the saved model.

    Args:
        workloads: by name, what one run of the unpruned and of the sliced model takes.
        where: by name of the workload, where and how that was measured.
        goals: the checked limits, by name of the budget's table.
        notes: sentences that the user should read.
    """

    workloads: dict[str, Check]
    where: dict[str, Provenance]
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
    """
    wanted = {w.name: Provenance(phase=w.phase, execution=w.execution) for w in workloads}
    for name in selection.basis.tables:  # what is measured beside the time
        if name not in wanted and workload_of(name) in wanted and " " in name:
            wanted[name] = wanted[workload_of(name)]
    facts = here(dense, wanted, batches)
    repeats = max(3, *(w.repeats for w in workloads))
    found = time_pairs(dense, small, facts, batches, repeats=repeats, progress=progress)
    recorded = selection.basis.tables
    known = {name: table for name, (_, table) in recorded.items() if name in facts}
    notes = foreign(known, {name: facts[name] for name in known})
    goals = selection.basis.goals
    limited = [
        (name, goal)
        for name, goal in zip(distinct(goal.name for goal in goals), goals, strict=True)
        if name in selection.costs and recorded and set() < goal.about(recorded) <= found.keys()
    ]
    dense_times = {name: taken for name, (taken, _) in recorded.items()}
    found = _with_predictions(found, selection, limited, dense_times)
    for name in known:
        drift = found[name].dense_measured / recorded[name][0] - 1
        if abs(drift) > NOTED_DRIFT and not known[name].estimated:
            notes.append(
                f"the unpruned model took {100 * abs(drift):.0f} % {'more' if drift > 0 else 'less'} than "
                f"in the {'' if ' ' in name else 'latency '}table of {name}: the speed of the machine has changed since; judge by "
                "sliced / dense."
            )
    checks = {
        name: replace(
            checked(goal, {table: found[table] for table in goal.about(recorded)}),
            predicted=selection.costs[name].value,
        )
        for name, goal in limited
    }
    for name, one in checks.items():
        if (one.over or 0.0) > TOLERANCE:
            notes.append(
                f"the goal {name} was {verdict(one)}, as measured in the end; run again on a quiet machine "
                "or with more rounds, or ask for less time."
            )
    return FinalTimes(found, facts, checks, notes)


def _with_predictions(
    found: Mapping[str, Check],
    selection: Selection,
    goals: Sequence[tuple[str, Goal]],
    dense: Mapping[str, float],
) -> dict[str, Check]:
    """The measured times with what was predicted of them (if known), by workload."""
    told = {name: replace(one, dense_predicted=dense.get(name)) for name, one in found.items()}
    for table, goal in goals:
        (name, *others) = goal.about(dense)
        if not others and isinstance(goal, LatencyGoal) and goal.runs(dense) == {name: 1.0}:
            told[name] = replace(told[name], predicted=selection.costs[table].value)
    if selection.measured is not None:  # by tables that were corrected since
        for name, one in selection.measured.workloads.items():
            if name in told:
                told[name] = replace(
                    told[name], predicted=one.predicted, dense_predicted=one.dense_predicted
                )
    return told
