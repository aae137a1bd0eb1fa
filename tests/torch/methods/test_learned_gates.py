"""Gates learnt on frozen weights: their prices, their gradients, and what they keep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from batches_by_hand import trace
from test_greedy_removal import evidence, silenced

from cahp_opt import Budget, HeadSpace, LatencyTable, Status
from cahp_opt.arrays import Floats
from cahp_opt.space import Block, Unit
from cahp_opt.torch import find_attention, find_prunable
from cahp_opt.torch.methods import LearnedGates
from cahp_opt.torch.methods.gate_prices import GatePrices
from cahp_opt.torch.methods.gate_samples import GateEstimator, GumbelTop, HardConcrete
from cahp_opt.torch.methods.learned_gates import GateLoss, Gates

SPACE = HeadSpace((Block("a", 3), Block("b", 4, Unit.NEURON_GROUP)))
TWO_LIMITS = Budget.table(SPACE, [np.arange(4.0), 3 * np.arange(5.0)], 6.0) & Budget.heads(SPACE, 1)
BATCH: dict[str, torch.Tensor] = tiny_models.BERT.batch(size=6)


def some_logits() -> Floats:
    return np.random.default_rng(0).normal(1.0, 1.0, size=SPACE.n)


def test_prices_are_the_smallest_that_meet_the_limits() -> None:
    prices, estimator = GatePrices(TWO_LIMITS), HardConcrete()
    assert prices.slopes[0].tolist() == pytest.approx([1 / 3] * 3 + [1.0] * 4)
    assert prices.slopes[1].tolist() == [1.0] * 3 + [0.0] * 4  # as a limit on one block
    logits = some_logits()
    found = prices.meeting(logits[None], estimator.openness, prices.limits)
    opened = estimator.openness(logits - found @ prices.slopes)
    assert prices.costs(opened)[0] == pytest.approx([6.0, 1.0], abs=1e-2)
    assert opened[0, :3].sum() + 3 * opened[0, 3:].sum() == pytest.approx(6.0, abs=1e-2)
    loose = prices.meeting(logits[None], estimator.openness, np.array([15.0, 3.0]))
    assert loose.tolist() == [[0.0, 0.0]]


def test_costs_between_counts_are_interpolated() -> None:
    stairs = [np.array([0.0, 2, 2, 8]), np.arange(5.0)]
    prices = GatePrices(Budget.table(SPACE, stairs, 5.0, fixed=1.0))
    half = np.array(
        [[0.5, 0.5, 1.5, 1, 0, 0, 0], [0.5, 0, 0, 0, 0, 0.25, 0], [1, 1, 1, 1, 1, 1, 1]]
    )
    assert prices.costs(half)[:, 0].tolist() == [5 + 1, 1 + 0.25, 8 + 4]
    assert prices.limits.tolist() == [4.0]


def test_gradients_follow_the_prices() -> None:
    budget = Budget.table(SPACE, [np.arange(4.0), 3 * np.arange(5.0)], 6.0)
    prices, estimator = GatePrices(budget), HardConcrete()
    logits, worth = some_logits(), np.linspace(0.1, 1.0, SPACE.n)

    def opened(at: Floats) -> tuple[Floats, Floats]:
        found = prices.meeting(at[None], estimator.openness, prices.limits)[0]
        return estimator.openness(at - found @ prices.slopes), found

    here, found = opened(logits)
    steep = here * (1 - here)
    gradient = prices.projected(worth * steep, steep, found)
    step = 1e-3
    numeric = [
        float(worth @ (opened(logits + unit)[0] - opened(logits - unit)[0])) / (2 * step)
        for unit in step * np.eye(SPACE.n)
    ]
    assert gradient == pytest.approx(numeric, abs=1e-4) and max(gradient) > 0.01
    assert prices.slopes @ gradient == pytest.approx([0.0], abs=1e-12)
    assert np.array_equal(prices.projected(worth, steep, np.zeros(1)), worth)


def test_hard_concrete_gates_are_open_as_often_as_they_say() -> None:
    estimator, prices = HardConcrete(), GatePrices(Budget(SPACE))
    logits = np.linspace(-3, 3, SPACE.n)
    draw = estimator.drawn(logits, 20_000, prices, prices.limits, np.random.default_rng(0))
    assert (draw.gates > 0).mean(axis=0) == pytest.approx(estimator.openness(logits), abs=0.02)
    assert draw.gates.min() == 0 and draw.gates.max() == 1
    again = estimator.drawn(logits + 1e-6, 20_000, prices, prices.limits, np.random.default_rng(0))
    inside = (draw.gates > 0) & (draw.gates < 1) & (again.gates > 0) & (again.gates < 1)
    numeric = (again.gates - draw.gates)[inside] / 1e-6
    assert draw.slopes[inside] == pytest.approx(numeric, abs=1e-4)
    assert not draw.slopes[(draw.gates == 0) | (draw.gates == 1)].any()
    assert estimator.weights(logits) == pytest.approx(-np.log(1 - estimator.openness(logits)))


def test_gumbel_gates_are_the_top_within_the_limit() -> None:
    space = HeadSpace.uniform(3, 4)
    estimator, prices = GumbelTop(), GatePrices(Budget.heads(space, 5))
    logits = np.linspace(2, 4, 12)
    draw = estimator.drawn(logits, 50, prices, prices.limits, np.random.default_rng(3))
    noisy = logits + np.random.default_rng(3).gumbel(size=(50, 12))
    for row, keys in zip(draw.gates, noisy, strict=True):
        assert sorted(np.flatnonzero(row)) == sorted(np.argsort(-keys)[:5])
    assert np.all(draw.slopes > 0) and np.all(draw.prices > 0)
    assert draw.steepness == pytest.approx(draw.slopes.mean(axis=0))


FEW_STEPS = (
    LearnedGates(gates=Gates.HARD_CONCRETE, steps=60, rate=0.3),
    LearnedGates(gates=Gates.STRAIGHT_THROUGH, steps=40),
)


@pytest.mark.parametrize("method", FEW_STEPS, ids=lambda method: method.gates.name)
def test_units_that_write_nothing_go_first_and_the_model_stays(method: LearnedGates) -> None:
    model = tiny_models.BERT.build()
    prunable = tiny_models.few_groups(model)
    idle = [0, 5, 6, 7, 10, 12, 19, 22]
    silenced(prunable, idle)
    space = prunable.space
    budget = Budget.table(space, [np.arange(u + 1.0) for u in space.units], space.n - len(idle))
    before, said = trace(model), list[int]()
    told = replace(
        evidence(prunable, budget, [BATCH]), progress=lambda name, done, total: said.append(done)
    )
    found = method.chooser_on(told)(budget)
    assert np.flatnonzero(~found.kept).tolist() == idle
    assert found.status is Status.OPTIMAL and found.gap == pytest.approx(0, abs=1e-9)
    assert said == list(range(1, method.steps + 1)) and trace(model) == before
    again = method.chooser_on(told)(budget)
    assert np.array_equal(again.kept, found.kept) and again.value == found.value


@pytest.mark.parametrize("method", FEW_STEPS, ids=lambda method: method.gates.name)
def test_a_group_that_carries_the_output_stays(method: LearnedGates) -> None:
    """It stays although groups of neurons cost far more than heads."""
    model = tiny_models.BERT.build()
    prunable = tiny_models.few_groups(model)
    space = prunable.space
    carrier = space.slices[-1].start + 2
    silenced(prunable, [u for u in range(space.n) if u != carrier])
    costs = [
        np.arange(u + 1.0) * (1 if a else 5)
        for u, a in zip(space.units, space.of_attention, strict=True)
    ]
    budget = Budget.table(space, costs, 8.0)
    found = method.chooser_on(evidence(prunable, budget, [BATCH]))(budget)
    assert found.kept[carrier] and found.counts[~space.of_attention].sum() == 1


def test_shares_of_the_time_and_other_budgets_afterwards() -> None:
    model = tiny_models.BERT.build()
    prunable = tiny_models.few_groups(model)
    table = LatencyTable(
        prunable.space, 1.0, tuple(np.linspace(0, 0.5, u + 1) for u in prunable.space.units)
    )
    first = Budget.latency(table, 0.7)
    choose = LearnedGates(steps=6).chooser_on(evidence(prunable, first, [BATCH]))
    others = [
        Budget.latency(table, 0.5),
        Budget.heads(prunable.space, 6) & Budget.neurons(prunable.space, 0.5),
        Budget.heads_per_block(prunable.space, 2),
        Budget.heads(prunable.space, 8, multiple_of=2),
        Budget(prunable.space, Budget.heads(prunable.space, 6).tables, even=True),
    ]
    for budget in (first, *others):
        found = choose(budget)
        assert budget.allows(found.counts)
    assert choose(others[1]).counts.sum() == 12
    assert choose(others[2]).counts[prunable.space.of_attention].tolist() == [2, 2, 2]


def test_labels_can_be_learnt_from() -> None:
    model = tiny_models.BERT.build()
    prunable = find_attention(model)
    budget = Budget.heads(prunable.space, 6)
    method = LearnedGates(loss=GateLoss.TASK, steps=8)
    batch = {**BATCH, "labels": torch.arange(6) % 3}
    found = method.chooser_on(evidence(prunable, budget, [batch], labelled=True))(budget)
    other = method.chooser_on(
        evidence(prunable, budget, [{**batch, "labels": (torch.arange(6) + 1) % 3}], labelled=True)
    )(budget)
    assert found.value != other.value
    with pytest.raises(ValueError, match="`loss` is GateLoss.TASK, which needs labelled texts"):
        method.chooser_on(evidence(prunable, budget, [BATCH]))
    with pytest.raises(ValueError, match="have no labels that this output can be judged by"):
        method.chooser_on(evidence(prunable, budget, [BATCH], labelled=True))


@pytest.mark.parametrize("name", ["swin", "bart"])
def test_models_whose_activations_are_not_by_example(name: str) -> None:
    family = tiny_models.named(name)
    prunable = find_prunable(family.build())
    budget = Budget.heads(prunable.space, int(prunable.space.of_attention.sum()) * 2)
    batches: list[Any] = [family.batch()]
    found = LearnedGates(steps=2).chooser_on(evidence(prunable, budget, batches))(budget)
    assert budget.allows(found.counts)


def test_bad_options_are_refused() -> None:
    for name in ("steps", "texts", "batch_size"):
        bad: dict[str, Any] = {name: 0}
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
            replace(LearnedGates(), **bad)
    with pytest.raises(ValueError, match="`rate` must be above 0, got 0"):
        LearnedGates(rate=0)
    with pytest.raises(ValueError, match="`descent` must be at least 0 and below 1, got 1"):
        LearnedGates(descent=1)


def test_estimators_are_values() -> None:
    assert all(isinstance(gates.value, GateEstimator) for gates in Gates)
    assert repr(LearnedGates()).startswith("LearnedGates(gates=<Gates.STRAIGHT_THROUGH")
