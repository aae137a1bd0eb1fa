"""Solvers, objectives and methods by name, or a user's own as ``module:Class``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cahp_opt import methods
from cahp_opt.objective import Objective
from cahp_opt.runs.method import Method
from cahp_opt.runs.names import ObjectiveName, SolverName
from cahp_opt.runs.own_objective import MadeOfStats
from cahp_opt.runs.plan import SelectionOptions
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
    made: Solver = _own("solver", text, Solver)
    return made


def chosen_method(choice: SelectionOptions) -> Method | None:
    """The method that the options name; None if they name none.

    Raises:
        ValueError: if there is none of this name, or `--method` stands beside what it decides.
    """
    if choice.method is None:
        return None
    for option, value in (("--objective", choice.objective), ("--solver", choice.solver)):
        if value is not None:
            raise ValueError(
                f"`--method {choice.method}` chooses in its own way, and `{option} {value.value}` in another; leave "
                "out one of them."
            )
    return method_named(choice.method)


def method_named(text: str) -> Method:
    """The method of this name, or of this ``module:Class``, with its default options.

    Raises:
        ValueError: if there is none.
    """
    if ":" in text:
        made: Method = _own("method", text, Method)
        if not getattr(made, "source", ""):
            raise ValueError(
                f"`--method` {text} must state its `source`, as text: what it was taken from."
            )
        return made
    known = list[str]()
    for method in every_method():
        if method.name == text:
            return method
        known.append(method.name)
    raise ValueError(_unknown("method", text, known))


def every_method() -> Iterator[Method]:
    """Every method of the library with its default options; at the end, where PyTorch is, those that run a model, for
    which it is imported."""
    for name in methods.__all__:
        yield getattr(methods, name)()
    if find_spec("torch") is not None:
        room: Any = importlib.import_module("cahp_opt.torch.methods")
        for name in room.__all__:
            yield getattr(room, name)()


def objective_named(text: str, stats: HeadStats) -> Objective:
    """The objective of this name, or of this ``module:Class``, made by its ``from_stats``.

    Raises:
        ValueError: if there is none, or the statistics lack what it needs.
    """
    found = objective_kind(text)
    if isinstance(found, ObjectiveName):
        return found.build(stats)
    made: object = found.from_stats(stats)
    if not isinstance(made, Objective):
        raise ValueError(f"`--objective` {text} is not a cahp_opt.Objective; subclass it.")
    return made


def objective_kind(text: str) -> ObjectiveName | MadeOfStats:
    """The objective of this name, or the class that this ``module:Class`` names.

    Raises:
        ValueError: if there is none.
    """
    if ":" not in text:
        try:
            return ObjectiveName(text)
        except ValueError:
            known = [name.value for name in ObjectiveName]
            raise ValueError(_unknown("objective", text, known)) from None
    kind: MadeOfStats = _class(text)
    if not hasattr(kind, "from_stats"):
        raise ValueError(
            f"`--objective` {text} has no `from_stats(stats)`; add this static method to the class."
        )
    return kind


def _own(option: str, text: str, base: type[Any]) -> Any:
    """An instance of a user's own class with its default options.

    Raises:
        ValueError: if there is none, or it is no subclass of ``base``.
    """
    try:
        made = _class(text)()
    except TypeError as error:
        raise ValueError(
            f"`--{option}` {text} cannot be made without arguments ({error}); define what is abstract, and give every "
            "option a default."
        ) from None
    if not isinstance(made, base):
        raise ValueError(f"`--{option}` {text} is not a cahp_opt.{base.__name__}; subclass it.")
    return made


def _class(text: str) -> Any:
    module, _, name = text.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # a user's file lies where the command is given
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{text} cannot be loaded: {error}.") from None


def _unknown(what: str, text: str, known: list[str]) -> str:
    return (
        f"`--{what}` {text!r} is not known; known: {', '.join(known)}; or your own `module:Class`."
    )
