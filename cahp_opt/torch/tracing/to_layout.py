"""A traced description as an entry of the table of layouts, whose ``print`` can be pasted there."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from cahp_opt.torch.blocks.layouts import (
    ARGUMENTS,
    HEADLESS,
    HEADS,
    KV_HEADS,
    MAYBE_WIDTHS,
    PARAMETERS,
    WIDTHS,
    HeadArgument,
    HeadParameter,
    Layout,
    Order,
    Part,
    Projection,
)
from cahp_opt.torch.blocks.linear_layers import is_linear
from cahp_opt.torch.tracing.descriptions import Description, TracedCut


def suggest(description: Description, site: nn.Module) -> Layout | None:
    """The description of ``site`` as an entry of the table; None if the table cannot express it.

    Args:
        description: of the class of ``site``.
        site: the attention module, on any device.

    Returns:
        The entry, named like the class; with its own parameters, attributes and arguments if the
        vocabulary has none of that name.
    """
    owner = next((a.rpartition(".")[0] for a in (*description.heads, *description.kv_heads)), "")
    prefix = f"{owner}." if owner else ""
    projections: list[Projection] = []
    parameters: list[HeadParameter] = []
    for cut in description.cuts:
        if cut.path.startswith(f"{description.out}."):
            continue
        path = _linear_of(site, cut.path)
        if path is None:
            if len(cut.stretches) > 1:
                return None
            parameters.append(HeadParameter(cut.path, cut.axis, _even(cut)))
        elif cut.path.endswith("weight") and "lora_" not in cut.path:  # biases follow their weights
            if not path.startswith(prefix):
                return None
            projection = _projection(path.removeprefix(prefix), description, cut)
            if projection is None:
                return None
            projections.append(projection)
    return Layout(
        description.cls,
        tuple(projections),
        (owner,),
        (description.out,),
        parameters=tuple(p for p in parameters if not _is_known(p)),
        heads=_new(description.heads, HEADS),
        kv_heads=_new(description.kv_heads, KV_HEADS),
        widths=_new(description.widths, (*WIDTHS, *MAYBE_WIDTHS)),
        arguments=tuple(
            HeadArgument(name)
            for name in _new([n for n, _ in description.arguments], [a.name for a in ARGUMENTS])
        ),
        headless=tuple(
            path
            for path in description.shared
            if not any(part.startswith(HEADLESS) for part in path.split("."))
        ),
    )


def _projection(path: str, description: Description, cut: TracedCut) -> Projection | None:
    """A linear module as an entry of the table; None if the table cannot express it."""
    sizes = [part.each for part in cut.stretches]
    columns = next(c for c in description.cuts if c.path.startswith(f"{description.out}."))
    queries = columns.stretches[0].each  # as wide as the outputs, wherever several parts are fused
    width = queries // description.heads_per_unit
    fused = (Part.QUERY, Part.KEY, Part.VALUE)
    if any(part.shared for part in cut.stretches):
        return None
    if sizes == [queries + 2 * width] and not cut.by_head:
        return Projection(path, fused, Order.UNIT_BY_UNIT)
    if len(sizes) == 1:
        return Projection(path, (_even(cut),))
    if sizes == [queries, width, width]:
        return Projection(path, fused)
    kinds = {queries: Part.EVEN, width: Part.EVEN_KEY}
    return Projection(path, tuple(kinds[s] for s in sizes)) if {*sizes} <= {*kinds} else None


def _even(cut: TracedCut) -> Part:
    return Part.EVEN if cut.by_head else Part.EVEN_KEY


def _linear_of(site: nn.Module, path: str) -> str | None:
    """The path of the linear module that holds a parameter, wrappers included."""
    found: str | None = None
    parts = path.split(".")[:-1]
    for end in range(len(parts), 0, -1):
        if is_linear(site.get_submodule(".".join(parts[:end]))):
            found = ".".join(parts[:end])
    return found


def _is_known(own: HeadParameter) -> bool:
    """Whether the vocabulary says the same; an entry for a certain number of axes may not apply."""
    return any(
        (own.path == p.path or own.path.endswith(f".{p.path}"))
        and (own.axis, own.part, None) == (p.axis, p.part, p.ndim)
        for p in PARAMETERS
    )


def _new(paths: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    names = dict.fromkeys(path.rpartition(".")[2] for path in paths)
    return tuple(name for name in names if name not in known)
