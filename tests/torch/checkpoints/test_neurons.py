"""Saving, loading and cutting again of models cut in feed-forward neurons, or in heads and neurons."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import Family, in_random_groups, outputs
from torch import nn

from cahp_opt.arrays import Bools
from cahp_opt.files.records import RecordError
from cahp_opt.selection import Selection
from cahp_opt.space import Block, HeadSpace, Unit
from cahp_opt.torch import (
    Prunable,
    UnsupportedModelError,
    find_attention,
    find_prunable,
    from_pretrained,
    head_mask,
    save_pretrained,
    selection_of,
    slice_heads,
    verify_slice,
)
from cahp_opt.torch.blocks.finder import blocks_cut
from cahp_opt.torch.checkpoints.checkpoint import SELECTION_FILE, save_sliced
from cahp_opt.torch.slicing.slicing import label_of, slice_found

WEIGHTS = "cahp_weights.safetensors"

# One with siblings, Conv1D with tied weights, gated, fused gate and up, one stack beside another.
NAMES = "bert gpt2 llama-gqa phi3 t5"
some_families = pytest.mark.parametrize(
    "family", [tiny.named(name) for name in NAMES.split()], ids=lambda f: f.name
)


def uneven(space: HeadSpace, seed: int = 0) -> Bools:
    """A keep-set that empties a feed-forward part, keeps one whole, and is random elsewhere."""
    kept = tiny.uneven(space, seed=seed)
    parts = np.flatnonzero(~space.of_attention)
    kept[space.slices[parts[0]]] = False
    kept[space.slices[parts[-1]]] = True
    return kept


def cut_in_both(family: Family = tiny.BERT, *, heads: bool = True, **build: Any) -> Any:
    """A model of the family, sliced in neurons in random groups, and in heads too."""
    prunable = in_random_groups(find_prunable(family.build(**build), heads=heads))
    return slice_heads(prunable, uneven(prunable.space), batch=family.batch())


def assert_same(loaded: nn.Module, saved: nn.Module, family: Family = tiny.BERT) -> None:
    """Weights, what is trainable, answers; and what :func:`selection_of` tells."""
    pairs = zip(loaded.named_parameters(), saved.named_parameters(), strict=True)
    for (name, a), (other, b) in pairs:
        assert name == other and a.dtype == b.dtype and a.requires_grad == b.requires_grad, name
        assert torch.equal(a, b), name
    mine, theirs = (outputs(model, family.batch()) for model in (loaded, saved))
    assert mine and all(torch.equal(mine[name], value) for name, value in theirs.items())
    assert_same_units(loaded, saved)


def assert_same_units(loaded: nn.Module, saved: nn.Module, *, ordered: bool = True) -> None:
    """With ``ordered`` false: without knowing which neurons were left of those parts that lost some."""
    mine, theirs = selection_of(loaded), selection_of(saved)
    assert mine is not None and theirs is not None and mine.heads() == theirs.heads()
    assert mine.space.unordered() == theirs.space.unordered()
    assert mine.space == (theirs.space if ordered else mine.space)
    for block, count in zip(mine.space.blocks, mine.counts, strict=True):
        whole = not block.unit.of_attention and count == block.units
        assert ordered or (block.order is not None) == whole


@some_families
def test_loading_what_was_saved_changes_nothing(family: Family, tmp_path: Path) -> None:
    """Of one family, with whole attention."""
    small = cut_in_both(family, heads=family is not tiny.LLAMA_GQA)
    save_pretrained(small, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert_same(loaded, small, family)
    assert type(loaded) is type(small)
    assert [b.ghost for b in blocks_cut(loaded)] == [b.ghost for b in blocks_cut(small)]
    # The record alone makes the same model of the original one.
    record = Selection.load(tmp_path / SELECTION_FILE)
    again = slice_heads(family.build(), record, batch=family.batch())
    assert_same(again, small, family)


def test_the_configuration_stays_small_and_loads(tmp_path: Path) -> None:
    """What the stock saves tells the kept groups alone, and the weights lie group by group."""
    small = cut_in_both()
    small.save_pretrained(str(tmp_path / "stock"), max_shard_size="20KB")
    entry = json.loads((tmp_path / "stock" / "config.json").read_text())["cahp_selection"]
    assert {len(block) for block in entry["selection"]["blocks"]} == {3}
    loaded = from_pretrained(tmp_path / "stock")
    assert_same_units(loaded, small, ordered=False)
    for name, weight in small.named_parameters():
        assert torch.equal(loaded.get_parameter(name), weight), name
    save_pretrained(loaded, tmp_path / "own")
    again = from_pretrained(tmp_path / "own")
    assert_same_units(again, loaded)
    # Nobody knows any more which neurons of the original these were.
    record = Selection.load(tmp_path / "own" / SELECTION_FILE)
    with pytest.raises(ValueError, match=r"does not say which neurons the groups of .* hold"):
        slice_heads(tiny.BERT.build(), record)


@pytest.mark.parametrize("known", ["cuts", "folder", "configuration"])
def test_slicing_twice_is_slicing_once(known: str, tmp_path: Path) -> None:
    """In memory, and from either kind of folder: the second cut counts in the original's groups."""
    dense = in_random_groups(find_prunable(tiny.LLAMA_GQA.build()))
    first: Any = slice_heads(dense, uneven(dense.space))
    if known == "folder":
        save_pretrained(first, tmp_path / "first")
        first = from_pretrained(tmp_path / "first")
    if known == "configuration":
        first.save_pretrained(str(tmp_path / "first"))
        first = from_pretrained(tmp_path / "first")
    left = blocks_cut(first)
    kept = tiny.uneven(left.space, seed=5)
    second = slice_heads(left, kept)
    assert verify_slice(left, second, kept) <= 1e-4
    whole = selection_of(second)
    assert whole is not None and whole.space.kinds == dense.space.kinds
    assert (whole.space == dense.space) == (known != "configuration")
    # A part that the first cut left whole is grouped as it stands where no order is known.
    at_once = slice_heads(dense.grouped(whole.space.ordered_as(dense.space)), whole.kept)
    for name, weight in second.named_parameters():
        assert torch.equal(at_once.get_parameter(name), weight), name
    save_pretrained(second, tmp_path / "second")
    assert_same(from_pretrained(tmp_path / "second"), second, tiny.LLAMA_GQA)


