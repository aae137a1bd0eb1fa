"""The notebooks run, and the objective and the solver invented in one of them obey the laws."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import numpy as np
import pytest
from helpers import SPACES, problems
from hypothesis import given
from hypothesis import strategies as st
from nbclient import NotebookClient
from test_laws import check_declared_facts, check_selection, check_tracker, check_value

from cahp_opt import HeadSpace, Problem

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
READ: Any = nbformat.read  # it has no types
INVENTED = FOLDER / "invent_an_objective_and_a_solver.ipynb"


def sources(notebook: Path) -> dict[str, str]:
    """The code of every cell, by the cell's id."""
    cells = READ(notebook, as_version=4).cells
    return {cell.id: cell.source for cell in cells if cell.cell_type == "code"}


@pytest.mark.parametrize("notebook", sorted(FOLDER.glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_notebook_runs(notebook: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    book = READ(notebook, as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells), "clear the outputs before saving"
    client = NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises what a cell raises
    written = [o for c in book.cells for o in c.get("outputs", []) if o.output_type == "stream"]
    assert not any(o.name == "stderr" and "Warning" in o.text for o in written)


def test_the_invention_is_short() -> None:
    cells = sources(INVENTED)
    code = (cells["objective"] + "\n" + cells["solver"]).splitlines()
    assert len([line for line in code if line.strip()]) < 40


@pytest.fixture(scope="module")
def invented() -> Iterator[ModuleType]:
    """What the cells of the notebook define, as a module."""
    cells = sources(INVENTED)
    module = ModuleType("invented")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    for name in ("imports", "objective", "tracker", "solver", "referee_solvers"):
        exec(compile(cells[name], f"{INVENTED.name}:{name}", "exec"), module.__dict__)
    yield module
    del sys.modules[module.__name__]


def test_the_invented_solver_is_a_value(invented: ModuleType) -> None:
    check_value(invented.Annealing())


@given(problem=problems(), seed=st.integers(0, 100))
def test_the_invented_solver_obeys_the_laws(
    invented: ModuleType, problem: Problem, seed: int
) -> None:
    check_selection(invented.Annealing(steps=300), problem, seed)


@given(space=st.sampled_from(SPACES), seed=st.integers(0, 2**32 - 1))
def test_the_invented_objective_obeys_the_laws(
    invented: ModuleType, space: HeadSpace, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    maps = 0.9 * rng.random((7, space.n))
    for objective in (invented.TokensSeen(maps), invented.TrackedTokensSeen(maps)):
        check_tracker(objective, rng)
        check_declared_facts(objective, space, rng)


@pytest.mark.parametrize("liar", ["OverBudget", "FalseBound", "FalseOptimality"])
def test_the_laws_refuse_a_liar(invented: ModuleType, liar: str) -> None:
    """Each breaks on some instance; the laws of a solver are worth what they catch."""

    @given(problem=problems(), seed=st.integers(0, 100))
    def obeys(problem: Problem, seed: int) -> None:
        check_selection(getattr(invented, liar)(), problem, seed)

    with pytest.raises(RuntimeError, match=f"`{liar}` .*bug"):
        obeys()
