"""Counting what operations cost: arithmetic, memory traffic and launches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_GATHERS = ("embedding", "index", "index_select", "gather", "take_along_dim")
"""Operations that read as much of their first tensor as they write."""

_FREE = (
    "_unsafe_view",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "lift_fresh",
    "detach",
)
"""Operations that neither launch nor move anything, although their schema does not say so."""

_ATTENTION = "_scaled_dot_product"


class Operation(NamedTuple):
    """One operation that ran.

    Args:
        name: such as ``addmm``.
        dtype: precision of its result; None without a tensor.
        flops: floating-point operations of matrix products, convolutions and attention; 0 for others.
        moved: bytes of the tensors that it reads and writes.
    """

    name: str
    dtype: torch.dtype | None
    flops: int
    moved: int


@dataclass(frozen=True)
class _Call:
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands every operation inside its context to ``sink``, views excepted.

    Run it under ``torch.no_grad``: in inference mode composite operations arrive undivided.
    """

    def __init__(self, sink: Callable[[Operation], None]) -> None:
        cast("Any", super()).__init__()
        self._sink = sink

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named: dict[str, Any] = kwargs or {}
        result = func(*args, **named)
        if func.namespace == "aten" and not _is_free(func):
            self._sink(_operation(_Call(func, args, named, result)))
        return result


def _name(func: Any) -> str:
    return str(func.overloadpacket.__name__)


def _is_free(func: Any) -> bool:
    """Whether the result is a view, or nothing."""
    returned = [r.alias_info for r in func._schema.returns]
    views = bool(returned) and all(info is not None and not info.is_write for info in returned)
    return views or _name(func) in _FREE


def _operation(call: _Call) -> Operation:
    results, arguments = list(_tensors(call.result)), list(_tensors((call.args, call.kwargs)))
    written = sum(map(_bytes, results))
    if _name(call.func) in _GATHERS and arguments:
        moved = 2 * written + sum(map(_bytes, arguments[1:]))
    else:
        moved = written + sum(map(_bytes, arguments))
    dtype = results[0].dtype if results else None
    return Operation(_name(call.func), dtype, _flops(call), moved)


def _flops(call: _Call) -> int:
    if _name(call.func).startswith(
        _ATTENTION
    ):  # the registry lacks the CPU's, and wants equal heads
        query, key, value = call.args[:3]
        size, heads, length, width = query.shape
        return int(2 * size * heads * length * key.shape[-2] * (width + value.shape[-1]))
    counter = flop_registry.get(call.func.overloadpacket)
    return int(counter(*call.args, **call.kwargs, out_val=call.result)) if counter else 0


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _bytes(tensor: Tensor) -> int:
    """The bytes really in memory: an expanded axis is one entry."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    entries = 1
    for size, stride in sizes:
        entries *= size if stride else min(size, 1)
    return entries * tensor.element_size()
