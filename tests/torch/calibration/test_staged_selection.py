"""Selection in stages: every stage measures what the stages before have left."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import tiny_models
import torch
from batches_by_hand import collate, texts, trace
from hypothesis import given
from hypothesis import strategies as st

from cahp_opt import Budget, Objective, Problem, Status, select
from cahp_opt.objectives import Curvature, ExplainedVariance, Modular, Quadratic
from cahp_opt.solvers import BruteForce, DynamicProgram, Greedy, TopK
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.torch.calibration.calibration import calibrate
from cahp_opt.torch.calibration.staged_selection import select_staged, stage_counts
from cahp_opt.torch.running.gates import head_mask


@given(st.integers(1, 200), st.integers(1, 12), st.data())
def test_stages_go_down_to_what_is_kept(n: int, stages: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, n))
    counts = stage_counts(n, kept, stages)
    assert counts[0] == n and counts[-1] == kept and len(counts) <= stages + 1
    assert all(a > b for a, b in pairwise(counts)) or kept == n
    ratios = [b / a for a, b in pairwise(counts)]
    if len(counts) == stages + 1 and kept > 20 * stages:
        assert max(ratios) - min(ratios) < 0.1


def test_each_stage_is_a_selection_on_the_model_that_is_left() -> None:
    model = tiny_models.BERT.build().double()
    batches = [collate(texts(4)), collate(texts(3, seed=1))]
    seen: list[HeadStats] = []

    def objective(stats: HeadStats) -> Objective:
        seen.append(stats)
        return Quadratic.from_stats(stats, shrinkage=0)

    before = trace(model)
    found = select_staged(model, batches, objective, 3, BruteForce(), stages=2, seed=5)
    assert trace(model) == before
    first = calibrate(model, batches, densities=(0.5,), seed=5)
    one = select(
        Problem(Quadratic.from_stats(first, shrinkage=0), Budget.heads(first.space, 6)),
        BruteForce(),
    )
    with head_mask(model, one):
        second = calibrate(model, batches, densities=(0.5,), seed=5)
    own = np.flatnonzero(one.kept)
    np.testing.assert_allclose(
        seen[1].gauss_newton[0.5].sum, second.gauss_newton[0.5].sum[np.ix_(own, own)]
    )
    two = select(
        Problem(Quadratic.from_stats(seen[1], shrinkage=0), Budget.heads(seen[1].space, 3)),
        BruteForce(),
    )
    assert np.flatnonzero(found.kept).tolist() == own[two.kept].tolist()
    assert found.space == first.space and len(seen) == 2
    assert (found.value, found.bound) == (two.value, two.bound)
    # What is certified is a choice among six units, and nothing says otherwise.
    assert two.status is Status.OPTIMAL and found.status is Status.FEASIBLE
    assert "the last of 2 stages alone, which chose 3 of 5 units" in found.certificate
    assert len(own) == 5  # the sixth would add to the damage
    assert found.provenance["stages"] == "12 > 5 > 3"


def test_one_stage_is_a_plain_selection() -> None:
    model, batches = tiny_models.BERT.build(), [collate(texts(4))]
    found = select_staged(model, iter(batches), Modular.from_stats, 5, TopK(), stages=1)
    stats = calibrate(model, batches, densities=(5 / 12,))
    plain = select(Problem(Modular.from_stats(stats), Budget.heads(stats.space, 5)), TopK())
    assert np.array_equal(found.kept, plain.kept)
    assert found.status is plain.status and found.certificate == plain.certificate
    whole = select_staged(model, batches, Modular.from_stats, 12, TopK())
    assert whole.kept.all() and whole.provenance["stages"] == "12 > 12"


def test_any_objective_and_blocks_that_lose_all_units() -> None:
    model = tiny_models.BERT.build()
    batch = {**collate(texts(4)), "labels": torch.arange(4) % 3}

    def fisher(stats: HeadStats) -> Objective:
        return Quadratic.from_stats(stats, matrix=Curvature.FISHER, shrinkage=0)

    said: list[str] = []
    found = select_staged(
        model,
        iter([batch]),
        fisher,
        1,
        Greedy(),
        stages=4,
        fisher=True,
        progress=lambda stage, done, total: said.append(stage),
    )
    assert found.kept.sum() == 1
    assert found.provenance["stages"] == "12 > 6 > 2 > 1"  # the second kept what the third may keep
    assert said == [f"calibrate, stage {i}/4" for i in (1, 2, 4)]
    explained = select_staged(model, [batch], ExplainedVariance.from_stats, 2, DynamicProgram())
    assert explained.kept.sum() == 2


def test_bad_arguments_are_refused() -> None:
    model, batches = tiny_models.BERT.build(), [collate(texts(2))]
    for kept in (0, 13):
        with pytest.raises(ValueError, match="`kept` must be units to keep, 1 to 12"):
            select_staged(model, batches, Quadratic.from_stats, kept, Greedy())
    with pytest.raises(ValueError, match="`stages` must be at least 1"):
        select_staged(model, batches, Quadratic.from_stats, 3, Greedy(), stages=0)
