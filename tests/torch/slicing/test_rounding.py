"""Results near zero, where large numbers cancel: rounding is no difference, and a wrong head is one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
from tiny_models import Family, uneven
from torch import Tensor, nn

from cahp_opt.arrays import Bools
from cahp_opt.torch.blocks.finder import find_attention
from cahp_opt.torch.blocks.linear_layers import row_weight
from cahp_opt.torch.running.gates import head_mask
from cahp_opt.torch.slicing.rounding import shaken
from cahp_opt.torch.slicing.slicing import slice_heads
from cahp_opt.torch.slicing.verification import SliceError, verify_slice

families = pytest.mark.parametrize(
    "family", [tiny.BERT, tiny.GPT2, tiny.LLAMA_GQA, tiny.GPT_NEOX], ids=lambda f: f.name
)
dtypes = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["f64", "f32", "bf16"]
)


class Score(nn.Module):
    """One number per example, near zero: what a model says, less what it said when it was masked."""

    def __init__(self, family: Family, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner: Any = family.build(bare=True).to(dtype)
        self.usual: Tensor
        self.scale: Tensor
        self.register_buffer("usual", torch.zeros((), dtype=dtype))
        self.register_buffer("scale", torch.ones((), dtype=dtype))

    def forward(self, **inputs: Tensor) -> Tensor:
        hidden: Tensor = self.inner(**inputs)[0]
        return hidden[0, -1].sum() * self.scale - self.usual


def batch() -> dict[str, Tensor]:
    return tiny.batch(size=1, padded=False)


def near_zero(family: Family, dtype: torch.dtype, scale: float) -> tuple[Score, Bools]:
    model: Any = Score(family, dtype)
    model.scale.fill_(scale)
    kept = uneven(find_attention(model).space)
    with torch.no_grad(), head_mask(model, kept):
        model.usual.copy_(model(**batch()))
    return model, kept


@families
@dtypes
@pytest.mark.parametrize("scale", [1e4])
def test_an_output_near_zero_is_no_difference(
    family: Family, dtype: torch.dtype, scale: float
) -> None:
    model, kept = near_zero(family, dtype, scale)
    slice_heads(model, kept, batch=batch())


@families
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_another_selection_shows_in_an_output_near_zero(family: Family, dtype: torch.dtype) -> None:
    model, kept = near_zero(family, dtype, 1)
    small = slice_heads(model, kept, batch=batch())
    assert verify_slice(model, small, kept, batch()) <= 1e-4
    other = kept.copy()
    last = find_attention(model).space.slices[-1]
    other[last] = kept[last][::-1]
    with pytest.raises(SliceError, match="differs from the masked one"):
        verify_slice(model, small, other, batch())
    # Of which the blocks say nothing: the output alone is wrong.
    wrong: Any = slice_heads(model, kept, batch=batch())
    wrong.usual.add_(float(wrong.usual.abs()) * 1e-2 + 1e-2)
    with pytest.raises(SliceError, match="output 0 by"):
        verify_slice(model, wrong, kept, batch())


@pytest.mark.parametrize("seed", range(2))
@dtypes
@pytest.mark.parametrize("large", [1e3])
def test_heads_that_say_the_opposite_of_each_other(
    seed: int, dtype: torch.dtype, large: float
) -> None:
    model: Any = tiny.BERT.build(bare=True, seed=seed)
    with torch.no_grad():
        for block in find_attention(model).attention:
            size = block.head_dim
            for name in ("query", "key", "value"):
                linear = getattr(block.module, name)
                for part in (linear.weight, linear.bias):
                    part[size : 2 * size] = part[:size]
            weight = row_weight(block.out)
            weight.mul_(large)
            weight[:, size : 2 * size] = -weight[:, :size]
            block.out.get_parameter("bias").zero_()
    model.to(dtype)
    kept = np.tile([True, True, False, False], len(find_attention(model)))
    small = slice_heads(model, kept)
    other = np.tile([True, False, True, False], len(find_attention(model)))
    with pytest.raises(SliceError, match="block 'encoder.layer.0.attention' by"):
        verify_slice(model, small, other)


def test_tensors_that_no_float32_reaches_are_shaken_in_their_own_precision() -> None:
    """Half precision overflows in the squares of what it holds; float64 loses nothing."""
    model: Any = tiny.BERT.build(bare=True)
    attention = find_attention(model)
    with torch.no_grad():
        row_weight(attention.blocks[0].out).mul_(300)
    for dtype, most in ((torch.float16, 1e-2), (torch.float64, 1e-8)):
        model.to(dtype)
        inputs = tiny.batch(padded=False)
        with torch.no_grad():
            still = model(**inputs)[0]
            with shaken(attention, 1e-12 if dtype is torch.float64 else 1e-4, seed=0):
                moved = model(**inputs)[0]
        difference = float((moved - still).double().abs().max())
        assert difference < most and (dtype is torch.float16 or difference > 0)
        assert moved.dtype is dtype
        assert torch.equal(model(**inputs)[0], still)
