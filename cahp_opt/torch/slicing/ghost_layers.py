"""Whether the output layer of a block without kept units is still the one that slicing left.

Such a layer multiplies by zeros, and its weight is frozen. But an adapter may have been merged into it, or other
weights loaded, without a trace in anything but the numbers; so the numbers are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

_untyped: Any = torch


class Onlooker:
    """A hook that notes that a module runs, and on what, whatever that is: nothing has to be multiplied for it.

    Args:
        note: is called with what the hook is given.
    """

    def __init__(self, note: Callable[..., None]) -> None:
        self.note = note

    def __call__(self, *given: Any) -> None:
        self.note(*given)


def is_in_place(site: nn.Module, path: Sequence[str], layer: nn.Module) -> bool:
    """Whether a layer is still in the model, and nothing but an :class:`Onlooker` listens there.

    Args:
        site: a module around it.
        path: the names from there to the layer.
        layer: the layer as it was.
    """
    found: Any = site
    for name in path:
        found = getattr(found, name)
    if found is not layer:
        return False
    hooks: list[object] = [*found._forward_hooks.values(), *found._forward_pre_hooks.values()]
    return all(isinstance(hook, Onlooker) for hook in hooks)


def adds_bias_alone(out: nn.Module) -> bool:
    """Whether an output layer multiplies by zeros that nothing can train."""
    weight: Any = out.weight
    return not weight.requires_grad and _is_zero(weight)


def _is_zero(weight: Tensor) -> bool:
    """Whether all numbers are zero; taken as true where there are none to look at, in an export or a rehearsal
    without weights, and while a CUDA graph is captured, which follows other runs."""
    if isinstance(weight, FakeTensor):
        return True
    if weight.is_meta:
        return False  # it lies elsewhere, on the disk or another device, until its layer runs
    if _untyped.jit.is_tracing():
        return False  # looking would be a part of the trace
    if weight.is_cuda and torch.cuda.is_current_stream_capturing():
        return True
    low, high = torch.aminmax(weight.detach())
    return bool(low == 0) and bool(high == 0)


# Compiling looks once; a look in the compiled code would break it in two.
_is_zero = _untyped.compiler.assume_constant_result(_is_zero)
