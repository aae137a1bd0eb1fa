"""The room of the solvers: one file each, and a line in each docstring on what it costs and needs."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from cahp_opt import solvers
from cahp_opt.objective import Objective

ROOM = Path(__file__).parents[2] / "solvers"


def test_every_file_is_one_public_solver() -> None:
    found: list[str] = []
    for path in sorted(ROOM.glob("*.py")):
        if path.name == "__init__.py":
            continue
        classes = [
            node.name
            for node in ast.parse(path.read_text("utf-8")).body
            if isinstance(node, ast.ClassDef) and "Solver" in map(ast.unparse, node.bases)
        ]
        assert len(classes) == 1, (
            f"{path.name} holds {classes}: what is no solver belongs in parts/."
        )
        found += classes
    assert sorted(found) == sorted(solvers.__all__)


@pytest.mark.parametrize("name", solvers.__all__)
def test_a_docstring_says_what_the_solver_costs_and_needs(name: str) -> None:
    lines = (inspect.getdoc(getattr(solvers, name)) or "").splitlines()
    (line,) = (line for line in lines if line.startswith("Cost: "))
    _, quality, needs = line.removesuffix(".").split("; ")
    assert quality.startswith(("exact", "heuristic"))
    assert needs.startswith(("any objective", "needs "))
    for asked in needs.split("`")[1::2]:
        assert hasattr(Objective, asked.removesuffix("()")) or asked == "most_units"
