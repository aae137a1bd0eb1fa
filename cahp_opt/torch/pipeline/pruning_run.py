"""The whole way: measure, select, slice, refit, check, save; each stage also on its own."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cahp_opt.costs.budget import BudgetError
from cahp_opt.costs.checks import Round
from cahp_opt.costs.hardware import Hardware
from cahp_opt.costs.latency_table import LatencyTable
from cahp_opt.costs.profile import Profile, ResourceTable
from cahp_opt.costs.provenance import Execution, Phase
from cahp_opt.costs.target import Target, remarks
from cahp_opt.costs.workloads import Workload, recorded_tables
from cahp_opt.files.belongings import CARD_FILE, LIST_FILE
from cahp_opt.files.folders import whole_folder
from cahp_opt.identity import coverage_note
from cahp_opt.progress import Progress, Stages
from cahp_opt.runs.method import Method, ObjectiveName
from cahp_opt.runs.recovery import Recovery, Weighting
from cahp_opt.runs.report import REPORT_FILE, FidelityReport, Report
from cahp_opt.runs.texts import TextSplit
from cahp_opt.selection import Selection
from cahp_opt.space import HeadSpace, Unit
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.pooling import Pooling, in_words, provenance_of, recorded_pooling
from cahp_opt.studies.promise import Measure, Promise
from cahp_opt.torch.blocks.finder import find_attention
from cahp_opt.torch.blocks.fingerprint import mismatch, structure
from cahp_opt.torch.calibration.calibration import calibrate
from cahp_opt.torch.calibration.class_maps import class_labels
from cahp_opt.torch.calibration.token_weights import TokenWeights
from cahp_opt.torch.checkpoints.card import give_way
from cahp_opt.torch.checkpoints.checkpoint import SELECTION_FILE, from_pretrained, save_pretrained
from cahp_opt.torch.evaluation.evaluation import Evaluation, evaluate
from cahp_opt.torch.evaluation.fidelity import (
    Fidelity,
    PooledEmbedding,
    embedding_notes,
    fidelity_of,
)
from cahp_opt.torch.latency.block_times import measure_latency
from cahp_opt.torch.latency.decoding_step import decoding_step
from cahp_opt.torch.latency.exact_counts import count_resources
from cahp_opt.torch.latency.execution import ExecutionError, refuse_unfit
from cahp_opt.torch.latency.measured_selection import measuring
from cahp_opt.torch.latency.model_times import device_name
from cahp_opt.torch.latency.roofline import estimate_latency
from cahp_opt.torch.latency.timing_log import SampleFile
from cahp_opt.torch.latency.weightless import skeleton
from cahp_opt.torch.pipeline.final_times import final_times, recorded_goals
from cahp_opt.torch.pipeline.rehearsing import rehearse_judging, rehearse_recovery, rehearse_saving
from cahp_opt.torch.recovery.finetuning import finetune
from cahp_opt.torch.recovery.refitting import refit
from cahp_opt.torch.running.batches import batch_size, device_of, inputs_of, prepare
from cahp_opt.torch.running.gates import attention_for
from cahp_opt.torch.running.undisturbed import evaluating
from cahp_opt.torch.slicing.slicing import slice_heads
from cahp_opt.torch.slicing.verification import verify_slice
from cahp_opt.torch.texts.encoding import encode, notes_on_empty, timing_batch
from cahp_opt.torch.texts.rehearsal import rehearse_texts

STATS_FILE = "stats.safetensors"
LATENCY_FILE = "latency.json"
ADVISED_TEXTS = 1500
"""Fewer texts than that overfit the refit."""

Batches = Sequence[Mapping[str, Tensor]]


class ReloadError(RuntimeError):
    """The saved model, loaded again, is not the model that was saved."""


@dataclass(frozen=True, eq=False)
class Named:
    """A model, its tokenizer, and the name it was loaded by.

    Args:
        name: a folder or a hub id.
        model: the model.
        tokenizer: its tokenizer.
        pooling: how it embeds texts; None for what the files beside it say.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    pooling: Pooling | None = None


@dataclass(frozen=True)
class Reading:
    """How texts become batches.

    Args:
        batch_size: texts per batch.
        max_length: tokens per text, at most.
        seed: of the order of the batches.
    """

    batch_size: int = 32
    max_length: int = 128
    seed: int = 0


