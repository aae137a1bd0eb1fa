"""Key/value caches that are put back to an earlier state, so that the same step can be run again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from torch import Tensor
from transformers.cache_utils import Cache

_COUNTER = 64
"""Tensors with at most this many entries are counters, which change in place and are copied."""


def caches_in(values: Iterable[object]) -> list[Cache]:
    """The caches among these values."""
    return [value for value in values if isinstance(value, Cache)]


def snapshot(cache: Cache) -> Callable[[], None]:
    """A function that restores the present state of ``cache``.

    Layers replace their tensors when they grow, so references to the present ones are enough. Layers of
    a fixed size are written in place at the position of the step, where the same step writes again.
    """
    undo: list[Callable[[], None]] = []
    _remember(cache, undo, set())

    def restore() -> None:
        for step in undo:
            step()

    return restore


def _remember(value: object, undo: list[Callable[[], None]], seen: set[int]) -> None:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if value.numel() <= _COUNTER:
            undo.append(_back(value, value.clone()))
    elif isinstance(value, list):
        entries = cast("list[object]", value)
        undo.append(_refill(entries, list(entries)))
        for entry in entries:
            _remember(entry, undo, seen)
    elif isinstance(value, dict):
        mapping = cast("dict[object, object]", value)
        undo.append(_replace(mapping, dict(mapping)))
        for entry in mapping.values():
            _remember(entry, undo, seen)
    elif type(value).__module__.startswith("transformers.") and hasattr(value, "__dict__"):
        attributes: dict[object, object] = cast("dict[object, object]", vars(value))
        undo.append(_replace(attributes, dict(attributes)))
        for entry in attributes.values():
            _remember(entry, undo, seen)


def _back(tensor: Tensor, saved: Tensor) -> Callable[[], None]:
    def undo() -> None:
        tensor.copy_(saved)

    return undo


def _refill(entries: list[Any], saved: list[Any]) -> Callable[[], None]:
    def undo() -> None:
        entries[:] = saved

    return undo


def _replace(mapping: dict[Any, Any], saved: dict[Any, Any]) -> Callable[[], None]:
    def undo() -> None:
        mapping.clear()
        mapping.update(saved)

    return undo
