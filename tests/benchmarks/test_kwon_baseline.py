"""The baseline of Kwon et al.: its steps against brute force on small arrays, and its gradients."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import tiny_models
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.both_kinds.kwon import slopes
from benchmarks.both_kinds.kwon_masks import Latency, fitted, rearranged, searched
from cahp_opt.arrays import Bools
from cahp_opt.torch import Prunable, find_prunable, head_mask

UNITS, HEADS = (2, 3, 2, 4), np.array([True, False, True, False])
"""Units of four small blocks, and which are heads."""
ENDS = np.cumsum(UNITS)[:-1]
EVERY: Bools = np.array(list(product((False, True), repeat=sum(UNITS))), dtype=np.bool_)
COUNTS = np.stack([part.sum(axis=1) for part in np.split(EVERY, ENDS, axis=1)], axis=1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("head", "neuron"),
    [
        (Latency(0.0, 0, 3.0), Latency(0.0, 0, 1.0)),  # operations, which are linear
        (Latency(5.0, 1, 2.0), Latency(2.5, 2, 0.7)),
        (Latency(1.0, 0, 0.0), Latency(2.0, 1, 1.0)),
    ],
)
def test_the_search_is_optimal(seed: int, head: Latency, neuron: Latency) -> None:
    rng = np.random.default_rng(seed)
    importance = [rng.exponential(size=units) for units in UNITS]
    latency = [head if of_heads else neuron for of_heads in HEADS]
    times = np.sum([lat.at(COUNTS[:, b]) for b, lat in enumerate(latency)], axis=0)
    lost = ~EVERY @ np.concatenate(importance)
    # The paper keeps what is free in every block, and never plans with a block that is gone.
    planned = np.all([COUNTS[:, b] >= lat.threshold for b, lat in enumerate(latency)], axis=0)
    if head.constant:
        planned &= np.all(COUNTS > 0, axis=1)
    fixed = sum(lat.constant for lat in latency)
    for limit in fixed + rng.uniform(0.1, 0.95, 5) * (times.max() - fixed):
        found = searched(importance, HEADS, limit, head, neuron)
        best = lost[planned & (times <= limit + 1e-12)].min()
        worth = sum(i[~k].sum() for i, k in zip(importance, found, strict=True))
        assert sum(float(lat.at(k.sum())) for lat, k in zip(latency, found, strict=True)) <= limit
        assert worth <= best + 1e-12


def test_a_time_that_is_too_short_is_refused() -> None:
    importance = [np.ones(units) for units in UNITS]
    with pytest.raises(ValueError, match="the blocks take 6 s whatever they keep"):
        searched(importance, HEADS, 5.0, Latency(1.0, 1, 1.0), Latency(2.0, 1, 1.0))


@pytest.mark.parametrize("truth", [Latency(2.0, 4, 0.5), Latency(3.0, 0, 0.25)])
def test_a_table_gives_back_its_line(truth: Latency) -> None:
    units = np.array([1, 2, 4, 6, 8, 12])
    found = fitted(units, truth.at(units))
    assert found.threshold == truth.threshold
    np.testing.assert_allclose(found.at(units), truth.at(units))
    assert found.at(np.array(0)) == 0


def test_a_table_without_a_slope_is_flat() -> None:
    units = np.array([1, 2, 3])
    found = fitted(units, np.array([3.0, 2.0, 1.0]))  # what a noisy clock may say
    assert (found.constant, found.slope) == (2.0, 0.0)


def damage(fisher: np.ndarray, kept: Bools) -> float:
    dropped = (~kept).astype(np.float64)
    return float(dropped @ fisher @ dropped)


@pytest.mark.parametrize("seed", range(6))
def test_rearranging_makes_the_best_exchange_for_each_dropped_unit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    slopes = rng.standard_normal((6, 9)) @ rng.standard_normal((9, 9))
    fisher, kept = slopes.T @ slopes, rng.permutation(9) < 5
    expected = kept.copy()
    for back in np.flatnonzero(~kept):
        tried = []
        for away in np.flatnonzero(expected):
            one = expected.copy()
            one[back], one[away] = True, False
            tried.append((damage(fisher, one), one))
        best = min(tried, key=lambda pair: pair[0])
        if best[0] < damage(fisher, expected):
            expected = best[1]
    found = rearranged(fisher, kept)
    np.testing.assert_array_equal(found, expected)
    assert found.sum() == kept.sum() and damage(fisher, found) <= damage(fisher, kept)


def test_two_units_that_cancel_are_dropped_together() -> None:
    """The diagonal alone would drop the third and one of the pair."""
    slopes = np.array([[3.0, -3.0, 1.0, 5.0]])
    found = rearranged(slopes.T @ slopes, np.array([False, True, False, True]))
    np.testing.assert_array_equal(found, [False, False, True, True])


def test_nothing_is_rearranged_where_all_or_nothing_stays() -> None:
    fisher = np.eye(3)
    for kept in (np.ones(3, dtype=np.bool_), np.zeros(3, dtype=np.bool_)):
        np.testing.assert_array_equal(rearranged(fisher, kept), kept)


@pytest.fixture(scope="module")
def dense() -> Prunable:
    """The blocks of a tiny classifier, neuron by neuron."""
    return find_prunable(tiny_models.BERT.build(headed=True, seed=1), neuron_group=1)


@pytest.fixture(scope="module")
def batches() -> list[dict[str, Tensor]]:
    """Texts with padding, and labels."""
    found = [
        tiny_models.BERT.inputs(size=4, length=7, padded=padded, seed=seed)
        for seed, padded in enumerate((True, True, False))
    ]
    return [batch | {"labels": torch.tensor([0, 1, 1, 0])} for batch in found]


def test_slopes_are_those_of_every_example(
    dense: Prunable, batches: list[dict[str, Tensor]]
) -> None:
    found = np.concatenate(slopes(dense, batches), axis=1)
    assert found.shape == (12, dense.space.n)
    batch = {key: value[2:3] for key, value in batches[1].items()}
    gates = torch.ones(dense.space.n, requires_grad=True)
    with head_mask(dense, gates):
        logits = dense.model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    (expected,) = torch.autograd.grad(functional.cross_entropy(logits, batch["labels"]), gates)
    np.testing.assert_allclose(found[4 + 2], expected, rtol=1e-4, atol=1e-7)
