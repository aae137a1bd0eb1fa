"""Making a model really smaller by removing the weights of units."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from contextlib import suppress
from typing import Any, TypeVar, overload

import numpy.typing as npt
from torch import nn
from transformers import Cache

from cahp_opt.selection import Selection
from cahp_opt.space import Block, HeadSpace, Unit
from cahp_opt.torch.blocks.blocks import CUT
from cahp_opt.torch.blocks.finder import (
    Prunable,
    UnsupportedModelError,
    blocks_cut,
    reread,
    with_all_cut,
)
from cahp_opt.torch.running.gates import find_for, is_gated, kept_units
from cahp_opt.torch.running.trials import Trial, make_trials
from cahp_opt.torch.running.undo import Journal
from cahp_opt.torch.slicing.surgery import cut
from cahp_opt.torch.slicing.travelling import send_along
from cahp_opt.torch.slicing.verification import SliceError, check_outputs, references
from cahp_opt.torch.tracing.ownership import Unconfirmed, contradiction, is_coarse

SELECTION = "cahp_selection"
"""Attribute of a sliced model: the :class:`Selection` over the units of the *original* model.

The cuts on its blocks are the truth, and this is a label with their origin. If both differ,
because a sliced model was cut further or is part of another, :func:`selection_of` goes by the cuts.
"""

Model = TypeVar("Model", bound=nn.Module)


@overload
def slice_heads(
    model: Model,
    selection: Selection | npt.ArrayLike,
    *,
    in_place: bool = False,
    batch: object | None = None,
    unit: Unit | None = None,
) -> Model: ...


@overload
def slice_heads(
    model: Prunable,
    selection: Selection | npt.ArrayLike,
    *,
    in_place: bool = False,
    batch: object | None = None,
    unit: Unit | None = None,
) -> nn.Module: ...


def slice_heads(
    model: nn.Module | Prunable,
    selection: Selection | npt.ArrayLike,
    *,
    in_place: bool = False,
    batch: object | None = None,
    unit: Unit | None = None,
) -> nn.Module:
    """Remove the units that are not kept from the model's weights.

    The result computes the same as ``model`` under :func:`~cahp_opt.torch.head_mask`. That is
    checked on every call: both run on ``batch``, with and without padding; in half precision, where
    rounding could hide a wrong head, differentiation also confirms which rows belong to which unit. Slicing a
    sliced model works. Dtype, device and ``requires_grad`` of the weights stay. A block without
    kept units adds only its bias; it stores one frozen unit, so that caches and exporters find no
    empty tensors. :func:`~cahp_opt.torch.bypass_empty` skips such blocks once the weights are
    final.

    Slice before making an optimiser, compiling or quantising. Generation works with growing and with
    static caches; paged caches, and static ones filled in chunks, take their size from the
    configuration and do not fit a sliced model.

    Args:
        model: the model to slice, or its blocks if they were found already, such as blocks of both kinds by
            :func:`~cahp_opt.torch.find_prunable`.
        selection: a selection for this model, or a keep-set, bool ``[n]``.
        in_place: slice ``model`` itself rather than a copy, which saves memory; until the check is
            done the removed weights are still there, and if it fails the model is as before.
        batch: keyword arguments for the model to check with; None for small random inputs.
        unit: as for :func:`~cahp_opt.torch.find_attention`; a selection knows its own, and others are
            refused with it.

    Returns:
        The sliced model; a copy that shares nothing with ``model``, unless ``in_place``.

    Raises:
        UnsupportedModelError: if the model's attention is not understood, or weights are offloaded.
        ValueError: if the selection is of another model, the model is gated at the moment, or ``batch``
            cannot be used.
        SliceError: if the result differs from the masked model; nothing is changed then.
    """
    prunable = find_for(model, selection, unit)
    return slice_found(prunable, selection, in_place=in_place, batch=batch).model


def slice_found(
    prunable: Prunable,
    selection: Selection | npt.ArrayLike,
    *,
    in_place: bool = False,
    batch: object | None = None,
) -> Prunable:
    """:func:`slice_heads` for blocks that were found already, by a selection or a keep-set, bool
    ``[n]``; the blocks of the sliced model."""
    model = prunable.model
    kept = kept_units(prunable.space, selection)
    _check_present(model)
    if is_gated(prunable):
        raise ValueError("`model` is gated; leave the context of `head_mask` before slicing.")
    known = selection_in(prunable)
    if known is None and isinstance(selection, Selection):
        known = selection
    trials = make_trials(model, batch)
    before = references(prunable, trials, kept)
    if is_coarse(prunable):
        _confirm(prunable, trials[0])
    copied = prunable if in_place else prunable.at(copy.deepcopy(model))
    small, journal = copied.model, Journal()
    try:
        cut(copied, kept, journal)
        try:
            after = reread(copied)
        except UnsupportedModelError as error:
            raise SliceError(f"the sliced model contradicts itself: {error}") from error
        # On the model that is left when adapters are merged and their wrapper is gone.
        unwrap: Any = getattr(small, "get_base_model", None)
        inner: nn.Module = small if unwrap is None else unwrap()
        left = _left(with_all_cut(after), known)
        journal.put(inner, SELECTION, left)
        check_outputs(before, after, trials)
        send_along(inner, left)
    except BaseException as error:
        # Ctrl-C too must leave a model that was to be sliced in place whole.
        journal.restore()
        if isinstance(error, SliceError):
            with suppress(Unconfirmed):
                if why := contradiction(prunable, trials[0]):
                    raise SliceError(f"{error} The reason may be that {why}") from error
        raise
    _drop_caches(small)
    return after


def thin_copy(prunable: Prunable, kept: npt.ArrayLike, *, batch: object | None = None) -> nn.Module:
    """A sliced copy for timing, which shares weights with the model.

    Only the weights of its blocks are its own, so that many copies fit in memory. Its shapes are those of
    :func:`slice_heads`; never train it or save it.

    Args:
        prunable: the blocks of the model; it is not changed.
        kept: the keep-set, bool ``[n]``; the model itself is returned if that is everything.
        batch: keyword arguments to check the copy with, as in :func:`slice_heads`; None for no
            check.

    Raises:
        ValueError: if ``kept`` is not a keep-set of the model.
        SliceError: if there is a batch, and the copy differs from the masked model.
    """
    model, units = prunable.model, prunable.space.check(kept)
    if units.all():
        return model
    own = {id(t) for block in prunable.attention for t in block.site.parameters()}
    own |= {id(t) for block in prunable.feed_forward for t in block.weights}
    shared = [t for t in (*model.parameters(), *model.buffers()) if id(t) not in own]
    copied = prunable.at(copy.deepcopy(model, {id(t): t for t in shared}))
    if batch is not None:
        return slice_found(copied, units, in_place=True, batch=batch).model
    cut(copied, units, Journal())
    _drop_caches(copied.model)
    return copied.model


def selection_of(model: nn.Module) -> Selection | None:
    """The selection of a sliced model, over the units of the original; None if it was not sliced.

    It works for parts of a sliced model too, and for a model around sliced parts. Value and bound
    are those of the model that was sliced, unless more was cut; the provenance stays.

    Raises:
        UnsupportedModelError: for such a part or model around, if its attention is not understood.
    """
    known = label_of(model)
    try:
        found = selection_in(blocks_cut(model)) if _is_cut(model) else None
    except UnsupportedModelError:
        if known is None:
            raise
        return known  # the model was quantised or compiled since
    # Layers that were replaced since, as by a quantiser, took the marks of feed-forward parts with them.
    return known if _parts(known) > _parts(found) else found


def selection_in(prunable: Prunable) -> Selection | None:
    """:func:`selection_of` for blocks that were found already, and all others that were cut."""
    model = prunable.model
    return _left(with_all_cut(prunable), label_of(model)) if _is_cut(model) else None


def _parts(selection: Selection | None) -> int:
    """The number of feed-forward parts that a selection is about."""
    return 0 if selection is None else int((~selection.space.of_attention).sum())


def label_of(model: nn.Module) -> Selection | None:
    """The :data:`SELECTION` of a model, for the facts about its cuts; None if it has none."""
    known: object = getattr(model, SELECTION, None)
    return known if isinstance(known, Selection) else None


def _is_cut(model: nn.Module) -> bool:
    return any(CUT in vars(module) for module in model.modules())


def _left(prunable: Prunable, known: Selection | None) -> Selection:
    """The selection of a model, in the original's units, with the known facts about it."""
    cuts = [(block.name, block.cut) for block in prunable]
    space = HeadSpace(tuple(Block(name, cut.units, cut.unit, cut.order) for name, cut in cuts))
    kept = space.join({b.name: b.cut.kept for b in prunable})
    if known is None:
        return Selection(space, kept)
    if known.space.kinds == space.kinds and bool((known.kept == kept).all()):
        return dataclasses.replace(known, space=space)
    # Value and bound belonged to another problem; only what it was made from remains.
    return Selection(space, kept, provenance=known.provenance, basis=known.basis)


def _confirm(prunable: Prunable, trial: Trial) -> None:
    """Check by differentiation if rounding could hide a wrong head; warn if that is undecided."""
    try:
        wrong = contradiction(prunable, trial)
    except Unconfirmed as error:
        warnings.warn(
            f"`model` is in half precision and cannot be differentiated ({error}), so the slice is checked "
            "by its outputs alone, within rounding; slice it in float32 to be sure.",
            stacklevel=4,  # at the caller of `slice_heads`
        )
        return
    if wrong:
        raise SliceError(f"the attention is laid out in another way than expected: {wrong}")


def _check_present(model: nn.Module) -> None:
    offloaded = any(
        getattr(getattr(m, "_hf_hook", None), "offload", False) for m in model.modules()
    )
    if offloaded or any(p.is_meta for p in model.parameters()):
        raise UnsupportedModelError(
            "`model` has weights that are not in memory (offloaded, or on the meta device); load it "
            "whole before slicing."
        )


def _drop_caches(model: nn.Module) -> None:
    """Forget a static cache that ``generate`` left on the model: it has the old head counts."""
    for module in model.modules():
        if isinstance(vars(module).get("_cache"), Cache):
            delattr(module, "_cache")
