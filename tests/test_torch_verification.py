"""Planted errors do not get past the check of a slice, and leave the model as it was."""

from __future__ import annotations

import copy

import pytest
import tiny_models as tiny
import torch
from planted_bugs import BUGS
from tiny_models import run, uneven

from cahp_opt.torch.attention import find_attention
from cahp_opt.torch.slicing import selection_of, slice_heads
from cahp_opt.torch.verification import SliceError, verify_slice

QUICK = (
    "GPT-NeoX's fused rows part by part",
    "BERT's head count stale",
    "MPNet's bias argument with all heads",
    "Llama's query heads with other keys",
    "gates over the dimensions of a head",
    "columns of other heads",
)
"""A few of the planted bugs; test_torch_mutations.py has all of them."""


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "copy"])
def test_planted_bugs_are_caught_and_the_model_is_as_before(
    name: str, dtype: torch.dtype, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug = BUGS[name]
    model = bug.build().to(dtype)
    reference = copy.deepcopy(model)
    kept = uneven(find_attention(model).space)
    with monkeypatch.context() as patch:
        bug.plant(patch)
        # In half precision differentiation is asked first.
        with pytest.raises(SliceError, match=f"{bug.sentence}|laid out in another way"):
            slice_heads(model, kept, in_place=in_place)
    for key, value in reference.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
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
