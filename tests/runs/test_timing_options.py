"""The workloads that are timed for a target."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cahp_opt.costs.cost_table import CostTable
from cahp_opt.costs.goals import LatencyGoal, ResourceGoal
from cahp_opt.costs.latency_table import LatencyTable
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.provenance import Provenance
from cahp_opt.costs.quantities import RESOURCES, Resource
from cahp_opt.costs.target import Target
from cahp_opt.runs.timing_options import WorkloadOptions
from cahp_opt.space import Block, HeadSpace


def test_a_metered_workload_is_timed_beside_the_limited_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(RESOURCES, "energy", Resource("J", "fake_meter:joules"))
    space, costs, where = HeadSpace((Block("a", 1),)), (np.ones(2),), Provenance(device="x")
    table = LatencyTable(space, 1.0, costs, where)
    joules = CostTable(space, 1.0, costs, "J", where)
    timed = {name: table for name in ("prefill", "decode", "other")}
    profile = Profile(space, timed, {"energy of prefill": joules})
    target = Target((LatencyGoal.parse("decode=0.9"), ResourceGoal("energy of prefill", ratio=0.9)))

    def names(target: Target) -> list[str]:
        return [workload.name for workload in WorkloadOptions().workloads(target, profile)]

    assert names(target) == ["decode", "prefill"]
    assert names(replace(target, goals=target.goals[:1])) == ["decode"]
    assert names(Target(heads=1)) == ["prefill", "decode", "other"]
