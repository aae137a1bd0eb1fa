"""The laws of :mod:`cahp_opt.testing` over every method of the library."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from inspect import isabstract
from pkgutil import iter_modules

import pytest

import cahp_opt.methods
import cahp_opt.torch.methods
from cahp_opt.cli.plugins import every_method
from cahp_opt.methods import Cahp
from cahp_opt.runs.method import Method
from cahp_opt.solvers import Tabu
from cahp_opt.solvers.cahp import Reduction
from cahp_opt.testing import BUDGETS, check_method
from cahp_opt.torch.methods import LearnedGates, Staged
from cahp_opt.torch.methods.trial import tiny_trial

QUICK: Mapping[str, Method] = {
    "Cahp": Cahp(reduction=Reduction.NONE),
    "LearnedGates": LearnedGates(steps=12),
    "Staged": Staged(stages=2),
}
"""Options of the methods that take long without, by class."""

FEW = ("heads", "heads per block", "two tables", "even")
"""Budgets for the methods whose bounds take long."""

DEAR = ("Cahp", "Representatives")

OF_ORDER = ("Cahp", "Even", "GaussNewton", "Osscar", "Random")
"""They draw, or keep even counts: which of equal blocks gets what is left is decided by their order."""


@pytest.mark.parametrize("name", cahp_opt.methods.__all__)
def test_a_method_of_statistics_obeys_the_laws(name: str) -> None:
    method = QUICK.get(name) or getattr(cahp_opt.methods, name)()
    budgets = {b: BUDGETS[b] for b in FEW} if name in DEAR else BUDGETS
    check_method(method, budgets=budgets, ignores_names=name not in (*OF_ORDER, *DEAR))


@pytest.mark.parametrize("name", cahp_opt.torch.methods.__all__)
def test_a_method_that_runs_the_model_obeys_the_laws(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every count of an even budget is searched, and sixteen units are soon known.
    monkeypatch.setattr("cahp_opt.torch.methods.staged.Tabu", lambda **_: Tabu(iterations=40))
    method = QUICK.get(name) or getattr(cahp_opt.torch.methods, name)()
    few = {b: BUDGETS[b] for b in ("heads and neurons", "two tables", "even")}
    check_method(method, trials=[tiny_trial(method.prunes)], budgets=few)


@pytest.mark.slow
@pytest.mark.parametrize("name", cahp_opt.torch.methods.__all__)
def test_a_method_that_runs_the_model_obeys_the_laws_thoroughly(name: str) -> None:
    method = getattr(cahp_opt.torch.methods, name)()
    check_method(method, trials=[tiny_trial(method.prunes)])


@pytest.mark.slow
@pytest.mark.parametrize("name", cahp_opt.methods.__all__)
def test_a_method_of_statistics_obeys_the_laws_thoroughly(name: str) -> None:
    check_method(getattr(cahp_opt.methods, name)(), rounds=9, ignores_names=name not in OF_ORDER)


def test_every_name_is_a_method_and_none_is_left_out() -> None:
    names = [method.name for method in every_method()]
    assert len(names) == len(set(names))
    ours = {type(method) for method in every_method()}
    rooms = (cahp_opt.methods, cahp_opt.torch.methods)
    for room in rooms:
        for file in iter_modules(room.__path__):
            import_module(f"{room.__name__}.{file.name}")
    inside = tuple(f"{room.__name__}." for room in rooms)
    for kind in every_kind(Method):
        if kind.__module__.startswith(inside) and not isabstract(kind):
            assert kind in ours, f"{kind} is in no `__all__`, and so has no laws to obey"


def every_kind(kind: type[object]) -> list[type[object]]:
    """Every class below one."""
    return [found for below in kind.__subclasses__() for found in (below, *every_kind(below))]
