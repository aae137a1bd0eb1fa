"""Backward passes that leave out rows without a gradient: padding, and all but the token that a head reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_COLUMNS = 8  # a row that is zero in these is looked at as a whole
_SHARE = (
    8  # with fewer than 1 / _SHARE of the rows idle, picking the others costs as much as it saves
)


class SkippingIdleRows(TorchFunctionMode):
    """While it lasts, linear layers give gradients of their inputs alone, none of weights, and multiply only rows that
    have one: the same numbers in less time.

    Elsewhere than on a CPU, where looking for such rows would make the device wait, and for tensors that are
    not ordinary ones, nothing changes.
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
    kinds = {type(each) for each in (x, weight, bias) if each is not None}
    return (
        kinds <= {Tensor, nn.Parameter}
        and x.requires_grad
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype
        and not torch.is_autocast_enabled("cpu")
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
        rows = gradient.reshape(-1, gradient.shape[-1])
        used = used_rows(rows)
        if used is None:
            found = rows @ weight
        else:
            found = rows.new_zeros(len(rows), weight.shape[1])
            found.index_copy_(0, used, rows.index_select(0, used) @ weight)
        return (found.view(*gradient.shape[:-1], -1), *[None] * ctx.others)


def used_rows(rows: Tensor) -> Tensor | None:
    """The places of rows ``[rows, width]`` that are not zero, int ``[...]``; None if nearly all are
    used."""
    idle = (rows[:, :_COLUMNS] == 0).all(dim=1)
    if int(idle.sum()) * _SHARE < len(rows):
        return None
    places = idle.nonzero()[:, 0]
    idle[places] = rows.index_select(0, places).abs().amax(dim=1) == 0  # NaN is not zero
    return (~idle).nonzero()[:, 0]
