"""Feed-forward parts as blocks: found, grouped in any order, masked and sliced beside heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from cahp_opt import HeadSpace, Selection
from cahp_opt.space import Block, Unit
from cahp_opt.torch import (
    Prunable,
    UnsupportedModelError,
    find_attention,
    find_prunable,
    head_mask,
    selection_of,
    slice_heads,
    verify_slice,
)
from cahp_opt.torch.blocks.feed_forward_reader import group_width
from cahp_opt.torch.blocks.finder import blocks_cut, reread


def shuffled(prunable: Prunable) -> Prunable:
    """The same blocks with the neurons in random groups."""
    rng = np.random.default_rng(3)
    blocks = tuple(
        b._replace(order=tuple(rng.permutation(len(b.order)).tolist())) if b.order else b
        for b in prunable.space.blocks
    )
    return prunable.grouped(HeadSpace(blocks))


def some(space: HeadSpace) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """A keep-set with something left in every block."""
    kept = np.random.default_rng(1).random(space.n) < 0.6
    kept[[where.start for where in space.slices]] = True
    return kept


def test_both_kinds_stand_in_the_order_of_the_path() -> None:
    prunable = find_prunable(tiny_models.BERT.build(bare=True))
    names = [block.name for block in prunable]
    assert names[:2] == ["encoder.layer.0.attention", "encoder.layer.0.output.dense"]
    assert prunable.space.of_attention.tolist() == [True, False] * 3
    assert [b.unit for b in prunable.space.blocks[:2]] == [Unit.HEAD, Unit.NEURON_GROUP]
    assert len(find_prunable(prunable.model, heads=False)) == 3
    assert find_attention(prunable.model).space.blocks == prunable.space.blocks[::2]


def test_groups_are_as_wide_as_hardware_likes() -> None:
    widths = {1536: 128, 3072: 192, 14336: 896, 64: 8, 37: 1, 40: 4}
    assert {width: group_width(width) for width in widths} == widths
    prunable = find_prunable(tiny_models.BERT.build(bare=True), neuron_group=20)
    assert [block.units for block in prunable.feed_forward] == [2, 2, 2]
    with pytest.raises(ValueError, match="`neuron_group` is 7, and the 40 neurons of"):
        find_prunable(prunable.model, neuron_group=7)


def test_order_decides_which_neurons_go() -> None:
    model = tiny_models.LLAMA_GQA.build(bare=True).double()
    prunable = shuffled(find_prunable(model))
    block = prunable.feed_forward[1]
    kept = np.ones(prunable.space.n, dtype=bool)
    where = prunable.space.slices[prunable.blocks.index(block)]
    kept[where.start + 1 : where.stop] = False
    small: Any = slice_heads(prunable, kept)
    neurons = list(block.order[: block.width // block.units])
    mine, theirs = small.layers[1].mlp, block.site
    for name in ("gate_proj", "up_proj"):
        there = theirs.get_parameter(f"{name}.weight")[neurons]
        assert torch.equal(mine.get_parameter(f"{name}.weight"), there)
    assert torch.equal(mine.down_proj.weight, theirs.get_parameter("down_proj.weight")[:, neurons])
    assert mine.intermediate_size == len(neurons) == mine.down_proj.in_features


def test_a_selection_knows_its_neurons() -> None:
    model = tiny_models.BERT.build(bare=True).double()
    prunable = shuffled(find_prunable(model))
    selection = Selection.from_kept(prunable.space, some(prunable.space))
    small = slice_heads(model, selection)
    assert verify_slice(model, small, selection) <= 1e-9
    back = selection_of(small)
    assert back is not None and back.space == prunable.space
    assert back.kept.tolist() == selection.kept.tolist()

    unstated = Selection.from_kept(prunable.space.unordered(), selection.kept)
    with pytest.raises(ValueError, match="does not say which neurons"):
        slice_heads(model, unstated)
    with pytest.raises(ValueError, match="does not say which neurons"), head_mask(model, unstated):
        pass
    halves = [
        block._replace(order=None) if i < 3 else block
        for i, block in enumerate(prunable.space.blocks)
    ]
    partly = Selection.from_kept(HeadSpace(tuple(halves)), selection.kept)
    for told in (unstated, partly):
        again = slice_heads(prunable, told)
        for name, weight in small.named_parameters():
            assert torch.equal(again.get_parameter(name), weight)


def test_a_cut_part_is_read_in_its_groups_and_cut_again() -> None:
    model = tiny_models.BERT.build(bare=True).double()
    prunable = shuffled(find_prunable(model))
    small = slice_heads(prunable, some(prunable.space))
    left = blocks_cut(small)
    assert left.space.counts(np.ones(left.space.n, dtype=bool)).sum() == some(prunable.space).sum()
    kept = np.ones(left.space.n, dtype=bool)
    kept[left.space.slices[1].start] = False
    smaller = slice_heads(left, kept)
    assert verify_slice(left, smaller, kept) <= 1e-9
    both = selection_of(smaller)
    assert both is not None and both.space == prunable.space
    direct = slice_heads(prunable, both.kept)
    for name, weight in smaller.named_parameters():
        assert torch.equal(direct.get_parameter(name), weight)


def test_no_units_left_leaves_the_bias() -> None:
    model = tiny_models.BERT.build(bare=True).double()
    prunable = find_prunable(model)
    kept = np.ones(prunable.space.n, dtype=bool)
    kept[prunable.space.slices[3]] = False
    small: Any = slice_heads(prunable, kept)
    ghost = blocks_cut(small).feed_forward[1]
    assert ghost.ghost and ghost.width == 4
    layer = small.encoder.layer[1]
    assert not layer.output.dense.weight.any() and not layer.intermediate.dense.weight.requires_grad


def test_what_cannot_be_grouped_is_refused() -> None:
    model = tiny_models.BERT.build(bare=True).double()
    prunable = find_prunable(model)
    with pytest.raises(ValueError, match=r"3 feed-forward parts.*3 blocks of attention and 0"):
        find_attention(model).grouped(prunable.space)
    blocks = list(prunable.space.blocks)
    blocks[1] = Block(blocks[1].name, 5, Unit.NEURON_GROUP, tuple(range(35)))
    with pytest.raises(ValueError, match="cannot be put into 5 groups"):
        prunable.grouped(HeadSpace(tuple(blocks)))
    small = slice_heads(prunable, some(prunable.space))
    with pytest.raises(ValueError, match="was cut already"):
        blocks_cut(small).grouped(find_prunable(model, neuron_group=4).space)
    with pytest.raises(ValueError, match="both false"):
        find_prunable(model, heads=False, neurons=False)
    both = Selection.from_kept(prunable.space, some(prunable.space))
    for alone in (find_attention(model), find_prunable(model, heads=False)):
        with pytest.raises(
            ValueError, match=r"`selection` is over 3 .* and 3 .*by `find_prunable`"
        ):
            slice_heads(alone, both)
    neurons = find_prunable(model, heads=False).space
    with pytest.raises(
        ValueError, match=r"`unit` is Unit.KV_GROUP.*of neurons alone.*leave `unit`"
    ):
        slice_heads(model, Selection.from_kept(neurons, some(neurons)), unit=Unit.KV_GROUP)
    for bad in (0, -4, 2.5, True):
        with pytest.raises(ValueError, match=f"`neuron_group` must be a whole number.* got {bad}"):
            find_prunable(model, neuron_group=bad)  # type: ignore[arg-type]
    for unit in (Unit.KV_GROUP, Unit.QUERY_SLOT):
        said = f"`unit` is Unit.{unit.name}.*`heads` is false; leave"
        with pytest.raises(ValueError, match=said):
            find_prunable(model, heads=False, unit=unit)
    for group in (4, 2.5):
        with pytest.raises(ValueError, match=f"`neuron_group` is {group}.*`neurons` is false"):
            find_prunable(model, neurons=False, neuron_group=group)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match="without any feed-forward part"):
        find_prunable(torch.nn.Sequential(torch.nn.Linear(2, 2)), heads=False)


def test_a_part_whose_shapes_contradict_each_other_is_left_alone() -> None:
    model: Any = tiny_models.BERT.build(bare=True)
    model.encoder.layer[0].intermediate.dense = torch.nn.Linear(32, 44)
    prunable = find_prunable(model)
    assert len(prunable.feed_forward) == 2
    ((place, reason),) = prunable.skipped
    assert place == "encoder.layer.0.output.dense" and "44 output rows" in reason


def test_reading_again_keeps_the_groups() -> None:
    prunable = shuffled(find_prunable(tiny_models.GPT2.build()))
    again = reread(prunable)
    assert again.space == prunable.space
    assert replace(again, blocks=prunable.blocks).space == prunable.space
