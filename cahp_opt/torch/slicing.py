"""Making a model really smaller: the weights of removed units are gone."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import numpy.typing as npt
from torch import nn

from cahp_opt.heads import Bools, HeadSpace, Unit
from cahp_opt.selection import Selection
from cahp_opt.torch.attention import UnsupportedModelError, find_attention
from cahp_opt.torch.confirming import contradiction, is_coarse
from cahp_opt.torch.masking import attention_for, kept_units
from cahp_opt.torch.surgery import Journal, cut
from cahp_opt.torch.verification import SliceError, compare, make_probes, references

SELECTION = "cahp_selection"
"""Attribute of a sliced model: the :class:`Selection` over the units of the *original* model."""

Model = TypeVar("Model", bound=nn.Module)


def slice_heads(
    model: Model,
    selection: Selection | npt.ArrayLike,
    *,
    in_place: bool = False,
    batch: object | None = None,
    unit: Unit | None = None,
) -> Model:
    """Remove the units that are not kept from the model's weights.

    The result computes what ``model`` does under :func:`~cahp_opt.torch.head_mask`, and this is checked
    on every call: both run on ``batch``, with and without padding, and in half precision, where rounding
    could hide a wrong head, differentiation confirms besides which rows belong to which unit. Slicing a
    sliced model works. Dtype, device and ``requires_grad`` of the weights stay. A block without kept units
    adds its bias alone; it keeps the storage of one frozen unit, so that caches and exporters find no
    empty tensors. :func:`~cahp_opt.torch.bypass_empty` skips such blocks once the weights are final.

    Slice before making an optimiser, compiling or quantising. Generation works with growing and with
    static caches; paged caches, and static ones filled in chunks, take their size from the
    configuration and do not fit a sliced model.

    Args:
        model: the model to slice.
        selection: a selection for this model, or a keep-set, bool ``[n]``.
        in_place: slice ``model`` itself rather than a copy, which saves memory; until the check is
            done the removed weights are still there, and if it fails the model is as before.
        batch: keyword arguments for the model to check with; None for small random inputs.
        unit: as for :func:`~cahp_opt.torch.find_attention`; a selection knows its own.

    Returns:
        The sliced model; a copy that shares nothing with ``model``, unless ``in_place``.

    Raises:
        UnsupportedModelError: if the model's attention is not understood, or weights are offloaded.
        ValueError: if the selection is of another model, or ``batch`` cannot be used.
        SliceError: if the result differs from the masked model; nothing is changed then.
    """
    attention = attention_for(model, selection, unit)
    kept = kept_units(attention.space, selection)
    _check_present(model)
    plan = _composed(model, attention.space, kept, selection)
    probes = make_probes(model, batch)
    if is_coarse(attention) and (wrong := contradiction(model, attention, probes[0])):
        raise SliceError(f"the attention is laid out in another way than expected: {wrong}")
    before = references(model, attention, probes, kept)
    small = model if in_place else copy.deepcopy(model)
    sliced = attention if in_place else attention_for(small, selection, unit)
    journal = Journal()
    try:
        cut(small, sliced, kept, journal)
        journal.put(small, SELECTION, plan)
        inside: Any = getattr(small, "get_base_model", None)
        if (
            inside is not None
        ):  # what is left when the adapters are merged and their wrapper is gone
            journal.put(inside(), SELECTION, plan)
        try:
            after = find_attention(small)
        except UnsupportedModelError as error:
            raise SliceError(f"the sliced model contradicts itself: {error}") from error
        compare(before, small, after, probes)
    except (
        BaseException
    ) as error:  # Ctrl-C too must leave a model that was to be sliced in place whole
        journal.restore()
        why = contradiction(model, attention, probes[0]) if isinstance(error, SliceError) else None
        if why is None:
            raise
        raise SliceError(f"{error} The reason may be that {why}") from error
    _drop_caches(small)
    return small


def selection_of(model: nn.Module) -> Selection | None:
    """What a sliced model keeps of the original model; None for a model that was not sliced."""
    found: object = getattr(model, SELECTION, None)
    return found if isinstance(found, Selection) else None


def _composed(
    model: nn.Module, space: HeadSpace, kept: Bools, selection: Selection | npt.ArrayLike
) -> Selection:
    """The keep-set in the original model's units, after slicing ``model`` to ``kept``."""
    first = selection_of(model)
    if first is None:
        return selection if isinstance(selection, Selection) else Selection.from_kept(space, kept)
    composed = first.kept.copy()
    for old, new in zip(first.space.slices, space.slices, strict=True):
        ids = composed[old].nonzero()[0]
        if len(ids):  # a block without kept units shows one ghost unit, which nothing can revive
            composed[old][ids] = kept[new]
    # Value and bound belonged to another problem; what remains is the keep-set and where it is from.
    return Selection(first.space, composed, provenance=first.provenance)


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
        if "_cache" in vars(module):
            delattr(module, "_cache")
