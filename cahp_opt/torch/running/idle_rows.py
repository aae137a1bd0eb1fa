"""Backward passes that leave out rows without a gradient: padding, and all but the token that a head reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_COLUMNS = 8  # a row that is zero in these is looked at as a whole
_SHARE = 8  # with fewer than 1 / _SHARE of the rows idle, picking the others costs what it saves


class SkippingIdleRows(TorchFunctionMode):
    """While it lasts, linear layers give gradients of their inputs alone, none of weights, and multiply only rows that
    have one: the same numbers in less time.

    Elsewhere than on a CPU, where looking for such rows would make the device wait, for tensors that are not
    ordinary ones, for weights that are computed (the gradient may go on through them), and in code that
    ``torch.compile`` makes, nothing changes.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        if func is functional.linear and not kwargs and _ordinary(*args):
            apply: Any = cast("Any", _Linear).apply
            return apply(*args)
        return func(*args, **(kwargs or {}))


def _ordinary(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    own = [weight] if bias is None else [weight, bias]
    return (
        {type(each) for each in (x, *own)} <= {Tensor, nn.Parameter}
        and x.requires_grad
        and all(each.is_leaf for each in own)
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype
        and not torch.compiler.is_compiling()
    )


class _Linear(torch.autograd.Function):
    """``x W' + b``, whose gradient by ``x`` is computed for rows alone that have one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        ctx.save_for_backward(inputs[1])
        ctx.others = len(inputs) - 1

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (weight,) = gradients, ctx.saved_tensors
        weight = weight.to(gradient.dtype)  # autocast multiplied in another one
        positions = gradient.shape[:-1]
        rows = gradient.reshape(math.prod(positions), len(weight))
        used = used_rows(rows)
        if used is None:
            found = rows @ weight
        else:
            found = rows.new_zeros(len(rows), weight.shape[1])
            found.index_copy_(0, used, rows.index_select(0, used) @ weight)
        return (found.view(*positions, weight.shape[1]), *[None] * ctx.others)


def used_rows(rows: Tensor) -> Tensor | None:
    """The places of rows ``[rows, width]`` that are not zero, int ``[...]``; None if nearly all are
    used."""
    idle = (rows[:, :_COLUMNS] == 0).all(dim=1)
    if int(idle.sum()) * _SHARE < len(rows):
        return None
    places = idle.nonzero()[:, 0]
    idle[places] = (rows.index_select(0, places) == 0).all(dim=1)  # NaN is not zero
    return (~idle).nonzero()[:, 0]
