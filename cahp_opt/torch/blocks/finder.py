"""Finding the attention and the feed-forward parts of a model: blocks anchored on their output projection."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NoReturn

from torch import nn

from cahp_opt.arrays import is_whole
from cahp_opt.space import Unit
from cahp_opt.torch.blocks.blocks import (
    CUT,
    LAYOUT,
    AttentionBlock,
    FeedForwardBlock,
    Prunable,
    PrunableBlock,
    submodules,
    within,
)
from cahp_opt.torch.blocks.feed_forward_layouts import FEEDS
from cahp_opt.torch.blocks.feed_forward_reader import feeds_of, read_feed_forward
from cahp_opt.torch.blocks.feed_forward_refusals import EXPERTS, holds_experts, unlike
from cahp_opt.torch.blocks.layouts import LASTING, LAYOUTS, Layout
from cahp_opt.torch.blocks.site_reader import Misfit, best_layout, read_block
from cahp_opt.torch.blocks.source_code import replaces

__all__ = [
    "Attention",
    "AttentionBlock",
    "FeedForwardBlock",
    "Prunable",
    "PrunableBlock",
    "UnsupportedModelError",
    "blocks_cut",
    "blocks_of",
    "find_attention",
    "find_prunable",
    "reread",
    "with_all_cut",
]

Attention = Prunable
"""What :func:`find_attention` finds: blocks of attention alone."""

_log = logging.getLogger(__name__)


class UnsupportedModelError(ValueError):
    """The model has parts that are not understood, or none to prune; the message names the module."""


def find_attention(model: nn.Module, *, unit: Unit | None = None) -> Prunable:
    """The attention blocks of ``model``, each checked against the shapes of its weights.

    Attention of a class that is not understood at all is left as it is (``Attention.skipped``, and a
    log message); a module that does not fit although others of its class do is refused, because that
    is a model changed by something else.

    Args:
        model: the model.
        unit: the kind of unit if query heads share key/value heads: whole ``Unit.KV_GROUP`` (the
            default; with a single key/value head, query heads), or ``Unit.QUERY_SLOT``, one query
            head of every key/value head. Blocks that were sliced keep their units.

    Raises:
        UnsupportedModelError: if the model has no attention block that is understood, or one of an
            otherwise understood class is not.
    """
    return find_prunable(model, neurons=False, unit=unit)


def find_prunable(
    model: nn.Module,
    *,
    heads: bool = True,
    neurons: bool = True,
    unit: Unit | None = None,
    neuron_group: int | None = None,
) -> Prunable:
    """The attention and the feed-forward parts of ``model``, each checked against the shapes of its weights.

    What is not understood at all stays as it is (:attr:`Prunable.skipped`). Neurons are grouped as they stand;
    :func:`~cahp_opt.torch.order_neurons` puts those together that are worth as much.

    Args:
        model: the model.
        heads: whether to find attention, as :func:`find_attention` does.
        neurons: whether to find feed-forward parts.
        unit: as for :func:`find_attention`; only with ``heads``.
        neuron_group: neurons in a group, a divisor of every inner width; None for 8 to 16 groups of a
            multiple of 64 neurons, if there are such. Only with ``neurons``. Parts that were sliced keep
            their groups.

    Raises:
        UnsupportedModelError: as :func:`find_attention` does, or if neurons alone are asked for and no
            feed-forward part is understood.
        ValueError: if neither is asked for, or for a ``unit`` or ``neuron_group`` that is bad or about
            blocks that are not asked for.
    """
    if not (heads or neurons):
        raise ValueError("`heads` and `neurons` are both false; find at least one of them.")
    if unit not in (None, Unit.KV_GROUP, Unit.QUERY_SLOT):
        raise ValueError(
            f"`unit` must be None, Unit.KV_GROUP or Unit.QUERY_SLOT, got {unit!r}; heads that share no "
            "keys are always single units."
        )
    if unit is not None and not heads:
        raise ValueError(
            f"`unit` is Unit.{Unit(unit).name}, which is about attention, and `heads` is false; leave one of them out."
        )
    if neuron_group is not None and not neurons:
        raise ValueError(
            f"`neuron_group` is {neuron_group!r}, which is about neurons, and `neurons` is false; leave one of "
            "them out."
        )
    if neuron_group is not None and not (is_whole(neuron_group) and neuron_group >= 1):
        raise ValueError(
            f"`neuron_group` must be a whole number of neurons, at least 1, or None for the usual width, got "
            f"{neuron_group!r}."
        )
    group = None if neuron_group is None else int(neuron_group)
    _check_uncompiled(model)
    sites = _attention_sites(model)
    attention, strange = _attention(model, sites, unit) if heads else ((), ())
    parts, unlike = _feed_forward(model, sites, group) if neurons else ((), ())
    if not (attention or parts):
        known = ", ".join(dict.fromkeys(feed.out for feed in FEEDS))
        raise UnsupportedModelError(
            f"`model` is a {type(model).__name__} without any feed-forward part that is understood"
            + "".join(f"; {name} is not, because {reason}" for name, reason in unlike[:1])
            + f". Known ones end in layers named {known}."
        )
    blocks: tuple[PrunableBlock, ...] = (*attention, *parts)
    _check_unshared(blocks)
    return Prunable(model, along_the_path(model, blocks), (*strange, *unlike))


def blocks_of(model: nn.Module | Prunable, unit: Unit | None = None) -> Prunable:
    """The blocks that a public function was given, or the attention of the model that it was given.

    Raises:
        UnsupportedModelError: if the model's attention is not understood.
        ValueError: if there are blocks, and ``unit`` would make other units.
    """
    if not isinstance(model, Prunable):
        return find_attention(model, unit=unit)
    if unit is not None:
        raise ValueError(
            f"`unit` is Unit.{unit.name}, and blocks that were found already have their units; leave it out."
        )
    return model


def blocks_cut(model: nn.Module | Prunable) -> Prunable:
    """The blocks that a public function was given, or the attention of a model and all that was cut of it."""
    if isinstance(model, Prunable):
        return model
    marks = {getattr(module, CUT, None) for module in model.modules()}
    kinds = {mark.unit.of_attention for mark in marks if mark is not None}
    return find_prunable(model, heads=kinds != {False}, neurons=False in kinds)


def with_all_cut(prunable: Prunable) -> Prunable:
    """The blocks, and those of their model that were cut and are not among them."""
    model, own = prunable.model, {id(block.module) for block in prunable}
    if all(id(module) in own for module in model.modules() if CUT in vars(module)):
        return prunable
    others = [block for block in blocks_cut(model) if id(block.module) not in own]
    return replace(prunable, blocks=along_the_path(model, (*prunable, *others)))


def reread(prunable: Prunable) -> Prunable:
    """The blocks as they are by now, each read again at its place, in the units that it has.

    For a model that was cut or filled with weights since its blocks were found, or, with
    :meth:`~cahp_opt.torch.blocks.blocks.Prunable.at`, for one that was built anew. The neurons of a
    feed-forward part that was not cut stay in their groups; one that was built anew, whole, has groups as
    wide.

    Raises:
        UnsupportedModelError: if a block contradicts itself.
    """
    return replace(prunable, blocks=tuple(map(_reread, prunable.blocks)))


def _reread(old: PrunableBlock) -> PrunableBlock:
    try:
        if isinstance(old, FeedForwardBlock):
            group = old.width // old.units
            found = read_feed_forward(old.place, old.site, old.layout, group)
            anew = CUT in vars(found.module) or found.width != old.width
            return found if anew else found.grouped(old.units, old.order)
        layout = best_layout(old.site)
        if layout is None:
            _refuse(old.name, old.site, "it fits no known layout any more")
        return read_block(old.place, old.site, layout, old.cut.unit)
    except Misfit as misfit:
        _refuse(old.name, old.site, str(misfit))


def along_the_path(model: nn.Module, blocks: Sequence[PrunableBlock]) -> tuple[PrunableBlock, ...]:
    """The blocks in the order of the model's modules."""
    places = {id(module): place for place, (_, module) in enumerate(submodules(model))}
    return tuple(sorted(blocks, key=lambda block: places[id(block.out)]))


