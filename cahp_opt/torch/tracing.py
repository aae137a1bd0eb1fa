"""Which parameters belong to which unit of attention, found by differentiation.

The input of a block's output projection holds the units' outputs side by side. An entry of a parameter
belongs to a unit if that unit's columns alone depend on it, which autograd says exactly: the gradient
with respect to entries of other units is zero, not small. So a table of layouts can be confirmed
without slicing anything, and attention that no table describes can still be read.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from cahp_opt.heads import Bools, Ints
from cahp_opt.torch.blocks import Attention, Piece
from cahp_opt.torch.preserving import evaluating

_SHARED = -1


@dataclass(frozen=True, eq=False)
class Target:
    """What to trace.

    Args:
        name: of the block, for messages.
        site: the module whose parameters are looked at.
        out: path of the output projection inside the site.
        columns: the unit of every input column of the output projection, int ``[width]``.
    """

    name: str
    site: nn.Module
    out: str
    columns: Ints

    @property
    def units(self) -> int:
        """How many units there are."""
        return int(self.columns.max()) + 1


@dataclass(frozen=True, eq=False)
class Trace:
    """What differentiation found out about one block.

    Args:
        name: of the block.
        units: its units.
        reached: whether the batch ran the output projection at all.
        touched: for every parameter of the site, by path, one bool array ``[units, size]`` per axis:
            which unit's output depends on which entry.
        arguments: the same for the float arguments of the site's forward.
        norms: for every module whose parameters are vectors, by path: which unit's output depends on
            which entry of the last axis of its *input*, bool ``[units, width]``.
    """

    name: str
    units: int
    reached: bool
    touched: Mapping[str, tuple[Bools, ...]]
    arguments: Mapping[str, tuple[Bools, ...]]
    norms: Mapping[str, Bools]

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The parameters of which every unit owns entries, and along which axis."""
        found = [
            Piece(path, axis, unit_of)
            for path, touched in self.touched.items()
            for axis, unit_of in _owned(touched)
        ]
        weights = {(p.path, len(p.unit_of)): p.unit_of for p in found}
        filled: list[Piece] = []
        for piece in found:
            stem, _, last = piece.path.rpartition(".")
            weight = weights.get((f"{stem}.weight", len(piece.unit_of)))
            untouched = ~self.touched[piece.path][piece.axis].any(axis=0)
            unit_of = piece.unit_of
            if last == "bias" and weight is not None:
                # Softmax ignores what a key bias adds to all keys alike: its gradient is rounding.
                unit_of = np.where(untouched, weight, unit_of)
            filled.append(Piece(piece.path, piece.axis, _smoothed(unit_of, untouched)))
        return tuple(filled)

    @cached_property
    def head_arguments(self) -> tuple[Piece, ...]:
        """The arguments of the site's forward with a slice of their own for every unit."""
        return tuple(
            Piece(name, axis, unit_of)
            for name, touched in self.arguments.items()
            for axis, unit_of in _owned(touched)
        )

    @cached_property
    def unreached(self) -> tuple[str, ...]:
        """Parameters on which no unit's output depends: behind the attention, or not run at all."""
        return tuple(
            path for path, touched in self.touched.items() if not any(t.any() for t in touched)
        )

    @cached_property
    def obstacles(self) -> tuple[str, ...]:
        """Why units cannot be removed one by one: a sentence for every parameter that ties them."""
        if not self.reached:
            return (f"{self.name}: the batch does not reach its output projection.",)
        if self.units == 1:
            return ()
        sentences: list[str] = []
        cut = {piece.path for piece in self.pieces}
        for path, touched in self.touched.items():
            if path not in cut and (several := _several(touched)):
                axis, index, units = several
                sentences.append(
                    f"{path}: {_place(axis, len(touched))} {index} serves the units "
                    f"{_listed(units)} and not the others, so they cannot be removed one by one."
                )
        for piece in self.pieces:
            reads = self.norms.get(piece.path.rpartition(".")[0])
            if reads is not None and reads.shape[1] == len(piece.unit_of):
                if (reads.sum(axis=0) > 1).any():
                    sentences.append(
                        f"{piece.path} belongs to the units entry by entry, but its module mixes its "
                        "whole input, as a normalisation over all heads together does, so the units "
                        "cannot be removed one by one."
                    )
        if not cut:
            sentences.append("no parameter has entries that serve a single unit.")
        return tuple(f"{self.name}: {sentence}" for sentence in sentences)


