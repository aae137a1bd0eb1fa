"""``cahp select``: the units to keep, from saved records."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from rich.console import Console

from cahp_opt.cli.notes import note
from cahp_opt.cli.outputs import check_file
from cahp_opt.cli.plugins import chosen_method
from cahp_opt.cli.tables import selection_tables
from cahp_opt.cli.unused_options import Given
from cahp_opt.costs.prune import Prune
from cahp_opt.identity import coverage_note
from cahp_opt.runs.budget_options import BudgetOptions, limited
from cahp_opt.runs.kinds import WORDS
from cahp_opt.runs.method import Task, choose_by
from cahp_opt.runs.options import option, same
from cahp_opt.runs.plan import RecoveryOptions, SelectionOptions
from cahp_opt.runs.recovery import Recovery
from cahp_opt.stats.head_stats import HeadStats


@dataclass(frozen=True)
class RecordOptions:
    """The records to choose from, and the output."""

    topic: ClassVar[str] = "Records"

    stats: Path = field(
        metadata=option("--stats", metavar="FILE", help="Statistics of `cahp calibrate`.")
    )
    output: Path = field(
        default=Path("selection.json"),
        metadata=option("--output", metavar="FILE", help="Selection to write (JSON)."),
    )


@dataclass(frozen=True)
class RecoveredSelection(SelectionOptions):
    """How the units are chosen for a model that will be recovered in a certain way."""

    recovery: Recovery = same(RecoveryOptions, "recovery")


def select(
    given: Given, records: RecordOptions, budget: BudgetOptions, choice: RecoveredSelection
) -> None:
    """Choose the units to keep, from saved records; needs no PyTorch.

    With --latency-table and no limit, the budget is 0.8 of the unpruned time.
    """
    note(given.check())
    asked, target = chosen_method(choice), budget.target()
    check_file(records.output, "cahp-selection")
    stats = read_stats(records.stats)
    tell_kinds(stats)
    profile = budget.profile()
    if profile is not None and profile.latency:
        target = limited(target)
    note(target.remarks(profile))  # before a refusal, which may stand on an estimate
    method = asked or choice.pair(choice.recovery, embeds=not stats.sensitivity)
    note(given.check(goals=target.goals))
    note(given.check(solvers=(getattr(method, "solver", method),)))
    task = Task(
        target.budget(stats.space, profile, stats.model),
        choice.recovery,
        embeds=not stats.sensitivity,
        labelled=True,  # as far as the statistics show
        seed=choice.seed,
        time_limit=choice.time_limit,
    )
    selection = choose_by(method, stats, task, target, profile)
    note([*target.loose(stats.space, profile), *method.remarks(stats)])
    selection.save(records.output)
    Console().print(selection_tables(selection))
    print(f"written: {records.output}")


def tell_kinds(stats: HeadStats) -> None:
    """Say what there is to choose from: all kinds of units that statistics are of."""
    print(f"chosen from: {WORDS[Prune.in_space(stats.space)]}, as measured", flush=True)


def read_stats(path: Path) -> HeadStats:
    """Statistics, with a note about what their record leaves open."""
    stats = HeadStats.load(path)
    open_question = coverage_note("the record of the statistics", stats.model)
    note([open_question] if open_question else [])
    return stats
