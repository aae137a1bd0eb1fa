"""A room imports only from floors below its own, as `tests/rooms.py` has them."""

from __future__ import annotations

import pytest
from rooms import FLOOR, ROOT, imported, modules, of_module, room_imported


def upward(module: str, source: str) -> list[str]:
    """The imports of a module from its own floor or above, except from its own room."""
    here = of_module(module)
    found: list[str] = []
    for line, parts in imported(source):
        room = room_imported(parts)
        if room != here and FLOOR[room] >= FLOOR[here]:
            found.append(f"{module}:{line} imports from {room}, which is not below {here}")
    return found


def test_a_room_imports_only_from_below() -> None:
    listed = dict(modules())
    assert {of_module(name) for name in listed} == FLOOR.keys()
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
