"""The method that a user's own class of objectives becomes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from cahp_opt.objective import Objective
from cahp_opt.runs.maximising import Maximising
from cahp_opt.runs.method import Needs, Task
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.needs import needs_of

USUAL = frozenset({"salience", "gauss_newton", "moments", "sensitivity"})
"""What is measured for a class that does not declare what it reads."""


class MadeOfStats(Protocol):
    """A class of objectives that says how one is made of calibration statistics."""

    @property
    def __name__(self) -> str:
        """The name of the class."""
        ...

    def from_stats(self, stats: HeadStats) -> Objective:
        """The objective, by a static method; what it reads is declared with :func:`~cahp_opt.stats.needs.needs`."""
        ...


@dataclass(frozen=True)
class OwnObjective(Maximising):
    """An objective of a class of one's own, maximised by :class:`~cahp_opt.solvers.Auto`.

    Args:
        kind: the class, with a static method ``from_stats(stats)``. Where that declares nothing with
            :func:`~cahp_opt.stats.needs.needs`, salience, Gauss-Newton matrices and moments are measured.
    """

    kind: MadeOfStats

    source: ClassVar[str] = "your own objective"

    @property
    def name(self) -> str:
        """That of the class, in lower case with hyphens."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", self.kind.__name__).lower()

    def needs(self, task: Task) -> Needs:
        """What the class declares, or the usual statistics."""
        del task
        return Needs(needs_of(self.kind.from_stats) or USUAL)

    def maximised(self, stats: HeadStats, task: Task) -> Objective:
        """The objective of these statistics.

        Raises:
            ValueError: if the class makes something else.
        """
        del task
        made: object = self.kind.from_stats(stats)
        if not isinstance(made, Objective):
            raise ValueError(
                f"`{self.kind.__name__}.from_stats` must return a cahp_opt.Objective, got {made!r}."
            )
        return made

    def facts(self, task: Task) -> Mapping[str, str]:
        """The name of the class, and the solver."""
        del task
        return {"objective": self.kind.__name__, "solver": "auto"}