def trace_units(model: nn.Module, attention: Attention, batch: Mapping[str, Any]) -> tuple[Trace, ...]:
    """Trace every block of a model in one forward pass.

    Args:
        model: the model.
        attention: its blocks.
        batch: keyword arguments for the model; a few examples of at least two tokens, since a query
            with a single key does not depend on either.
    """
    targets = [Target(b.name, b.site, _path(b.site, b.out), b.columns) for b in attention]
    return trace_targets(model, targets, batch)


def contradictions(
    model: nn.Module, attention: Attention, batch: Mapping[str, Any]
) -> tuple[str, ...]:
    """Where the blocks' pieces and differentiation disagree, in sentences; empty if nowhere.

    What the batch does not reach is not contradicted.

    Args:
        model: the model.
        attention: its blocks.
        batch: as for :func:`trace_units`.
    """
    traces = trace_units(model, attention, batch)
    return tuple(
        sentence
        for block, trace in zip(attention, traces, strict=True)
        for sentence in disagreements(trace, block.pieces)
    )


def disagreements(trace: Trace, pieces: Sequence[Piece]) -> tuple[str, ...]:
    """Where pieces said to be those of a block differ from what was traced, in sentences."""
    if trace.units == 1 or not trace.reached:
        return ()
    sentences: list[str] = []
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
        by_table[:, piece.unit_of < 0] = True
        # A shared entry need not serve all units on this batch; an owned one must serve its own alone.
        wrong = np.where(piece.unit_of >= 0, (touched & ~by_table).any(axis=0), count == 1)
        sentences += _differences(piece, touched, wrong, len(axes))
    known = {(piece.path, piece.axis) for piece in pieces}
    for piece in trace.pieces:
        if (piece.path, piece.axis) not in known:
            wrong = piece.unit_of >= 0
            shared = Piece(piece.path, piece.axis, np.full_like(piece.unit_of, _SHARED))
            axes = trace.touched[piece.path]
            sentences += _differences(shared, axes[piece.axis], wrong, len(axes))
    return tuple(f"{trace.name}: {sentence}" for sentence in sentences)


def trace_targets(
    model: nn.Module, targets: Sequence[Target], batch: Mapping[str, Any]
) -> tuple[Trace, ...]:
    """Trace sites in one forward pass; as :func:`trace_units`, for sites that no table describes.

    A module that runs several times is traced at its first run: later runs depend on earlier ones
    through the same parameters. Every site is differentiated as soon as its output projection is
    called, and nothing is kept for a later backward pass, so memory is that of one site.
    """
    recorders = [_Recorder(target) for target in targets]
    with evaluating(model), torch.enable_grad(), ExitStack() as stack:
        for recorder in recorders:
            stack.enter_context(recorder.listening())
        model(**batch)
    return tuple(recorder.trace() for recorder in recorders)


