"""The code that results depend on: with other code they are made again."""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path

import cahp_opt
from cahp_opt import solvers
from cahp_opt.files.store import digest
from cahp_opt.runs.method import Method

_LIBRARY = Path(cahp_opt.__file__).parent
_RUNNING = ("torch/blocks", "torch/running", "torch/evaluation")
_MEASURING = (*_RUNNING, "stats", "torch/calibration", "torch/pipeline/calibrating.py")
_JUDGING = (*_RUNNING, "torch/slicing")
_RECOVERING = (*_MEASURING, "torch/recovery", "torch/pipeline/repairing.py")
_CHOOSING = (
    "bounds",
    "costs",
    "methods",
    "objective.py",
    "objectives",
    "runs/method.py",
    "runs/names.py",
    "runs/objective_and_solver.py",
    "selection.py",
    "subsets.py",
    "torch/methods",
    *_RECOVERING,  # some methods refit while they choose
)


@cache
def code_of_statistics() -> str:
    """A digest of the code that measures."""
    return _digest([_LIBRARY / name for name in _MEASURING])


@cache
def code_of_judging() -> str:
    """A digest of the code that slices and judges."""
    return _digest([_LIBRARY / name for name in _JUDGING])


@cache
def code_of_recoveries() -> str:
    """A digest of the code that recovers sliced models."""
    return _digest([_LIBRARY / name for name in _RECOVERING])


@cache
def code_of_choice(method: type[Method]) -> str:
    """A digest of the code that chooses, with the file of the method."""
    own = inspect.getsourcefile(method)
    rooms = [*(_LIBRARY / name for name in _CHOOSING), *map(Path, solvers.__path__)]
    return _digest([*rooms, *([] if own is None else [Path(own)])])


def _digest(places: list[Path]) -> str:
    files = [f for p in places for f in ([p] if p.is_file() else sorted(p.rglob("*.py")))]
    return digest([file.read_bytes() for file in files])
