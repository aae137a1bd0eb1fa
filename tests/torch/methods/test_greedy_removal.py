"""Greedy removal by the true damage: what goes first, under any budget, on any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from batches_by_hand import trace
from hypothesis import given
from hypothesis import strategies as st

from cahp_opt import Budget, HeadSpace, LatencyTable, Status
from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.costs.budget import BudgetError
from cahp_opt.runs.method import Task
from cahp_opt.space import Block, Unit
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.torch import Prunable, fidelity_of, find_attention, find_prunable
from cahp_opt.torch.blocks.blocks import out_weight
from cahp_opt.torch.methods import GreedyKL
from cahp_opt.torch.methods.greedy_kl import along
from cahp_opt.torch.methods.model_method import Evidence
from cahp_opt.torch.methods.removal import removal_path, savings
from cahp_opt.torch.methods.true_distance import TrueDistance


def silenced(prunable: Prunable, units: Sequence[int]) -> None:
    """The columns by which the output projections read these units become zero."""
    with torch.no_grad():
        for block, where in zip(prunable, prunable.space.slices, strict=True):
            own = [unit - where.start for unit in units if where.start <= unit < where.stop]
            out_weight(block)[:, torch.tensor(np.isin(block.columns, own))] = 0.0


def evidence(prunable: Prunable, budget: Budget, batches: Sequence[Any], **task: Any) -> Evidence:
    stats = HeadStats(prunable.space, "model", 1, 1)
    return Evidence(prunable, stats, Task(budget, **task), batches, fidelity_of(prunable.model))


def test_units_that_write_nothing_go_first_and_the_model_stays() -> None:
    model = tiny_models.BERT.build()
    prunable = tiny_models.few_groups(model)
    idle = [1, 2, 6, 9, 13, 20]  # heads and groups of neurons
    silenced(prunable, idle)
    space = prunable.space
    budget = Budget.table(space, [np.arange(u + 1.0) for u in space.units], space.n - len(idle))
    before, said = trace(model), list[tuple[str, int, int]]()
    batch = tiny_models.BERT.batch()
    told = evidence(prunable, budget, [batch, batch])
    told = replace(told, progress=lambda *report: said.append(report))
    found = GreedyKL().chooser_on(told)(budget)
    assert np.flatnonzero(~found.kept).tolist() == idle
    assert found.value == pytest.approx(0, abs=1e-6) and found.bound == 0
    assert found.status is Status.FEASIBLE and "no distance is below 0" in found.certificate
    assert said == [("greedy-kl", removed, 0) for removed in range(1, len(idle) + 1)]
    assert trace(model) == before


@pytest.mark.parametrize(
    ("name", "resumes"),
    [("bert", True), ("llama-gqa", True), ("modernbert", True), ("albert", False), ("bart", False)],
)
def test_resumed_runs_measure_what_whole_runs_do(name: str, resumes: bool) -> None:
    family = tiny_models.named(name)
    model = family.build()
    prunable = tiny_models.few_groups(model) if name == "bert" else find_prunable(model)
    fidelity, batches = fidelity_of(model), [family.batch(), family.batch(size=2, seed=1)]
    distance = TrueDistance(prunable, fidelity, batches)
    assert distance._runs.resumes is resumes
    kept = np.ones(prunable.space.n, dtype=np.bool_)
    kept[[1, prunable.space.n - 2]] = False
    units = np.flatnonzero(kept)[:: 1 + prunable.space.n // 12]
    found = distance.without(kept, units)
    again = TrueDistance(prunable, fidelity, batches)
    for unit, damage in zip(units, found, strict=True):
        there = kept.copy()
        there[unit] = False
        assert -again.value(there) == pytest.approx(damage, rel=1e-4, abs=1e-6)
    assert len({*found.round(7)}) > 1


def test_a_resumed_run_skips_the_layers_before() -> None:
    model = tiny_models.BERT.build()
    distance = TrueDistance(find_attention(model), fidelity_of(model), [tiny_models.BERT.batch()])
    runs = [0] * len(model.bert.encoder.layer)

    def counting(number: int) -> Any:
        def hook(*args: Any) -> None:
            runs[number] += 1

        return hook

    for number, layer in enumerate(model.bert.encoder.layer):
        layer.attention.self.query.register_forward_hook(counting(number))
    distance.without(np.ones(12, dtype=np.bool_), np.arange(12))
    assert runs == [2 + 4, 2 + 8, 2 + 12]  # the unpruned model runs whole, and so does what is left


def additive(costs: Floats) -> Any:
    """The damage of removing units that do not help each other."""

    def damages(kept: Bools, units: Ints) -> Floats:
        found: Floats = costs[~kept].sum() + costs[units]
        return found

    return damages


def test_the_damage_per_cost_saved_decides() -> None:
    space = HeadSpace((Block("cheap", 4), Block("dear", 2, Unit.NEURON_GROUP)))
    budget = Budget.table(space, [np.arange(5.0), 10.0 * np.arange(3)], 13.0)
    damage = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 100.0])
    # The unit of damage 5 saves 10, at 0.5 each.
    assert removal_path(budget, additive(damage)) == [4, 0]
    other = Budget.table(space, [10.0 * np.arange(5.0), np.arange(3.0)], 3.0)
    worst = budget & other  # 24 of 13, and 42 of 3
    assert removal_path(worst, additive(damage))[:4] == [0, 1, 2, 3]


def test_a_staircase_is_walked_down() -> None:
    space = HeadSpace.uniform(2, 4)
    stairs = np.array([0.0, 4.0, 4.0, 4.0, 8.0])
    budget = Budget.table(space, [np.array([0.0, 1.0, 1.0, 1.0, 1.0]), stairs], 5.0)
    assert savings(budget, np.array([4, 4])).tolist() == [0.25, 4.0]
    assert removal_path(budget, additive(np.ones(8))) == [4]
    budget = budget.with_limit(1.0)
    assert removal_path(budget, additive(np.ones(8))) == [4, 5, 6, 7]


def test_what_fits_in_again_is_put_back() -> None:
    space = HeadSpace((Block("cheap", 4), Block("dear", 2, Unit.NEURON_GROUP)))
    budget = Budget.table(space, [np.arange(5.0), 10.0 * np.arange(3)], 22.0)
    damage = np.array([1.0, 2.0, 3.0, 400.0, 5000.0, 100.0])
    path = removal_path(budget, additive(damage))
    assert path == [0, 1]  # 22 of 22: nothing fits in again
    assert np.flatnonzero(~along(path, budget)).tolist() == [0, 1]
    path = removal_path(budget.with_limit(13.5), additive(damage))
    assert path == [0, 1, 2, 5]  # and then there is room for three
    assert np.flatnonzero(~along(path, budget.with_limit(13.5))).tolist() == [0, 5]
    pairs = replace(budget.with_limit(14.0), multiple_of=[2, 1])
    assert np.flatnonzero(~along([1, 0, 5], pairs)).tolist() == [5]


@given(st.data())
def test_every_budget_is_met(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    units = rng.integers(1, 6, size=3).tolist()
    kinds = [Unit.HEAD, Unit.NEURON_GROUP, Unit.HEAD]
    blocks = zip("abc", units, kinds, strict=True)
    space = HeadSpace(tuple(Block(*block) for block in blocks))
    costs = [rng.integers(0, 9, size=u + 1).astype(float) for u in units]
    if data.draw(st.booleans()):
        costs = [np.sort(cost) for cost in costs]
    most = sum(cost.max() for cost in costs)
    limits = {"minimum": int(rng.integers(0, 2)), "multiple_of": int(rng.integers(1, 3))}
    try:
        budget = Budget.table(space, costs, float(rng.uniform(0, most)), **limits)  # type: ignore[arg-type]
        budget = budget & Budget.table(space, [c[::-1] for c in costs], most, name="other")
        if data.draw(st.booleans()):
            budget = replace(budget, even=True)
    except BudgetError:
        return
    damage = rng.random(space.n)
    path = removal_path(budget, additive(damage), shortlist=data.draw(st.sampled_from([None, 2])))
    kept = along(path, budget)
    assert budget.violation(space.counts(kept)) is None


def test_all_candidates_or_a_shortlist() -> None:
    tried = list[int]()
    damage = np.random.default_rng(0).permutation(12).astype(np.float64)

    def damages(kept: Bools, units: Ints) -> Floats:
        tried.append(len(units))
        return additive(damage)(kept, units)  # type: ignore[no-any-return]

    budget = Budget.heads(HeadSpace.uniform(3, 4), 8)
    expected = np.argsort(damage)[:4].tolist()
    assert removal_path(budget, damages) == expected and tried == [12, 11, 10, 9]
    tried.clear()
    assert removal_path(budget, damages, shortlist=3) == expected and tried == [12, 3, 3, 3]
    tried.clear()
    assert removal_path(budget, damages, deadline=-1.0) == [0, 1, 2, 3] and not tried


@pytest.mark.parametrize("neurons", [False, True])
def test_a_share_of_the_time_and_another_budget_afterwards(neurons: bool) -> None:
    model = tiny_models.BERT.build()
    prunable = tiny_models.few_groups(model) if neurons else find_attention(model)
    space = prunable.space
    table = LatencyTable(space, 1.0, tuple(np.linspace(0, 0.5, u + 1) for u in space.units))
    budget = Budget.latency(table, 0.7)
    choose = GreedyKL(texts=3, shortlist=6).chooser_on(
        evidence(prunable, budget, [tiny_models.BERT.batch(size=5)])
    )
    found, again, less = choose(budget), choose(budget), choose(Budget.latency(table, 0.5))
    assert budget.allows(found.counts) and found.costs["latency"].value <= 0.7 * table.dense
    assert np.array_equal(found.kept, again.kept) and found.value == again.value < 0
    assert less.kept.sum() < found.kept.sum()


def test_bad_options_are_refused() -> None:
    for bad in ({"texts": 0}, {"shortlist": 0}):
        with pytest.raises(ValueError, match=f"`{next(iter(bad))}` must be at least 1, got 0"):
            GreedyKL(**bad)
