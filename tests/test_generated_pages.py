"""Pages that a script writes from measured results are what the results say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize(
    "script",
    [
        "accuracy/report.py",
        "architectures/support.py",
        "architectures/report.py",
        "knees/report.py",
        "latency/report.py",
        "objectives/report.py",
    ],
)
def test_a_page_is_up_to_date(script: str) -> None:
    command = [sys.executable, str(SCRIPTS / script), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
