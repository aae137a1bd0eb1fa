"""Pages that a script writes from measured results are what the results say."""

from __future__ import annotations

import pytest
from scripts import run_script


@pytest.mark.parametrize(
    "script",
    [
        "accuracy/report.py",
        "architectures/support.py",
        "architectures/report.py",
        "both_kinds/report.py",
        "knees/report.py",
        "latency/report.py",
        "objectives/report.py",
        "peers/report.py",
        "scale/report.py",
    ],
)
def test_a_page_is_up_to_date(script: str) -> None:
    assert run_script(script, "--check") in (0, None)
