"""A view of a model's configuration for a module that reads its head counts while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def config_view(config: Any, counts: Mapping[str, int]) -> Any:
    """``config`` with other head counts; everything else is the very same state.

    A copy would not follow ``set_attn_implementation``, and an object that forwards attributes cannot be
    compiled: the view is an instance of a subclass that shares the configuration's dictionary.

    Args:
        config: the configuration of the model.
        counts: the values to show instead, by attribute.
    """
    original: Any = getattr(config, "_cahp_original", config)
    cls: Any = original.__class__
    renamed: Mapping[str, str] = getattr(cls, "attribute_map", {})
    shown = {renamed.get(name, name): count for name, count in counts.items()}
    members: dict[str, Any] = {name: _constant(count) for name, count in shown.items()}
    members |= {"_cahp_original": original, "_cahp_counts": dict(counts), "__reduce_ex__": _reduce}
    members |= {"__module__": cls.__module__, "__doc__": cls.__doc__}
    view: Any = object.__new__(type(cls.__name__, (cls,), members))
    view.__dict__ = original.__dict__
    return view


def counts_of(config: object) -> dict[str, int] | None:
    """The counts that a view shows; None if ``config`` is no view."""
    return getattr(config, "_cahp_counts", None)


def _constant(count: int) -> property:
    return property(lambda self: count)


def _reduce(self: Any, protocol: object) -> tuple[Any, ...]:
    """Copies and pickles make a new view, of the copy of the configuration."""
    cls: Any = self.__class__
    return config_view, (cls._cahp_original, cls._cahp_counts)
