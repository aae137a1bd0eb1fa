"""Reading a trace: which units own which entries, what ties units together, where a table is
wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from cahp_opt.arrays import Bools, Ints
from cahp_opt.torch.blocks.blocks import Piece, Prunable, PrunableBlock
from cahp_opt.torch.running.trials import Trial
from cahp_opt.torch.tracing.unit_gradients import UnitTrace, trace_units

_SHARED = -1


def pieces_of(trace: UnitTrace) -> tuple[Piece, ...]:
    """The parameters of which every unit owns entries, and along which axis.

    Entries that no gradient reached take their unit from their neighbours, or from the weight whose
    bias they are.
    """
    found = [
        Piece(path, axis, unit_of)
        for path in trace.touched
        for axis, unit_of in _owned(_touched(trace, path))
    ]
    weights = {(p.path, len(p.unit_of)): p.unit_of for p in found}
    filled: list[Piece] = []
    for piece in found:
        stem, _, last = piece.path.rpartition(".")
        weight = weights.get((f"{stem}.weight", len(piece.unit_of)))
        untouched = np.sum(trace.touched[piece.path][piece.axis], axis=0) == 0
        unit_of = piece.unit_of
        if last == "bias" and weight is not None:
            # Softmax ignores what a key bias adds to all keys alike: its gradient is rounding.
            unit_of = np.where(untouched, weight, unit_of)
        filled.append(Piece(piece.path, piece.axis, _smoothed(unit_of, untouched)))
    return tuple(filled)


def arguments_of(trace: UnitTrace) -> tuple[Piece, ...]:
    """The arguments of the site's forward with a slice of their own for every unit."""
    return tuple(
        Piece(name, axis, unit_of)
        for name, touched in trace.arguments.items()
        for axis, unit_of in _owned(touched)
    )


def unreached(trace: UnitTrace) -> tuple[str, ...]:
    """Parameters on which no unit's output depends: behind the attention, or not run at all."""
    return tuple(path for path, axes in trace.touched.items() if not any(t.any() for t in axes))


def obstacles(trace: UnitTrace) -> tuple[str, ...]:
    """Why units cannot be removed one by one: a sentence for every parameter that ties them.

    A parameter of which the batch shows a part only is an obstacle as well.
    """
    if not trace.reached:
        return (f"{trace.name}: the batch does not reach its output projection.",)
    if trace.units == 1:
        return ()
    sentences: list[str] = []
    pieces = pieces_of(trace)
    cut = {piece.path for piece in pieces}
    for path in trace.touched:
        if path in cut:
            continue
        touched = _touched(trace, path)
        if silent := _silent(touched):
            sentences.append(
                f"{path}: no gradient reaches it from the units {_listed(silent)}; trace another batch."
            )
        elif several := _several(touched):
            axis, index, units = several
            sentences.append(
                f"{path}: {_place(axis, len(touched))} {index} serves the units {_listed(units)} and "
                "not the others, so they cannot be removed one by one."
            )
    for piece in pieces:
        reads = trace.norms.get(piece.path.rpartition(".")[0])
        if reads is None or reads.shape[1] != len(piece.unit_of):
            continue
        if bool(np.any(np.sum(reads, axis=0) > 1)):
            sentences.append(
                f"{piece.path} belongs to the units entry by entry, but its module mixes its whole "
                "input, as a normalisation over all heads together does, so the units cannot be "
                "removed one by one."
            )
    if not cut:
        sentences.append("no parameter has entries that serve a single unit.")
    return tuple(f"{trace.name}: {sentence}" for sentence in sentences)


def contradictions(
    model: nn.Module, prunable: Prunable, batch: Mapping[str, Any]
) -> tuple[str, ...]:
    """Where the blocks' pieces and differentiation disagree, in sentences; empty if nowhere.

    Entries that the batch does not reach are not contradicted.

    Args:
        model: the model, or a part of it that holds the blocks.
        prunable: the blocks.
        batch: as for :func:`trace_units`.
    """
    traces = trace_units(model, prunable, batch)
    return tuple(
        sentence
        for block, trace in zip(prunable, traces, strict=True)
        for sentence in disagreements(trace, block.pieces)
    )


