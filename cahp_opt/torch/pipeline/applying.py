"""The second half of a run: slice, recover, time and save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, Protocol

from torch import nn

from cahp_opt.files.belongings import CARD_FILE
from cahp_opt.files.folders import whole_folder
from cahp_opt.files.records import PathLike
from cahp_opt.identity import coverage_note
from cahp_opt.progress import Stages
from cahp_opt.runs.plan import Applying, OutputOptions
from cahp_opt.runs.recovery import Recovery
from cahp_opt.runs.report import FidelityReport, Report
from cahp_opt.runs.texts import TextSplit
from cahp_opt.selection import Selection
from cahp_opt.stats.pooling import in_words, provenance_of, recorded_pooling
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.blocks.fingerprint import mismatch
from cahp_opt.torch.checkpoints.card import give_way
from cahp_opt.torch.checkpoints.checkpoint import save_sliced
from cahp_opt.torch.evaluation.evaluation import Evaluation, evaluate
from cahp_opt.torch.evaluation.fidelity import PooledEmbedding, embedding_notes
from cahp_opt.torch.pipeline.final_times import FinalTimes, final_times
from cahp_opt.torch.pipeline.repairing import repair
from cahp_opt.torch.pipeline.run import Named, PruningRun
from cahp_opt.torch.pipeline.saving import check_reload, finish
from cahp_opt.torch.running.gates import find_for
from cahp_opt.torch.slicing.bypass import bypass_where_possible
from cahp_opt.torch.slicing.slicing import slice_found
from cahp_opt.torch.slicing.verification import compare_slice

ADVISED_TEXTS = 1500
"""With fewer texts than this, the refit overfits."""


class Record(Protocol):
    """A record of a measurement that is saved beside the model."""

    def save(self, path: PathLike, /) -> None:
        """Write it to a file."""
        ...


class Sliced(NamedTuple):
    """The sliced model.

    Args:
        prunable: the blocks of the model; the recovery changes its weights in place.
        selection: the units that it keeps.
        difference: largest difference of an output between the gated and the sliced model.
    """

    prunable: Prunable
    selection: Selection
    difference: float

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self.prunable.model


def apply_selection(
    named: Named,
    selection: Selection,
    texts: TextSplit | None,
    applying: Applying,
    output: OutputOptions,
    *,
    stages: Stages | None = None,
) -> Report:
    """Slice a model to a selection and write it to a folder: the second half of
    :func:`~cahp_opt.torch.pipeline.pruning_run.run_pipeline`.

    Args:
        named: the model that the selection was made for.
        selection: the selection.
        texts: to refit on and judge by; None for neither.
        applying: how to apply the selection.
        output: where to write.
        stages: shows the stages; None for nothing.

    Raises:
        ValueError: if the selection is of another model, or texts or options cannot be used.
        OSError: if the folder cannot be written; nothing half written stays.
    """
    recorded = recorded_pooling(selection.provenance)
    pooling = named.pooling or (recorded if texts else None)
    named = replace(named, blocks=blocks_chosen(named.model, selection), pooling=pooling)
    with whole_folder(output.output_dir, overwrite=output.overwrite) as folder:
        run = PruningRun.start(
            named,
            texts,
            applying,
            folder=folder,
            output=output.output_dir,
            stages=stages or Stages(),
        )
        sliced = slice_model(run, selection)
        closeness = recover(run, sliced)
        times = time_slice(run, sliced)
        told = coverage_note("the selection", selection.provenance.get("model", ""))
        run.notes.extend([] if told is None else [told])
        if texts and recorded not in (None, named.pooling):
            run.notes.append(
                f"the units were selected for {in_words(recorded)}, and the model was judged by "
                f"{in_words(named.pooling)}, as asked."
            )
        return save(run, sliced, closeness, times, {})


def blocks_chosen(model: nn.Module, selection: Selection) -> Prunable:
    """The blocks of a model that a selection chose units of, the neurons in its groups.

    Raises:
        ValueError: if it is a selection of other blocks, or of other weights.
    """
    prunable = find_for(model, selection, None)
    check_same_model(prunable, selection)
    return prunable


def check_same_model(prunable: Prunable, selection: Selection) -> None:
    """Refuse a selection of another model.

    Raises:
        ValueError: if its blocks or weights are another model's.
    """
    difference = prunable.space.difference(selection.space)
    if difference is None:
        difference = mismatch(prunable.model, selection.provenance.get("model", ""))
    if difference is not None:
        raise ValueError(
            f"the selection was made for another model ({difference}); name the model, with all its weights, "
            "and the precision that were calibrated, or select again."
        )


def slice_model(run: PruningRun, selection: Selection) -> Sliced:
    """Slice the model, and check that the sliced model computes the same as the gated one."""
    if isinstance(run.fidelity, PooledEmbedding):
        told = {**selection.provenance, **provenance_of(run.fidelity.pooling)}
        selection = replace(selection, provenance=told)
    with run.stages.stage("slice"):
        small = slice_found(run.prunable, selection, batch=run.probe)
        difference = compare_slice(run.prunable, small, selection, run.probe)
    return Sliced(small, selection, difference)


def recover(run: PruningRun, sliced: Sliced) -> FidelityReport | None:
    """Recover the sliced model, and judge it before and after.

    Returns:
        How close it is to the unpruned model; None without texts to judge by.
    """
    before, after = _judged(run, sliced), None
    if _recovery(run).repairs:
        if _recovery(run).refits and run.texts.number < ADVISED_TEXTS:
            run.notes.append(
                f"the refit saw {run.texts.number} {run.texts.medium.value}; with fewer than {ADVISED_TEXTS} it fits them "
                "too closely."
            )
        repair(
            sliced.prunable,
            run.prunable,
            run.texts.calibration,
            run.applying.recovery,
            weights=run.weights,
            fidelity=run.fidelity,
            seed=run.applying.seed,
            stages=run.stages,
        )
        after = _judged(run, sliced)
    if before is None:
        return None
    run.notes.extend(before.notes)
    return FidelityReport(
        before.examples,
        before.figures,
        None if after is None else after.figures,
        None if before.pooling is None else before.pooling.value,
    )


def _recovery(run: PruningRun) -> Recovery:
    """The recovery that these texts allow."""
    return run.applying.recovery.recovery if run.texts.calibration else Recovery.NONE


def _judged(run: PruningRun, sliced: Sliced) -> Evaluation | None:
    if not run.texts.held_out:
        return None
    with run.stages.stage("evaluate") as progress:
        return evaluate(
            run.model, sliced.model, run.texts.held_out, run.fidelity, progress=progress
        )


def time_slice(run: PruningRun, sliced: Sliced) -> FinalTimes:
    """Time the sliced model beside the unpruned one, as it will run once it is loaded."""
    with run.stages.stage("time") as progress:
        bypass_where_possible(sliced.prunable)
        times = final_times(
            run.model,
            sliced.model,
            sliced.selection,
            run.applying.workloads,
            run.timed,
            progress=progress,
        )
    left = left_alone(run.prunable)
    run.notes.extend(embedding_notes(run.model, run.fidelity))
    run.notes.extend([*sliced.selection.basis.remarks, *times.notes])
    run.notes.extend([] if left is None else [left])
    return times


def left_alone(prunable: Prunable) -> str | None:
    """A sentence on modules that look prunable and are not pruned; None without any."""
    skipped = prunable.skipped
    if not skipped:
        return None
    name, reason = skipped[0]
    others = f" ({len(skipped) - 1} more like it)" if len(skipped) > 1 else ""
    return f"{name}{others} stays as it is: {reason}."


def save(
    run: PruningRun,
    sliced: Sliced,
    closeness: FidelityReport | None,
    times: FinalTimes,
    records: Mapping[str, Record],
) -> Report:
    """Write the sliced model, read it again, and write the report and the records beside it.

    Args:
        run: the run.
        sliced: the sliced model.
        closeness: how close it is to the unpruned one.
        times: the times of both.
        records: measurements to save, by name of the file.
    """
    with run.stages.stage("save"):
        tokenizer = run.named.tokenizer
        save_sliced(sliced.prunable, run.folder, tokenizer=tokenizer, beside=run.beside)
        check_reload(sliced.model, run.folder, [run.probe, next(iter(run.timed.values()))])
    give_way(run.folder, run.output / CARD_FILE)
    for name, record in records.items():
        record.save(run.folder / name)
    report = Report(
        run.named.name,
        sliced.selection,
        times.workloads,
        times.where,
        times.goals,
        closeness,
        (_weights(run.model), _weights(sliced.model)),
        sliced.difference,
        run.texts.number,
        notes=tuple(run.notes),
        recovery=_recovery(run),
        counts=run.texts.counts,
        medium=run.texts.medium,
        seed=run.applying.seed,
        command=run.applying.command,
    )
    return finish(report, run.folder, run.stages)


def _weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
