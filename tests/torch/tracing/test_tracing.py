"""Differentiation finds which weights belong to which unit, confirms the table, and completes it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
import transformers
from small_builds import FIELDS, built, configured
from tiny_models import FAMILIES, Family
from torch import Tensor, nn

from cahp_opt.space import Unit
from cahp_opt.torch.blocks import layouts
from cahp_opt.torch.blocks import site_reader as reading
from cahp_opt.torch.blocks.blocks import AttentionBlock, Piece
from cahp_opt.torch.blocks.finder import UnsupportedModelError, find_attention
from cahp_opt.torch.running.made_up_inputs import sample_inputs
from cahp_opt.torch.slicing.slicing import slice_heads
from cahp_opt.torch.tracing.descriptions import (
    Anchor,
    Description,
    Stretch,
    TracedCut,
    complete,
    stretches_of,
)
from cahp_opt.torch.tracing.ownership import (
    arguments_of,
    contradictions,
    disagreements,
    obstacles,
    one_of_each,
    pieces_of,
    unreached,
)
from cahp_opt.torch.tracing.to_layout import suggest
from cahp_opt.torch.tracing.unit_gradients import TracedSite, trace_targets, trace_units


def ids(**options: Any) -> dict[str, Tensor]:
    return tiny.batch(padded=False, **options)


def keyed(pieces: tuple[Piece, ...]) -> dict[tuple[str, int], list[int]]:
    return {(p.path, p.axis): [int(u) for u in p.unit_of] for p in pieces}


def repeated(each: int, units: int = tiny.HEADS) -> list[int]:
    return [u for u in range(units) for _ in range(each)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_the_table_and_differentiation_agree_on_every_entry(
    family: Family, dtype: torch.dtype
) -> None:
    model = family.build(bare=True).to(dtype)
    attention = find_attention(model)
    for block, trace in zip(attention, trace_units(model, attention, tiny.batch()), strict=True):
        assert trace.reached
        assert trace.name == block.name
        assert keyed(pieces_of(trace)) == keyed(block.pieces)
        assert disagreements(trace, block.pieces) == ()
        assert obstacles(trace) == ()
    assert contradictions(model, attention, tiny.batch()) == ()


@pytest.mark.parametrize("unit", [None, Unit.QUERY_SLOT], ids=["groups", "slots"])
@pytest.mark.parametrize("name", sorted(set(FIELDS) - {"Longformer", "Olmo2"}))
def test_they_agree_on_fused_latent_gated_and_tabled_attention(
    name: str, unit: Unit | None
) -> None:
    full = {"attention_type": "original_full"}  # else it builds its attention anew while it runs
    model = built(name, **full if name.startswith("BigBird") else {})
    attention, batch = find_attention(model, unit=unit), sample_inputs(model)
    assert batch is not None
    for block, trace in zip(attention, trace_units(model, attention, batch), strict=True):
        assert trace.reached
        cut = tuple(p for p in block.pieces if (p.unit_of >= 0).any())
        assert keyed(pieces_of(trace)) == keyed(cut)
        assert disagreements(trace, block.pieces) == ()
        assert obstacles(trace) == ()


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = tiny.BERT.build().train()
    frozen = model.get_parameter("bert.encoder.layer.0.attention.self.key.weight")
    frozen.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    grads = {k: p.requires_grad for k, p in model.named_parameters()}
    state = torch.get_rng_state()
    trace_units(model, find_attention(model), tiny.batch())
    with pytest.raises(ValueError, match="input_ids"):
        trace_units(model, find_attention(model), {"nonsense": torch.ones(1)})
    assert torch.equal(torch.get_rng_state(), state)
    assert {k: p.requires_grad for k, p in model.named_parameters()} == grads
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training and not m._forward_pre_hooks for m in model.modules())


def test_one_of_each_kind_of_block_is_enough() -> None:
    model = built("T5")
    names = [block.name for block in one_of_each(find_attention(model))]
    assert names == [
        "encoder.block.0.layer.0.SelfAttention",
        "encoder.block.1.layer.0.SelfAttention",  # without a table
    ]
    model = tiny.BERT.build(bare=True)
    kept = tiny.uneven(find_attention(model).space)
    assert len(one_of_each(find_attention(model))) == 1
    found = find_attention(slice_heads(model, kept))
    assert len(one_of_each(found)) == len({block.units for block in found}) > 1


def changed(block: AttentionBlock, path: str, unit_of: Any) -> tuple[Piece, ...]:
    return tuple(
        dataclasses.replace(p, unit_of=np.asarray(unit_of)) if p.path == path else p
        for p in block.pieces
    )


def test_wrong_orders_of_fused_rows_are_named() -> None:
    model = tiny.GPT_NEOX.build(bare=True)
    attention = find_attention(model)
    block, trace = attention.attention[1], trace_units(model, attention, ids())[1]
    path = "query_key_value.weight"
    (sentence,) = disagreements(trace, changed(block, path, repeated(8) * 3))
    assert sentence == (
        "layers.1.attention: query_key_value.weight: row 8 belongs to unit 1 by the table and to unit "
        "0 by differentiation; so do 63 more."
    )
    shifted = np.roll(repeated(24), 1)
    (sentence,) = disagreements(trace, changed(block, path, shifted))
    assert "row 0 belongs to unit 3 by the table and to unit 0 by differentiation" in sentence

    model = tiny.GPT2.build(bare=True)
    attention = find_attention(model)
    block, trace = attention.attention[0], trace_units(model, attention, ids())[0]
    (sentence,) = disagreements(trace, changed(block, "c_attn.weight", repeated(24)))
    assert "c_attn.weight: column 8 belongs to unit 0 by the table and to unit 1" in sentence


def test_wrong_mapping_of_query_heads_is_named() -> None:
    model = tiny.LLAMA_GQA.build(bare=True)
    attention = find_attention(model)
    block, trace = attention.attention[0], trace_units(model, attention, ids())[0]
    strided = [head % block.units for head in range(block.heads) for _ in range(block.key_dim)]
    (sentence,) = disagreements(trace, changed(block, "q_proj.weight", strided))
    assert "q_proj.weight: row 4 belongs to unit 1 by the table and to unit 0" in sentence
    # Wrong columns of the output projection: the keys then serve several units.
    target = TracedSite("layer", block.site, "o_proj", np.asarray(strided, dtype=np.int64))
    (wrong,) = trace_targets(model, [target], ids())
    sentences = disagreements(wrong, block.pieces)
    assert any("k_proj.weight: row 0 belongs to unit 0 by the table and to" in s for s in sentences)
    assert any("serves the units 0, 1 and not the others" in s for s in obstacles(wrong))


def test_missing_and_misplaced_pieces_are_named() -> None:
    model = tiny.BERT.build(bare=True)
    attention = find_attention(model)
    block, trace = attention.attention[0], trace_units(model, attention, ids())[0]
    without = tuple(p for p in block.pieces if p.path != "self.value.bias")
    (sentence,) = disagreements(trace, without)
    assert "self.value.bias: entry 0 belongs to all units by the table and to unit 0" in sentence
    (sentence,) = disagreements(trace, changed(block, "self.value.bias", np.full(32, -1)))
    assert "self.value.bias: entry 0 belongs to all units by the table and to unit 0" in sentence
    turned = tuple(
        dataclasses.replace(p, axis=1) if p.path == "self.key.weight" else p for p in block.pieces
    )
    first, second = disagreements(trace, turned)
    assert "self.key.weight: column 0 belongs to unit 0 by the table and to the units 0, 1" in first
    assert "self.key.weight: row 0 belongs to all units by the table and to unit 0" in second
    (sentence,) = disagreements(trace, changed(block, "self.key.weight", repeated(4)))
    assert (
        "self.key.weight has the sizes [32, 32], and the table cuts 16 entries on axis 0"
        in sentence
    )


def test_what_no_gradient_reaches_is_not_contradicted() -> None:
    model = tiny.BERT.build(bare=True)
    # Fused kernels of some processors leave rounding where the gradient of one key's softmax is zero.
    model.set_attn_implementation("eager")
    attention = find_attention(model)
    block = attention.attention[0]
    trace = trace_units(model, attention, ids(length=1))[0]  # one key: queries make no difference
    assert "self.query.weight" in unreached(trace)
    assert disagreements(trace, block.pieces) == ()
    with torch.no_grad():  # a unit whose values are zero does not look at its queries and keys
        block.site.get_parameter("self.value.weight")[:8] = 0
        block.site.get_parameter("self.value.bias")[:8] = 0
    assert contradictions(model, attention, ids()) == ()
    with pytest.raises(UnsupportedModelError, match=r"query.weight: no gradient .* units 0; trace"):
        complete(model, [Anchor(block.name, "output.dense", 4)], ids())
    for units in (1, 2):
        model = tiny.LLAMA_GQA.build(bare=True, num_key_value_heads=units)
        assert contradictions(model, find_attention(model), ids()) == ()


def test_a_block_that_does_not_run_is_reported() -> None:
    model = tiny.BERT.build(bare=True)
    site = model.get_submodule("encoder.layer.0.attention")
    target = TracedSite("nowhere", nn.Sequential(site, nn.Linear(32, 4)), "1", np.arange(32) // 8)
    (trace,) = trace_targets(model, [target], ids())
    assert not trace.reached
    assert obstacles(trace) == ("nowhere: the batch does not reach its output projection.",)


def test_arguments_with_a_slice_per_head_are_found() -> None:
    model = tiny.MPNET.build(bare=True)
    trace = trace_units(model, find_attention(model), ids())[0]
    assert keyed(arguments_of(trace)) == {("position_bias", 1): [0, 1, 2, 3]}
    (bloom,) = complete(built("Bloom"), [Anchor("h.1.self_attention", "dense", 4)], ids())
    assert bloom.arguments == (("alibi", 0),)


def test_norms_over_all_heads_are_refused() -> None:
    model = built("Olmo2")
    with pytest.raises(
        UnsupportedModelError, match="layers.1.self_attn: q_norm.weight .* mixes its"
    ):
        complete(model, [Anchor("layers.1.self_attn", "o_proj", 4)], ids())
    # Qwen 3 has norms of the same names over one head's width: they are shared, and nothing is tied.
    (qwen,) = complete(
        built("Qwen3"),
        [Anchor("layers.1.self_attn", "o_proj", 2, heads=4)],
        ids(),
    )
    assert {c.path for c in qwen.cuts} == {f"{x}_proj.weight" for x in "qkvo"}


DEEPSEEK = Description(
    cls="DeepseekV3Attention",
    out="o_proj",
    heads_per_unit=1,
    cuts=(
        TracedCut("q_b_proj.weight", 0, (Stretch(10),)),
        TracedCut("kv_b_proj.weight", 0, (Stretch(14),)),
        TracedCut("o_proj.weight", 1, (Stretch(8),)),
    ),
    heads=("num_heads",),
    shared=(
        "q_a_proj.weight",
        "q_a_layernorm.weight",
        "kv_a_proj_with_mqa.weight",
        "kv_a_layernorm.weight",
    ),
)


def test_latent_attention_is_completed_from_its_anchor() -> None:
    model = built("DeepseekV3")
    anchors = [Anchor(f"layers.{i}.self_attn", "o_proj", tiny.HEADS) for i in range(2)]
    assert complete(model, anchors, ids()) == (DEEPSEEK, DEEPSEEK)


def test_gated_queries_are_completed_from_their_anchor() -> None:
    (found,) = complete(
        built("Qwen3Next"), [Anchor("layers.1.self_attn", "o_proj", 4, heads=8)], ids()
    )
    assert found.heads_per_unit == 2
    assert found.cuts == (
        TracedCut("q_proj.weight", 0, (Stretch(32),)),
        TracedCut("k_proj.weight", 0, (Stretch(8),), by_head=False),
        TracedCut("v_proj.weight", 0, (Stretch(8),), by_head=False),
        TracedCut("o_proj.weight", 1, (Stretch(16),)),
    )


@pytest.mark.parametrize(
    ("name", "anchor", "runs"),
    [
        ("Phi3", Anchor("layers.1.self_attn", "o_proj", 4, 8), (8, 4, 4)),
        ("Falcon", Anchor("h.1.self_attention", "dense", 2, 4), (32,)),
        ("GPT2", Anchor("h.1.attn", "c_proj", 4), (8, 8, 8)),
    ],
)
def test_fused_projections_are_described_for_any_number_of_units(
    name: str, anchor: Anchor, runs: tuple[int, ...]
) -> None:
    (found,) = complete(built(name), [anchor], ids())
    fused = next(
        c for c in found.cuts if "qkv" in c.path or "query_key" in c.path or "c_attn" in c.path
    )
    assert tuple(part.each for part in fused.stretches) == runs
    assert fused.axis == (1 if name == "GPT2" else 0)


def test_tables_of_biases_are_cut_on_their_own_axis() -> None:
    anchors = [
        Anchor("encoder.block.0.layer.0.SelfAttention", "o", 4),
        Anchor("decoder.block.1.layer.1.EncDecAttention", "o", 4),
    ]
    batch = ids()
    first, cross = complete(
        built("T5"), anchors, {**batch, "decoder_input_ids": batch["input_ids"]}
    )
    assert TracedCut("relative_attention_bias.weight", 1, (Stretch(1),)) in first.cuts
    assert {c.path for c in cross.cuts} == {f"{x}.weight" for x in "qkvo"}


def test_a_module_that_runs_several_times_is_traced_at_its_first_run() -> None:
    model = built("Albert")
    site = "encoder.albert_layer_groups.0.albert_layers.0.attention"
    (found,) = complete(model, [Anchor(site, "dense", 4)], ids())
    assert {c.path for c in found.cuts} == {
        f"{x}.{y}" for x in ("query", "key", "value") for y in ("weight", "bias")
    } | {"dense.weight"}
    assert all(cut.stretches == (Stretch(8),) for cut in found.cuts)


def test_a_description_fits_other_sizes_and_the_meta_device() -> None:
    with torch.device("meta"):
        config = configured("DeepseekV3", num_attention_heads=6, num_key_value_heads=6)
        model = transformers.DeepseekV3Model(config)
    site = model.get_submodule("layers.0.self_attn")
    assert keyed(DEEPSEEK.pieces(site)) == {
        ("q_b_proj.weight", 0): repeated(10, 6),
        ("kv_b_proj.weight", 0): repeated(14, 6),
        ("o_proj.weight", 1): repeated(8, 6),
    }
    other = dataclasses.replace(
        DEEPSEEK, cuts=(*DEEPSEEK.cuts, TracedCut("o_proj.weight", 0, (Stretch(3),)))
    )
    with pytest.raises(UnsupportedModelError, match=r"does not fit its description: .*None units"):
        other.pieces(site)
    missing = dataclasses.replace(DEEPSEEK, cuts=(TracedCut("v_proj.weight", 0, (Stretch(3),)),))
    with pytest.raises(UnsupportedModelError, match=r"v_proj.weight on axis 0 of size None"):
        missing.pieces(site)


def test_descriptions_can_be_saved_and_pasted() -> None:
    shared = dataclasses.replace(
        DEEPSEEK,
        cuts=(TracedCut("a.b", 1, (Stretch(2, shared=True), Stretch(3))),),
        arguments=(("mask", 1),),
    )
    for description in (DEEPSEEK, shared):
        assert Description.from_json(description.to_json()) == description
        names: dict[str, Any] = {
            "Description": Description,
            "TracedCut": TracedCut,
            "Stretch": Stretch,
        }
        assert eval(str(description), names) == description
    good = DEEPSEEK.to_json()
    for bad in ({**good, "cuts": []}, {**good, "cuts": [{}]}, {**good, "heads_per_unit": None}, {}):
        with pytest.raises(ValueError, match="description of a traced attention"):
            Description.from_json(bad)


def test_runs_are_recognised_and_nothing_else() -> None:
    cases: list[tuple[list[int], int, tuple[Stretch, ...] | None]] = [
        ([0, 0, 1, 1, 2, 2], 3, (Stretch(2),)),
        ([0, 1, 0, 0, 1, 1], 2, (Stretch(1), Stretch(2))),
        ([-1, -1, 0, 1], 2, (Stretch(2, shared=True), Stretch(1))),
        ([1, 1, 0, 0], 2, None),
        ([0, 0, 1], 2, None),
        ([0, 0, 1, 1, 2], 3, None),
        ([0, -1, 1, 1], 2, None),
    ]
    for unit_of, units, expected in cases:
        found = stretches_of(np.asarray(unit_of, dtype=np.int64), units)
        assert found == expected
        if found is not None:
            cut = TracedCut("x", 0, found)
            assert cut.units(len(unit_of)) == units
            assert cut.piece(units).unit_of.tolist() == unit_of


def test_bad_anchors_are_refused_by_name() -> None:
    model = tiny.BERT.build(bare=True)
    site = "encoder.layer.0.attention"
    for anchor, sentence in [
        (Anchor("encoder.layer.7", "o", 4), "names a module that is not there"),
        (Anchor(site, "output.LayerNorm", 4), "must be a linear layer"),
        (Anchor(site, "output.dense", 5), "cannot have 5 units and 5 heads"),
        (Anchor(site, "output.dense", 4, heads=6), "cannot have 4 units and 6 heads"),
        (Anchor(site, "output.dense", 1), "cannot have 1 units"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            complete(model, [anchor], ids())


SITES = {
    "DeepseekV3": Anchor("layers.1.self_attn", "o_proj", 4),
    "Qwen3Next": Anchor("layers.1.self_attn", "o_proj", 4, heads=8),
    "GptOss": Anchor("layers.1.self_attn", "o_proj", 4, heads=8),
    "Phi3": Anchor("layers.1.self_attn", "o_proj", 4, heads=8),
    "GPT2": Anchor("h.1.attn", "c_proj", 4),
    "Falcon": Anchor("h.1.self_attention", "dense", 2, heads=4),
    "Bloom": Anchor("h.1.self_attention", "dense", 4),
    "DebertaV2": Anchor("encoder.layer.1.attention", "output.dense", 4),
    "T5": Anchor("encoder.block.0.layer.0.SelfAttention", "o", 4),
}


@pytest.mark.parametrize("unit", [None, Unit.QUERY_SLOT], ids=["groups", "slots"])
@pytest.mark.parametrize("name", SITES)
def test_a_suggested_entry_does_what_the_table_does(
    name: str, unit: Unit | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the table, the entry found by differentiation finds and slices the same blocks."""
    model = built(name)
    batch = sample_inputs(model)
    assert batch is not None
    by_table = find_attention(model, unit=unit)
    (description,) = complete(model, [SITES[name]], batch)
    found = suggest(description, model.get_submodule(SITES[name].site))
    assert found is not None
    assert not (found.parameters or found.heads or found.kv_heads or found.arguments)
    assert not found.widths
    assert eval(str(found), vars(layouts)) == found
    monkeypatch.setattr(reading, "LAYOUTS", (found,))
    attention = find_attention(model, unit=unit)
    assert attention.space == by_table.space
    for mine, theirs in zip(attention, by_table, strict=True):
        assert keyed(mine.pieces) == keyed(theirs.pieces)
    kept = np.arange(attention.space.n) % 2 == 0
    small = slice_heads(model, kept, unit=unit)
    left = find_attention(small).space.n
    again = slice_heads(small, np.arange(left) > 0)
    assert left == kept.sum()
    assert find_attention(again).attention[0].heads <= find_attention(small).attention[0].heads


def test_words_that_the_table_lacks_are_suggested(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("GptOss")
    site = model.get_submodule("layers.1.self_attn")
    vars(site)["number_of_heads"] = 8
    (description,) = complete(model, [SITES["GptOss"]], ids())
    monkeypatch.setattr("cahp_opt.torch.tracing.to_layout.PARAMETERS", ())
    found = suggest(description, site)
    assert found is not None
    assert found.parameters == (layouts.HeadParameter("sinks", 0),)
    assert found.heads == ("number_of_heads",)
    assert str(found).endswith(
        "parameters=(HeadParameter(path='sinks', axis=0),), heads=('number_of_heads',))"
    )
    odd = dataclasses.replace(
        description, cuts=(TracedCut("q_proj.weight", 0, (Stretch(1), Stretch(3))),)
    )
    assert suggest(dataclasses.replace(odd, cuts=(*odd.cuts, *description.cuts)), site) is None
