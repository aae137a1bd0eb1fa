"""Names used on the command line: objectives, solvers, units, precisions."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, Protocol

from cahp_opt import solvers
from cahp_opt.objective import Objective
from cahp_opt.objectives import (
    Complementarity,
    ExplainedVariance,
    FacilityLocation,
    Modular,
    Quadratic,
)
from cahp_opt.runs.recovery import Recovery
from cahp_opt.solver import Solver
from cahp_opt.space import Block, HeadSpace, Unit
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.needs import needs_of


class HasExample(Protocol):
    """An objective class that can be chosen by name."""

    @staticmethod
    def example(space: HeadSpace) -> Objective:
        """One of this class and no particular numbers, for trying a solver before anything is measured."""
        ...


class ObjectiveName(str, Enum):
    """The objectives that are made from calibration statistics: name, class, and what makes one."""

    kind: type[HasExample]
    make: Callable[[HeadStats], Objective]

    EXPLAINED_VARIANCE = "explained-variance", ExplainedVariance, ExplainedVariance.from_stats
    """The variance of the dense attention output that a refit on the kept units can still
    explain."""
    EXPLAINED_OUTPUT = "explained-output", ExplainedVariance, ExplainedVariance.from_sensitivity
    """The same, with tokens and blocks weighted by how strongly the model's output depends on
    them."""
    SALIENCE = "salience", Modular, Modular.from_stats
    """The sum of the kept units' saliences (Michel et al. 2019)."""
    GAUSS_NEWTON = "gauss-newton", Quadratic, Quadratic.from_stats
    """Damage avoided under the Gauss-Newton matrix of the fidelity distance."""
    FACILITY_LOCATION = "facility-location", FacilityLocation, FacilityLocation.from_stats
    """Every unit is represented by the kept one that attends most alike, weighted by salience."""
    COMPLEMENTARITY = "complementarity", Complementarity, Complementarity.from_stats
    """Every unit is close to a kept one in how it separates the classes: the seed method's idea, on
    labelled texts."""

    def __new__(cls, name: str, *row: Any) -> ObjectiveName:
        member = str.__new__(cls, name)
        member._value_ = name
        member.kind, member.make = row
        return member

    def build(self, stats: HeadStats) -> Objective:
        """The objective.

        Raises:
            ValueError: if the statistics lack what it needs.
        """
        return self.make(stats)

    @property
    def needs(self) -> frozenset[str]:
        """The statistics that it is made from, by name."""
        return needs_of(self.make)

    @property
    def refitted(self) -> bool:
        """Whether it is about what a refit can still explain, and not about a model that stays as it is sliced."""
        return self.needs <= {"moments", "sensitivity"}

    @property
    def separable(self) -> bool:
        """Whether it is a sum over blocks, which dynamic programming solves exactly."""
        space = HeadSpace((Block("one", 2), Block("other", 2)))
        return self.kind.example(space).separable(space) is not None

    def remarks(self, stats: HeadStats) -> list[str]:
        """Sentences on what makes a choice by this objective arbitrary."""
        outputs = stats.moments or stats.sensitivity
        constant = outputs and all(entry.constant for entry in outputs)
        if not constant or not self.needs <= {"moments", "sensitivity"}:
            return []
        return [
            f"every token gave the same head outputs, so all keep-sets have the same {self.value} and the "
            "choice by it is arbitrary; calibrate on texts that differ."
        ]

    @classmethod
    def suiting(cls, recovery: Recovery, *, embeds: bool = False) -> ObjectiveName:
        """The objective that suits a recovery.

        The variance that least squares can still explain predicts the quality of a refitted model,
        and the damage to the output that of a model without recovery; neither predicts the other.

        Args:
            recovery: how the sliced model is recovered.
            embeds: whether the output is an embedding, the mean over all tokens. Then no token is special,
                and weights of single tokens mislead: plain explained variance chose better
                (benchmarks/fidelity_after_refit.py).
        """
        if not recovery.refits:
            return cls.GAUSS_NEWTON
        return cls.EXPLAINED_VARIANCE if embeds else cls.EXPLAINED_OUTPUT


def _ready(solver: type[Solver]) -> bool:
    """Whether every option of a solver has a default."""
    return is_dataclass(solver) and all(
        f.default is not MISSING or f.default_factory is not MISSING for f in fields(solver)
    )


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


class SolverName(str, Enum):
    """Every solver of :mod:`cahp_opt.solvers` that has defaults for all of its options."""

    _ignore_ = ["_members", "_name"]  # noqa: RUF012 (read once, by Enum itself)
    _members = vars()
    for _name in solvers.__all__:
        if _ready(getattr(solvers, _name)):
            _members[_name] = _kebab(_name)

    def build(self) -> Solver:
        """The solver with its default options."""
        solver: Solver = getattr(solvers, self.name)()
        return solver

    @property
    def timed(self) -> bool:
        """Whether it uses a time limit; a few look at every unit only once."""
        return self.value not in ("random-subset", "top-k")

    @property
    def seeded(self) -> bool:
        """Whether it draws anything at random."""
        return self.value not in (
            "backward-greedy",
            "brute-force",
            "dynamic-program",
            "greedy",
            "lazy-greedy",
            "local-search",
            "row-prices",
            "top-k",
        )


DEFAULT_SOLVER = SolverName("dynamic-program")
"""For objectives that are sums over blocks."""


class Units(str, Enum):
    """The kind of unit in models whose query heads share key/value heads."""

    AUTO = "auto"
    QUERY_SLOTS = "query-slots"

    @property
    def unit(self) -> Unit | None:
        """As :func:`cahp_opt.torch.find_attention` takes it."""
        return Unit.QUERY_SLOT if self is Units.QUERY_SLOTS else None


class Precision(str, Enum):
    """Precision of the weights; the values are PyTorch's names."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
