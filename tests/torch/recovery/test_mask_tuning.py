"""Mask tuning: planted masks, least squares block by block, and what cannot be tuned."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch import Tensor, nn

from cahp_opt.torch import Prunable, find_prunable, head_mask, slice_heads, tune_masks
from cahp_opt.torch.recovery.mask_tuning import tuned
from cahp_opt.torch.slicing.slicing import slice_found


def batches_of(family: tiny_models.Family, *, padded: bool = True) -> list[dict[str, Tensor]]:
    return [family.batch(size=8, length=9, seed=seed, padded=padded) for seed in range(3)]


def distance(dense: nn.Module, model: nn.Module, batches: list[dict[str, Tensor]]) -> float:
    total = 0.0
    for batch in batches:
        theirs, mine = (tiny_models.outputs(m, batch) for m in (dense, model))
        total += sum(float((theirs[name] - mine[name]).square().sum()) for name in theirs)
    return total


def doubled(prunable: Prunable, share: float) -> None:
    """Every odd unit computes what the one before it does, and writes that times ``share``."""
    with torch.no_grad():
        for block in prunable:
            for piece, weight in zip(block.pieces, block.weights, strict=True):
                rows = weight.movedim(piece.axis, 0)
                read = torch.from_numpy(piece.unit_of)
                is_out = weight.data_ptr() == block.out.get_parameter("weight").data_ptr()
                for unit in range(0, block.units - 1, 2):
                    own = rows[read == unit].clone()
                    rows[read == unit + 1] = own * share if is_out else own


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama-gqa", "vit", "gpt-neox"])
def test_planted_masks_are_found(name: str) -> None:
    family = tiny_models.named(name)
    dense = family.build().double()
    prunable = find_prunable(dense, neuron_group=1)
    doubled(prunable, 0.5)
    space = prunable.space
    place = np.concatenate([np.arange(units) for units in space.units])
    small = slice_found(prunable, place % 2 == 0)
    batches = batches_of(family)
    before = distance(dense, small.model, batches)
    found = tune_masks(small, prunable, batches, damp=1e-4)
    for masks, block in zip(found, prunable, strict=True):
        alone = [1.0] * (block.units % 2)  # the last of an odd number stands for itself
        np.testing.assert_allclose(masks, [1.5] * (block.units // 2) + alone, atol=1e-3)
    assert before > 1e-2
    assert distance(dense, small.model, batches) < 1e-6 * before


def test_masks_beyond_the_range_end_the_tuning() -> None:
    family = tiny_models.BERT
    dense = find_prunable(family.build().double(), neuron_group=1)
    doubled(dense, 0.5)
    first = dense.blocks[2]  # the second attention
    with torch.no_grad():
        columns = torch.from_numpy(first.columns)
        weight = first.out.get_parameter("weight")
        weight[:, columns == 1] = 20 * weight[:, columns == 0]
    place = np.concatenate([np.arange(units) for units in dense.space.units])
    small = slice_found(dense, place % 2 == 0)
    untouched = copy.deepcopy(small.model.state_dict())
    found = tune_masks(small, dense, batches_of(family), damp=1e-4)
    assert all(np.all(np.abs(masks - 1.5) < 1e-3) for masks in found[:2])
    assert all(np.all(masks == 1) for masks in found[2:])
    after = small.model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, untouched[name])}
    paths = {id(module): path for path, module in small.model.named_modules()}
    assert changed == {f"{paths[id(block.out)]}.weight" for block in small.blocks[:2]}


@pytest.mark.parametrize("damp", [1.0, 30.0])
def test_tuning_is_damped_least_squares(damp: float) -> None:
    rng = np.random.default_rng(0)
    columns = rng.standard_normal((40, 5))
    missing = columns @ np.array([0, 1.0, -0.5, 0, -2]) + 0.1 * rng.standard_normal(40)
    stacked = np.vstack([columns, damp * np.eye(5)])
    expected = 1 + np.linalg.lstsq(stacked, np.append(missing, np.zeros(5)), rcond=None)[0]
    found = tuned(columns.T @ columns, columns.T @ missing, damp)
    assert found is not None
    np.testing.assert_allclose(found, expected)


def test_the_largest_mask_is_10() -> None:
    column = np.full((100, 1), 0.3)
    gram = column.T @ column
    assert tuned(gram, column.T @ (column[:, 0] * 11)) is None
    assert tuned(gram, column.T @ (column[:, 0] * 9)) is not None
    assert tuned(np.zeros((1, 1)), np.zeros(1), damp=0) is None  # a unit that writes nothing


@pytest.fixture(scope="module")
def dense() -> Prunable:
    """The blocks of a tiny classifier, neuron by neuron."""
    return find_prunable(tiny_models.BERT.build(seed=1), neuron_group=1)


BATCHES = [
    tiny_models.BERT.batch(size=4, length=7, padded=padded, seed=seed)
    for seed, padded in enumerate((True, True, False))
]


def test_without_a_dropped_unit_nothing_changes(dense: Prunable) -> None:
    small = slice_found(dense, np.ones(dense.space.n, dtype=np.bool_))
    for masks in tune_masks(small, dense, BATCHES):
        np.testing.assert_allclose(masks, 1, atol=1e-4)


def written(block_out: nn.Module, columns: np.ndarray, z: Tensor) -> np.ndarray:
    """What every unit writes, ``[tokens * hidden, units]``: the matrix of the paper."""
    weight = block_out.get_parameter("weight")
    parts = [
        (z[:, columns == unit] @ weight[:, columns == unit].T).reshape(-1)
        for unit in range(int(columns.max()) + 1)
    ]
    return torch.stack(parts, dim=1).detach().double().numpy()


def streams(model: nn.Module, paths: list[str]) -> list[Tensor]:
    """What reaches these modules at real tokens, in the last layer at the first, ``[tokens, width]`` each."""
    found: dict[str, list[Tensor]] = {path: [] for path in paths}
    for batch in BATCHES:
        real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        if f".{tiny_models.LAYERS - 1}." in paths[0]:
            real = real & (torch.arange(real.shape[1]) == 0)
        hooks = [
            model.get_submodule(path).register_forward_pre_hook(
                lambda module, args, path=path, real=real: found[path].append(args[0][real])
            )
            for path in paths
        ]
        with torch.no_grad():
            model(**batch)
        for hook in hooks:
            hook.remove()
    return [torch.cat(found[path]) for path in paths]


def test_every_block_is_tuned_to_the_stream_of_the_unpruned_model(dense: Prunable) -> None:
    kept = np.random.default_rng(0).random(dense.space.n) < 0.9
    kept[dense.space.slices[2]] = False  # a layer may have no head left
    small, expected = (slice_found(dense, kept) for _ in range(2))
    found = tune_masks(small, dense, BATCHES)
    assert [len(masks) for masks in found] == dense.space.counts(kept).tolist()
    paths = {id(module): path for path, module in expected.model.named_modules()}
    for masks, block in zip(found, expected, strict=True):  # behind what was tuned before
        if block.ghost:
            continue
        out = paths[id(block.out)]
        norm = out.replace(".dense", ".LayerNorm")
        (wanted,) = streams(dense.model, [norm])
        z, reached = streams(expected.model, [out, norm])
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
    gates[torch.from_numpy(kept)] = torch.from_numpy(np.concatenate(found)).float()
    with head_mask(dense, gates):
        masked = tiny_models.run(dense.model, BATCHES[0])
    torch.testing.assert_close(tiny_models.run(small.model, BATCHES[0]), masked)


def test_tokens_that_the_output_does_not_depend_on_are_not_tuned_to(dense: Prunable) -> None:
    """Where the first token is right, the last layer stays, however wrong the others are."""
    kept = np.ones(dense.space.n, dtype=np.bool_)
    kept[dense.space.slices[-1].start] = False
    wrong = dense.at(copy.deepcopy(dense.model))
    inner = wrong.feed_forward[-1].ins[0]
    with torch.no_grad():  # a neuron that is silent at the first token
        inner.get_parameter("weight")[0] = 0
        inner.get_parameter("bias")[0] = -100
    hook = inner.register_forward_hook(beside_the_first)
    found = tune_masks(slice_found(wrong, kept), wrong, BATCHES)
    hook.remove()
    for masks in found:
        np.testing.assert_allclose(masks, 1, atol=1e-4)


def beside_the_first(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """The first neuron answers all tokens but the first."""
    if output.shape[-1] < tiny_models.INNER:
        return output
    moved = output.clone()
    moved[:, 1:, 0] = 3.0
    return moved


def test_grouped_neurons_get_masks_of_their_own() -> None:
    dense = find_prunable(tiny_models.BERT.build(seed=1), neuron_group=8)
    kept = np.ones(dense.space.n, dtype=np.bool_)
    kept[dense.space.slices[1].start] = False
    small = slice_heads(dense, kept)
    found = tune_masks(small, dense.model, BATCHES)  # the blocks of the slice are found
    assert [len(masks) for masks in found] == [4, 32, 4, 40, 4, 40]
    assert len(np.unique(found[1])) == 32


def refused(built: Any, batch: dict[str, Tensor], match: str, **options: Any) -> None:
    prunable = find_prunable(built, neuron_group=1)
    kept = np.arange(prunable.space.n) > 0
    small = slice_found(prunable, kept)
    with pytest.raises(ValueError, match=match):
        tune_masks(small, prunable, [batch], **options)


@pytest.mark.parametrize(("name", "match"), [("albert", "per pass"), ("bart", "cannot walk")])
def test_models_that_cannot_be_walked_are_refused(name: str, match: str) -> None:
    family = tiny_models.named(name)
    refused(family.build(), family.batch(), match)


@pytest.mark.parametrize("options", [{"damp": -1.0}, {"damp": np.nan}, {"memory": -1}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    refused(tiny_models.BERT.build(), BATCHES[0], next(iter(options)), **options)


def test_values_that_are_not_finite_are_refused(dense: Prunable) -> None:
    small = slice_found(dense, np.arange(dense.space.n) > 0)
    with torch.no_grad():
        small.blocks[1].out.get_parameter("weight")[0, 0] = torch.nan
    with pytest.raises(ValueError, match=f"activations at block {dense.blocks[1].name!r} hold NaN"):
        tune_masks(small, dense, BATCHES)


def test_a_model_is_not_tuned_to_itself(dense: Prunable) -> None:
    with pytest.raises(ValueError, match="the same object; slice a copy"):
        tune_masks(dense, dense, BATCHES)