@dataclass(frozen=True)
class Applying:
    """What is done once the selection stands.

    Args:
        recovery: how the sliced model gets back what it lost, where there are texts.
        workloads: what the sliced model is timed with, at least one.
        reading: how texts become batches.
        rounds: sliced models that are timed until a latency goal is met, at most.
        epochs: of fine-tuning.
        learning_rate: of fine-tuning.
        weighting: how much each token counts in the refit.
        feed_forward: whether the refit fits the feed-forward parts too.
    """

    recovery: Recovery = Recovery.REFIT
    workloads: tuple[Workload, ...] = (Workload(),)
    reading: Reading = Reading()
    rounds: int = 3
    epochs: int = 1
    learning_rate: float = 5e-5
    weighting: Weighting = Weighting.SENSITIVITY
    feed_forward: bool = True


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
        batches = _Batches.of(named, texts, applying.reading)
        _rehearse(named, batches, applying, fidelity, folder)
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
        report = _apply(named, selection, batches, applying, fidelity, folder, display, weights)
        give_way(folder, output / CARD_FILE)
        stats.save(folder / STATS_FILE)
        if profile is not None:
            profile.save(folder / LATENCY_FILE)
        return _finish(report, folder, display)


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


def apply_selection(
    named: Named,
    selection: Selection,
    texts: TextSplit | None,
    applying: Applying,
    output: Path,
    *,
    overwrite: bool = False,
    display: Stages,
) -> Report:
    """Slice a model to a selection and write it to a folder: the second half of :func:`run_pipeline`.

    Args:
        named: the model that the selection was made for.
        selection: the selection.
        texts: to refit on and judge by; None for neither.
        applying: what to do with the selection.
        output: the folder.
        overwrite: whether a model that was written there may be replaced.
        display: shows the stages.

    Raises:
        ValueError: if the selection is of another model, or texts or options cannot be used.
        OSError: if the folder cannot be written; nothing half written stays.
    """
    check_selection(named.model, selection)
    with whole_folder(output, overwrite=overwrite) as folder:
        recorded = recorded_pooling(selection.provenance)
        fidelity = None
        if texts or named.pooling:
            named = replace(named, pooling=named.pooling or recorded)
            fidelity = fidelity_of(named.model, named.pooling)
        batches = _Batches.of(named, texts, applying.reading) if texts else _Batches([], [], 0)
        _rehearse(named, batches, applying, fidelity, folder)
        report = _apply(named, selection, batches, applying, fidelity, folder, display)
        give_way(folder, output / CARD_FILE)
        told = coverage_note("the selection", selection.provenance.get("model", ""))
        notes = [] if told is None else [told]
        if texts and recorded not in (None, named.pooling):
            notes.append(
                f"the units were selected for {in_words(recorded)}, and the model was judged by "
                f"{in_words(named.pooling)}, as asked."
            )
        report = replace(report, notes=(*report.notes, *notes))
        return _finish(report, folder, display)


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


def measure_profile(
    model: nn.Module,
    workloads: Sequence[Workload],
    display: Stages,
    unit: Unit | None = None,
    *,
    timed: bool = True,
    samples: Mapping[str, Path] | None = None,
) -> Profile:
    """The latency tables of a model on this machine, and the exact counts of what it holds.

    The key/value cache is that of the first workload that decodes, or of the first if none does.

    Args:
        model: the unpruned model.
        workloads: what to time it with, at least one.
        display: shows the stages.
        unit: as for :func:`~cahp_opt.torch.find_attention`.
        timed: whether there are latency tables, and not only the counts.
        samples: by name of the workload, a file that keeps every run; removing it is left to the caller.
    """
    if timed:
        batches = _timed_batches(model, workloads)
    else:
        batches = {workload.name: batch_of(model, workload) for workload in workloads}
    resources = _counted(model, workloads, batches, display, unit)
    tables: dict[str, LatencyTable] = {}
    for workload in workloads if timed else ():
        with display.stage("latency") as progress:
            tables[workload.name] = measure_latency(
                model,
                batches[workload.name],
                phase=workload.phase,
                execution=workload.execution,
                repeats=workload.repeats,
                unit=unit,
                samples=SampleFile(samples[workload.name]) if samples else None,
                progress=progress,
            )
    return Profile(find_attention(model, unit=unit).space, tables, resources)


def estimate_profile(
    model: nn.Module,
    workloads: Sequence[Workload],
    hardware: Hardware,
    display: Stages,
    unit: Unit | None = None,
) -> Profile:
    """As :func:`measure_profile`, with estimates for a device that is not here.

    Args:
        model: the unpruned model.
        workloads: what to estimate, all run eagerly, at least one.
        hardware: what the device can do.
        display: shows the stages.
        unit: as for :func:`~cahp_opt.torch.find_attention`.

    Raises:
        ExecutionError: for a workload that is not run eagerly.
    """
    for workload in workloads:
        if workload.execution is not Execution.EAGER:
            raise ExecutionError(
                f"`execution` is {workload.execution.value}, and only eager execution can be estimated; "
                "measure on the device."
            )
    batches = {workload.name: batch_of(model, workload) for workload in workloads}
    bare = skeleton(model)
    resources = _counted(bare, workloads, batches, display, unit)
    tables: dict[str, LatencyTable] = {}
    for workload in workloads:
        with display.stage("estimate") as progress:
            tables[workload.name] = estimate_latency(
                bare,
                batches[workload.name],
                hardware,
                phase=workload.phase,
                unit=unit,
                progress=progress,
            )
    return Profile(find_attention(model, unit=unit).space, tables, resources)


