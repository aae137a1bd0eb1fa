"""The whole way: measure, select, slice, refit, check, save; each stage also on its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from cahp_opt.costs.budget import BudgetError
from cahp_opt.costs.checks import Round
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.target import Target
from cahp_opt.files.belongings import CARD_FILE
from cahp_opt.files.folders import whole_folder
from cahp_opt.progress import Progress, Stages
from cahp_opt.runs.method import Method, ObjectiveName
from cahp_opt.runs.plan import Applying
from cahp_opt.runs.recovery import Weighting
from cahp_opt.runs.report import Report
from cahp_opt.runs.texts import TextSplit
from cahp_opt.space import HeadSpace, Unit
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.studies.promise import Measure, Promise
from cahp_opt.torch.blocks.finder import find_attention
from cahp_opt.torch.blocks.fingerprint import structure
from cahp_opt.torch.calibration.calibration import calibrate
from cahp_opt.torch.calibration.class_maps import class_labels
from cahp_opt.torch.calibration.token_weights import TokenWeights
from cahp_opt.torch.checkpoints.card import give_way
from cahp_opt.torch.evaluation.fidelity import Fidelity, fidelity_of
from cahp_opt.torch.latency.measured_selection import measuring
from cahp_opt.torch.latency.model_times import device_name
from cahp_opt.torch.pipeline.applying import apply, rehearse
from cahp_opt.torch.pipeline.profiles import batch_of, measure_profile
from cahp_opt.torch.pipeline.run import Batches, EncodedTexts, Named
from cahp_opt.torch.pipeline.saving import finish
from cahp_opt.torch.running.batches import device_of

STATS_FILE = "stats.safetensors"
LATENCY_FILE = "latency.json"


def run_pipeline(
    named: Named,
    texts: TextSplit,
    target: Target,
    method: Method,
    applying: Applying,
    output: Path,
    *,
    profile: Profile | None = None,
    unit: Unit | None = None,
    samples: Mapping[str, Path] | None = None,
    overwrite: bool = False,
    display: Stages,
) -> Report:
    """Prune a model to a target and write it, with all records, to a folder.

    What can fail is tried before what takes long: the folder, the model, the solver, then the budget. Where
    a latency is limited, the sliced model is timed before the refit, and the units are selected again with
    corrected tables if it misses the limit (see :class:`~cahp_opt.studies.promise.Promise`).

    Args:
        named: the unpruned model.
        texts: to calibrate and refit on, and to judge by.
        target: what to keep to.
        method: how to choose.
        applying: what to do with the choice.
        output: the folder.
        profile: a ready one; measured here if the target needs one and it is None.
        unit: as for :func:`~cahp_opt.torch.find_attention`.
        samples: as for :func:`measure_profile`.
        overwrite: whether a model that was written there may be replaced.
        display: shows the stages.

    Raises:
        BudgetError: if nothing meets the target.
        ValueError: for a model, texts or options that cannot be used.
        OSError: if the folder cannot be written; nothing half written stays.
    """
    with whole_folder(output, overwrite=overwrite) as folder:
        space = find_attention(named.model, unit=unit).space
        if profile is not None:
            profile.check(structure(named.model))
        method.rehearse(space)
        # Numbers of units need no measuring; all of them is no limit.
        most = space.n if target.heads is None else target.heads
        replace(target, goals=(), heads=most).budget(space, None)
        _check_labels(method.objective, texts)
        fidelity = fidelity_of(named.model, named.pooling)  # refuses before the long work
        batches = EncodedTexts.of(named, texts, applying.reading)
        rehearse(named, batches, applying, fidelity, folder)
        if method.objective.signature_size:
            class_labels(batches.calibration[0])  # refuses what are no classes
        if target.goals and profile is None:
            profile = measure_profile(
                named.model,
                applying.workloads,
                display,
                unit,
                timed=bool(target.latencies),
                samples=samples,
            )
        batches = replace(batches, notes=(*batches.notes, *target.loose(space, profile)))
        floor = _reach(named.model, space, target, method, profile, applying, display, unit)
        weights = None
        if applying.recovery.refits and applying.weighting is Weighting.SENSITIVITY:
            weights = TokenWeights(named.model, fidelity=fidelity, seed=method.seed)
        stats = measure_stats(
            named.model,
            batches.calibration,
            method.objective,
            method.seed,
            display,
            unit=unit,
            token_weights=weights,
            fidelity=fidelity,
        )
        batches = replace(batches, notes=(*batches.notes, *method.objective.remarks(stats)))
        with display.stage("select") as progress:
            if profile is None or not target.latencies:
                selection = method.choose(stats, target, profile)
            else:
                selection = _promise(method, applying).keep(
                    method.objective.build(stats),
                    profile,
                    target,
                    method.solver.build(),
                    _measure(named.model, target, profile, applying, unit, progress),
                    device=device_name(device_of(named.model)),
                    floor=floor,
                )
                facts = method.provenance(stats, target, profile)
                selection = replace(selection, provenance=facts)
        report = apply(named, selection, batches, applying, fidelity, folder, display, weights)
        give_way(folder, output / CARD_FILE)
        stats.save(folder / STATS_FILE)
        if profile is not None:
            profile.save(folder / LATENCY_FILE)
        return finish(report, folder, display)


def _check_labels(objective: ObjectiveName, texts: TextSplit) -> None:
    """Refuse texts without the classes that an objective tells units apart by."""
    if objective.signature_size and any(example.label is None for example in texts.calibration):
        raise ValueError(
            f"`--objective {objective.value}` tells units apart by class, and the texts have no labels; "
            "give `--data` with a column label, or another objective."
        )


def _promise(method: Method, applying: Applying) -> Promise:
    return Promise(
        rounds=applying.rounds,
        repeats=max(3, *(workload.repeats for workload in applying.workloads)),
        time_limit=method.time_limit,
        seed=method.seed,
    )


def _measure(
    model: nn.Module,
    target: Target,
    profile: Profile,
    applying: Applying,
    unit: Unit | None,
    progress: Progress,
) -> Measure:
    """What times sliced models on the workloads that the target is about."""
    tables = {name: table.provenance for name, table in target.workloads(profile).items()}
    batches = {workload.name: batch_of(model, workload) for workload in applying.workloads}
    return measuring(model, tables, batches, unit=unit, progress=progress)


def _reach(
    model: nn.Module,
    space: HeadSpace,
    target: Target,
    method: Method,
    profile: Profile | None,
    applying: Applying,
    display: Stages,
    unit: Unit | None,
) -> Round | None:
    """End here, before calibrating, with a target that nothing meets; see :meth:`Promise.reach`."""
    try:
        target.budget(space, profile)
        return None
    except BudgetError:
        if profile is None or not target.latencies:
            raise
    with display.stage("floor") as progress:
        return _promise(method, applying).reach(
            profile,
            target,
            _measure(model, target, profile, applying, unit, progress),
            device=device_name(device_of(model)),
        )


def measure_stats(
    model: nn.Module,
    batches: Batches,
    objective: ObjectiveName,
    seed: int,
    display: Stages,
    *,
    gradient_examples: int = 256,
    sensitivity_examples: int = 2048,
    divergence_examples: int = 64,
    unit: Unit | None = None,
    token_weights: TokenWeights | None = None,
    fidelity: Fidelity | None = None,
) -> HeadStats:
    """Calibration statistics, no more than ``objective`` needs; see :func:`calibrate` for the rest."""
    with display.stage("calibrate") as progress:
        return calibrate(
            model,
            batches,
            densities=objective.densities,
            gradient_examples=gradient_examples if objective.gradients else 0,
            sensitivity_examples=sensitivity_examples if objective.sensitivity else 0,
            divergence_examples=divergence_examples if objective.divergence else 0,
            signature_size=objective.signature_size,
            token_weights=token_weights,
            fidelity=fidelity,
            unit=unit,
            seed=seed,
            progress=progress,
        )
