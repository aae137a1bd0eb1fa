"""``cahp study``: methods, limits and recoveries on the same model and texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from cahp_opt.cli.loading import embeds, in_kinds, named_of, read_by
from cahp_opt.cli.notes import note
from cahp_opt.cli.options import MeasuredModel
from cahp_opt.cli.outputs import check_writable
from cahp_opt.cli.plugins import method_named, objective_kind
from cahp_opt.cli.study_display import StudyDisplay
from cahp_opt.cli.study_tables import study_tables
from cahp_opt.cli.unused_options import Given
from cahp_opt.costs.budget import Budget
from cahp_opt.files.records import is_record
from cahp_opt.reports.page import REPORT_PAGE
from cahp_opt.reports.study_page import study_page
from cahp_opt.runs.kinds import KindOptions
from cahp_opt.runs.measuring import MeasuringOptions
from cahp_opt.runs.method import Task
from cahp_opt.runs.plan import TextOptions
from cahp_opt.runs.studied_objectives import applicable, beside, objectives_named
from cahp_opt.runs.study_options import (
    STUDY_FILE,
    StudiedLimits,
    StudiedMethods,
    StudiedRecoveries,
    StudyOutput,
    studied_kinds,
)
from cahp_opt.runs.study_plan import StudyPlan
from cahp_opt.runs.study_texts import StudyTexts
from cahp_opt.runs.timing_options import WorkloadOptions
from cahp_opt.studies.study import Study


@dataclass(frozen=True)
class MeasuredMethods(StudiedMethods):
    """The methods, and how much is measured for them."""

    amounts: MeasuringOptions = field(default_factory=MeasuringOptions)


def study(
    given: Given,
    texts: TextOptions,
    asked: StudiedLimits,
    ways: MeasuredMethods,
    repairs: StudiedRecoveries,
    timing: WorkloadOptions,
    output: StudyOutput,
    kinds: KindOptions,
    model: MeasuredModel,
) -> None:
    """Compare methods on a model and texts: every method at every limit with every recovery.

    Every seed draws texts of its own to calibrate and recover on; all models are judged on the same held-out
    texts, and timed in turns with the unpruned model in the end. Every result is kept as soon as it is there: a
    study that was stopped in any way resumes, and one with more methods, limits, recoveries or seeds costs only
    what is new. A cell that fails does not stop the others.
    """
    note(given.check())
    note(given.check(recoveries=repairs.recoveries))
    limits, profile = asked.limits(), asked.profile()
    note(given.check(table_times=profile is not None and bool(profile.latency)))
    note(given.check(goals=[goal for limit in limits for goal in limit.target.goals]))
    methods = {name: method_named(name) for name in ways.names}
    asked_for = {name: objective_kind(name) for name in ways.asked_objectives}
    wanted = studied_kinds(kinds, limits, methods.values(), profile)
    workloads = timing.studied([limit.target for limit in limits], profile)
    _check_folder(output.output_dir)
    examples = StudyTexts.read(texts, output.test_data)
    note(examples.notes)
    display = StudyDisplay()
    loaded = named_of(model, display, medium=texts.medium, pooling=texts.pooling)
    note(given.check(**read_by(loaded.model)))
    named = in_kinds(loaded, wanted, model.units)
    embeds(named)  # refuses an output that cannot be compared
    note(given.check(prunes=named.kinds.prune))
    objectives = objectives_named(asked_for)
    if ways.usual_objectives:
        labelled = all(example.label is not None for example in examples.pool)
        task = Task(Budget(named.prunable.space), labelled=labelled)
        objectives |= applicable(ways.usual_objectives, task)
    methods, ranked = beside(methods, objectives)
    plan = StudyPlan(
        methods,
        limits,
        repairs.recoveries,
        tuple(range(ways.seeds)),
        repairs.recovering,
        workloads,
        texts.reading,
        ways.amounts,
        ways.time_limit,
        ranked,
        ways.keep_sets,
    )
    print(f"pruned: {named.kinds.sentence}", flush=True)
    print(f"study: {plan.in_words(examples.drawn, len(examples.held_out))}", flush=True)

    from cahp_opt.torch.blocks.fingerprint import fingerprint
    from cahp_opt.torch.studies.recipe import Recipe
    from cahp_opt.torch.studies.running import run_study
    from cahp_opt.torch.studies.source import Source

    source = Source(
        model.model,
        model.device,
        model.precision,
        model.leave_out,
        model.trust_remote_code,
        model.threads,
        device_map=model.device_map,
    )
    recipe = Recipe(
        source.holding(named.model, named.tokenizer),
        fingerprint(named.model),
        examples,
        plan,
        output.output_dir,
        named.kinds,
        texts.pooling,
        profile,
    )
    found = run_study(recipe, jobs=ways.jobs, stages=display)
    note(told for told in found.notes if told not in examples.notes)
    _show(found, output.output_dir, {name: method.source for name, method in methods.items()})


def _show(found: Study, folder: Path, sources: Mapping[str, str]) -> None:
    """Show the tables, write the page, and say where everything is.

    Args:
        found: the outcomes.
        folder: where the study writes.
        sources: by name of the method, where it was published.

    Raises:
        ValueError: if every cell failed.
    """
    if not found.outcomes:
        reasons = list(dict.fromkeys(found.missing.values()))
        raise ValueError(
            f"all {len(found.missing)} cells failed: {reasons[0]} The tracebacks are in {folder / 'failures'}."
        )
    Console().print(*study_tables(found))
    if found.missing:
        note(
            [
                f"{len(found.missing)} of {len(found.cells)} cells failed; the same command tries them again, and "
                f"the tracebacks are in {folder / 'failures'}."
            ]
        )
    study_page(found, sources).save(folder / REPORT_PAGE)
    print(f"written to {folder}: {REPORT_PAGE}, {STUDY_FILE}")


def _check_folder(folder: Path) -> None:
    """Refuse a folder that could not be written, or whose record is somebody else's."""
    if folder.is_file():
        raise ValueError(f"`--output-dir` {folder} is a file; name a folder.")
    record = folder / STUDY_FILE
    if record.is_file() and not is_record(record, "cahp-study"):
        raise ValueError(
            f"`--output-dir` {folder} holds {STUDY_FILE}, which no study wrote, so it is not replaced; name "
            "another folder."
        )
    if (folder / REPORT_PAGE).exists() and not record.is_file():
        raise ValueError(
            f"`--output-dir` {folder} holds {REPORT_PAGE}, but no study, so it is not replaced; name another folder."
        )
    check_writable(record)
