"""The second half of a run: slice, judge, recover, time and save."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from cahp_opt.costs.target import remarks
from cahp_opt.costs.workloads import recorded_tables
from cahp_opt.files.belongings import CARD_FILE
from cahp_opt.files.folders import whole_folder
from cahp_opt.identity import coverage_note
from cahp_opt.progress import Stages
from cahp_opt.runs.plan import Applying
from cahp_opt.runs.recovery import Recovery, Weighting
from cahp_opt.runs.report import FidelityReport, Report
from cahp_opt.runs.texts import TextSplit
from cahp_opt.selection import Selection
from cahp_opt.stats.pooling import in_words, provenance_of, recorded_pooling
from cahp_opt.torch.blocks.finder import find_attention
from cahp_opt.torch.blocks.fingerprint import mismatch
from cahp_opt.torch.calibration.token_weights import TokenWeights
from cahp_opt.torch.checkpoints.card import give_way
from cahp_opt.torch.checkpoints.checkpoint import save_pretrained
from cahp_opt.torch.evaluation.evaluation import Evaluation, evaluate
from cahp_opt.torch.evaluation.fidelity import (
    Fidelity,
    PooledEmbedding,
    embedding_notes,
    fidelity_of,
)
from cahp_opt.torch.pipeline.final_times import final_times, recorded_goals
from cahp_opt.torch.pipeline.profiles import batch_of, timed_batches
from cahp_opt.torch.pipeline.rehearsing import rehearse_judging, rehearse_recovery, rehearse_saving
from cahp_opt.torch.pipeline.run import Batches, EncodedTexts, Named
from cahp_opt.torch.pipeline.saving import check_reload, finish
from cahp_opt.torch.recovery.finetuning import finetune
from cahp_opt.torch.recovery.refitting import refit
from cahp_opt.torch.running.gates import attention_for
from cahp_opt.torch.slicing.slicing import slice_heads
from cahp_opt.torch.slicing.verification import verify_slice

ADVISED_TEXTS = 1500
"""Fewer texts than that overfit the refit."""


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
        batches = (
            EncodedTexts.of(named, texts, applying.reading) if texts else EncodedTexts([], [], 0)
        )
        rehearse(named, batches, applying, fidelity, folder)
        report = apply(named, selection, batches, applying, fidelity, folder, display)
        give_way(folder, output / CARD_FILE)
        told = coverage_note("the selection", selection.provenance.get("model", ""))
        notes = [] if told is None else [told]
        if texts and recorded not in (None, named.pooling):
            notes.append(
                f"the units were selected for {in_words(recorded)}, and the model was judged by "
                f"{in_words(named.pooling)}, as asked."
            )
        report = replace(report, notes=(*report.notes, *notes))
        return finish(report, folder, display)


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


def left_alone(model: nn.Module) -> str | None:
    """A sentence about what looks like attention and is not pruned; None if there is nothing."""
    skipped = find_attention(model).skipped
    if not skipped:
        return None
    name, reason = skipped[0]
    others = f" ({len(skipped) - 1} more like it)" if len(skipped) > 1 else ""
    return f"{name}{others} stays as it is: {reason}."


def apply(
    named: Named,
    selection: Selection,
    batches: EncodedTexts,
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


def rehearse(
    named: Named, batches: EncodedTexts, applying: Applying, fidelity: Fidelity | None, folder: Path
) -> None:
    """Refuse what could not be timed, recovered, judged or saved in the end."""
    rehearse_saving(named.model, named.tokenizer, folder)
    timed_batches(named.model, applying.workloads)
    first = next(iter([*batches.calibration, *batches.held_out]), None)
    if first is None:
        return
    if fidelity is not None:
        rehearse_judging(named.model, fidelity, first)
    rehearse_recovery(named.model, applying.recovery, first)


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


def _weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
