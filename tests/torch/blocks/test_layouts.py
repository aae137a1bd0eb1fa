"""Architectures that were once refused, read wrongly or left out, and sizes that happen to be equal."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
from small_builds import built
from tiny_models import outputs
from torch import Tensor, nn

from cahp_opt.arrays import Bools
from cahp_opt.space import HeadSpace
from cahp_opt.torch.blocks import site_reader as reading
from cahp_opt.torch.blocks.finder import UnsupportedModelError, find_attention
from cahp_opt.torch.blocks.layouts import HEADLESS
from cahp_opt.torch.checkpoints.checkpoint import from_pretrained, save_pretrained
from cahp_opt.torch.running.gates import head_mask
from cahp_opt.torch.slicing.slicing import slice_heads
from cahp_opt.torch.tracing.ownership import contradictions

_IMAGES = ("Swinv2", "Swin2SR")


def first(space: HeadSpace, count: int) -> Bools:
    """The last ``count`` units of every block, and one of the last block if that is none."""
    kept = np.concatenate([np.arange(b.units)[::-1] < count for b in space.blocks])
    kept[-1] = True
    return kept


def batch_of(name: str, length: int, padded: bool) -> dict[str, Tensor]:
    """Images, or texts of this length."""
    if name in _IMAGES:
        made = tiny.image(size=2, length=length, padded=padded, seed=1)
    elif name in ("LongT5", "BigBirdPegasus", "ProphetNet"):
        made = tiny.two_texts(size=3, length=length, padded=padded, seed=1)
    else:
        made = tiny.tokens(size=3, length=length, padded=padded, seed=1)
    if name == "Longformer":
        made["global_attention_mask"] = torch.eye(3, length, dtype=torch.long)
    return tiny.to(made, torch.float64)


CASES: dict[str, tuple[str, dict[str, Any], list[int]]] = {
    "a fused projection head by head": ("GPTBigCode", {"multi_query": False}, [4] * 3),
    "a fused projection with one key": ("GPTBigCode", {"multi_query": True}, [4] * 3),
    "global tokens": ("LongT5", {"encoder_attention_type": "transient-global"}, [4] * 6),
    "local tokens": ("LongT5", {"encoder_attention_type": "local"}, [4] * 6),
    "queries of global tokens": ("Longformer", {}, [4] * 3),
    "shards of a fused projection": ("CodeGen", {}, [8] * 3),
    "two coordinates": ("Swinv2", {}, [4, 4, 4]),
    "two coordinates beside two heads": ("Swinv2", {"num_attention_heads": [2, 2]}, [2, 2, 2]),
    "a width of heads that equals the width of the coordinates' network": (
        "Swinv2",
        {"embed_dim": 512, "num_attention_heads": [2], "depths": [1], "mlp_ratio": 0.1},
        [2],
    ),
    "two coordinates, in another family": ("Swin2SR", {"num_attention_heads": [2, 4]}, [2, 2, 4]),
}


@pytest.mark.parametrize("case", CASES)
def test_all_blocks_are_found_and_cut_to_any_count(case: str) -> None:
    name, fields, units = CASES[case]
    model = built(name, **fields).double()
    attention = find_attention(model)
    assert [block.units for block in attention] == units
    assert attention.skipped == ()
    reach = batch_of(name, 7, False)
    assert contradictions(model, attention, reach) == ()
    for count in range(min(max(units), 3)):
        kept = first(attention.space, count)
        small = slice_heads(model, kept, batch=reach)
        again = slice_heads(small, np.ones(find_attention(small).space.n, dtype=bool), batch=reach)
        for length, padded in ((5, False), (29, True)):
            batch = batch_of(name, length, padded)
            with head_mask(model, kept):
                expected = outputs(model, batch)
            dense = outputs(model, batch)
            for found in (outputs(small, batch), outputs(again, batch)):
                assert found.keys() == expected.keys()
                for key, value in expected.items():
                    torch.testing.assert_close(found[key], value, rtol=0, atol=1e-9)
            assert max(float((dense[k] - v).abs().max()) for k, v in expected.items()) > 1e-3


@pytest.mark.parametrize("size", [1, 2, 3, 8, 16])
def test_a_parameter_as_large_as_what_is_left_of_the_heads_is_no_parameter_of_heads(
    size: int,
) -> None:
    """Of four heads of width eight some are cut; 8 and 16 are one and two heads' width."""
    model: Any = tiny.BERT.build(bare=True)
    attention = find_attention(model)
    for block in attention:
        block.module.register_parameter("scale", nn.Parameter(torch.ones(size, 5)))
    kept = first(attention.space, size if size < 4 else size // 8)
    small = slice_heads(model, kept)
    assert find_attention(small).space.n == kept.sum()
    batch = tiny.batch()
    with head_mask(model, kept):
        expected = outputs(model, batch)
    for name, value in outputs(slice_heads(small, [True] * int(kept.sum())), batch).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["CodeGen", "ProphetNet"])
