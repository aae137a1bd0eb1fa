"""The rooms of the library, from the ground up: a room imports only from floors below its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FLOORS: tuple[tuple[str, ...], ...] = (
    ("version", "arrays", "identity", "progress"),
    ("files", "space", "knees"),
    ("subsets", "costs", "stats"),
    ("objective",),
    ("problem",),
    ("bounds",),
    ("solver",),
    ("selection", "objectives"),
    ("solvers/parts",),
    ("solvers",),
    ("studies",),
    ("runs",),
    ("cahp_opt", "demo"),
    ("torch/blocks",),
    ("torch/running",),
    ("torch/tracing",),
    ("torch/slicing",),
    ("torch/evaluation", "torch/latency"),
    ("torch/calibration", "torch/checkpoints"),
    ("torch/recovery", "torch/texts"),
    ("torch",),
    ("torch/pipeline",),
    ("cli",),
)
"""``cahp_opt`` and ``torch`` are the doors of the library and of its half with PyTorch: what users
import from. Of the other rooms the files import each other's files, not their doors."""

FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a module, told by its path inside ``cahp_opt``."""
    if not parts:
        return "cahp_opt"
    if parts[0] == "torch":
        return (
            "/".join(parts[:2])
            if (ROOT / "cahp_opt" / "torch" / "/".join(parts[1:2])).is_dir()
            else "torch"
        )
    if parts[:2] == ("solvers", "parts"):
        return "solvers/parts"
    return parts[0]


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the library and its file."""
    for folder, prefix in ((ROOT / "cahp_opt", ""), (ROOT / "solvers", "solvers/")):
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder).with_suffix("")
            if prefix or inside.parts[0] != "solvers":
                yield (
                    (prefix + str(inside)).removesuffix("/__init__").removesuffix("__init__"),
                    path,
                )


def imported(source: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The modules of the library that a source imports, wherever in it, with the line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, *parts = name.split(".")
            if package == "cahp_opt":
                yield node.lineno, tuple(parts)


def upward(module: str, source: str) -> list[str]:
    """The imports of a module from its own floor or above, except from its own room."""
    here = room_of(tuple(filter(None, module.split("/"))))
    found: list[str] = []
    for line, parts in imported(source):
        # The last part may be a name in a module rather than a module.
        there = room_of(parts) if room_of(parts) in FLOOR else room_of(parts[:-1])
        if there != here and FLOOR[there] >= FLOOR[here]:
            found.append(f"{module}:{line} imports from {there}, which is not below {here}")
    return found


def test_a_room_imports_only_from_below() -> None:
    listed = dict(modules())
    assert {room_of(tuple(filter(None, name.split("/")))) for name in listed} == FLOOR.keys()
    wrong = [w for name, path in listed.items() for w in upward(name, path.read_text("utf-8"))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("space", "from cahp_opt.costs.budget import Budget"),
        ("costs/budget", "def f():\n    from cahp_opt import select"),
        ("torch/blocks/finder", "import cahp_opt.torch.slicing.surgery"),
        ("torch/pipeline/pruning_run", "from cahp_opt.cli.display import Display"),
        ("solvers/parts/swaps", "from cahp_opt.solvers import Greedy"),
        ("torch/evaluation/fidelity", "from cahp_opt.torch.latency.stopwatch import Timing"),
    ],
)
def test_an_import_from_above_is_found(module: str, source: str) -> None:
    assert upward(module, source)


def test_few_files_lie_outside_of_rooms() -> None:
    core = [name for name, path in modules() if path.parent == ROOT / "cahp_opt"]
    torch = [name for name, path in modules() if path.parent == ROOT / "cahp_opt" / "torch"]
    assert len(core) <= 14 and torch == ["torch"]


def test_every_room_is_packaged() -> None:
    """``pyproject.toml`` lists the packages by hand, because ``solvers/`` lies outside of ``cahp_opt/``."""
    listed = (ROOT / "pyproject.toml").read_text("utf-8")
    rooms = {path.parent for _, path in modules()}
    for room in rooms:
        inside = room.relative_to(ROOT).parts
        name = ".".join(("cahp_opt", *inside) if inside[0] == "solvers" else inside)
        assert f'"{name}"' in listed, name
