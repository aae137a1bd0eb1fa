"""What the saved model takes is held against every goal, and against the right prediction."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_models

from cahp_opt import Check, LatencyTable, Phase, Profile, Provenance, select
from cahp_opt.costs.goals import LatencyGoal
from cahp_opt.costs.target import Target
from cahp_opt.costs.workloads import Workload
from cahp_opt.objectives import Modular
from cahp_opt.problem import Problem
from cahp_opt.solvers import DynamicProgram
from cahp_opt.torch import find_attention
from cahp_opt.torch.pipeline.final_times import final_times

PAIRS = {
    "prefill": Check(measured=8.0, dense_measured=10.0),
    "decode": Check(measured=0.7, dense_measured=1.0),
}


@pytest.mark.parametrize("order", [1, -1])
def test_a_goal_without_a_name_among_several_workloads(
    monkeypatch: pytest.MonkeyPatch, order: int
) -> None:
    model = tiny_models.GPT2.build()
    space = find_attention(model).space
    tables = {
        phase.value: LatencyTable(
            space,
            fixed,
            tuple(fixed * np.arange(5.0) for _ in space.blocks),
            Provenance(phase=phase, batch=2, sequence_length=6),
        )
        for phase, fixed in ((Phase.PREFILL, 1.0), (Phase.DECODE, 0.1))
    }
    goals = (LatencyGoal(ratio=0.9), LatencyGoal((("decode", 1.0),), ratio=0.8))[::order]
    target, profile = Target(goals), Profile(space, tables)
    selection = select(
        Problem(Modular(np.ones(space.n)), target.budget(space, profile)), DynamicProgram()
    )
    selection = replace(selection, basis=target.basis(profile))

    def timed(dense: Any, small: Any, facts: Any, *_: Any, **options: Any) -> dict[str, Check]:
        return {name: PAIRS[name] for name in facts}

    monkeypatch.setattr("cahp_opt.torch.pipeline.final_times.time_pairs", timed)
    workloads = [Workload(2, 6, name=name, phase=Phase(name)) for name in tables]
    batches = {name: tiny_models.batch(size=2, length=6) for name in tables}
    times = final_times(model, model, selection, workloads, batches)
    assert {name: (c.measured, c.limit) for name, c in times.goals.items()} == {
        "latency": (8.0, 9.0),
        "latency of decode": (0.7, 0.8),
    }
    for name, report in times.workloads.items():
        assert report.predicted == pytest.approx(tables[name].predict(selection.counts))
    only = final_times(model, model, selection, workloads[1:], batches)
    assert list(only.goals) == ["latency of decode"]