def one_of_each(prunable: Prunable) -> Prunable:
    """The first of all blocks that are alike: of the same classes, with the same pieces.

    Blocks that are alike can only be right or wrong together, and tracing one costs a fraction.
    """
    first: dict[object, PrunableBlock] = {}
    for block in prunable:
        pieces = tuple((p.path, p.axis, p.unit_of.tobytes()) for p in block.pieces)
        first.setdefault((type(block.site), type(block.module), pieces), block)
    return replace(prunable, blocks=tuple(first.values()))


def disagreements(trace: UnitTrace, pieces: Sequence[Piece]) -> tuple[str, ...]:
    """Where pieces said to be those of a block differ from what was traced, in sentences."""
    if trace.units == 1 or not trace.reached:
        return ()
    sentences: list[str] = []
    traced = {(piece.path, piece.axis) for piece in pieces_of(trace)}
    for piece in pieces:
        axes = trace.touched.get(piece.path)
        if axes is None:
            continue  # no float parameter of the site: nothing to differentiate
        if piece.axis >= len(axes) or axes[piece.axis].shape[1] != len(piece.unit_of):
            sentences.append(
                f"{piece.path} has the sizes {[a.shape[1] for a in axes]}, and the table cuts "
                f"{len(piece.unit_of)} entries on axis {piece.axis}."
            )
            continue
        touched = axes[piece.axis]
        count = touched.sum(axis=0)
        by_table = np.zeros_like(touched)
        owned = np.flatnonzero(piece.unit_of >= 0)
        by_table[piece.unit_of[owned], owned] = True
        # A shared entry need not serve all units on this batch; an owned one must serve its own alone.
        single = (count == 1) & ((piece.path, piece.axis) in traced)
        foreign = np.sum(touched & ~by_table, axis=0) > 0
        shared = piece.unit_of < 0
        wrong = (foreign & ~shared) | (single & shared)
        sentences += _differences(piece, touched, wrong, len(axes))
    known = {(piece.path, piece.axis) for piece in pieces}
    for piece in pieces_of(trace):
        if (piece.path, piece.axis) not in known:
            uncut = Piece(piece.path, piece.axis, np.full_like(piece.unit_of, _SHARED))
            axes = trace.touched[piece.path]
            sentences += _differences(uncut, axes[piece.axis], piece.unit_of >= 0, len(axes))
    return tuple(f"{trace.name}: {sentence}" for sentence in sentences)


def _touched(trace: UnitTrace, path: str) -> tuple[Bools, ...]:
    """The entries of a parameter that gradients reached, by axis.

    A bias adds to what the rows of its weight give, and serves the units that they serve. Where all do, as
    with keys that all heads share, rounding alone would say which: softmax ignores a key bias.
    """
    touched = trace.touched[path]
    stem, _, last = path.rpartition(".")
    if last != "bias" or len(touched) != 1:
        return touched
    for by_unit in trace.touched.get(f"{stem}.weight", ()):
        if by_unit.shape == touched[0].shape:
            return (touched[0] | by_unit.all(axis=0),)
    return touched


def _owned(touched: tuple[Bools, ...]) -> list[tuple[int, Ints]]:
    """The axes along which single units own entries, each with the unit of every entry."""
    clean: list[tuple[float, int, Ints]] = []
    for axis, by_unit in enumerate(touched):
        count = by_unit.sum(axis=0)
        units = len(by_unit)
        unit_of = np.where(count == 1, by_unit.argmax(axis=0), _SHARED).astype(np.int64)
        all_own = units > 1 and len(np.unique(unit_of[unit_of >= 0])) == units
        if all_own and not ((count > 1) & (count < units)).any():
            clean.append((float((count == 1).mean()), axis, unit_of))
    clean.sort(key=lambda found: (-found[0], found[1]))
    # One entry may serve one unit by chance, such as a distance that a single head looks at; a second
    # axis counts only where all of it is owned.
    return [
        (axis, unit_of)
        for rank, (share, axis, unit_of) in enumerate(clean)
        if not rank or share == 1
    ]


