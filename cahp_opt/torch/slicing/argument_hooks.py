"""Hooks that change an argument of a sliced attention module: one with heads, or one to leave out.

Classes rather than closures, so that models with them can be copied and pickled.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Call = tuple[tuple[Any, ...], dict[str, Any]]


class ArgumentHook:
    """Forward pre-hook that replaces one argument.

    Args:
        name: of the argument.
        position: its position among the positional arguments of the module's forward.
    """

    def __init__(self, name: str, position: int) -> None:
        self.name, self.position = name, position

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        name, i = self.name, self.position
        if name in kwargs:
            return args, {**kwargs, name: self.changed(kwargs[name])}
        if i < len(args):
            return (*args[:i], self.changed(args[i]), *args[i + 1 :]), kwargs
        return args, kwargs

    def changed(self, value: Any) -> Any:
        """The argument to pass instead of ``value``."""
        raise NotImplementedError


class DropArgument(ArgumentHook):
    """Passes None to the module instead of the argument."""

    def changed(self, value: Any) -> None:
        return None


class KeepHeads(ArgumentHook):
    """Cuts an argument with one slice per head down to the heads that are left.

    The heads are on axis 1 of four, or on the first of three, alone or inside the batch. The index
    tensor is made on the first call, because the model may be built on the meta device.

    Args:
        name: of the argument.
        position: its position among the positional arguments of the module's forward.
        ids: the heads to take.
        heads: the number of heads in the argument.
    """

    def __init__(self, name: str, position: int, ids: Sequence[int], heads: int) -> None:
        super().__init__(name, position)
        self.ids, self.heads = tuple(ids), heads
        self.index: Tensor | None = None

    def changed(self, value: Tensor | None) -> Tensor | None:
        """The slices of the heads that are left, ``[..., heads, rows, columns]``; anything without
        heads unchanged.

        Raises:
            ValueError: if the argument has another number of heads.
        """
        if value is None or value.ndim < 3:
            return value
        axis = 1 if value.ndim > 3 else 0
        if axis == 1 and value.shape[axis] == 1:  # the same for all heads
            return value
        rows = value.shape[axis]
        if rows % self.heads or (axis == 1 and rows != self.heads):
            raise ValueError(
                f"`{self.name}` has shape {list(value.shape)}, and {self.heads} heads were expected on "
                f"axis {axis}."
            )
        if self.index is None or self.index.device != value.device:
            self.index = torch.tensor(self.ids, device=value.device)
        if axis == 1:
            return value.index_select(1, self.index)
        split = value.reshape(rows // self.heads, self.heads, *value.shape[1:])
        return split.index_select(1, self.index).flatten(0, 1)


def argument_position(owner: nn.Module, argument: str) -> int | None:
    """The position of an argument in the module's forward; None if it has none of this name."""
    names = list(inspect.signature(type(owner).forward).parameters)[1:]
    return names.index(argument) if argument in names else None
