"""Runs the scripts under `benchmarks` in this process, which has imported what they need."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run_script(script: str, *arguments: str) -> object:
    """What the script exits with, as ``python benchmarks/SCRIPT ARGUMENTS`` would.

    Returns:
        0 or None if all went well, another status, or what is printed in place of one.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *arguments])
        patch.setattr(sys, "path", [*sys.path])  # the scripts put the root of the repository there
        try:
            runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
        except SystemExit as ended:
            return ended.code
    return 0
