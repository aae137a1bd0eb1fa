"""The tiny classifier on which methods are tried that run the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from cahp_opt import Chooser, Needs, Prune, Task, chooser
from cahp_opt.methods import Fisher, Michel
from cahp_opt.objectives import Modular
from cahp_opt.solvers import DynamicProgram
from cahp_opt.testing import BUDGETS, BrokenLaw, check_method
from cahp_opt.torch import Evidence, ModelMethod, head_mask
from cahp_opt.torch.methods.trial import tiny_trial

FEW = {name: BUDGETS[name] for name in ("heads and neurons", "staircase")}


@dataclass(frozen=True)
class LeaveOneOut(ModelMethod):
    """The units without which the loss of the first batch grows most."""

    source: ClassVar[str] = "made up"
    labels: ClassVar[bool] = True

    def needs(self, task: Task) -> Needs:
        return Needs()

    def chooser_on(self, evidence: Evidence) -> Chooser:
        prunable, batch = evidence.prunable, evidence.batches[0]
        losses = torch.zeros(prunable.space.n, dtype=torch.float64)
        with torch.no_grad():
            for unit in range(prunable.space.n):
                gates = torch.ones(prunable.space.n)
                gates[unit] = 0
                with head_mask(prunable, gates):
                    losses[unit] = prunable.model(**batch).loss
        return chooser(Modular(losses.numpy()), DynamicProgram(), seed=evidence.task.seed)


@dataclass(frozen=True)
class Careless(LeaveOneOut):
    """Draws numbers that no seed decides."""

    def chooser_on(self, evidence: Evidence) -> Chooser:
        return chooser(Modular(torch.rand(evidence.stats.space.n).numpy()), DynamicProgram())


@pytest.mark.parametrize("method", [Michel(), Fisher(), LeaveOneOut()], ids=lambda m: m.name)
def test_methods_of_both_kinds_are_tried_on_it(method: Michel | Fisher | LeaveOneOut) -> None:
    assert check_method(method, trials=[tiny_trial()], budgets=FEW) == (len(FEW), 0)


def test_a_liar_is_found_on_it() -> None:
    with pytest.raises(BrokenLaw, match="`Careless` must repeat itself with the same seed"):
        check_method(Careless(), trials=[tiny_trial()], budgets=FEW)
    with pytest.raises(
        BrokenLaw, match=r"`LeaveOneOut` must choose from what it needs.*tiny_trial"
    ):
        check_method(LeaveOneOut(), budgets=FEW)


def test_it_is_the_same_every_time_and_leaves_the_generator_alone() -> None:
    state = torch.random.get_rng_state()
    one, other = tiny_trial(), tiny_trial()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.batches[1]["input_ids"], other.batches[1]["input_ids"])
    weights = zip(one.prunable.model.parameters(), other.prunable.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


@pytest.mark.parametrize("prune", Prune)
def test_it_has_the_kinds_that_are_asked_for(prune: Prune) -> None:
    assert Prune.in_space(tiny_trial(prune).space) is prune
