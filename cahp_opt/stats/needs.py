"""Declares the statistics that a maker of an objective reads, so that only these are measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_KEY = "needed_statistics"

Make = TypeVar("Make", bound=Callable[..., object])


def needs(*statistics: str) -> Callable[[Make], Make]:
    """Declare the statistics that a function makes an objective from.

    ::

        @staticmethod
        @needs("salience")
        def from_stats(stats: HeadStats) -> MyObjective: ...

    Args:
        statistics: their names, as in :data:`cahp_opt.stats.registry.STATISTICS`.
    """

    def declared(make: Make) -> Make:
        setattr(make, _KEY, frozenset(statistics))
        return make

    return declared


def needs_of(make: Callable[..., object]) -> frozenset[str]:
    """The statistics that a function declares with :func:`needs`; empty if it declares none."""
    found: frozenset[str] = getattr(make, _KEY, frozenset())
    return found
