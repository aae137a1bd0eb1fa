"""The whole run in eight stages: check, measure, calibrate, select, slice, recover, time, save."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cahp_opt.costs.budget import Budget, BudgetError
from cahp_opt.costs.checks import Round
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.target import Target
from cahp_opt.files.folders import whole_folder
from cahp_opt.progress import Progress, Stages
from cahp_opt.runs.method import Task, measured_for, trusted, with_provenance
from cahp_opt.runs.plan import OutputOptions, PruningPlan
from cahp_opt.runs.report import Report
from cahp_opt.runs.texts import TextSplit
from cahp_opt.selection import Selection
from cahp_opt.space import HeadSpace
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.studies.promise import Measure, Promise, corrected
from cahp_opt.torch.blocks.fingerprint import structure
from cahp_opt.torch.calibration.class_maps import class_labels
from cahp_opt.torch.calibration.shares import told_by_first
from cahp_opt.torch.evaluation.fidelity import Fidelity, embeds_all_tokens, fidelity_of
from cahp_opt.torch.latency.measured_selection import measuring
from cahp_opt.torch.latency.model_times import device_name
from cahp_opt.torch.methods.model_method import Evidence, chooser_of, rehearse_choice
from cahp_opt.torch.pipeline.applying import Record, recover, save, slice_model, time_slice
from cahp_opt.torch.pipeline.calibrating import calibrate_kinds
from cahp_opt.torch.pipeline.floors import naming_floor_of_both
from cahp_opt.torch.pipeline.profiles import measure_profile
from cahp_opt.torch.pipeline.run import Named, PruningRun
from cahp_opt.torch.running.batches import device_of

STATS_FILE = "stats.safetensors"
LATENCY_FILE = "latency.json"


def run_pipeline(
    named: Named,
    texts: TextSplit,
    plan: PruningPlan,
    output: OutputOptions,
    *,
    profile: Profile | None = None,
    samples: Mapping[str, Path] | None = None,
    stages: Stages | None = None,
) -> Report:
    """Prune a model as planned and write it, with all records, to a folder.

    Whatever can fail is tried before long work: the folder, the model, the solver, then the budget. With a
    latency limit, the sliced model is timed before the refit, and the units are selected again with
    corrected tables if it misses the limit (see :class:`~cahp_opt.studies.promise.Promise`).

    Args:
        named: the unpruned model.
        texts: to calibrate and refit on, and to judge by.
        plan: the target, the method of choice, and how to apply the choice.
        output: where to write.
        profile: a ready one; measured here if the target needs one and it is None.
        samples: as for :func:`~cahp_opt.torch.pipeline.profiles.measure_profile`.
        stages: shows the stages; None for nothing.

    Raises:
        BudgetError: if nothing meets the target.
        ValueError: for a model, texts or options that cannot be used.
        OSError: if the folder cannot be written; nothing half written stays.
    """
    with whole_folder(output.output_dir, overwrite=output.overwrite) as folder:
        run = check(named, texts, plan, profile, folder, output, stages or Stages())
        prices = measure_prices(run, plan, profile, samples)
        run, stats = measure_statistics(run, plan, prices)
        selection = choose(run, plan, prices, stats)
        run = run.grouped(selection)
        sliced = slice_model(run, selection)
        closeness = recover(run, sliced)
        times = time_slice(run, sliced)
        return save(run, sliced, closeness, times, _records(stats, prices.profile))


def assist_pipeline(
    named: Named,
    texts: TextSplit,
    plan: PruningPlan,
    output: OutputOptions,
    *,
    profile: Profile | None = None,
) -> None:
    """What a further process of a launcher does while the first one is in :func:`run_pipeline`: it measures its share
    of the statistics, and writes nothing.

    Args:
        named, texts, plan, output, profile: the same as there.

    Raises:
        ValueError: as there.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = check(named, texts, plan, profile, Path(folder), output, Stages())
        nothing: Prices | None = None
        measure_statistics(run, plan, told_by_first(nothing))


def check(
    named: Named,
    texts: TextSplit,
    plan: PruningPlan,
    profile: Profile | None,
    folder: Path,
    output: OutputOptions,
    stages: Stages,
) -> PruningRun:
    """Refuse whatever would be refused after long work.

    Args:
        named: as above.
        texts: as above.
        plan: as above.
        profile: as above.
        folder: where the files are written until all of them are there.
        output: as above.
        stages: shows the stages.

    Raises:
        ValueError: naming the way out.
        OSError: if nothing can be written to the folder.
    """
    _check_plan(named, plan, profile)
    run = PruningRun.start(
        named,
        texts,
        plan.applying,
        folder=folder,
        output=output.output_dir,
        stages=stages,
    )
    task = task_of(named, plan, Budget(named.prunable.space), labelled=run.texts.labelled)
    plan.method.check(task)  # by now it is known whether the model takes the labels
    rehearse_choice(plan.method, named.prunable, run.texts.calibration[0])
    if "signatures" in plan.method.needs(task).statistics:
        class_labels(run.texts.calibration[0])  # refuses labels that are not classes
    return run


def _check_plan(named: Named, plan: PruningPlan, profile: Profile | None) -> None:
    """Refuse a plan that this model does not allow, whatever the texts."""
    if profile is not None:
        profile.check(structure(named.model))
    task = task_of(named, plan, Budget(named.prunable.space), labelled=True)
    plan.method.check(task)
    plan.target.numbers(named.prunable.space)  # they need no measuring
    plan.measuring.check(plan.method.name, plan.method.needs(task).statistics)


