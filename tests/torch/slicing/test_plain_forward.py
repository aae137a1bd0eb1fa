"""Attention that gives the heads' output the width of its input, as older releases of CLIP do."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
from tiny_models import uneven
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import CLIPAttention, eager_attention_forward

from cahp_opt.torch import from_pretrained, head_mask, save_pretrained, slice_heads
from cahp_opt.torch.blocks.finder import find_attention
from cahp_opt.torch.slicing import surgery
from cahp_opt.torch.slicing.bypass import Bypass, bypass_empty
from cahp_opt.torch.slicing.plain_forward import PlainForward, takes_width_from_input
from cahp_opt.torch.slicing.verification import SliceError

Batch = dict[str, Tensor]


class Old(nn.Module):
    """Attention with CLIP's forward of release 4.57."""

    def __init__(self, config: Any, *, is_causal: bool = False) -> None:
        super().__init__()
        self.config: Any = config
        self.num_heads = 4
        self.head_dim = 8
        self.scale = self.head_dim**-0.5
        self.dropout = 0.25
        self.is_causal = is_causal
        self.q_proj = nn.Linear(32, 32)
        self.k_proj = nn.Linear(32, 32)
        self.v_proj = nn.Linear(32, 32)
        self.out_proj = nn.Linear(32, 32)

    def forward(
        self,
        hidden_states: Any,
        attention_mask: Any = None,
        causal_attention_mask: Any = None,
        output_attentions: Any = False,
    ) -> Any:
        """What the stock one returns."""
        batch_size, seq_length, embed_dim = hidden_states.shape
        queries = self.q_proj(hidden_states)
        keys = self.k_proj(hidden_states)
        values = self.v_proj(hidden_states)
        queries = queries.view(batch_size, seq_length, -1, self.head_dim).transpose(1, 2)
        keys = keys.view(batch_size, seq_length, -1, self.head_dim).transpose(1, 2)
        values = values.view(batch_size, seq_length, -1, self.head_dim).transpose(1, 2)
        if self.config._attn_implementation == "flash_attention_2":
            self.is_causal = causal_attention_mask is not None
        else:
            if attention_mask is not None and causal_attention_mask is not None:
                attention_mask = attention_mask + causal_attention_mask
            elif causal_attention_mask is not None:
                attention_mask = causal_attention_mask
        attention_interface: Any = eager_attention_forward
        if self.config._attn_implementation != "eager":
            attention_interface = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        attn_output, attn_weights = attention_interface(
            self,
            queries,
            keys,
            values,
            attention_mask,
            is_causal=self.is_causal,
            scaling=self.scale,
            dropout=0.0 if not self.training else self.dropout,
            output_attentions=output_attentions,
        )
        attn_output = attn_output.reshape(batch_size, seq_length, embed_dim).contiguous()
        attn_output = self.out_proj(attn_output)
        if not output_attentions:
            attn_weights = None
        return attn_output, attn_weights


def siglip_forward(self: Any, hidden_states: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
    """SigLIP's forward of release 5.0, which drops what else it is given."""
    batch_size, seq_length, embed_dim = hidden_states.shape
    queries = self.q_proj(hidden_states)
    keys = self.k_proj(hidden_states)
    values = self.v_proj(hidden_states)
    queries = queries.view(batch_size, seq_length, self.num_heads, self.head_dim).transpose(1, 2)
    keys = keys.view(batch_size, seq_length, self.num_heads, self.head_dim).transpose(1, 2)
    values = values.view(batch_size, seq_length, self.num_heads, self.head_dim).transpose(1, 2)
    attention_interface: Any = eager_attention_forward
    if self.config._attn_implementation != "eager":
        attention_interface = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
    attn_output, attn_weights = attention_interface(
        self,
        queries,
        keys,
        values,
        attention_mask,
        is_causal=self.is_causal,
        scaling=self.scale,
        dropout=0.0 if not self.training else self.dropout,
    )
    attn_output = attn_output.reshape(batch_size, seq_length, embed_dim).contiguous()
    attn_output = self.out_proj(attn_output)
    return attn_output, attn_weights


class Pair(nn.Module):
    """Two blocks, of which only the second is causal by its flag."""

    def __init__(self) -> None:
        super().__init__()
        config: Any = PretrainedConfig()
        config._attn_implementation = "sdpa"
        self.config = config
        self.blocks = nn.ModuleList([Old(config), Old(config, is_causal=True)])

    def forward(
        self, x: Tensor, mask: Tensor | None = None, causal: Tensor | None = None
    ) -> Tensor:
        """The states after both blocks."""
        for block in self.blocks:
            x = x + block(x, mask, causal_attention_mask=causal)[0]
        return x


def pair() -> tuple[Pair, list[Batch]]:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 32)
    mask = torch.zeros(2, 1, 5, 5)
    mask[0, ..., 3:] = -1e9
    causal = torch.full((2, 1, 5, 5), -1e9).triu(1)
    batches = [{"x": x}, {"x": x, "mask": mask}, {"x": x, "causal": causal}]
    return Pair().eval(), [*batches, {"x": x, "mask": mask, "causal": causal}]


def keep(*units: int) -> Any:
    return np.isin(np.arange(8), units)


