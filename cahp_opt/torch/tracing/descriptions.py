"""Describing attention that no layout fits, from its output projection and its number of units.

The result of differentiation for one site of one size is turned into a description that holds for
any number of units: along every axis that is cut, each unit in turn has the same number of entries.
Such a description can be read, pasted, saved beside a sliced model and applied on the meta device,
where nothing can be differentiated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from cahp_opt.arrays import Ints
from cahp_opt.torch.blocks.blocks import Piece, submodules
from cahp_opt.torch.blocks.finder import UnsupportedModelError
from cahp_opt.torch.blocks.layouts import (
    GROUPS,
    HEAD_DIMS,
    HEADS,
    KV_HEADS,
    MAYBE_WIDTHS,
    WIDTHS,
)
from cahp_opt.torch.blocks.linear_layers import is_linear
from cahp_opt.torch.blocks.source_code import reads
from cahp_opt.torch.tracing.ownership import arguments_of, obstacles, pieces_of
from cahp_opt.torch.tracing.unit_gradients import TracedSite, UnitTrace, trace_targets

_KNOWN = {*HEADS, *KV_HEADS, *GROUPS, *HEAD_DIMS, *WIDTHS, *MAYBE_WIDTHS}


@dataclass(frozen=True)
class Anchor:
    """The site, output projection and units of attention that no layout describes.

    Args:
        site: path of the attention module in the model, such as ``model.layers.0.self_attn``.
        out: path of its output projection inside the site, such as ``o_proj``.
        units: the number of units that share the input columns of ``out``, side by side and
            equally: the key/value heads if query heads share them, otherwise the heads.
        heads: the number of query heads; None for as many as units.
    """

    site: str
    out: str
    units: int
    heads: int | None = None


@dataclass(frozen=True)
class Stretch:
    """A stretch of an axis: ``each`` entries for the first unit, the next ``each`` for the second, ...

    Args:
        each: the number of entries; of every unit in turn, or of all together.
        shared: whether they belong to all units together and are never cut.
    """

    each: int
    shared: bool = False


@dataclass(frozen=True)
class TracedCut:
    """A parameter that is cut with the units, whatever their number.

    Args:
        path: its path inside the site.
        axis: the axis along which it is cut.
        stretches: the stretches of the axis, in order.
        by_head: whether its entries serve single query heads, also where a unit has several.
    """

    path: str
    axis: int
    stretches: tuple[Stretch, ...]
    by_head: bool = True

    def units(self, size: int) -> int | None:
        """How many units an axis of this size has; None if it can have no such size."""
        each = sum(part.each for part in self.stretches if not part.shared)
        rest = size - sum(part.each for part in self.stretches if part.shared)
        return rest // each if rest > 0 and rest % each == 0 else None

    def piece(self, units: int) -> Piece:
        """The unit of every entry for this many units."""
        ids = np.arange(units)
        parts = [
            np.full(r.each, -1) if r.shared else np.repeat(ids, r.each) for r in self.stretches
        ]
        return Piece(self.path, self.axis, np.concatenate(parts).astype(np.int64))


@dataclass(frozen=True)
class Description:
    """How attention of one class is cut, independent of its number of units.

    Args:
        cls: name of the class of the site.
        out: path of the output projection inside the site.
        heads_per_unit: query heads of a unit.
        cuts: every parameter that is cut, the output projection's columns included.
        heads: attributes that hold the number of query heads, as paths inside the site.
        kv_heads: attributes that hold the number of key/value heads, likewise.
        widths: attributes that hold the width of all heads together, likewise.
        arguments: arguments of the site's forward with a slice for every query head: name and axis.
        shared: parameters before the output projection that serve every unit, and are not cut.
    """

    cls: str
    out: str
    heads_per_unit: int
    cuts: tuple[TracedCut, ...]
    heads: tuple[str, ...] = ()
    kv_heads: tuple[str, ...] = ()
    widths: tuple[str, ...] = ()
    arguments: tuple[tuple[str, int], ...] = ()
    shared: tuple[str, ...] = ()

    def pieces(self, site: nn.Module) -> tuple[Piece, ...]:
        """The pieces of a site of this class, on any device, the meta device included.

        Raises:
            UnsupportedModelError: if the site's shapes do not fit the description.
        """
        found: dict[str, int | None] = {}
        for cut in self.cuts:
            shape = _shape(site, cut.path)
            size = shape[cut.axis] if cut.axis < len(shape) else None
            found[f"{cut.path} on axis {cut.axis} of size {size}"] = (
                None if size is None else cut.units(size)
            )
        counts = set(found.values())
        if len(counts) != 1 or None in counts:
            sizes = "; ".join(f"{place}: {n} units" for place, n in found.items())
            raise UnsupportedModelError(
                f"a {type(site).__name__} does not fit its description: {sizes}."
            )
        units = cast("int", counts.pop())
        return tuple(cut.piece(units) for cut in self.cuts)

    def to_json(self) -> dict[str, Any]:
        """For a JSON file: names, numbers and lists only; shared stretches are negative numbers."""
        return {
            "class": self.cls,
            "out": self.out,
            "heads_per_unit": self.heads_per_unit,
            "cuts": [
                {
                    "path": c.path,
                    "axis": c.axis,
                    "runs": [-r.each if r.shared else r.each for r in c.stretches],
                    "by_head": c.by_head,
                }
                for c in self.cuts
            ],
            "heads": list(self.heads),
            "kv_heads": list(self.kv_heads),
            "widths": list(self.widths),
            "arguments": [list(a) for a in self.arguments],
            "shared": list(self.shared),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Description:
        """The description that :meth:`to_json` wrote.

        Raises:
            ValueError: if the data is not one.
        """
        try:
            cuts = tuple(
                TracedCut(
                    str(c["path"]),
                    int(c["axis"]),
                    tuple(Stretch(abs(int(r)), int(r) < 0) for r in c["runs"]),
                    bool(c["by_head"]),
                )
                for c in data["cuts"]
            )
            description = cls(
                cls=str(data["class"]),
                out=str(data["out"]),
                heads_per_unit=int(data["heads_per_unit"]),
                cuts=cuts,
                heads=tuple(map(str, data["heads"])),
                kv_heads=tuple(map(str, data["kv_heads"])),
                widths=tuple(map(str, data["widths"])),
                arguments=tuple((str(name), int(axis)) for name, axis in data["arguments"]),
                shared=tuple(map(str, data["shared"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the description of a traced attention is damaged ({error!r})."
            ) from None
        if not cuts or any(not any(r.each and not r.shared for r in c.stretches) for c in cuts):
            raise ValueError("the description of a traced attention cuts nothing.")
        return description

    def __str__(self) -> str:
        """The description as Python, to be pasted."""
        lines = ["Description(", f"    cls={self.cls!r},", f"    out={self.out!r},"]
        lines.append(f"    heads_per_unit={self.heads_per_unit},")
        lines.append("    cuts=(")
        for cut in self.cuts:
            stretches = ", ".join(
                f"Stretch({r.each}{', shared=True' if r.shared else ''})" for r in cut.stretches
            )
            by_head = "" if cut.by_head else ", by_head=False"
            lines.append(f"        TracedCut({cut.path!r}, {cut.axis}, ({stretches},){by_head}),")
        lines.append("    ),")
        for name in ("heads", "kv_heads", "widths", "arguments", "shared"):
            value: tuple[object, ...] = getattr(self, name)
            if value:
                lines.append(f"    {name}={value!r},")
        return "\n".join([*lines, ")"])


def complete(
    model: nn.Module, anchors: Sequence[Anchor], batch: Mapping[str, Any]
) -> tuple[Description, ...]:
    """Describe attention sites from their output projections, by differentiation.

    The result is a claim about gradients; slicing still checks numbers.

    Args:
        model: the model, with weights in memory.
        anchors: the sites.
        batch: keyword arguments for the model: a few examples of several tokens, without padding.

    Returns:
        One description per anchor.

    Raises:
        UnsupportedModelError: if units cannot be removed one by one, or the entries of a parameter
            follow no regular order; the sentence names the parameter.
        ValueError: if an anchor does not fit the model.
    """
    targets = [_target(model, anchor) for anchor in anchors]
    traces = trace_targets(model, targets, batch)
    grouped = [a for a in anchors if a.heads not in (None, a.units)]
    finer = [_target(model, dataclasses.replace(a, units=a.heads or a.units)) for a in grouped]
    by_head = dict(zip(grouped, trace_targets(model, finer, batch), strict=True))
    return tuple(
        _description(anchor, target, trace, by_head.get(anchor, trace))
        for anchor, target, trace in zip(anchors, targets, traces, strict=True)
    )


def stretches_of(unit_of: Ints, units: int) -> tuple[Stretch, ...] | None:
    """The stretches along an axis whose entries belong to these units, ``[size]`` (-1: to all); None if
    irregular."""
    stretches: list[Stretch] = []
    start, size = 0, len(unit_of)
    while start < size:
        first = int(unit_of[start])
        each = _length(unit_of, start)
        if first < 0:
            stretches.append(Stretch(each, shared=True))
            start += each
            continue
        # Two stretches of one unit each stand side by side where there is a single unit.
        stop = start + each * units
        if units < 2 or not np.array_equal(unit_of[start:stop], np.repeat(np.arange(units), each)):
            return None
        stretches.append(Stretch(each))
        start = stop
    return tuple(stretches)


def _length(unit_of: Ints, start: int) -> int:
    others = np.flatnonzero(unit_of[start:] != unit_of[start])
    return int(others[0]) if len(others) else len(unit_of) - start


def _target(model: nn.Module, anchor: Anchor) -> TracedSite:
    try:
        site = model.get_submodule(anchor.site)
        out = site.get_submodule(anchor.out)
    except AttributeError as error:
        raise ValueError(f"`anchors` names a module that is not there: {error}.") from None
    # A linear layer says how many columns it reads; a transposed one by its weight's rows.
    width: object = getattr(out, "in_features", getattr(out, "nx", None))
    heads = anchor.units if anchor.heads is None else anchor.heads
    if not isinstance(width, int) or not is_linear(out):
        raise ValueError(
            f"`anchors`: {anchor.site}.{anchor.out} is a {type(out).__name__}, and the output "
            "projection must be a linear layer."
        )
    if anchor.units < 2 or heads % anchor.units or width % heads:
        raise ValueError(
            f"`anchors`: {anchor.site} cannot have {anchor.units} units and {heads} heads: two units "
            f"at least must share the heads, and the heads the {width} input columns of {anchor.out}."
        )
    columns = np.repeat(np.arange(anchor.units), width // anchor.units).astype(np.int64)
    return TracedSite(anchor.site, site, anchor.out, columns)


def _description(
    anchor: Anchor, target: TracedSite, trace: UnitTrace, by_head: UnitTrace
) -> Description:
    for sentence in obstacles(trace):
        raise UnsupportedModelError(sentence)
    of_heads = {(piece.path, piece.axis) for piece in pieces_of(by_head)}
    cuts: list[TracedCut] = []
    for piece in pieces_of(trace):
        stretches = stretches_of(piece.unit_of, trace.units)
        if stretches is None:
            raise UnsupportedModelError(
                f"{trace.name}: the entries of {piece.path} on axis {piece.axis} belong to units in no "
                "regular order, or the batch did not reach all of them; try another batch."
            )
        cuts.append(
            TracedCut(piece.path, piece.axis, stretches, (piece.path, piece.axis) in of_heads)
        )
    if not any(cut.path.startswith(f"{anchor.out}.") for cut in cuts):
        raise UnsupportedModelError(
            f"{trace.name}: the columns of {anchor.out} do not follow from its weights."
        )
    heads = anchor.heads or anchor.units
    return Description(
        cls=type(target.site).__name__,
        out=anchor.out,
        heads_per_unit=heads // anchor.units,
        cuts=tuple(cuts),
        heads=_head_counts(target.site, heads),
        kv_heads=_kv_counts(target.site, anchor.units, heads),
        widths=_widths(target.site, len(target.columns)),
        arguments=tuple((p.path, p.axis) for p in arguments_of(trace)),
        shared=tuple(_shared(trace, {cut.path for cut in cuts}, anchor.out)),
    )


def _shared(trace: UnitTrace, cut: set[str], out: str) -> Iterator[str]:
    for path, axes in trace.touched.items():
        before = path not in cut and not path.startswith(f"{out}.")
        if before and axes and bool(axes[0].any(axis=1).all()):
            yield path


def _head_counts(site: nn.Module, heads: int) -> tuple[str, ...]:
    """By name or, without a known name, by value, such as ``h``."""
    return tuple(_counts(site, heads, keys=False)) or _only_number(site, heads)


def _kv_counts(site: nn.Module, kv_heads: int, heads: int) -> tuple[str, ...]:
    by_name = tuple(_counts(site, kv_heads, keys=True))
    return by_name or (() if kv_heads == heads else _only_number(site, kv_heads))


def _widths(site: nn.Module, width: int) -> tuple[str, ...]:
    known = {*WIDTHS, *MAYBE_WIDTHS}
    named = any(path.rpartition(".")[2] in known for path in _numbers(site, width))
    return () if named else _only_number(site, width)


def _counts(site: nn.Module, value: int, *, keys: bool) -> Iterator[str]:
    """Attributes that count query heads, or key/value heads: judged by name, then by value."""
    for path in _numbers(site, value):
        words = path.rpartition(".")[2].lower()
        counts = "head" in words and not any(w in words for w in ("dim", "size", "group"))
        if counts and ("kv" in words or "key" in words) is keys:
            yield path


def _only_number(site: nn.Module, value: int) -> tuple[str, ...]:
    """The one attribute of this value that the code reads and the table has no name for.

    Empty if there are several: which of them is meant is not for guessing.
    """
    found: list[str] = []
    for path in _numbers(site, value):
        parent, _, name = path.rpartition(".")
        module = site.get_submodule(parent)
        if name not in _KNOWN and not is_linear(module) and reads(type(module), name):
            found.append(path)
    return tuple(found) if len(found) == 1 else ()


def _numbers(site: nn.Module, value: int) -> Iterator[str]:
    for path, module in submodules(site):
        for name, found in vars(module).items():
            if type(found) is int and found == value:
                yield f"{path}.{name}" if path else name


def _shape(site: nn.Module, path: str) -> tuple[int, ...]:
    """The shape of a tensor of the site; empty if it has none of this name."""
    stem, _, name = path.rpartition(".")
    try:
        found: object = getattr(site.get_submodule(stem), name, None)
    except AttributeError:
        return ()
    return tuple(found.shape) if isinstance(found, Tensor) else ()