class _Recorder:
    """Traces one site while the model runs."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._out = target.site.get_submodule(target.out)
        named = dict(target.site.named_parameters())
        named |= dict(target.site.named_buffers())  # tables of slopes or masks may have heads too
        self._tensors = {path: t for path, t in named.items() if t.is_floating_point()}
        self._arguments: dict[str, Tensor] = {}
        self._norm_inputs: dict[str, Tensor] = {}
        self._touched: dict[str, list[Bools]] = {}
        self._done = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        site = self._target.site
        wanted = [(t, t.requires_grad) for t in self._tensors.values()]
        handles = [site.register_forward_pre_hook(self._enter, with_kwargs=True)]
        for path, module in site.named_modules():
            if module is not site and module is not self._out and _has_only_vectors(module):
                handles.append(module.register_forward_pre_hook(self._norm_hook(path)))
        handles.append(self._out.register_forward_pre_hook(self._leave))
        try:
            for tensor, _ in wanted:
                tensor.requires_grad_(True)
            yield
        finally:
            for handle in handles:
                handle.remove()
            for tensor, before in wanted:
                tensor.requires_grad_(before)

    def trace(self) -> Trace:
        shapes = {path: t.shape for path, t in self._tensors.items()}
        shapes |= {_argument(name): t.shape for name, t in self._arguments.items()}
        shapes |= {_norm(path): t.shape for path, t in self._norm_inputs.items()}
        units = self._target.units
        touched = {
            key: tuple(self._touched.get(key) or (np.zeros((units, n), dtype=bool) for n in shape))
            for key, shape in shapes.items()
        }
        return Trace(
            name=self._target.name,
            units=units,
            reached=self._done,
            touched={path: touched[path] for path in self._tensors},
            arguments={name: touched[_argument(name)] for name in self._arguments},
            norms={path: touched[_norm(path)][-1] for path in self._norm_inputs},
        )

    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Cut the site off from what ran before it, and watch its arguments."""
        if self._done:
            return None
        names = list(inspect.signature(module.forward).parameters)
        copies: dict[int, Tensor] = {}  # some modules ask whether two arguments are the same tensor
        watched = self._arguments

        def leaf(name: str, value: Any) -> Any:
            if type(value) in (tuple, list):
                items = cast("Sequence[Any]", value)
                return type(value)(leaf(f"{name}[{i}]", item) for i, item in enumerate(items))
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            if id(value) not in copies:
                watched[name] = value.detach().clone().requires_grad_()
                copies[id(value)] = watched[name].clone()  # may be written to
            return copies[id(value)]

        return (
            tuple(leaf(names[i] if i < len(names) else str(i), x) for i, x in enumerate(args)),
            {name: leaf(name, x) for name, x in kwargs.items()},
        )

    def _norm_hook(self, path: str) -> Any:
        def remember(module: nn.Module, args: tuple[Any, ...]) -> None:
            if not self._done and args and isinstance(args[0], Tensor) and args[0].requires_grad:
                self._norm_inputs.setdefault(path, args[0])

        return remember

    def _leave(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Differentiate every unit's columns, and let the model go on without this graph."""
        z: Tensor = args[0]
        if not self._done:
            self._done = True
            self._differentiate(z)
        return (z.detach(), *args[1:])

    def _differentiate(self, z: Tensor) -> None:
        target = self._target
        if z.shape[-1] != len(target.columns):
            raise ValueError(
                f"{target.name} hands {z.shape[-1]} columns to {target.out!r}, and the units were "
                f"given for {len(target.columns)}."
            )
        prefix = f"{target.out}." if target.out else ""
        mine = {prefix + name for name, _ in self._out.named_parameters()}
        before = {path: t for path, t in self._tensors.items() if path not in mine}
        before |= {_argument(name): t for name, t in self._arguments.items()}
        before |= {_norm(path): t for path, t in self._norm_inputs.items()}
        behind = {path: t for path, t in self._tensors.items() if path in mine}
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(z.shape, generator=generator).to(z)
        columns = torch.as_tensor(target.columns, device=z.device)
        for unit in range(target.units):
            only = (columns == unit).to(z.dtype)
            if z.requires_grad:
                self._note(unit, before, z, direction * only)
            if behind:
                # The projection itself: the unit's columns alone, in every direction of its output.
                output: Tensor = self._out.forward(z.detach() * only)
                random = torch.randn(output.shape, generator=generator).to(output)
                self._note(unit, behind, output, random)

    def _note(self, unit: int, tensors: Mapping[str, Tensor], value: Tensor, along: Tensor) -> None:
        gradients = torch.autograd.grad(
            value, list(tensors.values()), along, retain_graph=True, allow_unused=True
        )
        for key, gradient in zip(tensors, gradients, strict=True):
            if gradient is None:
                continue
            found = gradient.nan_to_num(0.0) != 0
            if key not in self._touched:
                shape = gradient.shape
                self._touched[key] = [np.zeros((self._target.units, n), dtype=bool) for n in shape]
            for axis, into in enumerate(self._touched[key]):
                others = tuple(a for a in range(found.ndim) if a != axis)
                into[unit] |= (found.any(dim=others) if others else found).cpu().numpy()


def _owned(touched: tuple[Bools, ...]) -> list[tuple[int, Ints]]:
    """The axes along which single units own entries, each with the unit of every entry."""
    clean: list[tuple[float, int, Ints]] = []
    for axis, by_unit in enumerate(touched):
        count = by_unit.sum(axis=0)
        units = len(by_unit)
        if units > 1 and (count == 1).any() and not ((count > 1) & (count < units)).any():
            unit_of = np.where(count == 1, by_unit.argmax(axis=0), _SHARED)
            clean.append((float((count == 1).mean()), axis, unit_of.astype(np.int64)))
    clean.sort(key=lambda found: (-found[0], found[1]))
    # One entry may serve one unit by chance, such as a distance that a single head looks at; a second
    # axis counts only where all of it is owned.
    return [(axis, unit_of) for share, axis, unit_of in clean[:1] + [c for c in clean[1:] if c[0] == 1]]


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


def _has_only_vectors(module: nn.Module) -> bool:
    own = [p.ndim for p in module.parameters(recurse=False)]
    return bool(own) and set(own) == {1} and not any(True for _ in module.children())


def _path(site: nn.Module, module: nn.Module) -> str:
    return next(path for path, found in site.named_modules() if found is module)


def _argument(name: str) -> str:
    return f"argument {name}"


def _norm(path: str) -> str:
    return f"input of {path}"
