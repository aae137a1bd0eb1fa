"""Every law again on many more random instances (slow)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_laws_hold_on_many_more_instances() -> None:
    laws = Path(__file__).parent / "test_laws.py"
    command = [sys.executable, "-m", "pytest", "-q", "--hypothesis-profile=thorough", str(laws)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
