"""Cutting units out of attention modules in place, with a way back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from cahp_opt.heads import Bools
from cahp_opt.torch.blocks import (
    GHOST,
    Attention,
    AttentionBlock,
    is_conv1d,
    projection_modules,
)
from cahp_opt.torch.layouts import HeadArgument, Order, Projection

_ABSENT = object()


class Journal:
    """What surgery replaced, so that it can be put back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def put(self, module: nn.Module, name: str, value: object) -> None:
        """Set an attribute or parameter of ``module`` and remember what was there."""
        old: object = getattr(module, name, _ABSENT)
        if old is _ABSENT:
            self._undo.append(lambda: delattr(module, name))
        else:
            self._undo.append(lambda: setattr(module, name, old))
        setattr(module, name, value)

    def call_later(self, undo: Callable[[], None]) -> None:
        """Remember another step to take on the way back."""
        self._undo.append(undo)

    def restore(self) -> None:
        """Put everything back, latest first."""
        while self._undo:
            self._undo.pop()()


def cut(attention: Attention, kept: Bools, journal: Journal) -> None:
    """Remove the units that are not ``kept`` from the modules of ``attention``, in place.

    A block without kept units keeps its first unit as a *ghost*: an empty tensor in the first block
    would make the key/value cache believe that it is empty, and generation would go wrong without an
    error. The ghost's columns of the output projection are zero, and its weights are frozen, so the
    block adds its bias alone and training cannot revive it.

    Args:
        attention: the blocks; their records are out of date afterwards.
        kept: the keep-set, bool ``[n]``.
        journal: takes down everything that is replaced.
    """
    for block, where in zip(attention, attention.space.slices, strict=True):
        ids = [u for u, keep in enumerate(kept[where]) if keep]
        if not block.ghost and len(ids) < block.units:
            _cut_block(block, ids, journal)
        elif block.ghost:
            _freeze(block)


def freeze_ghosts(attention: Attention) -> None:
    """Freeze the weights of blocks without kept units again, after a loader replaced them."""
    for block in attention:
        if block.ghost:
            _freeze(block)


class KeepHeads:
    """Forward pre-hook that cuts an argument with one slice per head down to the heads that are left.

    A class rather than a closure, so that models with it can be pickled; its index tensor is made on
    the first call, because the model may be built on the meta device.

    Args:
        argument: which argument, and on which axis the heads are.
        position: its position among the positional arguments of the module's forward.
        ids: the heads to take.
        heads: how many heads the argument has.
    """

    def __init__(
        self, argument: HeadArgument, position: int, ids: Sequence[int], heads: int
    ) -> None:
        self.argument, self.position, self.ids, self.heads = argument, position, tuple(ids), heads
        self.index: Tensor | None = None

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        name, i = self.argument.name, self.position
        if name in kwargs:
            return args, {**kwargs, name: self._taken(kwargs[name])}
        if i < len(args):
            return (*args[:i], self._taken(args[i]), *args[i + 1 :]), kwargs
        return args, kwargs

    def _taken(self, value: Tensor | None) -> Tensor | None:
        if (
            value is None or value.shape[self.argument.axis] == 1
        ):  # absent, or the same for all heads
            return value
        if value.shape[self.argument.axis] != self.heads:
            raise ValueError(
                f"`{self.argument.name}` has shape {list(value.shape)}, and {self.heads} heads were "
                f"expected on axis {self.argument.axis}."
            )
        if self.index is None or self.index.device != value.device:
            self.index = torch.tensor(self.ids, device=value.device)
        return value.index_select(self.argument.axis, self.index)


