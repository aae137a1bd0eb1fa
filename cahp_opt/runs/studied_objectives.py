"""The objectives of a study, each of which is a method too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TypeAlias, TypeVar

from cahp_opt.runs.maximising import Maximising
from cahp_opt.runs.method import Method, Task
from cahp_opt.runs.names import ObjectiveName, SolverName
from cahp_opt.runs.objective_and_solver import ObjectiveAndSolver
from cahp_opt.runs.own_objective import MadeOfStats, OwnObjective

M = TypeVar("M", bound=Method)

Studied: TypeAlias = ObjectiveName | MadeOfStats | Maximising
"""An objective of the library, a class with a static method ``from_stats``, or a method that maximises one."""


def as_method(objective: Studied) -> Maximising:
    """The method that maximises an objective, by :class:`~cahp_opt.solvers.Auto`.

    Raises:
        ValueError: for something else.
    """
    if isinstance(objective, Maximising):
        return objective
    if isinstance(objective, ObjectiveName):
        return ObjectiveAndSolver(objective, SolverName("auto"))
    if not hasattr(objective, "from_stats"):
        raise ValueError(
            f"`objectives` holds {objective!r}; give an ObjectiveName, or a class with a static method "
            "`from_stats(stats)`."
        )
    return OwnObjective(objective)


def by_name(what: str, given: Sequence[M] | Mapping[str, M]) -> dict[str, M]:
    """Methods under their own names or those of a mapping.

    Args:
        what: they are called, for errors.
        given: the methods.

    Raises:
        ValueError: if two have one name.
    """
    if isinstance(given, Mapping):
        return dict(given)
    named = {method.name: method for method in given}
    if len(named) != len(given):
        raise ValueError(
            f"`{what}` has two {what} of one name; give a mapping with names of your own."
        )
    return named


def objectives_named(given: Sequence[Studied] | Mapping[str, Studied]) -> dict[str, Maximising]:
    """The methods of some objectives by name: their own names or those of a mapping.

    Raises:
        ValueError: if two have one name, or something is not an objective.
    """
    if isinstance(given, Mapping):
        return {name: as_method(each) for name, each in given.items()}
    return by_name("objectives", [as_method(each) for each in given])


def applicable(names: Iterable[ObjectiveName], task: Task) -> dict[str, Maximising]:
    """The methods of those objectives of the library that apply to a task, by name.

    Args:
        names: the objectives.
        task: what will be asked for; its budget may be without limits.
    """
    found = dict[str, Maximising]()
    for name in names:
        method = as_method(name)
        with suppress(ValueError):  # of texts without labels, say
            method.check(task)
            found[method.name] = method
    return found


def beside(
    methods: Mapping[str, Method], objectives: Mapping[str, Maximising]
) -> tuple[dict[str, Method], tuple[str, ...]]:
    """All methods of a study, and the names of those whose objectives are studied.

    An objective of a method's name is told apart from it.

    Args:
        methods: the methods by name.
        objectives: the methods of the objectives by name.
    """
    named = {
        f"{name} (objective)" if name in methods else name: method
        for name, method in objectives.items()
    }
    return {**methods, **named}, tuple(named)