def task_of(named: Named, plan: PruningPlan, budget: Budget, *, labelled: bool) -> Task:
    """What the method of a plan is asked for within a budget."""
    return Task(
        budget,
        plan.applying.recovery.recovery,
        embeds=embeds_all_tokens(_fidelity(named)),
        labelled=labelled,
        seed=plan.applying.seed,
        time_limit=plan.time_limit,
    )


def _fidelity(named: Named) -> Fidelity:
    return fidelity_of(named.model, named.pooling)


class Prices(NamedTuple):
    """The costs of units.

    Args:
        profile: the tables; None if no limit needs any.
        reached: a measurement that shows that a limit below the tables' floor can be met; None if
            there is no such limit.
    """

    profile: Profile | None
    reached: Round | None

    def budget(self, space: HeadSpace, target: Target) -> Budget:
        """The budget over these blocks, by the tables as they are known by now.

        Raises:
            BudgetError: if nothing meets the target.
        """
        if self.profile is None or self.reached is None:
            return target.budget(space, self.profile)
        return target.budget(space, corrected(self.profile, [self.reached]))


def measure_prices(
    run: PruningRun,
    plan: PruningPlan,
    profile: Profile | None,
    samples: Mapping[str, Path] | None,
) -> Prices:
    """Measure the costs that the target needs, and refuse a target that nothing meets.

    See :meth:`~cahp_opt.studies.promise.Promise.reach` for limits below what the tables can reach. Processes that
    measure statistics with this one are told.
    """
    return told_by_first(_prices(run, plan, profile, samples))


def _prices(
    run: PruningRun,
    plan: PruningPlan,
    profile: Profile | None,
    samples: Mapping[str, Path] | None,
) -> Prices:
    space, target = run.prunable.space, plan.target
    if target.goals and profile is None:
        profile = measure_profile(
            run.prunable,
            run.applying.workloads,
            run.stages,
            timed=bool(target.latencies),
            measured=target.metered,
            samples=samples,
            processor=run.named.tokenizer,
        )
    run.notes.extend(target.loose(space, profile))
    with naming_floor_of_both(run, target, profile, repeats=_promise(plan).repeats):
        try:
            target.budget(space, profile)
            return Prices(profile, None)
        except BudgetError:
            if profile is None or not target.verified(profile):
                raise
        with run.stages.stage("floor") as progress:
            reached = _promise(plan).reach(
                profile.restricted(space),
                target,
                _measure(run, plan, profile, progress),
                device=device_name(device_of(run.model)),
            )
    return Prices(profile, reached)


def measure_statistics(
    run: PruningRun, plan: PruningPlan, prices: Prices
) -> tuple[PruningRun, HeadStats]:
    """Measure the statistics that the method needs.

    Returns:
        The run with the neurons in the order of their prices, and the statistics.
    """
    budget = prices.budget(run.prunable.space, plan.target)
    task = task_of(run.named, plan, budget, labelled=run.texts.labelled)
    with run.stages.stage("calibrate") as progress:
        found = calibrate_kinds(
            run.prunable,
            run.texts.calibration,
            measured_for(plan.method, task, plan.measuring),
            token_weights=run.weights,
            fidelity=run.fidelity,
            seed=plan.applying.seed,
            folder=run.folder,
            progress=progress,
        )
    run.notes.extend(plan.method.remarks(found.stats))
    return run.over(found.prunable), found.stats


def choose(run: PruningRun, plan: PruningPlan, prices: Prices, stats: HeadStats) -> Selection:
    """Choose the units; where a latency is limited, time the sliced model and choose again after a miss."""
    target, profile = plan.target, prices.profile
    budget = prices.budget(stats.space, target)
    task = task_of(run.named, plan, budget, labelled=run.texts.labelled)
    with run.stages.stage("select") as progress:
        evidence = Evidence(
            run.prunable, stats, task, run.texts.calibration, _fidelity(run.named), progress
        )
        chooser = trusted(plan.method, chooser_of(plan.method, evidence))
        if profile is None or not target.verified(profile):
            selection = chooser(budget)
        else:
            promise = _promise(plan)
            with naming_floor_of_both(run, target, profile, repeats=promise.repeats):
                selection = promise.keep(
                    chooser,
                    profile.restricted(stats.space),
                    target,
                    _measure(run, plan, profile, progress),
                    device=device_name(device_of(run.model)),
                    reached=prices.reached,
                )
    return with_provenance(selection, plan.method, task, stats, target, profile)


def _promise(plan: PruningPlan) -> Promise:
    return Promise(
        rounds=plan.rounds,
        repeats=max(3, *(workload.repeats for workload in plan.applying.workloads)),
    )


def _measure(run: PruningRun, plan: PruningPlan, profile: Profile, progress: Progress) -> Measure:
    """A function that times sliced models on the workloads of the target."""
    tables = {name: table.provenance for name, table in plan.target.measured(profile).items()}
    return measuring(run.prunable, tables, run.timed, progress=progress)


def _records(stats: HeadStats, profile: Profile | None) -> dict[str, Record]:
    records: dict[str, Record] = {STATS_FILE: stats}
    return records if profile is None else records | {LATENCY_FILE: profile}
