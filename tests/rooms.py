"""The rooms of the library, from the ground up, and what a source imports of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

FLOORS: tuple[tuple[str, ...], ...] = (
    ("version", "arrays", "identity", "progress", "rounding"),
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
    ("methods", "reports"),
    ("cahp_opt", "demo", "testing"),
    ("torch/blocks",),
    ("torch/running",),
    ("torch/tracing",),
    ("torch/slicing",),
    ("torch/evaluation", "torch/latency"),
    ("torch/calibration", "torch/checkpoints"),
    ("torch/recovery", "torch/texts", "torch/export"),
    ("torch/methods",),
    ("torch/pipeline",),
    ("torch/studies", "torch/forecast"),
    ("torch",),
    ("cli",),
)
"""``cahp_opt`` and ``torch`` are the doors of the library and of its half with PyTorch: what users
import from. Of the other rooms the files import each other's files, not their doors."""

FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a module, by its path inside ``cahp_opt``."""
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


def of_module(module: str) -> str:
    """The room of a module as :func:`modules` names it."""
    return room_of(tuple(filter(None, module.split("/"))))


def room_imported(parts: tuple[str, ...]) -> str:
    """The room of an import; its last part may be a name in a module rather than a module."""
    return room_of(parts) if room_of(parts) in FLOOR else room_of(parts[:-1])
