"""Scripts: those under `benchmarks` run in this process, which has imported what they need; others import little."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

ONE_FILE = """
import sys, types
import cahp_opt
room = sys.modules["cahp_opt.torch"] = types.ModuleType("cahp_opt.torch")
room.__path__ = [f"{cahp_opt.__path__[0]}/torch"]
"""
"""Begins the script of a process that needs one file of ``cahp_opt.torch``: importing it imports no others."""


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
