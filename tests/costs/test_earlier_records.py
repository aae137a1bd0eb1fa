"""Records of times, written by an earlier release, still load and mean what they meant."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cahp_opt import Execution, LatencyTable, Phase, Profile, Selection
from cahp_opt.costs.goals import ResourceGoal, asked_latency
from cahp_opt.runs.report import Report

EARLIER = Path(__file__).parents[1] / "earlier" / "times"
MODEL = "Tiny:0123456789abcdef"


def test_a_latency_table() -> None:
    table = LatencyTable.load(EARLIER / "table.json")
    assert (table.fixed, table.least, table.floor) == (0.004, 0.005, 0.005)
    assert table.dense == pytest.approx(0.011) and table.predict([1, 1]) == pytest.approx(0.007)
    where = table.provenance
    assert (where.device, where.batch, where.sequence_length) == ("a processor", 4, 32)
    assert (where.phase, where.execution, where.model) == (Phase.PREFILL, Execution.EAGER, MODEL)
    assert (where.spread, where.drift, where.versions) == (0.125, -0.02, {"torch": "2.2"})
    assert any("noisy" in remark for remark in table.remarks)


def test_a_profile() -> None:
    profile = Profile.load(EARLIER / "profile.json")
    assert list(profile.latency) == ["prefill", "decode"] and profile.model == MODEL
    assert profile.latency["decode"].dense == pytest.approx(0.0011)
    assert profile.latency["decode"].provenance.execution is Execution.CUDA_GRAPH
    counted = {name: (t.dense, t.unit, t.floor) for name, t in profile.resources.items()}
    assert counted == {
        "parameters": (1700, "weights", 1000),
        "memory": (6800, "bytes", 4000),
        "kv_cache": (448, "bytes", 0),
    }


def test_what_is_written_again_says_the_same(tmp_path: Path) -> None:
    for name in ("profile.json", "table.json"):
        load = Profile.load if name == "profile.json" else LatencyTable.load
        load(EARLIER / name).save(tmp_path / name)
        assert json.loads((tmp_path / name).read_text()) == json.loads((EARLIER / name).read_text())


def test_a_selection() -> None:
    selection = Selection.load(EARLIER / "selection.json")
    assert selection.heads() == {"first": [1], "second": [0]}
    costs = {name: (*cost, cost.unit) for name, cost in selection.costs.items()}
    assert costs == {
        "latency of prefill+10*decode": (0.014571428571428572, 0.0176, "s"),
        "latency of decode": (0.0007, 0.0009, "s"),
        "latency of decode (2)": (0.0007, 0.0008, "s"),
        "parameters": (1300, 1360, "weights"),
        "memory": (5200, 6000, "bytes"),
        "units": (2, 4, ""),
    }
    found = selection.measured
    assert found is not None and found.counts == (1, 1) and found.repeats == 20
    check = found.goals["latency of prefill+10*decode"]
    assert check.predicted == 0.014 and check.measured == pytest.approx(0.0161)
    assert check.limit == pytest.approx(0.01936) and check.spread == 0.02
    assert found.workloads["decode"].limit is None


def test_what_a_selection_was_made_from() -> None:
    selection = Selection.load(EARLIER / "selection.json")
    told = selection.provenance
    assert (told["objective"], told["solver"], told["pooling"]) == ("gauss-newton", "auto", "cls")
    goals = selection.basis.goals
    assert [str(goal) for goal in goals] == [
        "prefill+10*decode=0.8",
        "decode=0.0009s",
        "decode=0.0008s",
        "0.8",
        "6000B",
    ]
    assert goals[0] == asked_latency("prefill+10*decode=0.8")
    assert goals[3] == ResourceGoal("parameters", ratio=0.8)
    tables = selection.basis.tables
    assert {name: dense for name, (dense, _) in tables.items()} == {
        "prefill": pytest.approx(0.011),
        "decode": pytest.approx(0.0011),
    }
    where = tables["decode"].where
    assert (where.device, where.dtype, where.batch, where.sequence_length, where.threads) == (
        ("a processor", "float32", 4, 32, 2)
    )
    assert (where.phase, where.execution) == (Phase.DECODE, Execution.CUDA_GRAPH)
    remarks = selection.basis.remarks
    assert len(remarks) == 2 and all("noisy" in remark for remark in remarks)
    assert not {"goals", "workloads", "remarks"} & told.keys()


def test_what_the_release_before_that_said_of_one_workload() -> None:
    selection = Selection.load(EARLIER.parent / "selection.json")
    ((dense, where),) = selection.basis.tables.values()
    assert dense == pytest.approx(0.1282328724) and where.batch == 32
    assert "dense_seconds" not in selection.provenance
    told = json.loads((EARLIER.parent / "selection.json").read_text())
    earliest = {k: v for k, v in told["provenance"].items() if k not in ("goals", "workloads")}
    basis = Selection.from_json({**told, "provenance": earliest}).basis
    ((dense, where),) = basis.tables.values()
    assert dense == pytest.approx(0.1282328724) and (where.batch, where.sequence_length) == (32, 8)
    assert where.phase is Phase.PREFILL and basis.goals == selection.basis.goals


def test_a_selection_written_again_says_the_same(tmp_path: Path) -> None:
    for path in (EARLIER / "selection.json", EARLIER.parent / "selection.json"):
        selection = Selection.load(path)
        selection.save(tmp_path / "again.json")
        assert Selection.load(tmp_path / "again.json").to_json() == selection.to_json()
        assert Selection.load(tmp_path / "again.json").basis == selection.basis


def test_a_report() -> None:
    report = Report.read(EARLIER / "report.json")
    prefill, decode = report["latency"]["prefill"], report["latency"]["decode"]
    assert prefill["speed_up"] == pytest.approx(4 / 3) and prefill["error"] == pytest.approx(0.125)
    assert decode["predicted"] is None and decode["execution"] == "cuda_graph"
    goal = report["goals"]["latency of decode"]
    assert goal["over"] == pytest.approx(0.000805 / 0.0009 - 1) and goal["limit"] == 0.0009
    assert report["selection"]["kept"] == {"first": [1], "second": [0]}
    loaded = Selection.from_json(report["selection"])
    assert np.array_equal(loaded.kept, Selection.load(EARLIER / "selection.json").kept)
