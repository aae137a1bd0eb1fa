"""Slicing equals masking."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
import transformers
from tiny_models import FAMILIES, Family, run, uneven
from torch import Tensor, nn

from cahp_opt.arrays import Bools
from cahp_opt.selection import Selection
from cahp_opt.space import HeadSpace, Unit
from cahp_opt.torch.blocks.finder import find_attention
from cahp_opt.torch.running.gates import head_mask
from cahp_opt.torch.slicing.slicing import selection_of, slice_heads
from cahp_opt.torch.slicing.verification import verify_slice

families = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)


def masked(model: nn.Module, kept: Bools, batch: dict[str, Tensor]) -> Tensor:
    with head_mask(model, kept):
        return run(model, batch)


@pytest.mark.parametrize("family", [tiny.BERT, tiny.MPNET], ids=lambda f: f.name)
def test_bare_models_and_eager_attention(family: Family) -> None:
    model: Any = family.build(bare=True).double()
    if family is tiny.BERT:
        model.set_attn_implementation("eager")
    kept = uneven(find_attention(model).space)
    small = slice_heads(model, kept, batch=tiny.batch())
    assert verify_slice(model, small, kept, tiny.batch()) <= 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays(dtype: torch.dtype) -> None:
    model = tiny.GPT2.build().to(dtype)
    small = slice_heads(model, uneven(find_attention(model).space))
    assert {p.dtype for p in small.parameters()} == {dtype}


@families
def test_the_original_is_untouched_and_nothing_is_shared(family: Family) -> None:
    model = family.build()
    reference = copy.deepcopy(model)
    small = slice_heads(model, uneven(find_attention(model).space, empty=1))
    expected = reference.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name])
    assert {k: v for k, v in vars(model).items() if k[0] != "_"}.keys() == {
        k for k in vars(reference) if k[0] != "_"
    }
    mine = {p.data_ptr() for p in model.parameters()}
    assert not mine & {p.data_ptr() for p in small.parameters()}
    assert selection_of(model) is None
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert torch.equal(run(model, tiny.batch()), run(reference, tiny.batch()))


@families
def test_in_place(family: Family) -> None:
    model = family.build()
    kept = uneven(find_attention(model).space, empty=0)
    small = slice_heads(model, kept)
    assert slice_heads(model, kept, in_place=True) is model
    for (name, a), (_, b) in zip(small.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(a, b) and a.requires_grad == b.requires_grad, name


@families
def test_modes_and_trainability_stay(family: Family) -> None:
    model = family.build().train()
    next(iter(model.children())).eval()
    block = find_attention(model).attention[1]
    block.out.weight.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    small = slice_heads(model, uneven(find_attention(model).space))
    assert [m.training for m in model.modules()] == modes
    assert [m.training for m in small.modules()] == modes
    frozen = [name for name, p in small.named_parameters() if not p.requires_grad]
    assert frozen == [name for name, p in model.named_parameters() if not p.requires_grad]


def test_slices_of_slices_add_up_and_keep_their_provenance() -> None:
    model = tiny.BERT.build().double()
    space = find_attention(model).space
    first = Selection(
        space, uneven(space, empty=0) | (space.block_of == 1), provenance={"from": "a test"}
    )
    once = slice_heads(model, first)
    middle = find_attention(once).space
    second = np.ones(middle.n, dtype=bool)
    second[middle.slices[1]] = False
    second[middle.slices[1].start + 2] = True
    second[middle.slices[2].start] = False
    twice = slice_heads(once, Selection.from_kept(middle, second))
    plan = selection_of(twice)
    assert plan is not None
    assert plan.space == space
    assert plan.provenance == {"from": "a test"}
    kept_in = plan.heads()
    names = [block.name for block in space.blocks]
    assert kept_in[names[0]] == [] and kept_in[names[1]] == [2]
    assert kept_in[names[2]] == first.heads()[names[2]][1:]
    direct = slice_heads(model, plan)
    for (name, a), (_, b) in zip(twice.named_parameters(), direct.named_parameters(), strict=True):
        if find_attention(twice).attention[0].name not in name:
            assert torch.equal(a, b), name
    batch = tiny.batch()
    torch.testing.assert_close(run(twice, batch), masked(model, plan.kept, batch))


@families
def test_sliced_models_can_be_copied_and_pickled(family: Family) -> None:
    model = family.build()
    small = slice_heads(model, uneven(find_attention(model).space, empty=2))
    expected = run(small, tiny.batch())
    assert torch.equal(run(copy.deepcopy(small), tiny.batch()), expected)
    restored: nn.Module = pickle.loads(pickle.dumps(small))
    assert torch.equal(run(restored, tiny.batch()), expected)


def test_keeping_everything_changes_nothing() -> None:
    model = tiny.BERT.build()
    space = find_attention(model).space
    small = slice_heads(model, np.ones(space.n, dtype=bool))
    assert torch.equal(run(small, tiny.batch()), run(model, tiny.batch()))
    assert selection_of(small) is not None


def test_cross_attention_needs_a_batch_that_reaches_it() -> None:
    config = tiny.BERT.config(is_decoder=True, add_cross_attention=True, num_hidden_layers=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = transformers.BertModel(config)
        tiny.stir(model)
    model.eval()
    space = find_attention(model).space
    assert [block.name for block in space.blocks] == [
        "encoder.layer.0.attention",
        "encoder.layer.0.crossattention",
    ]
    kept = np.array([True, False, True, False, False, True, False, False])
    with pytest.raises(ValueError, match=r"does not reach the block 'encoder.layer.0.cross"):
        slice_heads(model, kept)
    only_self = np.array([True, False, True, False, True, True, True, True])
    assert find_attention(slice_heads(model, only_self)).space.n == 6  # nothing to check there
    states = torch.randn(3, 5, tiny.HIDDEN, generator=torch.Generator().manual_seed(1))
    batch = {**tiny.batch(), "encoder_hidden_states": states}
    small = slice_heads(model, kept, batch=batch)
    assert verify_slice(model, small, kept, batch) <= 1e-5


def test_heads_of_a_child_that_is_not_cut_stay() -> None:
    model = tiny.BERT.build()
    block = find_attention(model).attention[0]
    # As in sparse attention: it picks keys by heads of its own.
    indexer: Any = nn.Linear(tiny.HIDDEN, 2)
    indexer.num_heads = block.heads
    block.module.indexer = indexer
    kept = uneven(find_attention(model).space)
    small = slice_heads(model, kept, in_place=True)
    assert find_attention(small).attention[0].heads < block.heads
    assert indexer.num_heads == block.heads


def test_bad_arguments_are_refused() -> None:
    model = tiny.BERT.build()
    space = find_attention(model).space
    kept = uneven(space)
    other = HeadSpace.uniform(blocks=3, units=4)
    with pytest.raises(ValueError, match="`selection` is of another model"):
        slice_heads(model, Selection.from_kept(other, kept))
    with pytest.raises(ValueError, match="boolean array"):
        slice_heads(model, kept[:-1])
    with pytest.raises(ValueError, match="boolean array"):
        slice_heads(model, np.ones(space.n))
    with pytest.raises(ValueError, match="`batch` must be a mapping"):
        slice_heads(model, kept, batch=[1])
    with pytest.raises(ValueError, match="not in memory"):
        slice_heads(copy.deepcopy(model).to("meta"), kept)
    anonymous = nn.Sequential(tiny.BERT.build(bare=True))
    with pytest.raises(ValueError, match="`batch` is needed"):
        slice_heads(anonymous, kept)


@pytest.mark.parametrize("family", [tiny.LLAMA_GQA, tiny.QWEN3], ids=lambda f: f.name)
def test_query_slots_of_grouped_attention(family: Family) -> None:
    model: Any = family.build(num_key_value_heads=2, num_attention_heads=8).double()
    space = find_attention(model, unit=Unit.QUERY_SLOT).space
    assert [(b.units, b.unit) for b in space.blocks] == [(4, Unit.QUERY_SLOT)] * 3
    kept = np.array([0, 1, 0, 1, 1, 1, 1, 1, 0, 0, 1, 0], dtype=bool)
    selection = Selection.from_kept(space, kept)
    small: Any = slice_heads(model, selection)
    assert verify_slice(model, small, selection) <= 1e-9
    found = find_attention(small)
    assert [(b.heads, b.kv_heads) for b in found.attention] == [(4, 2), (8, 2), (2, 2)]
    assert [(b.units, b.unit) for b in found.space.blocks] == [
        (2, Unit.QUERY_SLOT),
        (4, Unit.QUERY_SLOT),
        (1, Unit.QUERY_SLOT),
    ]
    again = slice_heads(small, np.array([1, 0, 0, 1, 1, 0, 0], dtype=bool))
    plan = selection_of(again)
    assert plan is not None
    assert plan.kept.tolist() == [*[0, 1, 0, 0], *[0, 1, 1, 0], *[0, 0, 0, 0]]
    batch = tiny.batch()
    with head_mask(model, plan):
        expected = run(model, batch)
    torch.testing.assert_close(run(again, batch), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("kv_heads", "unit", "other"),
    [
        (2, Unit.KV_GROUP, Unit.QUERY_SLOT),
        (2, Unit.QUERY_SLOT, Unit.KV_GROUP),
        (1, None, Unit.KV_GROUP),
    ],
)
def test_a_selection_in_other_units_than_asked_for_is_refused(
    kv_heads: int, unit: Unit | None, other: Unit
) -> None:
    model = tiny.LLAMA_GQA.build(num_key_value_heads=kv_heads)
    space = find_attention(model, unit=unit).space
    selection = Selection.from_kept(space, uneven(space))
    small = slice_heads(model, selection, unit=unit)
    refused = f"`unit` is Unit.{other.name}, .*knows its own"
    with pytest.raises(ValueError, match=refused):
        slice_heads(model, selection, unit=other)
    with pytest.raises(ValueError, match=refused), head_mask(model, selection, unit=other):
        pass
    with pytest.raises(ValueError, match=refused):
        verify_slice(model, small, selection, unit=other)


def test_heads_that_share_no_keys_are_what_any_unit_finds() -> None:
    model = tiny.BERT.build()
    space = find_attention(model).space
    selection = Selection.from_kept(space, uneven(space))
    small = slice_heads(model, selection, unit=Unit.QUERY_SLOT)
    assert verify_slice(model, small, selection, unit=Unit.KV_GROUP) <= 1e-4


def test_with_one_key_head_the_units_are_query_heads() -> None:
    model = tiny.LLAMA_GQA.build(num_key_value_heads=1)
    space = find_attention(model).space
    assert [(b.units, b.unit) for b in space.blocks] == [(8, Unit.HEAD)] * 3
    kept = uneven(space, empty=0)
    small = slice_heads(model, kept)
    assert verify_slice(model, small, kept) <= 1e-5
    assert [(b.heads, b.kv_heads) for b in find_attention(small).attention] == [
        (1, 1),
        (2, 1),
        (7, 1),
    ]


class Wrapper(nn.Module):
    """A model of one's own around one of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.BERT.build()
        self.config = self.inner.config
        self._cache: dict[str, Tensor] = {}

    def forward(self, **inputs: Tensor) -> Tensor:
        self._cache.update(inputs)
        logits: Tensor = self.inner(**inputs).logits
        return logits


def test_what_only_looks_like_a_cache_of_keys_stays() -> None:
    model = Wrapper()
    small = slice_heads(model, uneven(find_attention(model).space), batch=tiny.batch())
    assert run(small, tiny.batch()).isfinite().all()


def test_a_gated_model_is_not_sliced() -> None:
    """The gates would stay on the copy, with all units, for ever."""
    model = tiny.BERT.build()
    kept = uneven(find_attention(model).space)
    for in_place in (False, True):
        with head_mask(model, kept), pytest.raises(ValueError, match=r"`model` is gated.*leave"):
            slice_heads(model, kept, in_place=in_place)
    slice_heads(model, kept)
