"""Counts: what the tables predict is what sliced models hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from tiny_models import BUILDS, Family, named, uneven
from torch import Tensor, nn

from cahp_opt.arrays import Ints
from cahp_opt.space import Unit
from cahp_opt.torch import UnsupportedModelError, count_resources, find_attention, slice_heads
from cahp_opt.torch.blocks.finder import find_prunable
from cahp_opt.torch.latency.weightless import skeleton
from cahp_opt.torch.running.cache_tensors import tensors_in

T5 = named("t5")


def cache_layers(model: nn.Module, batch: dict[str, Tensor]) -> list[Any]:
    """The layers of the cache after a forward pass; those of the encoder's states besides."""
    with torch.no_grad():
        output: Any = model(**batch)
    cache = getattr(output, "past_key_values", None)
    if cache is None:
        return []
    parts = [getattr(cache, f"{kind}_attention_cache", None) for kind in ("self", "cross")]
    return [layer for part in parts if part is not None for layer in part.layers] or cache.layers


def held(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, int]:
    """What a model really holds."""
    tensors = [*model.parameters(), *model.buffers()]
    found = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "memory": sum(t.numel() * t.element_size() for t in tensors),
    }
    layers = cache_layers(model, batch)
    if layers:
        pairs = [t for layer in layers for t in (layer.keys, layer.values)]
        found["kv_cache"] = sum(t.numel() * t.element_size() for t in pairs)
    return found


def predicted(tables: dict[str, Any], counts: Ints) -> dict[str, float]:
    return {name: table.predict(counts) for name, table in tables.items()}


def case(family: Family, unit: Unit | None = None) -> Any:
    return pytest.param(family, unit, id=f"{family.name}-{unit.value}" if unit else family.name)


EVERY = [case(f) for f in BUILDS] + [case(f, Unit.QUERY_SLOT) for f in BUILDS if f.slots > 1]


@pytest.mark.parametrize(("family", "unit"), EVERY)
def test_predicts_what_sliced_models_hold(family: Family, unit: Unit | None) -> None:
    model, batch = family.build(), family.batch()
    tables = count_resources(model, batch, unit=unit)
    space = find_attention(model, unit=unit).space
    kept = uneven(space, empty=(len(space.blocks) - 1) // 2)
    small = slice_heads(model, kept, unit=unit, batch=batch)
    expected = held(small, batch)
    assert predicted(tables, space.counts(kept)) == expected
    again = count_resources(small, batch)  # of a sliced model, with a block that is empty already
    assert {name: table.dense for name, table in again.items()} == expected
    assert held(model, batch).keys() == tables.keys()
    if family is not T5:  # whose tables of biases are shared until something is cut
        assert {name: table.dense for name, table in tables.items()} == held(model, batch)


def test_the_model_is_left_as_it_was() -> None:
    model, batch = T5.build(), T5.batch()
    model.train()
    before, names = dict(model.named_parameters()), [name for name, _ in model.named_modules()]
    count_resources(model, batch)
    assert dict(model.named_parameters()).keys() == before.keys()
    assert all(p is before[name] for name, p in model.named_parameters())
    assert names == [name for name, _ in model.named_modules()]
    assert all(m.training and not m._forward_hooks for m in model.modules())


def test_shared_tables_of_t5_are_counted_as_every_blocks_own() -> None:
    model = T5.build()
    table = count_resources(model)["parameters"]
    attention = find_attention(model)
    shared = sum(p.numel() for name, p in model.named_parameters() if "relative" in name)
    assert (
        table.dense == held(model, T5.batch())["parameters"] + shared
    )  # two layers in either stack
    kept = np.ones(attention.space.n, dtype=np.bool_)
    kept[0] = (
        False  # the encoder's tables are its blocks' own now, and the decoder's is still shared
    )
    exact = held(slice_heads(model, kept), T5.batch())["parameters"]
    assert table.predict(attention.space.counts(kept)) == exact + shared / 2


def test_models_on_the_meta_device_are_counted() -> None:
    for family in (tiny_models.MISTRAL, T5):
        model, batch = family.build(), family.batch()
        expected = {name: table.dense for name, table in count_resources(model, batch).items()}
        bare = count_resources(skeleton(model), batch)
        assert {name: table.dense for name, table in bare.items()} == expected


def test_half_precision_and_tied_weights() -> None:
    model, batch = tiny_models.GPT2.build().half(), tiny_models.GPT2.batch()
    assert model.lm_head.weight is model.transformer.wte.weight
    tables = count_resources(model, batch)
    assert {name: table.dense for name, table in tables.items()} == held(model, batch)
    assert {name: table.unit for name, table in tables.items()} == {
        "parameters": "weights",
        "memory": "bytes",
        "kv_cache": "bytes",
    }


def test_tensors_are_found_in_any_cache() -> None:
    a, b = torch.zeros(2, 3), torch.zeros(1, 4)
    nested: dict[str, Any] = {"new": [(a, b), (a, None)], "count": torch.tensor([3])}
    nested["itself"] = nested
    assert {id(t) for t in tensors_in(nested)} == {id(a), id(b)}
    assert len(list(tensors_in(nested))) == 2


def test_units_of_different_sizes_are_refused() -> None:
    model = tiny_models.BERT.build()
    attention = find_attention(model)
    piece = attention.blocks[1].pieces[0]
    unit_of = piece.unit_of.copy()
    unit_of[0] = 1
    object.__setattr__(piece, "unit_of", unit_of)
    with pytest.raises(UnsupportedModelError, match=r"have \[7, 9, 8, 8\] entries of .*weight"):
        count_resources(attention)


def test_a_batch_that_cannot_be_used() -> None:
    with pytest.raises(ValueError, match="`batch` has no tensor among"):
        count_resources(tiny_models.GPT2.build(), {})


@pytest.mark.parametrize("name", ["bert", "phi3", "t5"])
def test_feed_forward_blocks_are_counted_with_attention(name: str) -> None:
    family = tiny_models.named(name)
    model, batch = family.build(), family.batch()
    prunable = find_prunable(model)
    tables, heads = count_resources(prunable, batch), count_resources(model, batch)
    space = prunable.space
    place = np.arange(space.n) - np.array([space.slices[b].start for b in space.block_of])
    counts = np.random.default_rng(0).integers(1, space.units + 1)
    small = slice_heads(prunable, place < counts[space.block_of], batch=batch)
    weights = sum(p.numel() for p in small.parameters())
    assert tables["parameters"].predict(counts) == weights
    assert tables["parameters"].dense == heads["parameters"].dense
    for kind, table in tables.items():
        assert table.space == space.unordered()
        attention = [c for c, own in zip(table.costs, space.of_attention, strict=True) if own]
        np.testing.assert_array_equal(attention, heads[kind].costs)
    if "kv_cache" in tables:
        cache = zip(tables["kv_cache"].costs, space.of_attention, strict=True)
        assert not any(costs.any() for costs, of_attention in cache if not of_attention)
        assert tables["kv_cache"].fixed == heads["kv_cache"].fixed