def test_what_is_stored_in_another_order_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model = built(name)
    small = slice_heads(model, tiny.uneven(find_attention(model).space))
    save_pretrained(small, tmp_path)
    batch = tiny.to(batch_of(name, 7, True), torch.float32)
    loaded = outputs(from_pretrained(tmp_path), batch)
    for key, value in outputs(small, batch).items():
        assert torch.equal(value, loaded[key])


BIG = ("BigBird", "BigBirdPegasus")


@pytest.mark.parametrize("name", BIG)
def test_a_model_that_builds_its_attention_anew_for_short_inputs_is_refused(name: str) -> None:
    model: Any = built(name)
    assert model.config.attention_type == "block_sparse"
    for use in (find_attention, slice_whole):
        with pytest.raises(
            UnsupportedModelError, match=r"set_attention_type replaces its 'self'.*original_full"
        ):
            use(model)
    # Nothing was run that would have made it such a model for good.
    assert model.encoder.attention_type == "block_sparse"
    # Its state is of the run, and a copy made of its configuration would be the other model.
    model.encoder.set_attention_type("original_full")
    with pytest.raises(UnsupportedModelError, match="into its configuration"):
        find_attention(model)


def slice_whole(model: nn.Module) -> nn.Module:
    return slice_heads(model, [True] * 8)


@pytest.mark.parametrize("name", BIG)
def test_the_same_model_with_full_attention_is_right_for_short_and_long_inputs(
    name: str, tmp_path: Path
) -> None:
    model = built(name, attention_type="original_full")
    kept = first(find_attention(model).space, 2)
    save_pretrained(slice_heads(model, kept), tmp_path / "small")
    small = from_pretrained(tmp_path / "small")
    for length in (5, 60):
        batch = tiny.to(batch_of(name, length, True), torch.float32)
        with head_mask(model, kept):
            expected = outputs(model, batch)
        for key, value in outputs(small, batch).items():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-5)


class Rebuilding(nn.Module):
    """A model around another one that makes new attention modules as it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner: Any = tiny.BERT.build(bare=True)

    def forward(self, **inputs: Tensor) -> Tensor:
        for layer in self.inner.encoder.layer:
            layer.attention.self = copy.copy(layer.attention.self)
        found: Tensor = self.inner(**inputs)[0]
        return found


def test_a_model_that_replaces_modules_from_outside_is_refused_when_it_does() -> None:
    model = Rebuilding()
    kept = first(find_attention(model).space, 2)
    with pytest.raises(UnsupportedModelError, match="replaces its modules while it runs"):
        slice_heads(model, kept, batch=tiny.batch())


@pytest.mark.parametrize("size", [1, 3, 4])
def test_a_mask_for_every_head_of_torchs_own_layers_is_cut_with_the_heads(size: int) -> None:
    """With four examples of four heads, and tokens as many, every axis of the mask looks alike."""
    family = tiny.named("torch-encoder")
    model = family.build().double()
    kept = tiny.uneven(find_attention(model).space)
    batch = tiny.to(tiny.vectors(size=size, length=4, padded=False, seed=0), torch.float64)
    generator = torch.Generator().manual_seed(0)
    shape = (size * tiny.HEADS, 4, 4)
    each = torch.randn(shape, generator=generator, dtype=torch.float64)
    for mask in (each, each > 1.5, each[0]):
        small = slice_heads(model, kept, batch={**batch, "mask": mask})
        with head_mask(model, kept):
            expected = outputs(model, {**batch, "mask": mask})
        found = outputs(small, {**batch, "mask": mask})
        torch.testing.assert_close(found["output"], expected["output"], rtol=0, atol=1e-9)


def test_a_folder_from_when_some_blocks_were_not_understood_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built("LongT5", encoder_attention_type="transient-global")
    with monkeypatch.context() as patch:
        fewer = tuple(name for name in HEADLESS if name != "global_input_layer_norm")
        patch.setattr(reading, "HEADLESS", fewer)
        attention = find_attention(model)
        assert len(attention) == 4 and len(attention.skipped) == 2
        small = slice_heads(model, tiny.uneven(attention.space))
        save_pretrained(small, tmp_path / "small")
    loaded = from_pretrained(tmp_path / "small")
    assert [block.units for block in find_attention(loaded).attention][:3] == [4, 4, 1]
    batch = tiny.to(batch_of("LongT5", 9, True), torch.float32)
    for name, value in outputs(loaded, batch).items():
        torch.testing.assert_close(value, outputs(small, batch)[name], rtol=0, atol=0)