@pytest.mark.parametrize("heads_first", [True, False])
@pytest.mark.parametrize("second", ["the other", "both"])
def test_one_kind_after_the_other(heads_first: bool, second: str, tmp_path: Path) -> None:
    model = tiny.BERT.build()
    one = in_random_groups(find_prunable(model, heads=heads_first, neurons=not heads_first))
    first = slice_heads(one, tiny.uneven(one.space), batch=tiny.batch())
    found = find_prunable(first, heads=second == "both" or not heads_first, neurons=True)
    if second == "the other" and not heads_first:
        found = find_attention(first)
    if second == "the other" and heads_first:
        found = find_prunable(first, heads=False)
    found = in_random_groups(found) if heads_first else found
    kept = tiny.uneven(found.space, seed=4)
    small = slice_found(found, kept, batch=tiny.batch())
    whole = selection_of(small.model)
    assert whole is not None and label_of(small.model) is not None
    assert whole.space.of_attention.tolist() == [True, False] * 3
    at_once = slice_heads(model, whole, batch=tiny.batch())
    assert_same(at_once, small.model)
    save_pretrained(small.model, tmp_path / "by the model")
    save_sliced(small, tmp_path / "by its blocks")
    for folder in tmp_path.iterdir():
        assert_same(from_pretrained(folder), small.model)
    plain: Any = small.model
    plain.save_pretrained(str(tmp_path / "stock"))
    loaded = from_pretrained(tmp_path / "stock")
    assert_same_units(loaded, small.model, ordered=False)


