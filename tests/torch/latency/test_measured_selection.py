"""Really sliced models are timed, and the model stays as it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_models
import torch
from torch import Tensor, nn

from cahp_opt import BudgetError, Execution, LatencyTable, Phase, Profile
from cahp_opt.costs.goals import LatencyGoal
from cahp_opt.costs.target import Target
from cahp_opt.objectives import Modular
from cahp_opt.solvers import DynamicProgram
from cahp_opt.torch import ForeignTableWarning, find_attention, measure_latency, select_measured
from cahp_opt.torch.blocks.finder import find_prunable
from cahp_opt.torch.latency.measured_selection import here, measuring

BATCHES = {"prefill": tiny_models.batch(size=2, length=6)}


class Clock:
    """Every linear layer takes a millisecond, and a microsecond for each of its weights."""

    def __init__(self) -> None:
        self.now = 0.0
        self.overhead = 1e-3

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    plain = nn.Linear.forward

    def counted(self: nn.Linear, x: Tensor) -> Tensor:
        clock.now += clock.overhead + 1e-6 * self.weight.numel()
        return plain(self, x)

    monkeypatch.setattr(nn.Linear, "forward", counted)
    monkeypatch.setattr("cahp_opt.torch.latency.stopwatch.time.perf_counter", clock)
    return clock


def objective(table: LatencyTable) -> Modular:
    return Modular(np.random.default_rng(0).random(table.space.n))


@pytest.mark.parametrize("family", [tiny_models.BERT, tiny_models.LLAMA_GQA], ids=lambda f: f.name)
def test_the_model_that_is_measured_is_the_sliced_one(
    family: tiny_models.Family, clock: Clock
) -> None:
    model = family.build()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    table = measure_latency(model, BATCHES["prefill"], repeats=1)
    off = replace(table, costs=tuple(0.7 * s for s in table.seconds), fixed=table.fixed * 1.1)
    target = Target((LatencyGoal(ratio=0.85),))
    selection = select_measured(
        model, objective(table), Profile(table.space, {"prefill": off}), target, BATCHES,
        DynamicProgram(), repeats=1,
    )  # fmt: skip
    found = selection.measured
    assert found is not None and found.over <= 0.01 and found.device == table.provenance.device
    check = found.goals["latency"]
    assert check.measured == pytest.approx(table.predict(selection.counts), rel=1e-6)
    assert check.dense_measured == pytest.approx(table.dense, rel=1e-6)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])
    assert find_attention(model).space == table.space


@pytest.mark.parametrize("heads", [True, False], ids=["heads", "neurons"])
def test_a_table_of_both_kinds_serves_where_one_is_pruned(heads: bool, clock: Clock) -> None:
    model = tiny_models.BERT.build()
    both, pruned = find_prunable(model), find_prunable(model, heads=heads, neurons=not heads)
    table = measure_latency(both, BATCHES["prefill"], repeats=1)
    values = Modular(np.random.default_rng(0).random(pruned.space.n))
    selection = select_measured(
        pruned, values, Profile(both.space, {"prefill": table}), Target((LatencyGoal(ratio=0.9),)),
        BATCHES, DynamicProgram(), repeats=1,
    )  # fmt: skip
    assert selection.space == pruned.space and selection.measured is not None
    assert selection.measured.over <= 0.01


def test_the_copy_shares_what_is_not_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.BERT.build()
    table = measure_latency(model, BATCHES["prefill"], repeats=1)
    seen: list[dict[str, nn.Module]] = []

    def watch(models: dict[str, nn.Module], *args: object, **options: object) -> object:
        from cahp_opt.torch.latency.model_times import time_models

        seen.append(models)
        return time_models(models, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("cahp_opt.torch.latency.measured_selection.time_models", watch)
    target = Target((LatencyGoal(seconds=100.0),), heads=6)
    selection = select_measured(
        model, objective(table), Profile(table.space, {"prefill": table}), target, BATCHES,
        DynamicProgram(), repeats=1, rounds=1,
    )  # fmt: skip
    ((dense, small),) = [tuple(models.values()) for models in seen]
    assert dense is model
    assert [b.units for b in find_attention(small).attention] == selection.counts.tolist()
    embedding = "embeddings.word_embeddings.weight"
    weights = [dict(m.named_parameters()) for m in (dense, small)]
    (name,) = [name for name in weights[0] if name.endswith(embedding)]
    assert weights[0][name] is weights[1][name]


def test_a_budget_below_the_measured_floor(clock: Clock) -> None:
    model = tiny_models.BERT.build()
    table = measure_latency(model, BATCHES["prefill"], repeats=1)
    clock.overhead = 3e-3  # the machine has changed since
    profile = Profile(table.space, {"prefill": table})
    ratio = 1.01 * table.predict([1] * len(table.space.blocks)) / table.dense
    with pytest.raises(BudgetError, match="was measured to take"):
        select_measured(
            model, objective(table), profile, Target((LatencyGoal(ratio=ratio),)), BATCHES,
            DynamicProgram(), repeats=1,
        )  # fmt: skip


def test_another_machine_is_named() -> None:
    model = tiny_models.BERT.build()
    table = measure_latency(model, BATCHES["prefill"], repeats=1)
    facts = replace(
        table.provenance, device="TPU", batch=64, threads=96, execution=Execution.CUDA_GRAPH
    )
    profile = Profile(table.space, {"prefill": replace(table, provenance=facts)})
    target = Target((LatencyGoal(seconds=100.0),))
    said = (
        "measured with device TPU, batch 64, execution cuda_graph, threads 96, and is verified with"
    )
    with pytest.warns(ForeignTableWarning, match=said):
        select_measured(
            model, objective(table), profile, target, BATCHES, DynamicProgram(), repeats=1
        )


def test_the_phase_is_that_of_the_table() -> None:
    model = tiny_models.GPT2.build()
    batch = tiny_models.batch(size=2, length=6, padded=False)
    tables = {
        phase.value: measure_latency(model, batch, phase=phase, repeats=1)
        for phase in (Phase.PREFILL, Phase.DECODE)
    }
    batches = dict.fromkeys(tables, batch)
    facts = here(model, {name: t.provenance for name, t in tables.items()}, batches)
    assert {name: fact.phase.value for name, fact in facts.items()} == {n: n for n in tables}
    profile = Profile(tables["decode"].space, tables)
    goals = (LatencyGoal((("prefill", 1), ("decode", 20)), seconds=100.0),)
    selection = select_measured(
        model, objective(tables["decode"]), profile, Target(goals), batches, DynamicProgram(),
        repeats=1,
    )  # fmt: skip
    assert list(selection.rounds[0].workloads) == ["prefill", "decode"]


def test_a_missing_batch_is_named() -> None:
    model = tiny_models.BERT.build()
    table = measure_latency(model, BATCHES["prefill"], repeats=1)
    with pytest.raises(ValueError, match="`batches` lacks the workload 'decode'"):
        measuring(find_attention(model), {"decode": table.provenance}, BATCHES)
