"""The notebooks run, as they are and on less, and the objective and the solver invented in one of them obey the laws."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from helpers import optimum, problems
from hypothesis import given
from hypothesis import strategies as st
from nbclient import NotebookClient
from stand_ins import count_weights_as_time, stand_in_for_the_demo

from cahp_opt import HeadSpace, Problem
from cahp_opt.testing import SPACES, BrokenLaw, check_solver
from cahp_opt.testing.objective_laws import check_declared_facts, check_tracker
from cahp_opt.testing.options import check_options
from cahp_opt.testing.solver_laws import check_selection

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
READ: Any = nbformat.read  # it has no types
INVENTED = FOLDER / "invent_an_objective_and_a_solver.ipynb"


LESS: dict[str, dict[str, str]] = {
    "compare_selection_algorithms": {
        "uniform(blocks=6, units=12)": "uniform(blocks=2, units=12)",
        "range(6)": "range(2)",
        "time_limits=[1.0]": "time_limits=[0.05]",
    },
    "gqa_decoder": {
        "LENGTH = 96": "LENGTH = 16",
        "hidden_size=128": "hidden_size=32",
        "intermediate_size=256": "intermediate_size=32",
        "steps, stream = 420": "steps, stream = 4",
        "[:256]": "[:16]",
        "max_new_tokens=100": "max_new_tokens=8",
    },
    "invent_an_objective_and_a_solver": {
        "steps: int = 20_000": "steps: int = 2_000",
        "steps=300": "steps=30",
        "uniform(blocks=6, units=12)": "uniform(blocks=2, units=12)",
        "attention_maps(200,": "attention_maps(40,",
        "{**OBJECTIVES, ": "{",
    },
    "half_the_latency": {
        "texts[:96]": "texts[:32]",
        "texts[96:160]": "texts[32:64]",
        "(4, 64)": "(2, 8)",
    },
    "meet_a_latency_budget": {
        "texts[:96]": "texts[:32]",
        "texts[96:160]": "texts[32:64]",
        "(4, 64)": "(2, 8)",
    },
    "which_method": {
        "texts[:400]": "texts[:40]",
        "held_out=96": "held_out=8",
        "max_texts=96": "max_texts=16",
        "(4, 64, repeats=6)": "(2, 8, repeats=1)",
        "[Default(), Even(), Osscar(), Magnitude(), Random()]": "[Even(), Random()]",
    },
}
"""By notebook, what there is less of where its cells run as tests of their names and arguments."""

BOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS = {
    "half_the_latency": 90,
    "meet_a_latency_budget": 75,
    "gqa_decoder": 50,
    "invent_an_objective_and_a_solver": 35,
    "which_method": 150,
}
notebooks = pytest.mark.parametrize("notebook", BOOKS, ids=lambda p: p.stem)


def sources(notebook: Path) -> dict[str, str]:
    """The code of every cell, by the cell's id."""
    cells = READ(notebook, as_version=4).cells
    return {cell.id: cell.source for cell in cells if cell.cell_type == "code"}


@contextmanager
def executed(name: str, cells: Mapping[str, str]) -> Iterator[ModuleType]:
    """What the cells define, as a module."""
    module = ModuleType(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, module)  # dataclasses look their module up
        for cell, code in cells.items():
            exec(compile(code, f"{name}:{cell}", "exec"), module.__dict__)
        yield module


@pytest.mark.parametrize(
    "notebook",
    # About this many seconds each, of which that with the real model takes the most.
    [
        pytest.param(p, id=p.stem, marks=pytest.mark.documents(SECONDS.get(p.stem, 15)))
        for p in BOOKS
    ],
)
def test_a_notebook_runs(notebook: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    book = READ(notebook, as_version=4)
    client = NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises what a cell raises
    written = [o for c in book.cells for o in c.get("outputs", []) if o.output_type == "stream"]
    assert not any(o.name == "stderr" and "Warning" in o.text for o in written)


@notebooks
def test_a_notebook_is_saved_without_outputs(notebook: Path) -> None:
    cells = READ(notebook, as_version=4).cells
    assert not any(cell.get("outputs") for cell in cells), "clear the outputs before saving"


@notebooks
def test_the_cells_run_on_less(
    notebook: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All cells in this process, with tiny models, so that a wrong name or argument is found here."""
    cells = sources(notebook)
    for much, little in LESS[notebook.stem].items():
        assert any(much in code for code in cells.values()), f"{much} is not in the notebook"
        cells = {name: code.replace(much, little) for name, code in cells.items()}
    stand_in_for_the_demo(monkeypatch, tmp_path)
    count_weights_as_time(monkeypatch)
    matplotlib.use("agg")
    with torch.random.fork_rng(devices=[]), executed(notebook.stem, cells):
        plt.close("all")


def test_the_invention_is_short() -> None:
    cells = sources(INVENTED)
    code = (cells["objective"] + "\n" + cells["solver"]).splitlines()
    assert len([line for line in code if line.strip()]) < 40


@pytest.fixture(scope="module")
def invented() -> Iterator[ModuleType]:
    """What the cells of the notebook define."""
    cells = sources(INVENTED)
    names = ("imports", "objective", "tracker", "solver", "referee_solvers")
    with executed("invented", {name: cells[name] for name in names}) as module:
        yield module


def test_the_invented_solver_is_a_value(invented: ModuleType) -> None:
    check_options(invented.Annealing())


@given(problem=problems(), seed=st.integers(0, 100))
def test_the_invented_solver_obeys_the_laws(
    invented: ModuleType, problem: Problem, seed: int
) -> None:
    check_selection(invented.Annealing(steps=300), problem, optimum(problem), seed)


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
    with pytest.raises(BrokenLaw, match=f"`{liar}` .*bug.* Found on make_problem"):
        check_solver(getattr(invented, liar)())
