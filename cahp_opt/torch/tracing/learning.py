"""Attention that no layout describes, made usable by one traced run.

The result of differentiation becomes a layout that is remembered on the modules themselves, so that
everything that finds attention finds it: gates, calibration, slicing, copies and pickles. If
nothing can be differentiated, as while a model is built on the meta device, layouts that were
learnt before are attached by the names of the classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from typing import Any

import numpy as np
from torch import nn

from cahp_opt.files.records import PathLike, read_json, reading, write_json
from cahp_opt.torch.blocks.blocks import LAYOUT, AttentionBlock, submodules
from cahp_opt.torch.blocks.finder import UnsupportedModelError, find_attention
from cahp_opt.torch.blocks.layouts import (
    HeadArgument,
    HeadParameter,
    Layout,
    Order,
    Part,
    Projection,
)
from cahp_opt.torch.blocks.site_reader import Misfit, fits, read_block
from cahp_opt.torch.running.trials import make_trials
from cahp_opt.torch.running.undo import Journal
from cahp_opt.torch.tracing.descriptions import Anchor, Description, complete
from cahp_opt.torch.tracing.to_layout import suggest

_KIND, _VERSION = "cahp layouts", 1


def learn_attention(
    model: nn.Module, anchors: Sequence[Anchor], batch: object | None = None
) -> int:
    """Find out by differentiation how attention of classes that no layout describes is cut.

    One anchor serves all modules of its class, such as ``[Anchor("layers.0.self_attn", "o_proj",
    units=4)]``. Afterwards the model is used like any other; copies, pickles and folders of
    :func:`~cahp_opt.torch.save_pretrained` keep the layouts. ``print`` of a block's ``layout``
    shows the entry of :mod:`cahp_opt.torch.blocks.layouts` that would make this unnecessary.

    Args:
        model: the model, with its weights in memory; none of them changes.
        anchors: for every class of attention to learn, one of its modules. The classes of a model may
            need several, and so may a class whose modules have different children.
        batch: keyword arguments for the model: a few examples of several tokens, without padding; None
            for small random inputs.

    Returns:
        The number of modules that were learnt.

    Raises:
        UnsupportedModelError: if units cannot be removed one by one, a layout cannot express the
            result, or a module of such a class does not fit it; nothing is remembered then.
        ValueError: if an anchor does not fit the model, or ``batch`` cannot be used.
    """
    inputs = make_trials(model, batch)[0].batch
    journal = Journal()
    try:
        learnt = [
            _layout(model, anchor, description)
            for anchor, description in zip(anchors, complete(model, anchors, inputs), strict=True)
        ]
        modules = _attach(model, learnt, journal)
        _check_found(model, modules)
    except BaseException:
        journal.restore()
        raise
    return len(modules)


def learnt_layouts(model: nn.Module) -> tuple[Layout, ...]:
    """The layouts that were learnt for modules of ``model``."""
    found = (vars(module).get(LAYOUT) for module in model.modules())
    return tuple(dict.fromkeys(layout for layout in found if isinstance(layout, Layout)))


def attach_layouts(model: nn.Module, layouts: Sequence[Layout]) -> None:
    """Let :func:`~cahp_opt.torch.find_attention` read the modules of certain classes by these layouts.

    Args:
        model: a model, on any device.
        layouts: each named like the class that it is for.

    Raises:
        UnsupportedModelError: if a module of such a class fits none of its layouts.
    """
    _attach(model, layouts, Journal())


def save_layouts(path: PathLike, layouts: Sequence[Layout]) -> None:
    """Write layouts as JSON."""
    write_json(path, _KIND, _VERSION, {"layouts": layouts_to_json(layouts)})


def load_layouts(path: PathLike) -> tuple[Layout, ...]:
    """The layouts that :func:`save_layouts` wrote.

    Raises:
        RecordError: if the file is not one.
        OSError: if it cannot be read.
    """
    record = read_json(path, _KIND, _VERSION)
    with reading(path):
        return layouts_from_json(record["layouts"])


def layouts_to_json(layouts: Sequence[Layout]) -> list[Any]:
    """Plain data for a JSON file."""
    plain: list[Any] = json.loads(
        json.dumps([asdict(layout) for layout in layouts], default=_plain)
    )
    return plain


def layouts_from_json(data: Sequence[Mapping[str, Any]]) -> tuple[Layout, ...]:
    """The inverse of :func:`layouts_to_json`.

    Raises:
        ValueError, KeyError, TypeError: if these are not layouts.
    """
    return tuple(_from_json(layout) for layout in data)


def _layout(model: nn.Module, anchor: Anchor, description: Description) -> Layout:
    site = model.get_submodule(anchor.site)
    layout = suggest(description, site)
    if layout is None:
        raise UnsupportedModelError(
            f"{anchor.site} ({description.cls}): its units can be told apart, and a layout has no words "
            f"for how they lie:\n{description}"
        )
    if not fits(site, layout):
        raise UnsupportedModelError(
            f"{anchor.site} ({description.cls}): no linear module before {anchor.out} has rows of single "
            "units; check the output projection that the anchor names."
        )
    heads = anchor.heads or anchor.units
    said = f"the anchor says {anchor.units} units and {heads} heads"
    try:
        block = read_block(anchor.site, site, layout, None)
    except Misfit as misfit:
        raise UnsupportedModelError(
            f"{anchor.site} ({description.cls}) does not fit what was traced, where {said}: {misfit}."
        ) from misfit
    if (block.units, block.heads) != (anchor.units, heads):
        raise UnsupportedModelError(
            f"{anchor.site} ({description.cls}): {said}, and its attributes and weights say "
            f"{block.units} and {block.heads}."
        )
    _check_pieces(block, description)
    return layout


def _check_pieces(block: AttentionBlock, description: Description) -> None:
    """Refuse a layout that differs from the trace it was made from."""
    traced = {(p.path, p.axis): p.unit_of for p in description.pieces(block.site)}
    told = {(p.path, p.axis): p.unit_of for p in block.pieces if bool((p.unit_of >= 0).any())}
    for place in {**traced, **told}:
        if not np.array_equal(traced.get(place, ()), told.get(place, ())):
            raise UnsupportedModelError(
                f"{block.name} ({description.cls}): how the units lie in {place[0]} on axis {place[1]} "
                f"cannot be said by a layout; what was traced is\n{description}"
            )


def _attach(model: nn.Module, layouts: Sequence[Layout], journal: Journal) -> dict[str, nn.Module]:
    by_class: dict[str, list[Layout]] = {}
    for layout in layouts:
        by_class.setdefault(layout.name, []).append(layout)
    modules: dict[str, nn.Module] = {}
    for name, module in submodules(model):
        known = by_class.get(type(module).__name__)
        if known is None:
            continue
        fitting = [layout for layout in known if fits(module, layout)]
        if not fitting:
            raise UnsupportedModelError(
                f"{name} ({type(module).__name__}) has other children than the module that its class was "
                "learnt from; give `learn_attention` an anchor for it too."
            )
        journal.put(module, LAYOUT, fitting[0])
        modules[name] = module
    return modules


def _check_found(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    attention = find_attention(model)
    found = {id(block.site) for block in attention}
    for name, module in modules.items():
        if id(module) not in found:
            raise UnsupportedModelError(
                f"{name} ({type(module).__name__}) lies inside other attention or was left alone: "
                f"{dict(attention.skipped).get(name, 'a module around it is a block already')}."
            )


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"{value!r} has no place in a layout that is saved.")


def _from_json(data: Mapping[str, Any]) -> Layout:
    return Layout(
        name=str(data["name"]),
        projections=tuple(
            Projection(
                str(p["path"]),
                tuple(Part(part) for part in p["parts"]),
                Order(p["order"]),
                bool(p["optional"]),
            )
            for p in data["projections"]
        ),
        owners=_names(data["owners"]),
        outs=_names(data["outs"]),
        when=tuple((str(name), value) for name, value in data["when"]),
        parameters=tuple(
            HeadParameter(str(p["path"]), int(p["axis"]), Part(p["part"]), p["ndim"])
            for p in data["parameters"]
        ),
        heads=_names(data["heads"]),
        kv_heads=_names(data["kv_heads"]),
        widths=_names(data["widths"]),
        arguments=tuple(
            HeadArgument(str(a["name"]), _names(a["beside"])) for a in data["arguments"]
        ),
        headless=_names(data["headless"]),
        shards=str(data.get("shards", "")),  # earlier records have none
    )


def _names(values: Sequence[object]) -> tuple[str, ...]:
    return tuple(str(value) for value in values)
