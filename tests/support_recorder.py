"""Records which check passed for which architecture, for the support table.

A test takes part by ``@pytest.mark.support("reload")``, the name of the check, and a parameter
``family`` or ``build`` that has a ``name`` or is one. Several tests of one check count together: one
failure is a failure of the check. Where several processes run the tests, their reports carry what they
found to the one that writes the file.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Generator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

OUTCOMES = ("skipped", "passed", "failed")
"""From weak to strong: of several tests of a check, the strongest outcome counts."""

_PROPERTY = "support"
"""Under which name a report carries a finding: the build, the check, the outcome and why."""


class SupportRecorder:
    """A plugin of pytest that writes the outcomes to a JSON file when the session ends.

    Args:
        path: the file. It is replaced, so that one run is one file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[str, dict[str, dict[str, str]]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        mark = item.get_closest_marker("support")
        parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
        build = parameters.get("family", parameters.get("build"))
        # Setup and teardown count only when they fail, and a skip there is a skip of the test.
        counts = report.when == "call" or report.outcome != "passed"
        if mark is not None and build is not None and counts:
            name = getattr(build, "name", None) or str(build)
            found = [name, mark.args[0], report.outcome, _why(call)]
            report.user_properties.append((_PROPERTY, found))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, found in report.user_properties:
            if name == _PROPERTY:
                self._record(*found)  # type: ignore[misc]

    def _record(self, build: str, check: str, outcome: str, why: str) -> None:
        checks = self.outcomes.setdefault(build, {})
        known = checks.get(check)
        if known is None or OUTCOMES.index(outcome) > OUTCOMES.index(known["outcome"]):
            checks[check] = {"outcome": outcome, **({"why": why} if why else {})}

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput"):
            return  # the process that started this one has the outcomes of all
        record = {"provenance": provenance(), "builds": self.outcomes}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(record, indent=1) + "\n")


def provenance() -> dict[str, Any]:
    """What the tests ran on."""
    versions: dict[str, str | None] = {}
    for package in ("transformers", "torch", "numpy", "safetensors", "cahp-opt"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "versions": versions,
        "python": platform.python_version(),
        "device": _processor(),
        "system": platform.system(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"CPU, {names[0] if names else platform.machine()}"


def _why(call: pytest.CallInfo[None]) -> str:
    """The first line of what was raised, if anything was."""
    if call.excinfo is None:
        return ""
    message = str(call.excinfo.value).strip().split("\n")[0]
    kind = call.excinfo.type.__name__
    return message[:300] if kind == "Skipped" else f"{kind}: {message}"[:300]