def _attention_sites(model: nn.Module) -> list[tuple[str, nn.Module, Layout]]:
    """The modules that hold one attention each, with their paths and layouts."""
    sites: list[tuple[str, nn.Module, Layout]] = []
    for name, module in submodules(model):
        if any(within(name, site) for site, _, _ in sites):
            continue
        layout = best_layout(module)
        if layout is None or _is_around(module, layout.owners):
            continue
        if not any(feed.inside for feed in feeds_of(name, module)):  # an `mlp` with an `in_proj`
            sites.append((name, module, layout))
    return sites


def _attention(
    model: nn.Module, found: list[tuple[str, nn.Module, Layout]], unit: Unit | None
) -> tuple[list[AttentionBlock], list[tuple[str, str]]]:
    """The blocks of attention, and why others are left as they are."""
    blocks: list[AttentionBlock] = []
    strange: list[tuple[str, nn.Module, str]] = []
    sites = [name for name, _, _ in found]
    for name, module, layout in found:
        try:
            blocks.append(read_block(name, module, layout, unit))
        except Misfit as misfit:
            strange.append((name, module, str(misfit)))
    for name, module in submodules(model):
        if any(within(name, site) or within(site, name) for site in sites):
            continue  # part of a block, or around one
        reason = _not_understood(module)
        if reason:
            strange.append((name, module, reason))
    skipped = list(_skipped(model, blocks, strange))
    for block in blocks:
        _check_lasting(model, block)
    return blocks, skipped