def _counted(
    model: nn.Module,
    workloads: Sequence[Workload],
    batches: Mapping[str, Mapping[str, Tensor]],
    display: Stages,
    unit: Unit | None,
) -> dict[str, ResourceTable]:
    filling = next((w for w in workloads if w.phase is Phase.DECODE), workloads[0])
    with display.stage("count"):
        return count_resources(model, batches[filling.name], unit=unit)


def batch_of(model: nn.Module, workload: Workload) -> dict[str, Tensor]:
    """The batch of a workload; while decoding, the context that fills the cache."""
    return timing_batch(
        model,
        batch_size=workload.batch_size,
        sequence_length=workload.sequence_length,
        new_tokens=int(workload.phase is Phase.DECODE),
    )


def left_alone(model: nn.Module) -> str | None:
    """A sentence about what looks like attention and is not pruned; None if there is nothing."""
    skipped = find_attention(model).skipped
    if not skipped:
        return None
    name, reason = skipped[0]
    others = f" ({len(skipped) - 1} more like it)" if len(skipped) > 1 else ""
    return f"{name}{others} stays as it is: {reason}."


def check_selection(model: nn.Module, selection: Selection) -> None:
    """Refuse a selection of another model, or whose record cannot be understood.

    Raises:
        ValueError: if its blocks or the weights it was made from are others, or what it tells of its goals.
    """
    for read in (recorded_goals, recorded_tables, remarks):  # read again after minutes of work
        read(selection.provenance)
    difference = attention_for(model, selection).space.difference(selection.space)
    if difference is None:
        difference = mismatch(model, selection.provenance.get("model", ""))
    if difference is not None:
        raise ValueError(
            f"the selection was made for another model ({difference}); name the model, with all its weights, "
            "and the precision that were calibrated, or select again."
        )


@dataclass(frozen=True)
class _Batches:
    """Encoded texts, how many are calibrated on, and what the user should know about them."""

    calibration: Batches
    held_out: Batches
    texts: int
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(named: Named, texts: TextSplit, reading: Reading) -> _Batches:
        def encoded(part: Any) -> Batches:
            return encode(
                part,
                named.tokenizer,
                named.model,
                batch_size=reading.batch_size,
                max_length=reading.max_length,
                seed=reading.seed,
            )

        fidelity = fidelity_of(named.model, named.pooling)
        held_out: Batches = encoded(texts.held_out) if texts.held_out else []
        calibration = encoded(texts.calibration)
        # What the model cannot be run on, or compared by, ends here, before the long work.
        rehearse_texts(named.model, calibration[0], fidelity)
        notes = [*texts.notes, *notes_on_empty(texts, [*calibration, *held_out])]
        return _Batches(calibration, held_out, sum(map(batch_size, calibration)), tuple(notes))


def _apply(
    named: Named,
    selection: Selection,
    batches: _Batches,
    applying: Applying,
    fidelity: Fidelity | None,
    folder: Path,
    display: Stages,
    weights: TokenWeights | None = None,
) -> Report:
    """Slice, refit, check, time and save; the report still lacks its files.

    The fidelity is that of the dense model; None where there are no texts to judge by.
    """
    dense = named.model
    if isinstance(fidelity, PooledEmbedding):
        told = {**selection.provenance, **provenance_of(fidelity.pooling)}
        selection = replace(selection, provenance=told)
    timed = {workload.name: batch_of(dense, workload) for workload in applying.workloads}
    first = next(iter(timed.values()))
    probe = next(iter([*batches.held_out, *batches.calibration]), first)
    with display.stage("slice"):
        small = slice_heads(dense, selection, batch=probe)
        difference = verify_slice(dense, small, selection, probe)
    before = _evaluate(dense, small, batches.held_out, fidelity, display)
    after, notes = None, list(batches.notes)
    recovery = applying.recovery if batches.calibration else Recovery.NONE
    if recovery.refits:
        if batches.texts < ADVISED_TEXTS:
            notes.append(
                f"the refit saw {batches.texts} texts; with fewer than {ADVISED_TEXTS} it fits them "
                "too closely."
            )
        weighting = weights or applying.weighting
        if weighting is Weighting.SENSITIVITY:
            weighting = TokenWeights(dense, fidelity=fidelity)
        with display.stage("refit") as progress:
            refit(
                small,
                dense,
                batches.calibration,
                weighting=weighting,
                feed_forward=applying.feed_forward,
                progress=progress,
            )
        if recovery is Recovery.FINETUNE:
            with display.stage("finetune") as progress:
                finetune(
                    small,
                    batches.calibration,
                    dense=dense,
                    fidelity=fidelity,
                    epochs=applying.epochs,
                    learning_rate=applying.learning_rate,
                    seed=applying.reading.seed,
                    progress=progress,
                )
        after = _evaluate(dense, small, batches.held_out, fidelity, display)
    with display.stage("time") as progress:
        times = final_times(dense, small, selection, applying.workloads, timed, progress=progress)
    with display.stage("save"):
        save_pretrained(small, folder, tokenizer=named.tokenizer)
        check_reload(small, folder, [probe, first])
    closeness = None
    if before is not None:
        closeness = FidelityReport(
            before.examples,
            before.figures,
            None if after is None else after.figures,
            None if before.pooling is None else before.pooling.value,
        )
        notes.extend(before.notes)
    notes.extend([*embedding_notes(dense, fidelity), *remarks(selection.provenance), *times.notes])
    left = left_alone(dense)
    if left is not None:
        notes.append(left)
    return Report(
        named.name,
        selection,
        times.workloads,
        times.goals,
        closeness,
        (_weights(dense), _weights(small)),
        difference,
        True,
        batches.texts,
        notes=tuple(notes),
        recovery=recovery,
    )