def _silent(touched: tuple[Bools, ...]) -> list[int]:
    """The units that own nothing of a parameter of which every entry that is reached is owned.

    A head whose attention is saturated, or whose values are zero, has no gradient for its queries.
    """
    owned = any(by_unit.any() and int(by_unit.sum(axis=0).max()) == 1 for by_unit in touched)
    return [int(u) for u in np.flatnonzero(~touched[0].any(axis=1))] if owned else []


def _several(touched: tuple[Bools, ...]) -> tuple[int, int, list[int]] | None:
    """Axis, index and units of an entry that serves some units and not all, if there is one."""
    for axis, by_unit in enumerate(touched):
        count = by_unit.sum(axis=0)
        some = np.flatnonzero((count > 1) & (count < len(by_unit)))
        if len(some):
            index = int(some[0])
            return axis, index, [int(u) for u in np.flatnonzero(by_unit[:, index])]
    return None


def _smoothed(unit_of: Ints, untouched: Bools) -> Ints:
    """Entries that no gradient reached belong to the unit that owns both their neighbours."""
    known = np.flatnonzero(~untouched | (unit_of >= 0))
    if not len(known):
        return unit_of
    filled = unit_of.copy()
    for index in np.flatnonzero(untouched & (unit_of < 0)):
        at = int(np.searchsorted(known, index))
        left = unit_of[known[max(at - 1, 0)]]
        right = unit_of[known[min(at, len(known) - 1)]]
        if left == right:
            filled[index] = left
    return filled


def _differences(piece: Piece, touched: Bools, wrong: Bools, axes: int) -> list[str]:
    """One sentence about the first entry that is wrong."""
    where = np.flatnonzero(wrong)
    if not len(where):
        return []
    index = int(where[0])
    found = [int(u) for u in np.flatnonzero(touched[:, index])]
    owner = int(piece.unit_of[index])
    by_table = "all units" if owner < 0 else f"unit {owner}"
    by_trace = f"unit {found[0]}" if len(found) == 1 else f"the units {_listed(found)}"
    more = f"; so do {len(where) - 1} more" if len(where) > 1 else ""
    return [
        f"{piece.path}: {_place(piece.axis, axes)} {index} belongs to {by_table} by the table and to "
        f"{by_trace} by differentiation{more}."
    ]


def _place(axis: int, axes: int) -> str:
    if axes == 1:
        return "entry"
    return ("row", "column")[axis] if axes == 2 else f"on axis {axis}, index"


def _listed(units: Sequence[int]) -> str:
    shown = ", ".join(map(str, units[:6]))
    return shown + (", ..." if len(units) > 6 else "")


_COARSE = (torch.float16, torch.bfloat16)


def is_coarse(prunable: Prunable) -> bool:
    """Whether the weights are so coarse that comparing outputs may miss a wrong head."""
    return any(weight.dtype in _COARSE for block in prunable for weight in block.weights)


class Unconfirmed(Exception):
    """The model's code cannot be differentiated, which says nothing either way."""


def contradiction(prunable: Prunable, trial: Trial) -> str | None:
    """The first thing in which differentiation contradicts the table, in a sentence; None if nothing.

    One block of every kind is traced: blocks that are alike are right or wrong together.

    Raises:
        Unconfirmed: if it cannot be told.
    """
    try:
        found = contradictions(trial.part_of(prunable.model), one_of_each(prunable), trial.batch)
    except RuntimeError as error:
        raise Unconfirmed(str(error).partition("\n")[0]) from error
    return next(iter(found), None)
