"""The page on methods has a row for each, and its example obeys the laws."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from documents import METHODS, own_method

from cahp_opt import Budget, Method, Task
from cahp_opt.cli.plugins import every_method
from cahp_opt.testing import TRIALS, check_method


def row(method: Method) -> str:
    """What the page says of a method."""
    said = " ".join((type(method).__doc__ or "").split())
    sentence = re.split(r"(?<=[a-z)])\.(?: |$)", said)[0]
    task = Task(Budget(TRIALS[0].space), labelled=True)
    statistics = ", ".join(sorted(method.needs(task).statistics))
    cells = (
        f"`{method.name}`",
        re.sub(r":class:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", sentence),
        {"both": "heads and neurons"}.get(method.prunes.value, method.prunes.value),
        "yes" if method.labels else "",
        statistics.replace("_", " "),
        method.published_with.value,
        method.source,
    )
    return f"| {' | '.join(cells)} |".replace("  ", " ")


def test_every_method_has_its_row() -> None:
    rows = sorted(map(row, every_method()))
    found = [line for line in METHODS.splitlines() if line.startswith("| `")]
    assert found == rows, "the table is to be:\n" + "\n".join(rows)


def test_the_method_of_ones_own_obeys_the_laws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "method_of_ones_own.py").write_text(own_method(), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    mine = import_module("method_of_ones_own").MyMethod()
    assert check_method(mine, ignores_names=True).refused == 0
