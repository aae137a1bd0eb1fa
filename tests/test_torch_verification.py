"""Planted errors do not get past the check of a slice, and leave the model as it was."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import tiny_models as tiny
import torch
from tiny_models import Family, run, uneven
from torch import nn

from cahp_opt.torch import attention as attention_module
from cahp_opt.torch import masking, surgery
from cahp_opt.torch.attention import find_attention
from cahp_opt.torch.layouts import LAYOUTS, Layout, Order
from cahp_opt.torch.slicing import selection_of, slice_heads
from cahp_opt.torch.verification import SliceError, verify_slice


def relaid(name: str, **changes: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Change the entry of one family in the table of layouts."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        def changed(layout: Layout) -> Layout:
            if not layout.name.startswith(name):
                return layout
            order = {k: v for k, v in changes.items() if k == "order"}
            projections = tuple(dataclasses.replace(p, **order) for p in layout.projections)
            rest = {k: v for k, v in changes.items() if k != "order"}
            return dataclasses.replace(layout, projections=projections, **rest)

        patch.setattr(attention_module, "LAYOUTS", tuple(map(changed, LAYOUTS)))

    return plant


def stale_count(patch: pytest.MonkeyPatch) -> None:
    put = surgery.Journal.put

    def forgetful(self: Any, module: nn.Module, name: str, value: object) -> None:
        if name != "num_attention_heads":
            put(self, module, name, value)

    patch.setattr(surgery.Journal, "put", forgetful)


def strided_queries(patch: pytest.MonkeyPatch) -> None:
    """Query head ``h`` is taken to read key ``h mod keys``, not ``h // group``."""
    rows = surgery._rows

    def wrong(block: Any, projection: Any, units: list[int]) -> list[int]:
        if not projection.path.startswith("q"):
            return rows(block, projection, units)
        heads = [u + g * block.units for u in units for g in range(block.heads // block.units)]
        return surgery._spread(sorted(heads), block.key_dim)

    patch.setattr(surgery, "_rows", wrong)


def strided_gate(patch: pytest.MonkeyPatch) -> None:
    """The gate runs over the dimensions of a head, not over the heads."""

    class Wrong(masking._Gate):
        def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            gate = self.gates[..., self.where].to(args[0].dtype).repeat(self.columns)
            return (args[0] * gate, *args[1:])

    patch.setattr(masking, "_Gate", Wrong)


def first_columns(patch: pytest.MonkeyPatch) -> None:
    take = surgery._take_inputs

    def wrong(module: nn.Module, columns: list[int], journal: surgery.Journal) -> None:
        take(module, list(range(len(columns))), journal)

    patch.setattr(surgery, "_take_inputs", wrong)


BUGS: dict[str, tuple[Family, Callable[[pytest.MonkeyPatch], None], str]] = {
    "fused layout of GPT-2": (
        tiny.GPT2,
        relaid("GPT-2", order=Order.UNIT_BY_UNIT),
        "differs from the masked one .*h.0.attn",
    ),
    "fused layout of GPT-NeoX": (
        tiny.GPT_NEOX,
        relaid("GPT-NeoX", order=Order.PART_BY_PART),
        "differs from the masked one .*layers.0.attention",
    ),
    "stale head count": (tiny.BERT, stale_count, "contradicts itself.*num_attention_heads|rows"),
    "stale width": (tiny.MPNET, relaid("MPNet", widths=()), "cannot run"),
    "stale split": (tiny.GPT2, relaid("GPT-2", widths=()), "cannot run"),
    "argument with all heads": (tiny.MPNET, relaid("MPNet", arguments=()), "cannot run"),
    "query heads of other keys": (tiny.LLAMA_GQA, strided_queries, "layers.0.self_attn"),
    "gate over head dimensions": (tiny.BERT, strided_gate, "differs from the masked one"),
    "columns of other heads": (tiny.DISTILBERT, first_columns, "differs from the masked one"),
}


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "copy"])
def test_planted_bugs_are_caught_and_the_model_is_as_before(
    bug: str, dtype: torch.dtype, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, plant, sentence = BUGS[bug]
    model = family.build().to(dtype)
    reference = copy.deepcopy(model)
    with monkeypatch.context() as patch:
        plant(patch)
        kept = uneven(find_attention(model).space)
        with pytest.raises(SliceError, match=sentence):
            slice_heads(model, kept, in_place=in_place)
    for name, value in reference.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert find_attention(model).space == find_attention(reference).space
    for block, before in zip(find_attention(model), find_attention(reference), strict=True):
        assert block.module._forward_pre_hooks.keys() == before.module._forward_pre_hooks.keys()
        public = {k for k in vars(before.module) if k[0] != "_"}
        assert {k for k in vars(block.module) if k[0] != "_"} == public
    assert torch.equal(run(model, tiny.batch()), run(reference, tiny.batch()))
    slice_heads(model, kept, in_place=in_place)


def test_a_check_cut_short_restores_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.GPT2.build()
    before = run(model, tiny.batch())

    def interrupted(*args: object) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cahp_opt.torch.slicing.compare", interrupted)
        with pytest.raises(KeyboardInterrupt):
            slice_heads(model, uneven(find_attention(model).space), in_place=True)
    assert torch.equal(run(model, tiny.batch()), before)
    assert selection_of(model) is None


def test_verification_tells_two_selections_apart() -> None:
    model = tiny.LLAMA_GQA.build()
    kept = uneven(find_attention(model).space)
    small = slice_heads(model, kept)
    other = kept.copy()
    other[2], other[3] = True, False
    with pytest.raises(SliceError, match=r"block 'model.layers.0.self_attn' by \d"):
        verify_slice(model, small, other)