def test_a_part_that_keeps_all_stays_as_it_stands() -> None:
    """And a second cut takes the neurons that it says."""
    dense = in_random_groups(find_prunable(tiny.BERT.build().double(), heads=False))
    everything = np.ones(dense.space.n, dtype=bool)
    first = slice_heads(dense, everything)
    for name, weight in dense.model.named_parameters():
        assert torch.equal(first.get_parameter(name), weight), name
    left = blocks_cut(first)
    kept = tiny.uneven(left.space)
    second = slice_heads(left, kept)
    whole = selection_of(second)
    assert whole is not None and whole.space == dense.space
    at_once = slice_heads(dense, kept)
    for name, weight in second.named_parameters():
        assert torch.equal(at_once.get_parameter(name), weight), name
    # Grouped anew, which is possible as long as nothing is lost: still neurons of the original.
    other = in_random_groups(left, seed=8)
    third = slice_heads(other, kept)
    told = selection_of(third)
    assert told is not None and told.space != dense.space
    assert verify_slice(dense.model, third, told) <= 1e-9


def test_a_selection_of_the_original_means_its_neurons_where_nothing_was_lost() -> None:
    """Neurons that a cut only put side by side keep their numbers, also in statistics."""
    dense = in_random_groups(find_prunable(tiny.BERT.build()))
    wanted = Selection.from_kept(dense.space, tiny.uneven(dense.space))
    whole = slice_heads(dense, np.ones(dense.space.n, dtype=bool))
    assert find_prunable(whole).space == dense.space
    at_once = slice_heads(dense.model, wanted)
    for of in (whole, find_prunable(whole)):
        small = slice_heads(of, wanted)
        assert_same_units(small, at_once)
        for name, weight in small.named_parameters():
            assert torch.equal(at_once.get_parameter(name), weight), name
    with head_mask(whole, wanted) as gates:
        assert not gates.all()
        masked = tiny.run(whole, tiny.batch())
    torch.testing.assert_close(masked, tiny.run(at_once, tiny.batch()))


@pytest.mark.parametrize("family", [tiny.BERT, tiny.named("phi3")], ids=lambda f: f.name)
def test_a_cut_without_a_loss_is_the_original_for_the_stock_loader(
    family: Family, tmp_path: Path
) -> None:
    """Who knows nothing of the cut finds the original's neurons where they were: in weights that fit the
    configuration nothing else could tell."""
    dense = in_random_groups(find_prunable(family.build()))
    wanted = Selection.from_kept(dense.space, tiny.uneven(dense.space))
    whole: Any = slice_heads(dense, np.ones(dense.space.n, dtype=bool))
    whole.save_pretrained(str(tmp_path))
    at_once = slice_heads(dense.model, wanted)
    for loaded in (type(whole).from_pretrained(tmp_path), from_pretrained(tmp_path)):
        small = slice_heads(loaded, wanted)
        assert_same_units(small, at_once)
        for name, weight in small.named_parameters():
            assert torch.equal(at_once.get_parameter(name), weight), name


def test_a_slice_in_place_that_fails_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.LLAMA_GQA.build()
    before = copy.deepcopy(model.state_dict())
    prunable = in_random_groups(find_prunable(model))

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cahp_opt.torch.slicing.slicing.check_outputs", interrupted)
        with pytest.raises(KeyboardInterrupt):
            slice_heads(prunable, uneven(prunable.space), in_place=True)
    assert selection_of(model) is None and "cahp_selection" not in model.config.to_dict()
    assert all(torch.equal(before[name], w) for name, w in model.state_dict().items())
    assert model.model.layers[0].mlp.intermediate_size == 40
    assert model.model.layers[0].mlp.up_proj.out_features == 40
    small = slice_heads(prunable, uneven(prunable.space), in_place=True)
    assert small is model and selection_of(model) is not None


