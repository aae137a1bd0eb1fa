"""Every supported architecture: gates, slices, empty blocks, generation, training, reload."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import BUILDS, Family, in_random_groups, outputs, to, uneven
from torch import Tensor, nn

from cahp_opt.arrays import Bools
from cahp_opt.space import HeadSpace, Unit
from cahp_opt.torch import (
    Prunable,
    find_attention,
    find_prunable,
    from_pretrained,
    head_mask,
    save_pretrained,
    selection_of,
    slice_heads,
)
from cahp_opt.torch.blocks.blocks import out_bias, out_weight
from cahp_opt.torch.blocks.finder import blocks_cut
from cahp_opt.torch.tracing.ownership import contradictions, one_of_each

Tensors = dict[str, Tensor]


def over(builds: list[Family]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("family", builds, ids=lambda f: f.name)


every = over(list(BUILDS))


_DENSE: dict[tuple[str, torch.dtype], Any] = {}


def dense(family: Family, dtype: torch.dtype = torch.float32) -> Any:
    """The model, built once for all tests of this file: none of them may change it."""
    key = family.name, dtype
    if key not in _DENSE:
        _DENSE[key] = family.build().to(dtype)
    return _DENSE[key]


_FOUND: dict[tuple[str, torch.dtype], Prunable] = {}


def attention_of(family: Family, dtype: torch.dtype = torch.float32) -> Prunable:
    """The blocks of that model, found once as well."""
    key = family.name, dtype
    if key not in _FOUND:
        _FOUND[key] = find_attention(dense(family, dtype))
    return _FOUND[key]


def batches(family: Family, dtype: torch.dtype = torch.float32) -> list[Tensors]:
    """One batch without padding and, where there can be padding, one with."""
    return [to(family.batch(padded=p), dtype) for p in ((False, True) if family.pads else (False,))]


def masked(model: nn.Module | Prunable, kept: Bools, batch: Tensors) -> Tensors:
    with head_mask(model, kept):
        return outputs(model.model if isinstance(model, Prunable) else model, batch)


def difference(found: Tensors, expected: Tensors) -> float:
    """The largest difference, relative to the largest value where that is above one."""
    assert found.keys() == expected.keys() and expected
    worst = 0.0
    for name, value in expected.items():
        assert found[name].shape == value.shape and found[name].dtype is value.dtype
        assert bool(value.isfinite().all()), name
        scale = max(1.0, float(value.double().abs().amax()))
        worst = max(worst, float((found[name].double() - value.double()).abs().amax()) / scale)
    return worst


def skip_unless_it_runs(model: nn.Module, batches: list[Tensors]) -> None:
    """Some old stock models write the smallest float64 into a float32 mask, which ends in an error."""
    try:
        for batch in batches:
            outputs(model, batch)
    except RuntimeError as error:
        pytest.skip(f"the stock model does not run in this dtype: {error}")


def check_slice(family: Family, model: nn.Module, small: nn.Module, kept: Bools) -> None:
    """The sliced model computes what the masked one does, and not what the dense one does."""
    dtype = next(model.parameters()).dtype
    attention = attention_of(family, dtype)
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    for batch in batches(family, dtype):
        expected = masked(attention, kept, batch)
        assert difference(outputs(small, batch), expected) <= tolerance
        assert difference(outputs(model, batch), expected) > 1e-3
    counts = attention.space.counts(kept)
    found = find_attention(small)
    assert [block.units for block in found] == [max(int(c), 1) for c in counts]
    assert [block.ghost for block in found] == [c == 0 for c in counts]
    assert sum(p.numel() for p in small.parameters() if p.requires_grad) < sum(
        p.numel() for p in model.parameters()
    )


def only(space: HeadSpace, block: int) -> Bools:
    """The keep-set with all but one unit of one block, and nothing else."""
    kept: Bools = space.block_of == block
    kept[space.slices[block].start] = False
    return kept


@every
@pytest.mark.support("mask")
def test_every_block_is_found(family: Family) -> None:
    model = dense(family)
    attention = find_attention(model)
    assert [block.units for block in attention] == list(family.units)
    assert not attention.skipped
    paths = [name for name, _ in model.named_modules()]
    places = [paths.index(block.name) for block in attention]
    assert places == sorted(places)
    for block in attention.attention:
        assert model.get_submodule(block.name) is block.site
        assert block.heads == block.units * (family.slots if block.unit is Unit.KV_GROUP else 1)
        assert (block.unit is Unit.KV_GROUP) == (family.slots > 1)
        assert block.heads * block.head_dim == out_weight(block).shape[1]
        bias = out_bias(block)
        assert bias is None or bias.shape == (out_weight(block).shape[0],)
        assert not block.ghost


@every
@pytest.mark.support("mask")
def test_gates_leave_no_trace(family: Family) -> None:
    model, batch = dense(family), batches(family)[-1]
    attention = find_attention(model)
    n = attention.space.n
    hooks = [dict(module._forward_pre_hooks) for module in model.modules()]
    before = outputs(model, batch)
    with head_mask(model, np.ones(n, dtype=bool)):
        assert difference(outputs(model, batch), before) == 0
    # Block after block, because gates in a late one must not hide that those of an early one do nothing.
    for where in attention.space.slices:
        kept = np.ones(n, dtype=bool)
        kept[where.start] = False
        assert difference(masked(attention, kept, batch), before) > 1e-6
        assert difference(outputs(model, batch), before) == 0
    with pytest.raises(ZeroDivisionError), head_mask(model, np.zeros(n, dtype=bool)):
        raise ZeroDivisionError
    assert difference(outputs(model, batch), before) == 0
    assert [dict(module._forward_pre_hooks) for module in model.modules()] == hooks


@every
@pytest.mark.support("mask")
def test_gates_and_slices_with_any_attention_implementation(family: Family) -> None:
    model = family.build()  # which is changed
    if not getattr(model, "_supports_sdpa", False):
        pytest.skip("the model has one implementation of attention")
    kept = uneven(find_attention(model).space)
    small = slice_heads(model, kept, batch=batches(family)[0])
    for batch in batches(family):
        dense, gated = {}, {}
        for implementation in ("eager", "sdpa"):
            model.set_attn_implementation(implementation)
            small.set_attn_implementation(implementation)
            dense[implementation] = outputs(model, batch)
            gated[implementation] = masked(model, kept, batch)
            assert difference(outputs(small, batch), gated[implementation]) <= 1e-5
        # Not every stock model is the same in both: some leave out a soft cap.
        if difference(dense["eager"], dense["sdpa"]) <= 1e-6:
            assert difference(gated["eager"], gated["sdpa"]) <= 1e-5


@every
@pytest.mark.support("slice")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["f64", "bf16"])
def test_mask_equals_slice(family: Family, dtype: torch.dtype) -> None:
    """In single precision the tests of blocks without units say so."""
    model = dense(family, dtype)
    if dtype is torch.float64:
        skip_unless_it_runs(model, batches(family, dtype))
    attention = attention_of(family, dtype)
    kept = uneven(attention.space, seed=len(family.name))
    small = slice_heads(attention, kept, batch=batches(family, dtype)[-1])
    assert {p.dtype for p in small.parameters()} == {p.dtype for p in model.parameters()}
    check_slice(family, model, small, kept)


@over([family for family in BUILDS if family.slots > 1])
@pytest.mark.support("slice")
def test_mask_equals_slice_by_query_slots(family: Family) -> None:
    model = dense(family, torch.float64)
    batch = family.batch()
    space = find_attention(model, unit=Unit.QUERY_SLOT).space
    kept = uneven(space)
    small = slice_heads(model, kept, batch=batch, unit=Unit.QUERY_SLOT)
    with head_mask(model, kept, unit=Unit.QUERY_SLOT):
        expected = outputs(model, batch)
    assert difference(outputs(small, batch), expected) <= 1e-9
    assert [block.kv_heads for block in find_attention(small).attention] == list(family.units)
    assert [block.heads for block in find_attention(small).attention] == [
        count * units for count, units in zip(space.counts(kept), family.units, strict=True)
    ]


@every
@pytest.mark.support("zero heads")
@pytest.mark.parametrize("case", ["first", "all but the last"])
def test_blocks_without_units(family: Family, case: str) -> None:
    model = dense(family)
    attention = attention_of(family)
    space = attention.space
    kept = uneven(space, empty=0) if case == "first" else only(space, len(space.blocks) - 1)
    small = slice_heads(attention, kept, batch=batches(family)[-1])
    check_slice(family, model, small, kept)


@over([family for family in BUILDS if family.generates])
@pytest.mark.support("generate")
@pytest.mark.parametrize("empty", [None, 0])
def test_generation(family: Family, empty: int | None) -> None:
    model = dense(family)
    attention = attention_of(family)
    kept = uneven(attention.space, empty=empty)
    small: Any = slice_heads(attention, kept, batch=batches(family)[-1])
    prompt = family.prompt()
    options: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": 9,
        "min_new_tokens": 9,
        "pad_token_id": 0,
    }
    options |= {"return_dict_in_generate": True, "output_scores": True}
    before = model.generate(**prompt, **options)
    with head_mask(attention, kept):
        expected = model.generate(**prompt, **options)
    for cached in ({}, {"use_cache": False}):
        found = small.generate(**prompt, **options, **cached)
        assert torch.equal(found.sequences, expected.sequences)
        for mine, theirs in zip(found.scores, expected.scores, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    # The tokens alone could be the same by chance; the scores cannot.
    assert not torch.allclose(before.scores[0], expected.scores[0], atol=1e-3)


@every
@pytest.mark.support("training")
def test_a_training_step(family: Family) -> None:
    attention, batch = attention_of(family), batches(family)[-1]
    # The second block, because nothing of the first matters to it that training could not revive.
    empty = min(1, len(family.units) - 1)
    small = slice_heads(attention, uneven(attention.space, empty=empty), batch=batch)
    small.train()
    before = copy.deepcopy(small)
    trainable = [p for p in small.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trainable, lr=0.01, weight_decay=0.1)
    output = small(**batch)
    (output if isinstance(output, Tensor) else output[0]).square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in trainable if p.grad is not None)
    optimiser.step()
    assert difference(outputs(small.eval(), batch), outputs(before.eval(), batch)) > 1e-6
    block = find_attention(small).attention[empty]
    assert block.ghost and not bool(out_weight(block).any())
    names = [name for name, p in small.named_parameters() if not p.requires_grad]
    assert any(name.startswith(block.name) for name in names)
    old = dict(before.named_parameters())
    for name in names:
        assert torch.equal(small.get_parameter(name), old[name])


SAVED_AGAIN = ("bert", "gpt2", "llama-gqa", "t5", "gemma3", "siglip")
"""Of different builds, also saved in half precision, and cut twice; all are in single, and cut once."""


@pytest.mark.support("reload")
@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        pytest.param(family, dtype, id=f"{family.name}-{name}")
        for dtype, name in ((torch.float32, "f32"), (torch.bfloat16, "bf16"))
        for family in BUILDS
        if not family.make and (dtype is torch.float32 or family.name in SAVED_AGAIN)
    ],
)
def test_reload_is_exact(family: Family, dtype: torch.dtype, tmp_path: Path) -> None:
    """In float32 with neurons, in random groups, cut beside the heads."""
    model = dense(family, dtype)
    batch = batches(family, dtype)[-1]
    neurons = dtype is torch.float32 and bool(family.inner)
    prunable = in_random_groups(find_prunable(model, neurons=neurons))
    small: Any = slice_heads(prunable, uneven(prunable.space, empty=0), batch=batch)
    save_pretrained(small, tmp_path / "pruned")
    loaded = from_pretrained(tmp_path / "pruned")
    # The stock loader makes every weight trainable, also those of the dense model that were not.
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    pairs = zip(loaded.named_parameters(), small.named_parameters(), strict=True)
    for (name, a), (other, b) in pairs:
        # Some versions of the loader keep some weights in float32 whatever dtype is asked for.
        assert name == other and a.dtype in (b.dtype, torch.float32), name
        assert torch.equal(a, b.to(a.dtype)), name
        assert a.requires_grad == b.requires_grad or name in frozen, name
    assert type(loaded) is type(small)
    found, saved = selection_of(loaded), selection_of(small)
    assert found is not None and saved is not None
    assert found.heads() == saved.heads() and found.space == saved.space
    # The dense model was cast with its buffers, and loading keeps those in float32. And kernels round
    # differently where weights mapped from a file are aligned otherwise.
    if dtype is torch.float32:
        assert difference(outputs(loaded, batch), outputs(small, batch)) <= 1e-6


@every
@pytest.mark.support("slice")
def test_slicing_twice_is_slicing_once(family: Family) -> None:
    model, attention = dense(family), attention_of(family)
    batch = batches(family)[-1]
    space = attention.space
    # The first block is emptied first and nothing of it is left for the second time.
    first = uneven(space, empty=0 if len(space.blocks) > 1 else None, seed=1)
    once = slice_heads(attention, first, batch=batch)
    twice = slice_heads(once, uneven(find_attention(once).space, seed=2), batch=batch)
    plan = selection_of(twice)
    assert plan is not None and plan.space == space
    assert not (plan.kept & ~first).any()
    assert plan.kept.sum() < first.sum() or max(space.counts(first)) < 2
    check_slice(family, model, twice, plan.kept)


# --- heads and neurons at once --------------------------------------------------------------------


@every
def test_every_feed_forward_part_is_found(family: Family) -> None:
    model = dense(family)
    prunable = find_prunable(model)
    assert prunable.space.n > 0 and [b.units for b in prunable.attention] == list(family.units)
    assert [block.width for block in prunable.feed_forward] == list(family.inner)
    assert all(("router" in reason) == family.experts for _, reason in prunable.skipped)
    assert bool(prunable.skipped) == family.experts
    paths = [name for name, _ in model.named_modules()]
    places = [paths.index(block.name) for block in prunable.feed_forward]
    assert places == sorted(places)
    # Gate and up must agree on the neurons; blocks that are alike are right or wrong together.
    parts = replace(prunable, blocks=in_random_groups(prunable).feed_forward)
    assert contradictions(model, one_of_each(parts), batches(family)[0]) == ()


@over([family for family in BUILDS if family.inner])
@pytest.mark.support("neurons")
def test_heads_and_neurons_are_masked_and_sliced_alike(family: Family, tmp_path: Path) -> None:
    """Cut once with a part that keeps nothing, cut again, and some saved and loaded."""
    model, batch = dense(family), batches(family)[-1]
    prunable = in_random_groups(find_prunable(model))
    space = prunable.space
    # Places among all blocks: the first feed-forward part keeps nothing.
    kept = uneven(space, empty=int(np.flatnonzero(~space.of_attention)[0]))
    once: Any = slice_heads(prunable, kept, batch=batch)
    left = blocks_cut(once)
    twice = slice_heads(left, uneven(left.space, seed=2), batch=batch)
    plan = selection_of(twice)
    assert plan is not None and plan.space == space and not (plan.kept & ~kept).any()
    counts = space.counts(plan.kept)
    found = blocks_cut(twice)
    assert [block.units for block in found] == [max(int(c), 1) for c in counts]
    assert [block.ghost for block in found] == [c == 0 for c in counts]
    expected = masked(prunable, plan.kept, batch)
    assert difference(outputs(twice, batch), expected) <= 1e-5
    assert difference(outputs(model, batch), expected) > 1e-3
    if family.name in SAVED_AGAIN:
        save_pretrained(twice, tmp_path / "pruned")
        loaded = from_pretrained(tmp_path / "pruned")
        for (name, a), (_, b) in zip(
            loaded.named_parameters(), twice.named_parameters(), strict=True
        ):
            assert torch.equal(a, b), name
        assert difference(outputs(loaded, batch), outputs(twice, batch)) <= 1e-6
        again = selection_of(loaded)
        assert again is not None and again.space == space
        assert np.array_equal(again.kept, plan.kept)
    if family.generates:
        prompt, options = family.prompt(), {"max_new_tokens": 3, "min_new_tokens": 3}
        with head_mask(prunable, kept):
            tokens = model.generate(**prompt, **options, do_sample=False, pad_token_id=0)
        alike = once.generate(**prompt, **options, do_sample=False, pad_token_id=0)
        assert torch.equal(alike, tokens)
