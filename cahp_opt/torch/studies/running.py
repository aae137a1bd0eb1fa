"""A study from its recipe to its record: profile, draws, cells, times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cahp_opt.costs.budget import Budget
from cahp_opt.costs.checks import Check
from cahp_opt.costs.profile import Profile
from cahp_opt.progress import Progress, Stages
from cahp_opt.runs.method import Needs
from cahp_opt.runs.study_options import STUDY_FILE
from cahp_opt.studies.outcome import Cell, Outcome
from cahp_opt.studies.random_sets import RandomSets
from cahp_opt.studies.study import Study
from cahp_opt.torch.blocks.fingerprint import structure
from cahp_opt.torch.methods.model_method import rehearse_choice
from cahp_opt.torch.pipeline.profiles import measure_profile
from cahp_opt.torch.pipeline.rehearsing import rehearse_judging, rehearse_recovery
from cahp_opt.torch.studies.bench import Bench, bench_of
from cahp_opt.torch.studies.needs import needs_of_all
from cahp_opt.torch.studies.outlook import Outlook
from cahp_opt.torch.studies.ranking import ranked_sets
from cahp_opt.torch.studies.recipe import Recipe
from cahp_opt.torch.studies.timing import Counts, Timer, distinct_counts
from cahp_opt.torch.studies.working import Done, measure_draw, work
from cahp_opt.version import __version__

_PAUSE = 0.5  # seconds until work that another process was doing is asked for again


class WorkerError(RuntimeError):
    """A process of a study ended before its work was done; the message says what to do."""


def run_study(recipe: Recipe, *, jobs: int = 1, stages: Stages | None = None) -> Study:
    """Run what is missing of a study, and write its record.

    Args:
        recipe: the study.
        jobs: cells that are worked on at the same time; -1 for one per core.
        stages: shows the stages.

    Raises:
        BudgetError: if nothing meets a limit.
        ValueError: for a model, texts or methods that cannot be used.
        WorkerError: if a worker was ended from outside.
        OSError: if the folder cannot be written.
    """
    shown = stages or Stages()
    bench, asked = bench_of(recipe), recipe.plan
    with bench.alone:
        refused = check_study(bench)
        profile = recipe.profile or measured_profile(bench, shown)
        if refused or (profile is not None and recipe.profile is None):
            plan = asked.without(refused)
            recipe = replace(recipe, source=_held(bench), profile=profile, plan=plan)
    bench = bench_of(recipe)
    with bench.alone:
        needs = needs_of_all(bench)
    found, failed = _worked(recipe, needs, jobs, shown)
    failed |= {cell: refused[cell.method] for cell in asked.cells() if cell.method in refused}
    seeds = {cell.seed for cell in found}
    ranked = ranked_sets(recipe, needs, refused, seeds, partial(_spread, jobs=jobs), shown)
    outcomes = _timed(bench, found, shown)
    missing = {cell: failed[cell] for cell in asked.cells() if cell in failed}
    study = _study(bench, outcomes, missing, ranked)
    study.save(recipe.folder / STUDY_FILE)
    return study


def _held(bench: Bench) -> Any:
    """The source with the model that this process has loaded."""
    named = bench.named
    return bench.recipe.source.holding(named.model, named.tokenizer)


def check_study(bench: Bench) -> dict[str, str]:
    """Refuse, before long work, what would be refused in every cell of a method or a recovery.

    Returns:
        By objective that does not apply, which stops nothing else, a sentence with the reason.

    Raises:
        BudgetError: if nothing meets a limit on numbers of units.
        ValueError: naming the way out; also if none of the methods is left.
    """
    refused = dict[str, str]()
    plan, space = bench.plan, bench.prunable.space
    if bench.recipe.profile is not None:
        bench.recipe.profile.check(structure(bench.named.model))
    for limit in plan.limits:
        limit.target.numbers(space)
    for recovery in plan.recoveries:
        task = bench.within(Budget(space), recovery, plan.seeds[0])
        for name, method in plan.methods.items():
            try:
                method.check(task)
                plan.measuring.check(method.name, method.needs(task).statistics)
            except ValueError as error:
                if name not in plan.objectives or len(refused | {name: ""}) == len(plan.methods):
                    raise
                refused[name] = str(error)
    rehearse_judging(bench.named.model, bench.fidelity, bench.held_out.batches[0])
    Timer(bench)  # refuses workloads that the model cannot be timed on
    for method in plan.methods.values():
        rehearse_choice(method, bench.prunable, bench.few[0])
    for recovery in plan.recoveries:
        rehearse_recovery(bench.prunable, recovery, bench.few[0])
    return refused


def measured_profile(bench: Bench, stages: Stages) -> Profile | None:
    """The costs that the limits are about, measured once for the folder; None if none is about any."""
    plan = bench.plan
    if not any(limit.target.goals for limit in plan.limits):
        return None
    metered = [name for limit in plan.limits for name in limit.target.metered]
    key = structure(bench.named.model), bench.key, plan.workloads, metered, bench.store.device
    path = bench.store.path("latency", key)
    samples = {w.name: path.with_suffix(f".{w.name}.jsonl") for w in plan.workloads}

    def measure(to: Path) -> None:
        measure_profile(
            bench.prunable,
            plan.workloads,
            stages,
            timed=plan.timed,
            measured=metered,
            samples=samples,
            processor=bench.named.tokenizer,
        ).save(to)

    profile = Profile.load(bench.store.file(path, measure))
    for sample in samples.values():
        sample.unlink(missing_ok=True)
    return profile


def _worked(
    recipe: Recipe, needs: Needs, jobs: int, stages: Stages
) -> tuple[dict[Cell, Outcome], dict[Cell, str]]:
    """The outcomes of all cells, and the reasons of those that failed."""
    plan, failed = recipe.plan, dict[Cell, str]()
    with stages.stage("calibrate") as progress:
        draws = [partial(measure_draw, recipe, seed, needs) for seed in plan.seeds]
        for number, done in enumerate(_spread(draws, jobs), start=1):
            failed |= done.failed
            progress("calibrate", number, len(draws))
    hopeless = {cell.seed for cell in failed}
    outcomes = dict[Cell, Outcome]()
    outlook = Outlook(len(plan.cells()), failed=len(failed), found=len(failed))
    with stages.stage("cells") as progress:
        todo = [
            partial(work, recipe, job, needs) for job in plan.jobs() if job.seed not in hopeless
        ]
        _tell(outlook, progress)
        for done in _spread(todo, jobs):
            outcomes |= {outcome.cell: outcome for outcome in done.outcomes}
            failed |= done.failed
            outlook.done, outlook.failed = len(outcomes), len(failed)
            outlook.found += done.found
            _tell(outlook, progress)
    return outcomes, failed


def _tell(outlook: Outlook, progress: Progress) -> None:
    progress(str(outlook), outlook.done + outlook.failed, outlook.total)


def _spread(todo: Sequence[Callable[[], Done]], jobs: int) -> Iterable[Done]:
    """What comes of pieces of work, as it comes; what another process is doing is asked for again."""
    import joblib  # takes a tenth of a second to import

    tools: Any = joblib  # it carries no annotations
    left = list(enumerate(todo))
    while left:
        parallel = tools.Parallel(n_jobs=jobs, return_as="generator_unordered")
        busy = list[int]()
        pieces = (tools.delayed(_numbered)(number, piece) for number, piece in left)
        try:
            results: Iterable[tuple[int, Done]] = parallel(pieces)
            for number, done in results:
                if done.busy:
                    busy.append(number)
                else:
                    yield done
        except BrokenExecutor as error:
            raise WorkerError(
                "a worker of the study was ended from outside, most often because memory ran out; start the study "
                "again, with fewer jobs: what is done is not done again."
            ) from error
        left = [(number, piece) for number, piece in left if number in busy]
        if left:
            time.sleep(_PAUSE)


def _numbered(number: int, piece: Callable[[], Done]) -> tuple[int, Done]:
    return number, piece()


def _timed(bench: Bench, found: dict[Cell, Outcome], stages: Stages) -> list[Outcome]:
    """The outcomes with their times, which nothing else on this machine disturbs: one after the other.

    A model that cannot be timed is left without times, and a note says why.
    """
    with bench.alone, stages.stage("time") as progress:
        timer = Timer(bench)
        every = distinct_counts([outcome.counts for outcome in found.values()])
        times, notes = dict[Counts, Mapping[str, Check]](), dict[Counts, tuple[str, ...]]()
        for number, counts in enumerate(every, start=1):
            try:
                times[counts] = timer.times(counts)
            except Exception as error:  # the other models may go well
                why = " ".join(str(error).split()) or type(error).__name__
                notes[counts] = (f"a model of it could not be timed: {why}",)
            progress("time", number, len(every))
    return [
        replace(
            found[cell],
            times=times.get(found[cell].counts, {}),
            notes=found[cell].notes + notes.get(found[cell].counts, ()),
        )
        for cell in bench.plan.cells()
        if cell in found
    ]


def _study(
    bench: Bench,
    outcomes: Sequence[Outcome],
    missing: dict[Cell, str],
    ranked: tuple[RandomSets, ...],
) -> Study:
    texts = bench.recipe.texts
    with bench.alone:
        unpruned, notes = bench.judge.unpruned, (*texts.notes, *bench.notes)
    devices = dict.fromkeys(outcome.provenance["device"] for outcome in outcomes)
    facts = {
        "weights": bench.recipe.identity,
        "device": "; ".join(devices) or bench.store.device,
        "cahp-opt": __version__,
        "texts of a draw": str(texts.drawn),
        "held-out texts": str(len(texts.held_out)),
    }
    return Study(
        bench.named.name,
        texts.name,
        bench.prunable.space.unordered(),
        unpruned,
        tuple(outcomes),
        missing,
        facts,
        notes,
        ranked,
    )