def _cut_block(block: AttentionBlock, ids: list[int], journal: Journal) -> None:
    units = ids or [0]
    layout, owner = block.layout, block.module
    for projection, module in projection_modules(block):
        _take_outputs(module, _rows(block, projection, units), journal)
    _take_inputs(block.out, _spread(units, block.width // block.units), journal)

    each = block.heads // block.units
    heads = _spread(units, each)
    for p in layout.parameters:
        value: object = getattr(owner, p.path, None)
        if isinstance(value, nn.Parameter):
            journal.put(owner, p.path, _taken(value, p.axis, heads))
    for argument in layout.arguments:
        position = list(inspect.signature(owner.forward).parameters).index(argument.name)
        hook = KeepHeads(argument, position, heads, block.heads)
        journal.call_later(owner.register_forward_pre_hook(hook, with_kwargs=True).remove)

    width = len(heads) * block.head_dim
    numbers = {a: len(heads) for a in layout.heads}
    numbers |= {a: len(units) * block.kv_heads // block.units for a in layout.kv_heads}
    numbers |= {a: width for a in layout.widths}
    numbers |= {a: width for a in layout.maybe_widths if _reads(type(owner), a)}
    for attribute, number in numbers.items():
        if hasattr(owner, attribute):
            journal.put(owner, attribute, number)
    if not ids:
        journal.put(owner, GHOST, True)
        weight = block.out.weight
        if isinstance(weight, Tensor):
            journal.put(block.out, "weight", nn.Parameter(torch.zeros_like(weight)))
        _freeze(block)


def _freeze(block: AttentionBlock) -> None:
    for _, module in projection_modules(block):
        module.requires_grad_(False)
    for name, parameter in block.out.named_parameters():
        if name == "weight":
            parameter.requires_grad_(False)


def _rows(block: AttentionBlock, projection: Projection, units: list[int]) -> list[int]:
    """The output rows of a projection that belong to these units."""
    sizes = [block.rows(part) for part in projection.parts]
    if projection.order is Order.UNIT_BY_UNIT:
        return _spread(units, sum(sizes))
    rows: list[int] = []
    start = 0
    for size in sizes:
        rows += [start + row for row in _spread(units, size)]
        start += size * block.units
    return rows


def _spread(units: list[int], size: int) -> list[int]:
    """The positions of these units where every unit has ``size`` of them side by side."""
    return [u * size + i for u in units for i in range(size)]


def _take_outputs(module: nn.Module, rows: list[int], journal: Journal) -> None:
    """Keep these output features of a linear module."""
    _take(module, "weight", 1 if is_conv1d(module) else 0, rows, journal)
    if getattr(module, "bias", None) is not None:
        _take(module, "bias", 0, rows, journal)
    journal.put(module, "nf" if is_conv1d(module) else "out_features", len(rows))


def _take_inputs(module: nn.Module, columns: list[int], journal: Journal) -> None:
    """Keep these input features of a linear module."""
    _take(module, "weight", 0 if is_conv1d(module) else 1, columns, journal)
    journal.put(module, "nx" if is_conv1d(module) else "in_features", len(columns))


def _take(module: nn.Module, name: str, axis: int, index: list[int], journal: Journal) -> None:
    journal.put(module, name, _taken(getattr(module, name), axis, index))


def _taken(parameter: nn.Parameter, axis: int, index: list[int]) -> nn.Parameter:
    # The device is named, because a loader may have made the meta device the default.
    at = torch.tensor(index, device=parameter.device)
    return nn.Parameter(parameter.detach().index_select(axis, at), parameter.requires_grad)


def _reads(cls: type, name: str) -> bool:
    """Whether a method of ``cls`` other than ``__init__`` uses the attribute ``name``.

    A width that only ``__init__`` reads may mean the width of the model to others, such as a weight
    initialiser; one that forward reads to reshape must follow the heads.
    """
    return any(
        name in code.co_names
        for base in cls.__mro__
        if base not in (nn.Module, object)
        for method, value in vars(base).items()
        if method != "__init__"
        for code in _codes(value)
    )


def _codes(value: object) -> Iterator[CodeType]:
    if isinstance(value, property):
        value = value.fget
    function = inspect.unwrap(value) if callable(value) else None
    stack = [function.__code__] if isinstance(function, FunctionType) else []
    while stack:
        code = stack.pop()
        yield code
        stack += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
