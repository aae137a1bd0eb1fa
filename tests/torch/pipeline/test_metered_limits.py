"""A resource that a meter reads is limited, measured, and held against its limit after slicing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import prune
from fake_meter import plugged_in

from cahp_opt import Profile, Selection
from cahp_opt.cli import main
from cahp_opt.costs.quantities import RESOURCES, Resource
from cahp_opt.runs.report import Report

pytestmark = pytest.mark.usefixtures("threads", "metered")


@pytest.fixture
def metered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(RESOURCES, "energy", Resource("J", "fake_meter:joules"))
    with plugged_in():
        yield


def test_joules_are_limited_and_verified(model: Path, text: Path, tmp_path: Path) -> None:
    output, name = tmp_path / "out", "energy of prefill"
    limits = ["--limit", f"{name}=0.8", "--limit", "parameters=0.99", "--prune", "heads"]
    assert prune(model, output, "--text", text, *limits, "--recovery", "none") == 0
    table = Profile.load(output / "latency.json").resources[name]
    assert table.unit == "J" and table.measured and table.floor < 0.8 * table.dense
    selection = Selection.load(output / "cahp_selection.json")
    cost = selection.costs[name]
    assert cost.unit == "J" and cost.value <= cost.limit == pytest.approx(0.8 * table.dense)
    assert selection.basis.goals[0].option == f"--limit {name}=0.8"
    (found,) = selection.rounds
    assert found.workloads[name].error == pytest.approx(0, abs=0.01)
    goal = Report.read(output / "report.json")["goals"][name]
    assert goal["over"] <= 0.01 and goal["measured"] < 0.81 * goal["dense_measured"]


def test_a_profile_holds_what_is_metered(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "profile.json"
    sized = ["--workload", "prefill:2x8", "--repeats", "1", "--threads", "1", "--prune", "heads"]
    assert main(["latency", str(model), "--output", str(path), *sized]) == 0
    assert "energy of prefill: unpruned 0.3215 mJ" in capsys.readouterr().out
    assert Profile.load(path).resources["energy of prefill"].unit == "J"
