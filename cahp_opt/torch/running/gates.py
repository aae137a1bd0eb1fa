"""Gates on the heads of an unchanged model: reversible and differentiable."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cahp_opt.arrays import Bools
from cahp_opt.selection import Selection
from cahp_opt.space import HeadSpace, Unit
from cahp_opt.torch.blocks.blocks import kinds_in_words
from cahp_opt.torch.blocks.finder import Prunable, blocks_of, find_attention, find_prunable

Sink = Callable[[int, Tensor], None]


@contextmanager
def head_mask(
    model: nn.Module | Prunable,
    selection: Selection | npt.ArrayLike | Tensor,
    *,
    unit: Unit | None = None,
) -> Generator[Tensor]:
    """Multiply every unit's output by a gate while the context lasts.

    The gate sits on the input of the output projection, where the heads' outputs stand side by side,
    so it works with every attention backend. A gate of 0 removes a unit exactly as slicing does. The
    gates are differentiable: pass a tensor that requires a gradient. Gate a model before compiling
    it; a compiled one is refused, because it would ignore the gates.

    Args:
        model: the model to gate, or its blocks if they were found already; it is not changed.
        selection: a :class:`~cahp_opt.selection.Selection`, a boolean keep-set of shape ``[n]``, or a
            float tensor of gates of shape ``[n]``, or ``[batch, n]`` for gates per example.
        unit: as for :func:`~cahp_opt.torch.find_attention`; a selection knows its own, and others are
            refused with it.

    Yields:
        The gates, float ``[n]`` or ``[batch, n]``; if a tensor was passed, the same object.

    Raises:
        ValueError: if the selection is of another model, or the gates have another shape or hold NaN.
        UnsupportedModelError: if the model's attention is not understood.
    """
    with gated(find_for(model, selection, unit), selection) as gates:
        yield gates


@contextmanager
def gated(prunable: Prunable, selection: Selection | npt.ArrayLike | Tensor) -> Generator[Tensor]:
    """:func:`head_mask` for blocks that were found already; gates float ``[n]`` or
    ``[batch, n]``."""
    gates = _gates(prunable.space, selection)
    with ExitStack() as stack:
        for block, where in zip(prunable, prunable.space.slices, strict=True):
            columns = (block.columns + where.start).tolist()
            hook = _Gate(gates, torch.tensor(columns, device=gates.device))
            stack.callback(block.out.register_forward_pre_hook(hook).remove)
        yield gates


@contextmanager
def capture_head_outputs(attention: Prunable, sink: Sink) -> Generator[None]:
    """Hand the heads' outputs of every block to ``sink`` while the context lasts.

    Args:
        attention: the blocks to listen to.
        sink: called as ``sink(block index, z)`` with the input ``z`` of the block's output
            projection, shape ``[batch, positions, width]``, after any gates set up before.
    """
    with ExitStack() as stack:
        for index, block in enumerate(attention):
            hook = _Listener(index, sink)
            stack.callback(block.out.register_forward_pre_hook(hook).remove)
        yield


def is_gated(prunable: Prunable) -> bool:
    """Whether :func:`head_mask` is acting on the blocks."""
    hooks = (vars(block.out)["_forward_pre_hooks"].values() for block in prunable)
    return any(isinstance(hook, _Gate) for found in hooks for hook in found)


def find_for(model: nn.Module | Prunable, selection: object, unit: Unit | None) -> Prunable:
    """The blocks of a selection, in its units; for a plain keep-set those that were given, or the attention of
    the model in ``unit``.

    Raises:
        UnsupportedModelError: if the model's attention is not understood.
        ValueError: if there is a selection, and ``unit`` would make other units than it has; or if it does
            not say which neurons its groups hold, and the model alone was given.
    """
    if not isinstance(selection, Selection):
        return blocks_of(model, unit)
    space = selection.space
    if isinstance(model, Prunable):
        _check_kinds(model.space, space)
        stated = any(block.order is not None for block in space.blocks)
        return blocks_of(model.grouped(space) if stated else model, unit)
    unstated = [b.name for b in space.blocks if not b.unit.of_attention and b.order is None]
    if unstated:
        raise ValueError(
            f"`selection` does not say which neurons the groups of {unstated[0]!r} hold; take the record that "
            "was written when they were selected, or pass the blocks that were calibrated (of `find_prunable` "
            "or `order_neurons`) in place of `model`."
        )
    of_attention = space.of_attention
    heads, neurons = bool(of_attention.any()), not bool(of_attention.all())
    prunable = find_prunable(model, heads=heads, neurons=neurons, unit=space.unit)
    if neurons:
        _check_kinds(prunable.space, space)
        prunable = prunable.grouped(space)
    if unit is not None:
        asked = find_attention(model, unit=unit).space
        own = tuple(block for block in space.blocks if block.unit.of_attention)
        if asked.kinds != [(block.units, block.unit) for block in own]:
            difference = asked.difference(HeadSpace(own)) if own else "of neurons alone"
            raise ValueError(
                f"`unit` is Unit.{unit.name}, and `selection` was made in other units "
                f"({difference}); leave `unit` out, because a selection knows its own, or select "
                "again in these units."
            )
    return prunable


def _check_kinds(space: HeadSpace, asked: HeadSpace) -> None:
    """Refuse a selection over blocks of other kinds than there are in ``space``."""
    if space.of_attention.tolist() != asked.of_attention.tolist():
        raise ValueError(
            f"`selection` is over {kinds_in_words(asked)}, and `model` has {kinds_in_words(space)}; pass the "
            "model that it was made for, or its blocks of the same kinds (by `find_prunable`)."
        )


def kept_units(space: HeadSpace, selection: Selection | npt.ArrayLike) -> Bools:
    """The keep-set ``[n]`` of a selection or a boolean array, checked against ``space``.

    Raises:
        ValueError: if it is a selection for another space, or not a boolean array of that shape.
    """
    if not isinstance(selection, Selection):
        return space.check(selection)
    difference = space.difference(selection.space)
    if difference:
        raise ValueError(
            f"`selection` is of another model ({difference}); select again for this one, or load the "
            "model that the selection was made for."
        )
    return selection.kept


def _gates(space: HeadSpace, selection: Selection | npt.ArrayLike | Tensor) -> Tensor:
    if isinstance(selection, Tensor) and selection.is_floating_point():
        gates = selection
    elif isinstance(selection, Tensor):
        gates = _ones_and_zeros(space.check(selection.cpu().numpy()))
    elif not isinstance(selection, Selection) and np.asarray(selection).dtype.kind == "f":
        gates = torch.as_tensor(np.asarray(selection))
    else:
        gates = _ones_and_zeros(kept_units(space, selection))
    if gates.ndim not in (1, 2) or gates.shape[-1] != space.n:
        raise ValueError(
            f"`selection` must be gates of shape [{space.n}] or [batch, {space.n}], one per unit, got "
            f"shape {list(gates.shape)}."
        )
    if bool(torch.isnan(gates.detach()).any()):
        raise ValueError("`selection` holds NaN; every gate must be a number, 0 to remove a unit.")
    return gates


def _ones_and_zeros(kept: Bools) -> Tensor:
    return torch.tensor(kept.tolist(), dtype=torch.float32)


class _Gate:
    """Forward pre-hook on an output projection: scales every column by the gate of its unit."""

    def __init__(self, gates: Tensor, units: Tensor) -> None:
        self.gates, self.units = gates, units

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        z: Tensor = args[0]
        # In the activation's dtype: float32 gates must not turn a half-precision model to float32.
        gate = self.gates.index_select(-1, self.units).to(device=z.device, dtype=z.dtype)
        if gate.ndim == 2:
            if z.shape[0] != gate.shape[0]:
                raise ValueError(
                    f"`selection` holds gates for {gate.shape[0]} examples, and the batch has "
                    f"{z.shape[0]}."
                )
            gate = gate.view(gate.shape[0], *(1,) * (z.ndim - 2), gate.shape[1])
        return (z * gate, *args[1:])


class _Listener:
    """Forward pre-hook on an output projection: gives its input to the sink."""

    def __init__(self, index: int, sink: Sink) -> None:
        self.index, self.sink = index, sink

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.sink(self.index, args[0])