def run(model: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(**batch)
    return output


def masked(model: nn.Module, kept: Any, batch: Batch) -> Tensor:
    with head_mask(model, kept):
        return run(model, batch)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("training", [False, True])
def test_with_all_heads_it_computes_the_same_bits(implementation: str, training: bool) -> None:
    model, batches = pair()
    model.config._attn_implementation = implementation
    model.train(training)
    for block in model.blocks:
        plain: Any = PlainForward(block)
        # Some releases refuse a mask beside the flag.
        for batch in batches[:1] if block is model.blocks[1] else batches:
            x, mask, causal = batch["x"], batch.get("mask"), batch.get("causal")
            for asked in (False, True):
                torch.manual_seed(1)
                expected = block(x, mask, causal, output_attentions=asked)
                torch.manual_seed(1)
                found = plain(x, mask, causal_attention_mask=causal, output_attentions=asked)
                assert torch.equal(found[0], expected[0])
                assert (found[1] is None) == (expected[1] is None)
                assert expected[1] is None or torch.equal(found[1], expected[1])


@pytest.mark.parametrize("in_place", [False, True])
def test_it_is_set_where_heads_are_cut_and_slicing_works(in_place: bool) -> None:
    model, batches = pair()
    kept = keep(0, 3, *range(4, 8))
    expected = [masked(model, kept, batch) for batch in batches]
    small = slice_heads(model, kept, batch=batches[0], in_place=in_place)
    first, second = (vars(block).get("forward") for block in small.blocks)
    assert isinstance(first, PlainForward) and second is None
    for again in (small, copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert vars(again.blocks[0])["forward"].module is again.blocks[0]
        for batch, value in zip(batches, expected, strict=True):
            torch.testing.assert_close(run(again, batch), value)


def test_a_sliced_module_is_sliced_again() -> None:
    model, batches = pair()
    small = slice_heads(model, keep(0, 3, 4, 5, 6, 7), batch=batches[0])
    less = slice_heads(small, np.array([0, 1, 1, 1, 1, 0], dtype=bool), batch=batches[0])
    for batch in batches:
        torch.testing.assert_close(run(less, batch), masked(model, keep(3, 4, 5, 6), batch))
    assert vars(small.blocks[0])["forward"].module is small.blocks[0]


def test_nothing_of_it_stays_when_the_check_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(PlainForward):
        """Forgets that the module is causal."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            module: Any = self.module
            module.is_causal = False
            return super().__call__(*args, **kwargs)

    model, batches = pair()
    before = run(model, batches[0])
    monkeypatch.setattr(surgery, "PlainForward", Wrong)
    with pytest.raises(SliceError, match="differs"):
        slice_heads(model, keep(0, 1, 2, 3, 4, 5), batch=batches[0], in_place=True)
    assert not any("forward" in vars(module) for module in model.modules())
    last: Any = model.blocks[1]
    last.is_causal = True
    assert torch.equal(run(model, batches[0]), before)


def test_a_forward_that_something_else_set_stays() -> None:
    model, batches = pair()
    owner: Any = model.blocks[0]
    mine = functools.partial(Old.forward, owner)
    vars(owner)["forward"] = mine
    with pytest.raises(SliceError, match="cannot run"):
        slice_heads(model, keep(0, 4, 5, 6, 7), batch=batches[0], in_place=True)
    assert vars(owner)["forward"] is mine


def test_a_block_without_kept_units_can_still_be_skipped() -> None:
    model, batches = pair()
    kept = keep(4, 5)
    small = slice_heads(model, kept, batch=batches[0])
    plain = vars(small.blocks[0])["forward"]
    assert bypass_empty(small, batches[0]) == 1
    assert isinstance(vars(small.blocks[0])["forward"], Bypass)
    for batch in batches:
        torch.testing.assert_close(run(small, batch), masked(model, kept, batch))
    small.train()
    assert run(small, batches[0]).shape == batches[0]["x"].shape  # the stock forward could not run
    assert vars(small.blocks[0])["forward"].plain is plain


@pytest.mark.parametrize("padded", [False, True])
def test_a_model_is_saved_and_loaded(
    padded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CLIPAttention, "forward", siglip_forward)
    family = tiny.named("clip")
    model, batch = family.build(), family.batch(padded=padded)
    kept = uneven(find_attention(model).space)
    small = slice_heads(model, kept)
    save_pretrained(small, tmp_path)
    loaded = from_pretrained(tmp_path)
    with head_mask(model, kept):
        expected = tiny.outputs(model, batch)
    assert any(isinstance(vars(m).get("forward"), PlainForward) for m in loaded.modules())
    for name, value in tiny.outputs(loaded, batch).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


def variant(old: str, new: str) -> Callable[..., Any]:
    """SigLIP's forward with another line."""
    source = inspect.getsource(siglip_forward)
    assert old in source
    made: dict[str, Any] = {}
    exec(source.replace(old, new), globals(), made)
    forward: Callable[..., Any] = made["siglip_forward"]
    return forward


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("length, embed_dim).contiguous", "length, -1).contiguous"),
        ("self.q_proj(hidden_states)", "self.q_norm(self.q_proj(hidden_states))"),
        ("self.scale,", "self.scale * 3,"),
        ("self.training else self.dropout,", "self.training else self.dropout, **kwargs,"),
        ("dropout=0.0", "sliding_window=self.is_causal, dropout=0.0"),
        ("attention_mask: Any = None", "attention_mask: Any = True"),
        ("attention_mask: Any = None", "attention_mask: Any = None, past: Any = None"),
        ("def siglip", "@functools.wraps(print)\ndef siglip"),
    ],
)
def test_forwards_that_do_anything_else_are_left_alone(old: str, new: str) -> None:
    assert takes_width_from_input(type("Same", (), {"forward": variant("keys", "keys")}))
    assert not takes_width_from_input(type("Other", (), {"forward": variant(old, new)}))


def test_classes_without_such_a_forward_are_left_alone() -> None:
    assert takes_width_from_input(Old)
    assert not any(map(takes_width_from_input, (nn.MultiheadAttention, nn.Linear, nn.Module)))
