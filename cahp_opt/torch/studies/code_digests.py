"""The code that results depend on: with other code they are made again."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import cast

import cahp_opt
from cahp_opt import solvers
from cahp_opt.files.store import digest

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
    "runs/maximising.py",
    "runs/method.py",
    "runs/names.py",
    "runs/objective_and_solver.py",
    "runs/own_objective.py",
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
def code_of_choice(*kinds: type) -> str:
    """A digest of the code that chooses, with the files of the method and of what else is of its user, what these import
    from beside them, or their code where they have no file."""
    rooms = [*(_LIBRARY / name for name in _CHOOSING), *map(Path, solvers.__path__)]
    parts = [_digest(rooms)]
    for kind in kinds:
        own = _file_of(kind)  # none for one that was defined in a notebook
        parts += _code_of(kind) if own is None else [_digest([own, *_imported(kind, own.parent)])]
    return digest(parts)


def _file_of(method: type) -> Path | None:
    try:
        file = inspect.getsourcefile(method)
    except (OSError, TypeError):
        return None
    return Path(file) if file and Path(file).is_file() else None


def _imported(method: type, folder: Path) -> list[Path]:
    """The files in a folder that the module of a class lies in or uses; of the library and of what is installed none."""
    if folder.is_relative_to(_LIBRARY) or "site-packages" in folder.parts:
        return []
    found, queue = dict[str, Path](), [method.__module__]
    while queue:
        name = queue.pop()
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if name in found or not file or not Path(file).is_relative_to(folder):
            continue
        found[name] = Path(file)
        for value in vars(module).values():
            used = value.__name__ if isinstance(value, ModuleType) else _module_of(value)
            queue += [used] if isinstance(used, str) else []
    return sorted(found.values())


def _module_of(value: object) -> object:
    return getattr(value, "__module__", None)


def _code_of(method: type) -> Iterator[str]:
    """What the functions of a class do, in words that are the same in every process."""
    for name, member in vars(method).items():
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if inspect.isfunction(function):
            yield name
            yield from _plain(function.__code__)


def _plain(code: CodeType) -> Iterator[str]:
    yield repr((code.co_code, code.co_names, code.co_varnames))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _plain(constant)
        elif isinstance(constant, frozenset):  # strings have another order in every process
            yield repr(sorted(map(repr, cast("frozenset[object]", constant))))
        else:
            yield repr(constant)


def _digest(places: list[Path]) -> str:
    files = [f for p in places for f in ([p] if p.is_file() else sorted(p.rglob("*.py")))]
    return digest([file.read_bytes() for file in files])
