"""Attention that gives the heads' output the width of its input: older CLIP, BLIP, TrOCR and many others."""

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
from cahp_opt.torch.slicing.bypass import bypass_empty
from cahp_opt.torch.slicing.own_width import words_for_own_width
from cahp_opt.torch.slicing.rewritten_forward import OwnWidth
from cahp_opt.torch.slicing.skipped_attention import Bypass
from cahp_opt.torch.slicing.verification import SliceError
from cahp_opt.torch.slicing.width_rewriting import WIDTH, Words, rewritten

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
    for found in find_attention(model).attention:
        block: Any = found.module
        words = words_for_own_width(found)
        assert words is not None
        vars(block)[WIDTH] = 32
        plain: Any = OwnWidth(block, words)
        # Some releases refuse a mask beside the flag.
        for batch in batches[:1] if block is model.blocks[1] else batches:
            x, mask, causal = batch["x"], batch.get("mask"), batch.get("causal")
            for asked in (False, True):
                torch.manual_seed(1)
                expected = block(x, mask, causal, output_attentions=asked)
                torch.manual_seed(1)
                same = plain(x, mask, causal_attention_mask=causal, output_attentions=asked)
                assert torch.equal(same[0], expected[0])
                assert (same[1] is None) == (expected[1] is None)
                assert expected[1] is None or torch.equal(same[1], expected[1])


@pytest.mark.parametrize("in_place", [False, True])
def test_it_is_set_where_heads_are_cut_and_slicing_works(in_place: bool) -> None:
    model, batches = pair()
    kept = keep(0, 3, *range(4, 8))
    expected = [masked(model, kept, batch) for batch in batches]
    small = slice_heads(model, kept, batch=batches[0], in_place=in_place)
    first, second = (vars(block).get("forward") for block in small.blocks)
    assert isinstance(first, OwnWidth) and second is None
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
    class Wrong(OwnWidth):
        """Forgets that the module is causal."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            module: Any = self.module
            module.is_causal = False
            return super().__call__(*args, **kwargs)

    model, batches = pair()
    before = run(model, batches[0])
    monkeypatch.setattr(surgery, "OwnWidth", Wrong)
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
    assert any(isinstance(vars(m).get("forward"), OwnWidth) for m in loaded.modules())
    for name, value in tiny.outputs(loaded, batch).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


def renamed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that takes an argument by an older name too, as those of transformers do."""

    @functools.wraps(forward)
    def taking_both(*args: Any, **kwargs: Any) -> Any:
        if "x" in kwargs:
            kwargs["hidden_states"] = kwargs.pop("x")
        return forward(*args, **kwargs)

    return taking_both


class Windows(nn.Module):
    """Attention in windows, with the width of its input in shapes of all kinds, of which some stay."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim, self.heads = 24, 3
        self.qkv = nn.Linear(24, 72)
        self.proj = nn.Linear(24, 24)

    @renamed
    def forward(self, hidden_states: Any, *, twice: Any = False) -> Any:
        """The states after attention within pairs of tokens."""
        batch, length, width = hidden_states.shape
        if width != self.embed_dim:
            raise ValueError("another width")
        pairs = hidden_states.reshape(-1, 2, width)
        fused = self.qkv(pairs).view(-1, 2, 3, self.heads, width // self.heads)
        query, key, value = fused.permute(2, 0, 3, 1, 4).unbind(0)
        scores = query @ key.transpose(-1, -2) * width**-0.5
        output = (scores.softmax(-1) @ value).transpose(1, 2)
        for _ in range(2 if twice else 1):
            output = output.reshape(output.shape[:-2] + (width,))  # noqa: RUF005
            output = output.view(batch, length, self.heads, -1)
        output = self.proj(output.reshape(batch, length, width))
        return output.view(-1, width).view(batch, length, width)


def test_only_the_shapes_between_the_projections_get_the_own_width() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Windows(), Windows()).eval()
    x = torch.randn(2, 4, 24)
    kept = np.array([0, 1, 1, 1, 0, 1], dtype=bool)
    with head_mask(model, kept):
        expected = run(model, {"input": x})
        more = model[0](x=x, twice=True)
    small = slice_heads(model, kept, batch={"input": x})
    for again in (small, copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        torch.testing.assert_close(run(again, {"input": x}), expected)
        torch.testing.assert_close(again[0](x=x, twice=True), more)
    first: Any = small[0]
    assert (first.embed_dim, first.heads, vars(first)[WIDTH]) == (24, 2, 16)
    # The rewritten code stands where the author's stands, for tracebacks and debuggers.
    inner: Any = inspect.unwrap(vars(first)["forward"].function)
    assert inner.__code__.co_firstlineno == inspect.unwrap(Windows.forward).__code__.co_firstlineno
    with pytest.raises(ValueError, match="another width"):
        small(torch.randn(2, 4, 16))


def test_an_exported_model_has_it_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Windows()).eval()
    x = torch.randn(2, 4, 24)
    small = slice_heads(model, np.array([0, 1, 1], dtype=bool), batch={"input": x})
    program: Any = torch.export.export(small, (x,))
    torch.testing.assert_close(program.module()(x), small(x))


WORDS = Words(("qkv",), "proj", ("heads",), ("embed_dim",))


def test_a_forward_that_needs_none_or_cannot_be_read_stays() -> None:
    width, made = 4, dict[str, Any]()

    def inside(self: Any, states: Any) -> Any:
        batch, width = states.shape
        return self.qkv(states).view(batch, width)

    def outside(self: Any, states: Any) -> Any:
        batch, width = states.shape
        return self.proj(self.qkv(states)).view(batch, width)

    def closed(self: Any, states: Any) -> Any:
        batch, last = states.shape
        return self.qkv(states).view(batch, last + 0 * width)

    exec(inspect.getsource(inside).replace("    def", "def").replace("        ", "    "), made)
    assert rewritten(inside, WORDS) is not None
    for other in (outside, closed, made["inside"], print, functools.wraps(print)(inside), None):
        assert rewritten(other, WORDS) is None


def test_a_source_that_changed_since_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Words(("q_proj", "k_proj", "v_proj"), "out_proj", (), ())
    assert rewritten(siglip_forward, words) is not None
    lines, first = inspect.findsource(siglip_forward)
    edited = [line.replace("scaling=self.scale", "scaling=self.scales") for line in lines]
    monkeypatch.setattr(inspect, "findsource", lambda code: (edited, first))
    assert rewritten(siglip_forward, words) is None