def test_the_blocks_of_a_copy() -> None:
    dense = in_random_groups(find_prunable(tiny.BERT.build()))
    small = slice_heads(dense, uneven(dense.space))
    found = blocks_cut(small)
    there = found.at(copy.deepcopy(small))
    assert there.space == found.space
    assert all(a.out is not b.out and a.name == b.name for a, b in zip(there, found, strict=True))
    for copied in (there.model, pickle.loads(pickle.dumps(small))):
        assert_same(copied, small)


def test_parts_of_a_sliced_model_know_their_neurons(tmp_path: Path) -> None:
    small = cut_in_both()
    whole = selection_of(small)
    part = selection_of(small.bert)
    assert whole is not None and part is not None
    assert [b[1:] for b in part.space.blocks] == [b[1:] for b in whole.space.blocks]
    save_pretrained(small.bert, tmp_path / "part")
    assert_same(from_pretrained(tmp_path / "part"), small.bert)
    # And the other way round: a tower that was cut is part of the whole model's selection.
    clip: Any = tiny.named("clip").build()
    tower = in_random_groups(find_prunable(clip.text_model))
    slice_heads(tower, uneven(tower.space), in_place=True, batch=tiny.batch())
    save_pretrained(clip, tmp_path / "clip")
    assert_same(from_pretrained(tmp_path / "clip"), clip, tiny.named("clip"))


