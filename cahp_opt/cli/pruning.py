"""``cahp prune`` and ``cahp apply``: from a model to a folder with a smaller one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from cahp_opt.cli.display import Display
from cahp_opt.cli.forecast_table import show_forecast
from cahp_opt.cli.launching import is_first
from cahp_opt.cli.loading import embeds, in_kinds, named_of, read_by
from cahp_opt.cli.measuring import too_many
from cahp_opt.cli.notes import note
from cahp_opt.cli.options import MeasuredModel, ModelOptions
from cahp_opt.cli.outputs import check_folder, kept_runs, show
from cahp_opt.cli.plugins import chosen_method
from cahp_opt.cli.unused_options import Given
from cahp_opt.costs.budget import Budget
from cahp_opt.costs.workloads import Workload, recorded_workloads
from cahp_opt.runs.budget_options import BudgetOptions, limited
from cahp_opt.runs.kinds import KindOptions
from cahp_opt.runs.measuring import MeasuringOptions
from cahp_opt.runs.method import Task
from cahp_opt.runs.options import option, same
from cahp_opt.runs.plan import (
    Applying,
    OutputOptions,
    PruningPlan,
    RecoveryOptions,
    SelectionOptions,
    TextOptions,
)
from cahp_opt.runs.timing_options import TimingOptions, WorkloadOptions
from cahp_opt.selection import Selection
from cahp_opt.stats.pooling import recorded_pooling


@dataclass(frozen=True)
class MeasuredSelection(SelectionOptions):
    """How the units are chosen, and how much is measured for it."""

    amounts: MeasuringOptions = field(default_factory=MeasuringOptions)


@dataclass(frozen=True)
class DryRunOptions:
    """Whether anything is done at all."""

    topic: ClassVar[str] = "Output"

    dry_run: bool = field(
        default=False,
        metadata=option(
            "--dry-run",
            help="Only check everything, run one batch, and show the passes over the texts, the memory and the time "
            "that every stage would take; nothing is written.",
        ),
    )


def prune(
    given: Given,
    texts: TextOptions,
    budget: BudgetOptions,
    timing: TimingOptions,
    choice: MeasuredSelection,
    recovery: RecoveryOptions,
    output: OutputOptions,
    dry: DryRunOptions,
    kinds: KindOptions,
    model: MeasuredModel,
) -> None:
    """Measure, select, slice, recover, check and save: the whole way at once.

    Without any limit, the budget is 0.8 of the unpruned end-to-end time. The first line says which kinds of
    units are pruned. What is timed is
    --workload; without it, --latency-batch-size and --sequence-length for prefill and decode, as
    the goals name them; with --latency-table, what the table was measured with. After Ctrl-C, the same
    command resumes with the timings that it has.
    """
    note(given.check())
    asked, target = chosen_method(choice), limited(budget.target())
    profile = budget.profile()
    note(given.check(table_times=profile is not None and bool(profile.latency)))
    wanted = kinds.chosen(target, choice.objective, choice.solver, profile, asked)
    note(given.check(goals=target.goals, latency_goals=(*target.latencies, *target.metered)))
    examples = texts.read(choice.seed)
    note(too_many(given, len(examples.calibration)))
    workloads = timing.timed.workloads(target, profile)
    check_folder(output, model.model)
    display = Display()
    loaded = named_of(model, display, medium=texts.medium, pooling=texts.pooling)
    note(given.check(**read_by(loaded.model)))
    named = in_kinds(loaded, wanted, model.units)
    print(f"pruned: {named.kinds.sentence}", flush=True)
    note(given.check(prunes=named.kinds.prune))
    method = asked or choice.pair(recovery.recovery, embeds=embeds(named))
    note(given.check(solvers=(getattr(method, "solver", method),)))
    task = Task(Budget(named.prunable.space), recovery.recovery, embeds=embeds(named))
    note(given.check(needs=method.needs(task).statistics))

    from cahp_opt.torch.forecast.forecasting import forecast_pruning
    from cahp_opt.torch.pipeline.pruning_run import assist_pipeline, run_pipeline

    applying = Applying(recovery, workloads, texts.reading, choice.seed, given.line)
    plan = PruningPlan(target, method, applying, choice.time_limit, timing.rounds, choice.amounts)
    if not is_first():
        if not dry.dry_run:
            assist_pipeline(named, examples, plan, output, profile=profile)
        return
    if dry.dry_run:
        show_forecast(
            forecast_pruning(named, examples, plan, output, profile=profile, stages=display)
        )
        return
    with kept_runs(output.output_dir.resolve(), () if profile else workloads) as samples:
        report = run_pipeline(
            named, examples, plan, output, profile=profile, samples=samples, stages=display
        )
    show(report, output.output_dir)


@dataclass(frozen=True)
class AppliedOptions:
    """The selection that is applied."""

    topic: ClassVar[str] = "Selection"

    selection: Path = field(
        metadata=option("--selection", metavar="FILE", help="Selection of `cahp select`.")
    )
    seed: int = same(SelectionOptions, "seed")


@dataclass(frozen=True)
class RetimingOptions:
    """The inputs that a sliced model is timed on, if they differ from the selection's record."""

    topic: ClassVar[str] = "Timing"

    latency_batch_size: int | None = field(
        default=None,
        metadata=option(
            "--latency-batch-size",
            min=1,
            help="Texts per timed batch. Default: as in the selection's table, or 8.",
        ),
    )
    sequence_length: int | None = same(WorkloadOptions, "sequence_length")
    repeats: int = same(WorkloadOptions, "repeats")

    def workloads(self, selection: Selection) -> tuple[Workload, ...]:
        """The workloads to time: the selection's, in these sizes."""
        timed = recorded_workloads(selection.basis, self.repeats)
        return tuple(
            replace(
                workload,
                batch_size=self.latency_batch_size or workload.batch_size,
                sequence_length=self.sequence_length or workload.sequence_length,
            )
            for workload in timed or (Workload(repeats=self.repeats),)
        )


def apply(
    given: Given,
    applied: AppliedOptions,
    texts: TextOptions,
    timing: RetimingOptions,
    recovery: RecoveryOptions,
    output: OutputOptions,
    model: ModelOptions,
) -> None:
    """Slice a model to a saved selection, recover it if there are texts, check and save it."""
    note(given.check())
    selection = Selection.load(applied.selection)
    examples = texts.read(applied.seed) if texts.given else None
    check_folder(output, model.model)
    display = Display()
    medium = None if examples is None else examples.medium
    named = named_of(model, display, medium=medium, pooling=texts.pooling)
    note(given.check(**read_by(named.model)))
    if examples is not None:  # refuses an output that cannot be compared
        embeds(replace(named, pooling=texts.pooling or recorded_pooling(selection.provenance)))

    from cahp_opt.torch.pipeline.applying import apply_selection

    workloads = timing.workloads(selection)
    applying = Applying(recovery, workloads, texts.reading, applied.seed, given.line)
    report = apply_selection(named, selection, examples, applying, output, stages=display)
    show(report, output.output_dir)