def _feed_forward(
    model: nn.Module, attention: list[tuple[str, nn.Module, Layout]], group: int | None
) -> tuple[list[FeedForwardBlock], list[tuple[str, str]]]:
    """The feed-forward parts, and why others are left as they are."""
    blocks: list[FeedForwardBlock] = []
    skipped: list[tuple[str, str]] = []
    known = [site for site, _, _ in attention]
    closed = list(known)  # nothing inside is looked at
    for place, module in submodules(model):
        if any(within(place, site) for site in closed):
            continue
        if holds_experts(place, module):
            closed.append(place)
            skipped.append((place, EXPERTS))
            continue
        for feed in feeds_of(place, module):
            try:
                blocks.append(read_feed_forward(place, module, feed, group))
            except Misfit as misfit:
                skipped.append((".".join(filter(None, (place, feed.out))), str(misfit)))
            known += [".".join(filter(None, (place, path))) for path in (*feed.ins, feed.out)]
    skipped += unlike(model, (*known, *closed))
    for name, reason in skipped:
        _log.info(
            "%s (%s) is left as it is: %s", name, type(model.get_submodule(name)).__name__, reason
        )
    return blocks, skipped


def _is_around(module: nn.Module, owners: tuple[str, ...]) -> bool:
    """Whether a child of ``module`` is a whole attention site, so that ``module`` is none itself."""
    children = [getattr(module, owner, None) for owner in owners if owner]
    return any(isinstance(c, nn.Module) and best_layout(c) is not None for c in children)


def _skipped(
    model: nn.Module, blocks: list[AttentionBlock], strange: list[tuple[str, nn.Module, str]]
) -> Iterator[tuple[str, str]]:
    understood = {type(m) for block in blocks for m in (block.site, block.module)}
    for name, module, reason in strange:
        if type(module) in understood or (not blocks and module is strange[0][1]):
            _refuse(name or "the model itself", module, reason)
    if not blocks:
        raise UnsupportedModelError(
            f"`model` is a {type(model).__name__} without any attention block that is understood; "
            f"known layouts: {'; '.join(layout.name for layout in LAYOUTS)}; others can be found out by "
            "`learn_attention`."
        )
    for name, module, reason in strange:
        _log.info("%s (%s) is left as it is: %s", name, type(module).__name__, reason)
        yield name, reason


def _not_understood(module: nn.Module) -> str | None:
    """Why a module that looks like attention is not understood; None if it does not look so."""
    if isinstance(module, nn.MultiheadAttention):
        return (
            "torch.nn.MultiheadAttention never calls its output projection, so it cannot be gated; "
            "replace it by `explicit_attention(model)` first"
        )
    if not _looks_like_attention(module):
        return None
    inner = [m for m in module.modules() if m is not module and _looks_like_attention(m)]
    # A module around others is judged by what it owns itself, so that the innermost one is named.
    around = any(any(True for _ in m.parameters()) for m in inner)
    own = [p for p, _ in module.named_parameters(recurse=not around)]
    if not own:
        return None
    return (
        f"it looks like attention, and its parameters ({', '.join(own[:6])}"
        f"{', ...' if len(own) > 6 else ''}) fit no known layout; `learn_attention` finds one by "
        "differentiation"
    )


def _looks_like_attention(module: nn.Module) -> bool:
    if LAYOUT in vars(module):
        return True  # learnt, and something has changed it since
    label = type(module).__name__.lower()
    return "attention" in label or "attn" in label


def _check_unshared(blocks: Sequence[PrunableBlock]) -> None:
    owners: dict[int, str] = {}
    for block in blocks:
        for weight in block.weights:
            first = owners.setdefault(id(weight), block.name)
            if first != block.name:
                _refuse(block.name, block.site, f"it shares weights with {first}")


def _check_lasting(model: nn.Module, block: AttentionBlock) -> None:
    """Refuse attention that its model builds anew as it runs, such as for short inputs (BigBird).

    The new modules have all heads of the configuration, whatever was cut.
    """
    site, owner = block.site, block.module
    around, _, name = block.place.rpartition(".")
    places = [(model.get_submodule(around), {name})] if site is not model else []
    places += [(site, {n for n, child in site.named_children() if owner in {*child.modules()}})]
    for module, names in places:
        for child in sorted(names):
            method = replaces(type(module), child)
            if method is not None and not _lasts(module):
                ways = " or ".join(f"{name}={value!r}" for name, value in LASTING)
                _refuse(
                    block.name,
                    site,
                    f"{type(module).__name__}.{method} replaces its {child!r} while the model runs, with "
                    f"all heads again; load the model with {ways}, or write that into its configuration",
                )


def _lasts(module: nn.Module) -> bool:
    config: object = getattr(module, "config", None)
    return any(
        getattr(module, name, None) == value and getattr(config, name, value) == value
        for name, value in LASTING
    )


def _check_uncompiled(model: nn.Module) -> None:
    if hasattr(model, "_orig_mod") or any(
        getattr(m, "_compiled_call_impl", None) is not None for m in model.modules()
    ):
        raise UnsupportedModelError(
            "`model` is compiled, and a compiled model silently ignores gates; pass the "
            "model from before torch.compile, and compile after slicing."
        )


def _refuse(name: str, module: nn.Module, what: str) -> NoReturn:
    raise UnsupportedModelError(f"{name} ({type(module).__name__}) is not understood: {what}.")