def test_tied_and_sharded_weights_and_places(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    small = cut_in_both(tiny.GPT2)
    save_pretrained(small, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    for options in ({}, {"device_map": "auto"}, {"device_map": {"": "cpu"}}):
        loaded = from_pretrained(tmp_path, **options)
        assert loaded.lm_head.weight is loaded.transformer.wte.weight
        assert_same(loaded, small, tiny.GPT2)
    half = from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_another_class_of_the_same_model(tmp_path: Path) -> None:
    small = cut_in_both(tiny.GPT2)
    save_pretrained(small, tmp_path)
    inner = from_pretrained(tmp_path, model_class=type(small.transformer))
    assert_same(inner, small.transformer, tiny.GPT2)
    found = selection_of(inner)
    assert found is not None and found.space.blocks[1].name == "h.0.mlp.c_proj"


class Packed(nn.Linear):
    """A layer of a quantiser."""


class PackedBert(transformers.BertForSequenceClassification):  # type: ignore[no-untyped-call]
    """Replaces a layer once it is built and sliced, as quantisers do."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        loaded: Any = super().from_pretrained(*args, **kwargs)
        for layer in loaded[0].bert.encoder.layer:
            layer.output.dense = Packed(layer.output.dense.in_features, tiny.HIDDEN)
        return loaded


def test_a_loader_that_packs_layers_is_refused_in_a_sentence(tmp_path: Path) -> None:
    save_pretrained(cut_in_both(heads=False), tmp_path)
    with pytest.raises(UnsupportedModelError, match="is a Packed, .*quantise after slicing"):
        from_pretrained(tmp_path, model_class=PackedBert)


@pytest.mark.parametrize("heads", [True, False])
def test_a_model_that_was_quantised_since_still_knows_its_selection(heads: bool) -> None:
    """Its new layers do not have the marks of the old ones."""
    small = cut_in_both(heads=heads)
    known = selection_of(small)
    for layer in small.bert.encoder.layer:
        layer.output.dense = Packed(layer.output.dense.in_features, tiny.HIDDEN)
    found = selection_of(small)
    assert known is not None and found is not None
    assert found.space == known.space and found.heads() == known.heads()


def test_records_and_weights_that_do_not_fit(tmp_path: Path) -> None:
    small = cut_in_both()
    save_pretrained(small, tmp_path)
    config = tmp_path / "config.json"
    text = config.read_text()
    wide = text.replace('"intermediate_size": 40', '"intermediate_size": 48')
    config.write_text(wide)
    assert wide != text
    with pytest.raises(RecordError, match=r"of another model: the 48 neurons of .*output\.dense"):
        from_pretrained(tmp_path)
    config.write_text(text)

    plan = tmp_path / SELECTION_FILE
    good = json.loads(plan.read_text())
    name = good["blocks"][3][0]
    plan.write_text(json.dumps({**good, "kept": {**good["kept"], name: [*range(9)]}}))
    with pytest.raises(RecordError, match="does not fit the weights"):
        from_pretrained(tmp_path)
    plan.write_text(json.dumps(good))

    tensors = load_file(tmp_path / WEIGHTS)
    lost = "bert.encoder.layer.1.intermediate.dense.bias"
    save_file({k: v for k, v in tensors.items() if k != lost}, tmp_path / WEIGHTS)
    for model_class in (None, type(small.bert)):
        with pytest.raises(RecordError, match=r"lacks the weights .*layer\.1\.intermediate"):
            from_pretrained(tmp_path, model_class=model_class)


def test_another_order_in_the_record_is_only_a_label(tmp_path: Path) -> None:
    """The weights of a folder lie group by group, whatever the order is said to have been."""
    small = cut_in_both()
    save_pretrained(small, tmp_path)
    plan = tmp_path / SELECTION_FILE
    record = json.loads(plan.read_text())
    record["blocks"] = [block[:3] for block in record["blocks"]]
    plan.write_text(json.dumps(record))
    loaded = from_pretrained(tmp_path)
    assert_same_units(loaded, small, ordered=False)
    for name, weight in small.named_parameters():
        assert torch.equal(loaded.get_parameter(name), weight), name


def lost(block: Block) -> Block:
    return block._replace(order=None)


def permuted(block: Block) -> Block:
    return block._replace(order=block.order and (*block.order[1:], block.order[0]))


def test_an_order_that_is_wrong_on_load_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the tests above ask of every folder, though the weights and the answers are right: as the
    record is read, and as the blocks are put into its groups."""
    small = cut_in_both()
    save_pretrained(small, tmp_path)
    read, grouped = Selection.load, Prunable.grouped
    for wrong, where in itertools.product((lost, permuted), ("record", "groups")):

        def wrongly(space: HeadSpace, wrong: Callable[[Block], Block] = wrong) -> HeadSpace:
            return HeadSpace(tuple(map(wrong, space.blocks)))

        with monkeypatch.context() as patch:
            if where == "record":
                told = read(tmp_path / SELECTION_FILE)
                told = dataclasses.replace(told, space=wrongly(told.space))
                patch.setattr(Selection, "load", lambda _, told=told: told)
            else:
                patch.setattr(Prunable, "grouped", lambda self, s, w=wrongly: grouped(self, w(s)))
            loaded = from_pretrained(tmp_path)
        for name, weight in small.named_parameters():
            assert torch.equal(loaded.get_parameter(name), weight), name
        with pytest.raises(AssertionError):
            assert_same_units(loaded, small)


def test_the_card_states_the_intermediate_sizes(tmp_path: Path) -> None:
    small = cut_in_both(heads=False)
    save_pretrained(small, tmp_path / "own")
    sizes = [0 if b.ghost else b.width for b in blocks_cut(small)]
    told = f"in the order of the table: {', '.join(map(str, sizes))}; before: 40."
    small.save_pretrained(str(tmp_path / "stock"))
    save_pretrained(from_pretrained(tmp_path / "stock"), tmp_path / "again")
    for folder in ("own", "again"):
        card = (tmp_path / folder / "README.md").read_text()
        assert told in card and "with fewer feed-forward neurons" in card
    assert selection_of(small) is not None and sizes[0] == 0 and sizes[-1] == 40
    assert {b.unit for b in blocks_cut(small)} == {Unit.NEURON_GROUP}