def _rehearse(
    named: Named, batches: _Batches, applying: Applying, fidelity: Fidelity | None, folder: Path
) -> None:
    """Refuse what could not be timed, recovered, judged or saved in the end."""
    rehearse_saving(named.model, named.tokenizer, folder)
    _timed_batches(named.model, applying.workloads)
    first = next(iter([*batches.calibration, *batches.held_out]), None)
    if first is None:
        return
    if fidelity is not None:
        rehearse_judging(named.model, fidelity, first)
    rehearse_recovery(named.model, applying.recovery, first)


def _timed_batches(
    model: nn.Module, workloads: Sequence[Workload]
) -> dict[str, Mapping[str, Tensor]]:
    """The batch of every workload; what cannot be run ends here, before what takes long."""
    batches: dict[str, Mapping[str, Tensor]] = {}
    for workload in workloads:
        batches[workload.name] = batch_of(model, workload)
        refuse_unfit(workload.execution, device_of(model))
        if workload.phase is Phase.DECODE:
            with evaluating(model):
                decoding_step(model, batches[workload.name])
    return batches


def _evaluate(
    dense: nn.Module,
    small: nn.Module,
    batches: Batches,
    fidelity: Fidelity | None,
    display: Stages,
) -> Evaluation | None:
    if not batches:
        return None
    with display.stage("evaluate") as progress:
        return evaluate(dense, small, batches, fidelity, progress=progress)


def check_reload(model: nn.Module, folder: Path, batches: Sequence[Mapping[str, Any]]) -> None:
    """Load a saved model again and compare its outputs with those of ``model``, bit by bit.

    Raises:
        ReloadError: if anything differs.
    """
    device = device_of(model)
    # Weights that lie in memory as the file has them may be summed in another order: a copy is aligned.
    loaded = copy.deepcopy(cast("nn.Module", from_pretrained(folder))).to(device)
    with torch.inference_mode(), evaluating(model, loaded):
        for batch in batches:
            inputs = inputs_of(prepare(batch, model, "batches", device))
            mine, theirs = _tensors(model(**inputs)), _tensors(loaded(**inputs))
            for name, value in mine.items():
                if name not in theirs or not torch.equal(value, theirs[name]):
                    raise ReloadError(
                        f"the saved model, loaded again, gives another {name!r} than the sliced model "
                        "in memory; nothing was kept."
                    )


def _tensors(output: Any) -> dict[str, Tensor]:
    items = cast("Mapping[str, object]", output).items()
    return {name: value for name, value in items if isinstance(value, Tensor)}


def _weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _finish(report: Report, folder: Path, display: Stages) -> Report:
    """Add times and files to the report, and write it."""
    with os.scandir(folder) as entries:
        found = sorted((e for e in entries if e.name != LIST_FILE), key=lambda e: e.name)
        files = {e.name: e.stat().st_size for e in found}
    report = replace(report, seconds=dict(display.seconds), files=files)
    report.save(folder / REPORT_FILE)
    size = (folder / REPORT_FILE).stat().st_size
    return replace(report, files={**files, REPORT_FILE: size})


__all__ = [
    "LATENCY_FILE",
    "SELECTION_FILE",
    "STATS_FILE",
    "Applying",
    "Named",
    "Reading",
    "ReloadError",
    "Workload",
    "apply_selection",
    "check_reload",
    "check_selection",
    "estimate_profile",
    "measure_profile",
    "measure_stats",
    "run_pipeline",
]
