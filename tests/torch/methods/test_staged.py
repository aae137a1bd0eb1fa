"""Choosing in stages as a method, under any budget and over both kinds of blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_models
from batches_by_hand import trace
from test_greedy_removal import evidence, silenced

from cahp_opt import Budget, LatencyTable, Status
from cahp_opt.testing import BUDGETS
from cahp_opt.torch import Prunable, find_attention, find_prunable
from cahp_opt.torch.methods import Staged
from cahp_opt.torch.methods.trial import tiny_trial

BATCHES: list[Any] = [tiny_models.BERT.batch(size=4), tiny_models.BERT.batch(size=4, seed=1)]


def shared_time(prunable: Prunable) -> LatencyTable:
    space = prunable.space
    return LatencyTable(space, 1.0, tuple(np.linspace(0, 0.5, u + 1) for u in space.units))


def test_units_that_write_nothing_go_first_and_the_model_stays() -> None:
    model = tiny_models.BERT.build()
    prunable = tiny_models.few_groups(model)
    idle = [0, 5, 6, 7, 10, 12, 19, 22]
    silenced(prunable, idle)
    space = prunable.space
    budget = Budget.table(space, [np.arange(u + 1.0) for u in space.units], space.n - len(idle))
    before = trace(model)
    found = Staged(stages=3).chooser_on(evidence(prunable, budget, BATCHES))(budget)
    assert np.flatnonzero(~found.kept).tolist() == idle
    stages = list(map(int, found.provenance["stages"].split(" > ")))
    assert stages[0] == 24 and stages[-1] == 16 and len(stages) == 4
    assert found.status is Status.FEASIBLE and "the last of 3 stages alone" in found.certificate
    assert found.space == space and found.solver.startswith("Staged(stages=3, examples=256): ")
    assert trace(model) == before


@pytest.mark.parametrize("neurons", [False, True])
def test_a_share_of_the_time_and_another_budget_afterwards(neurons: bool) -> None:
    model = tiny_models.BERT.build()
    prunable = tiny_models.few_groups(model) if neurons else find_attention(model)
    table = shared_time(prunable)
    budget = Budget.latency(table, 0.7)
    choose = Staged(stages=3, examples=6).chooser_on(evidence(prunable, budget, BATCHES))
    found, again, less = choose(budget), choose(budget), choose(Budget.latency(table, 0.5))
    assert budget.allows(found.counts) and np.array_equal(found.kept, again.kept)
    assert less.costs["latency"].value <= 0.5 * table.dense < found.costs["latency"].value
    # What earlier stages removed is looked at again where the budget needs it.
    first = prunable.space.slices[0]
    gone = int(found.counts[0]) < first.stop
    fewest = [first.stop] + [0] * (len(prunable) - 1)
    other = Budget.latency(table, 0.7, minimum=fewest)
    assert gone and other.allows(choose(other).counts)


def test_counts_of_one_number_and_of_neurons() -> None:
    model = tiny_models.BERT.build()
    prunable = tiny_models.few_groups(model)
    both = Budget.heads(prunable.space, 6) & Budget.neurons(prunable.space, 0.5)
    found = Staged(stages=2).chooser_on(evidence(prunable, both, BATCHES))(both)
    assert both.allows(found.counts)
    attention = prunable.space.of_attention
    assert 0 < found.counts[attention].sum() <= 6 and 0 < found.counts[~attention].sum() <= 6
    widths = Budget.heads(find_prunable(model, neurons=False).space, 6, multiple_of=2)
    heads = find_attention(model)
    found = Staged(stages=2).chooser_on(evidence(heads, widths, BATCHES))(widths)
    assert widths.allows(found.counts)


def test_a_stage_that_would_remove_all_leaves_what_there_is() -> None:
    trial = tiny_trial()
    budget = BUDGETS["linear latency"](np.random.default_rng(1), trial.space)
    task = trial.task(budget, 1)
    assert budget.allows(trial.chooser(Staged(), task)(budget).counts)


def test_bad_options_are_refused() -> None:
    for bad in ({"stages": 0}, {"examples": 0}):
        with pytest.raises(ValueError, match=f"`{next(iter(bad))}` must be at least 1, got 0"):
            Staged(**bad)
