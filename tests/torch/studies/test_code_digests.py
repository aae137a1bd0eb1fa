"""Choices are made again when the code that makes them is another, wherever that code stands."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scripts import ONE_FILE

from cahp_opt.methods import Michel, Random
from cahp_opt.torch.studies.code_digests import code_of_choice

OWN = """
from dataclasses import dataclass
from typing import ClassVar

from cahp_opt import Method


@dataclass(frozen=True)
class Own(Method):
    source: ClassVar[str] = "these tests"

    def chooser(self, stats, task):
        return {"a", "b", "c"} if 1 in {1, 2} and task in {"x", "y", "z"} else (lambda budget: WORD)
"""


def in_a_notebook(code: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class of some code that stands in no file, as the cells of a notebook."""
    module = ModuleType("cells_of_a_notebook")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "<cell>", "exec"), module.__dict__)
    return module.__dict__["Own"]


def test_methods_of_a_notebook_are_known_by_what_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    own, same, other, deeper = (
        code_of_choice(in_a_notebook(code, monkeypatch))
        for code in (
            OWN,
            OWN,
            OWN.replace('"a"', '"d"'),
            OWN.replace("WORD", "OTHER"),
        )
    )
    assert own == same
    assert len({own, other, deeper, code_of_choice(Random)}) == 4


def test_and_that_is_the_same_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which walks its sets in another order."""
    script = (
        f"{ONE_FILE}from cahp_opt.torch.studies.code_digests import code_of_choice\n"
        "module = sys.modules['cells_of_a_notebook'] = types.ModuleType('cells_of_a_notebook')\n"
        f"exec(compile({OWN!r}, '<another>', 'exec'), module.__dict__)\n"
        "print(code_of_choice(module.Own), list({'a', 'b', 'c'}))"
    )
    here = f"{code_of_choice(in_a_notebook(OWN, monkeypatch))} {list({'a', 'b', 'c'})}"
    seeds = (  # the first with which the order is another
        seed
        for seed in map(str, range(1, 20))
        if told(seed, "print(list({'a', 'b', 'c'}))") != str(list({"a", "b", "c"}))
    )
    there = told(next(seeds), script)
    assert there != here and there.split()[0] == here.split()[0]


def told(seed: str, script: str) -> str:
    """What a process prints whose hashes have this seed."""
    env = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", script]
    return subprocess.run(
        command, env=env, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_methods_of_files_by_these() -> None:
    assert code_of_choice(Michel) != code_of_choice(Random)


def test_and_by_the_files_beside_them_that_they_import(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    used = tmp_path / "used_by_the_base.py"
    used.write_text("def best(): return 1\n", encoding="utf-8")
    (tmp_path / "base_of_own.py").write_text(
        f"import used_by_the_base\n{OWN.replace('Own', 'Base')}", encoding="utf-8"
    )
    (tmp_path / "own_with_base.py").write_text(
        "from base_of_own import Base\n\nclass Own(Base): ...\n", encoding="utf-8"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    own: Any = import_module("own_with_base").__dict__["Own"]
    before = code_of_choice(own)
    (tmp_path / "not_used.py").write_text("", encoding="utf-8")
    code_of_choice.cache_clear()
    assert code_of_choice(own) == before
    used.write_text("def best(): return 2\n", encoding="utf-8")
    code_of_choice.cache_clear()
    assert code_of_choice(own) != before
