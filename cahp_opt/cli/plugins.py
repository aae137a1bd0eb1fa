"""A user's own solver or objective, named on the command line as ``module:Class``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from cahp_opt.objective import Objective
from cahp_opt.runs.method import ObjectiveName, SolverName
from cahp_opt.solver import Solver
from cahp_opt.stats.head_stats import HeadStats


def solver_named(text: str) -> Solver:
    """The solver of this name, or of this ``module:Class``, with its default options.

    Raises:
        ValueError: if there is none.
    """
    if ":" not in text:
        try:
            return SolverName(text).build()
        except ValueError:
            raise ValueError(
                _unknown("solver", text, [name.value for name in SolverName])
            ) from None
    made = _class(text)()
    if not isinstance(made, Solver):
        raise ValueError(f"`--solver` {text} is not a cahp_opt.Solver; subclass it.")
    return made


def objective_named(text: str, stats: HeadStats) -> Objective:
    """The objective of this name, or of this ``module:Class``, made by its ``from_stats``.

    Raises:
        ValueError: if there is none, or the statistics lack what it needs.
    """
    if ":" not in text:
        try:
            name = ObjectiveName(text)
        except ValueError:
            known = [name.value for name in ObjectiveName]
            raise ValueError(_unknown("objective", text, known)) from None
        return name.build(stats)
    kind = _class(text)
    if not hasattr(kind, "from_stats"):
        raise ValueError(
            f"`--objective` {text} has no `from_stats(stats)`; add this static method to the class."
        )
    made = kind.from_stats(stats)
    if not isinstance(made, Objective):
        raise ValueError(f"`--objective` {text} is not a cahp_opt.Objective; subclass it.")
    return made


def _class(text: str) -> Any:
    module, _, name = text.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # a user's file lies where the command is given
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{text} cannot be loaded: {error}.") from None


def _unknown(what: str, text: str, known: list[str]) -> str:
    return (
        f"`--{what}` {text!r} is not known; known: {', '.join(known)}; or your own `module:Class`."
    )
