"""Finding the attention of a model: blocks anchored on their output projection."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import NoReturn

from torch import nn

from cahp_opt.space import Unit
from cahp_opt.torch.blocks.blocks import LAYOUT, AttentionBlock, Prunable, submodules
from cahp_opt.torch.blocks.layouts import LASTING, LAYOUTS
from cahp_opt.torch.blocks.site_reader import Misfit, best_layout, read_block
from cahp_opt.torch.blocks.source_code import replaces

__all__ = [
    "Attention",
    "AttentionBlock",
    "Prunable",
    "UnsupportedModelError",
    "find_attention",
    "reread",
]

Attention = Prunable
"""What :func:`find_attention` finds: attention is all that is pruned."""

_log = logging.getLogger(__name__)


class UnsupportedModelError(ValueError):
    """The model has attention that is not understood, or none; the message names the module."""


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
    if unit not in (None, Unit.KV_GROUP, Unit.QUERY_SLOT):
        raise ValueError(
            f"`unit` must be None, Unit.KV_GROUP or Unit.QUERY_SLOT, got {unit!r}; heads that share no "
            "keys are always single units."
        )
    _check_uncompiled(model)
    blocks: list[AttentionBlock] = []
    sites: list[str] = []
    strange: list[tuple[str, nn.Module, str]] = []
    for name, module in submodules(model):
        if any(_within(name, site) for site in sites):
            continue
        layout = best_layout(module)
        if layout is None or _is_around(module, layout.owners):
            continue
        sites.append(name)
        try:
            blocks.append(read_block(name or "attention", module, layout, unit))
        except Misfit as misfit:
            strange.append((name, module, str(misfit)))
    for name, module in submodules(model):
        if any(_within(name, site) or _within(site, name) for site in sites):
            continue  # part of a block, or around one
        reason = _not_understood(module)
        if reason:
            strange.append((name, module, reason))
    _check_unshared(blocks)
    for block in blocks:
        _check_lasting(model, block)
    return Prunable(model, tuple(blocks), tuple(_skipped(model, blocks, strange)))


def reread(prunable: Prunable) -> Prunable:
    """The blocks as they are by now, each read again at its place, in the units that it has.

    For a model that was cut or filled with weights since its blocks were found, or, with
    :meth:`~cahp_opt.torch.blocks.blocks.Prunable.at`, for one that was built anew.

    Raises:
        UnsupportedModelError: if a block contradicts itself.
    """
    blocks: list[AttentionBlock] = []
    for old in prunable:
        layout = best_layout(old.site)
        if layout is None:
            _refuse(old.name, old.site, "it fits no known layout any more")
        try:
            blocks.append(read_block(old.name, old.site, layout, old.cut.unit))
        except Misfit as misfit:
            _refuse(old.name, old.site, str(misfit))
    return replace(prunable, blocks=tuple(blocks))


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


def _within(path: str, site: str) -> bool:
    return not site or path == site or path.startswith(site + ".")


def _check_unshared(blocks: list[AttentionBlock]) -> None:
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
    around, _, name = block.name.rpartition(".")
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
