"""The baseline of Kwon et al.: its three steps against brute force on small arrays, and whole on a tiny encoder."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import tiny_models
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.both_kinds.kwon import Fisher, slopes, tune
from benchmarks.both_kinds.kwon_masks import Latency, fitted, rearranged, searched, tuned
from cahp_opt.arrays import Bools
from cahp_opt.torch import Prunable, find_prunable, head_mask
from cahp_opt.torch.slicing.slicing import slice_found

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


@pytest.mark.parametrize("damp", [1.0, 30.0])
def test_tuning_is_damped_least_squares(damp: float) -> None:
    rng = np.random.default_rng(0)
    columns = rng.standard_normal((40, 5))
    wanted = columns @ np.array([1.0, 2.0, 0.5, 1.0, -1.0]) + 0.1 * rng.standard_normal(40)
    stacked = np.vstack([columns, damp * np.eye(5)])
    missing = np.concatenate([wanted - columns.sum(axis=1), np.zeros(5)])
    expected = 1 + np.linalg.lstsq(stacked, missing, rcond=None)[0]
    found = tuned(columns.T @ columns, columns.T @ wanted, damp)
    assert found is not None
    np.testing.assert_allclose(found, expected)


def test_tuning_out_of_range_is_given_up() -> None:
    column = np.full((100, 1), 0.3)
    assert tuned(column.T @ column, column.T @ (column[:, 0] * 12)) is None
    assert tuned(column.T @ column, column.T @ (column[:, 0] * 9)) is not None


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


def kept_of(dense: Prunable, batches: list[dict[str, Tensor]], limit: float) -> list[Bools]:
    fisher = Fisher.of(dense, batches)
    return fisher.rearranged(fisher.searched(limit, Latency(2.0, 1, 1.0), Latency(1.0, 0, 0.1)))


def test_a_limit_of_all_keeps_all_and_tuning_changes_nothing(
    dense: Prunable, batches: list[dict[str, Tensor]]
) -> None:
    kept = kept_of(dense, batches, 1e3)
    assert all(map(np.all, kept))
    small = slice_found(dense, np.concatenate(kept))
    for masks in tune(small, dense, batches):
        np.testing.assert_allclose(masks, 1, atol=1e-4)


def written(block_out: nn.Module, columns: np.ndarray, z: Tensor) -> np.ndarray:
    """What every unit writes, ``[tokens * hidden, units]``: the matrix of the paper."""
    weight = block_out.get_parameter("weight")
    parts = [
        (z[:, columns == unit] @ weight[:, columns == unit].T).reshape(-1)
        for unit in range(int(columns.max()) + 1)
    ]
    return torch.stack(parts, dim=1).detach().double().numpy()


def streams(model: nn.Module, paths: list[str], batches: list[dict[str, Tensor]]) -> list[Tensor]:
    """What reaches these modules at real tokens, ``[tokens, width]`` each."""
    found: dict[str, list[Tensor]] = {path: [] for path in paths}
    for batch in batches:
        real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        hooks = [
            model.get_submodule(path).register_forward_pre_hook(
                lambda module, args, path=path, real=real: found[path].append(args[0][real])
            )
            for path in paths
        ]
        with torch.no_grad():
            model(**{key: value for key, value in batch.items() if key != "labels"})
        for hook in hooks:
            hook.remove()
    return [torch.cat(found[path]) for path in paths]


def test_every_block_is_tuned_to_the_stream_of_the_unpruned_model(
    dense: Prunable, batches: list[dict[str, Tensor]]
) -> None:
    kept = kept_of(dense, batches, 20.0)
    kept[2][:] = False  # a layer may have no head left
    keep_set = np.concatenate(kept)
    small, expected = (slice_found(dense, keep_set) for _ in range(2))
    found = tune(small, dense, batches)
    assert [len(masks) for masks in found] == [int(own.sum()) for own in kept]
    paths = {id(module): path for path, module in expected.model.named_modules()}
    for masks, block in zip(
        found, expected, strict=True
    ):  # one by one, behind what was tuned before
        if block.ghost:
            assert not len(masks)
            continue
        out = paths[id(block.out)]
        norm = out.replace(".dense", ".LayerNorm")
        (wanted,) = streams(dense.model, [norm], batches)
        z, reached = streams(expected.model, [out, norm], batches)
        matrix = written(block.out, block.columns, z)
        missing = (wanted - reached).double().numpy().reshape(-1)
        units = matrix.shape[1]
        stacked = np.vstack([matrix, np.eye(units)])
        change = np.linalg.lstsq(stacked, np.append(missing, np.zeros(units)), rcond=None)[0]
        np.testing.assert_allclose(masks, 1 + change, rtol=1e-3, atol=1e-3)
        with torch.no_grad():
            block.out.get_parameter("weight").mul_(torch.from_numpy(masks[block.columns]).float())
    # The masks are in the weights, so the slice is the masked model.
    gates = torch.zeros(dense.space.n)
    gates[torch.from_numpy(keep_set)] = torch.from_numpy(np.concatenate(found)).float()
    with head_mask(dense, gates):
        masked = tiny_models.run(dense.model, batches[0])
    torch.testing.assert_close(tiny_models.run(small.model, batches[0]), masked)


def test_other_layers_than_those_of_bert_are_refused(batches: list[dict[str, Tensor]]) -> None:
    other = find_prunable(tiny_models.GPT2.build(headed=False, seed=0), neuron_group=1)
    with pytest.raises(ValueError, match="no norm beside"):
        tune(other, other, batches)
