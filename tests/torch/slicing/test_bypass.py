"""Blocks without kept units that do not run are as good as those that do."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
import transformers
from tiny_models import FAMILIES, Family, run, uneven
from torch import Tensor, nn

from cahp_opt.arrays import Bools
from cahp_opt.space import HeadSpace
from cahp_opt.torch.blocks.blocks import out_bias
from cahp_opt.torch.blocks.finder import find_attention
from cahp_opt.torch.checkpoints.checkpoint import from_pretrained, save_pretrained
from cahp_opt.torch.running.gates import head_mask
from cahp_opt.torch.slicing import bypass as bypassing
from cahp_opt.torch.slicing import skipped_attention
from cahp_opt.torch.slicing.bypass import bypass_empty
from cahp_opt.torch.slicing.skipped_attention import Bypass
from cahp_opt.torch.slicing.slicing import slice_heads
from cahp_opt.torch.slicing.verification import verify_slice

families = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)


def bypasses(model: nn.Module) -> list[Bypass]:
    found = [vars(module).get("forward") for module in model.modules()]
    return [forward for forward in found if isinstance(forward, Bypass)]


def sliced(model: Any, kept: Bools) -> Any:
    """The sliced model with its stock forwards, whatever slicing has done about them."""
    small = slice_heads(model, kept)
    for bypass in bypasses(small):
        del vars(bypass.module)["forward"]
    return small


def running(model: nn.Module, call: Callable[[], object]) -> list[bool]:
    """For every bypass, whether any weight of its module but the output projection's is used."""
    found: list[bool] = []
    for bypass in bypasses(model):
        inner = [
            m for m in bypass.module.modules() if m is not bypass.module and m is not bypass.out
        ]
        heard: list[int] = []
        handles = [m.register_forward_hook(lambda *_, x=heard: x.append(1)) for m in inner]
        call()
        for handle in handles:
            handle.remove()
        found.append(bool(heard))
    return found


def some(space: HeadSpace, *empty: int) -> Bools:
    """All blocks without their first unit, and these without any."""
    kept = np.ones(space.n, dtype=bool)
    for index, where in enumerate(space.slices):
        kept[where.start] = False
        if index in empty:
            kept[where] = False
    return kept


def skippable(model: Any, empty: int) -> int:
    """How many of so many empty blocks may be skipped: none where older releases know no backend
    but the eager one, whose attention weights are part of what is returned."""
    names = ("T5ForConditionalGeneration", "ElectraForSequenceClassification")
    eager = type(model).__name__ in names and model.config._attn_implementation == "eager"
    return 0 if eager else empty


@families
def test_skipping_changes_nothing(family: Family) -> None:
    model = family.build().double()
    kept = some(find_attention(model).space, 0, 2)
    small = sliced(model, kept)
    before = {padded: run(small, tiny.batch(padded=padded)) for padded in (True, False)}
    skipped = skippable(model, 2)
    assert bypass_empty(small) == skipped
    assert bypass_empty(small) == skipped
    for padded, expected in before.items():
        batch = tiny.batch(padded=padded)
        torch.testing.assert_close(run(small, batch), expected, rtol=0, atol=1e-12)
        with head_mask(model, kept):
            torch.testing.assert_close(run(small, batch), run(model, batch), rtol=0, atol=1e-9)
    assert running(small, lambda: run(small, tiny.batch())) == [False] * skipped
    assert small.state_dict().keys() == model.state_dict().keys()
    # What listens at the output projections sees every block as before.
    assert verify_slice(model, small, kept) <= 1e-9


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_decoders(name: str) -> None:
    model = tiny.named(name).build().double()
    kept = some(find_attention(model).space, 0, 2, 3, 4)
    small = sliced(model, kept)
    skipped = skippable(model, 4)
    assert bypass_empty(small) == skipped
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 7, "min_new_tokens": 7}
    inputs = tiny.batch()
    for more in ({}, {"num_beams": 3}, {"use_cache": False}, {"cache_implementation": "static"}):
        with head_mask(model, kept):
            expected = model.generate(**inputs, **options, **more)
        assert torch.equal(small.generate(**inputs, **options, **more), expected), more
    assert not torch.equal(model.generate(**inputs, **options), expected)
    generate = functools.partial(small.generate, **inputs, **options)
    assert running(small, generate) == [False] * skipped


def test_images() -> None:
    model = tiny.named("vit").build(bare=True).double()
    kept = some(find_attention(model).space, 0, 1)
    small = sliced(model, kept)
    assert bypass_empty(small) == 2
    pixels = tiny.named("vit").batch()["pixel_values"].double()
    with torch.no_grad(), head_mask(model, kept):
        expected = model(pixels).last_hidden_state
        torch.testing.assert_close(small(pixels).last_hidden_state, expected, rtol=0, atol=1e-9)


WINDOWED: dict[str, dict[str, Any]] = {"mistral": {"sliding_window": 4}}


@pytest.mark.parametrize(
    "family",
    [tiny.GPT2, tiny.LLAMA_GQA, tiny.MISTRAL, tiny.QWEN3, tiny.GPT_NEOX],
    ids=lambda f: f.name,
)
@pytest.mark.parametrize("empty", [(0,), (0, 1, 2)], ids=["first", "all"])
def test_generation(family: Family, empty: tuple[int, ...]) -> None:
    model: Any = family.build(**WINDOWED.get(family.name, {})).double()
    kept = some(find_attention(model).space, *empty)
    small: Any = sliced(model, kept)
    assert bypass_empty(small) == len(empty)
    assert all(bypass.cached for bypass in bypasses(small))
    batch = {key: value.flip(1) for key, value in tiny.batch().items()}  # padded on the left
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 9, "min_new_tokens": 9}
    options["pad_token_id"] = 0
    for more in ({}, {"num_beams": 3}, {"use_cache": False}, {"cache_implementation": "static"}):
        with head_mask(model, kept):
            expected = model.generate(**batch, **options, **more)
        assert torch.equal(small.generate(**batch, **options, **more), expected), more
    assert not torch.equal(model.generate(**batch, **options), expected)
    generate = functools.partial(small.generate, **batch, **options)
    assert running(small, generate) == [False] * len(empty)


def test_a_cache_that_was_not_verified_gets_the_stock_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> Iterator[tuple[object, transformers.Cache]]:
        raise RuntimeError("no cache here")

    monkeypatch.setattr(bypassing, "_two_steps", fails)
    model: Any = tiny.LLAMA_GQA.build().double()
    small: Any = sliced(model, uneven(find_attention(model).space, empty=0))
    plain: Any = copy.deepcopy(small)
    assert bypass_empty(small) == 1
    batch = tiny.batch(padded=False)
    assert running(small, lambda: small(**batch, use_cache=True)) == [True]
    assert running(small, lambda: small(**batch, use_cache=False)) == [False]
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 5, "pad_token_id": 0}
    assert torch.equal(small.generate(**batch, **options), plain.generate(**batch, **options))


@pytest.mark.parametrize("family", [tiny.BERT, tiny.GPT2, tiny.LLAMA_GQA], ids=lambda f: f.name)
def test_training_runs_the_stock_forward(family: Family) -> None:
    model = family.build()
    small = sliced(model, uneven(find_attention(model).space, empty=1))
    plain = copy.deepcopy(small).train()
    assert bypass_empty(small) == 1
    small.train()
    for one in (plain, small):
        torch.autograd.backward(one(**tiny.batch())[0].square().mean())
    for (name, a), (_, b) in zip(plain.named_parameters(), small.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None and b.grad is not None:
            torch.testing.assert_close(b.grad, a.grad)
    small.eval()
    assert running(small, lambda: run(small, tiny.batch())) == [False]


@families
def test_copies_and_pickles_skip_with_their_own_weights(family: Family) -> None:
    model = family.build()
    small = sliced(model, uneven(find_attention(model).space, empty=1))
    skipped = skippable(model, 1)
    assert bypass_empty(small) == skipped
    expected = run(small, tiny.batch())
    for copied in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(run(copied, tiny.batch()), expected)
        assert running(copied, functools.partial(run, copied, tiny.batch())) == [False] * skipped
        bias = out_bias(find_attention(copied).attention[1])
        if bias is not None:
            with torch.no_grad():
                bias.normal_()
            assert not torch.allclose(run(copied, tiny.batch()), expected, atol=1e-3)
    assert torch.equal(run(small, tiny.batch()), expected)


@pytest.mark.parametrize("family", [tiny.BERT, tiny.GPT2, tiny.LLAMA_GQA], ids=lambda f: f.name)
def test_compile_and_export(family: Family) -> None:
    model: Any = family.build(bare=True)
    small = sliced(model, uneven(find_attention(model).space, empty=0))
    assert bypass_empty(small) == 1
    ids = tiny.batch(padded=False)["input_ids"]

    options = {} if family is tiny.BERT else {"use_cache": False}
    wrapped = tiny.OfTokens(small, **options).eval()
    with torch.no_grad():
        expected = wrapped(ids)
        compiled: Any = torch.compile(wrapped, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(ids), expected)
        torch._dynamo.reset()
        program: Any = torch.export.export(wrapped, (ids,))
        torch.testing.assert_close(program.module()(ids), expected)
    name = "self.query" if family is tiny.BERT else "c_attn" if family is tiny.GPT2 else "q_proj"
    site = find_attention(small).attention[0].name
    used = [str(node.target) for node in program.graph.nodes if node.op == "placeholder"]
    weights = {spec.target for spec in program.graph_signature.input_specs}
    unused = f"inner.{site}.{name}.weight"
    assert unused in weights and used
    by_name = {spec.target: spec.arg.name for spec in program.graph_signature.input_specs}
    nodes = {node.name: node for node in program.graph.nodes}
    assert not nodes[by_name[unused]].users


def test_weights_are_still_to_be_had() -> None:
    model: Any = tiny.BERT.build()
    small: Any = sliced(model, uneven(find_attention(model).space, empty=1))
    assert bypass_empty(small) == 1
    small.set_attn_implementation("eager")
    maps = small(**tiny.batch(), output_attentions=True).attentions
    assert [m.shape[1] for m in maps] == [1, 1, 3]
    mpnet: Any = tiny.MPNET.build()
    small = sliced(mpnet, uneven(find_attention(mpnet).space, empty=1))
    assert bypass_empty(small) == 1
    maps = small(**tiny.batch(), output_attentions=True).attentions
    assert [m.shape[1] for m in maps] == [1, 1, 3]


@pytest.mark.parametrize("family", [tiny.BERT, tiny.LLAMA_GQA], ids=lambda f: f.name)
def test_a_revived_or_replaced_output_projection_is_used(family: Family) -> None:
    model = family.build()
    small = sliced(model, uneven(find_attention(model).space, empty=1))
    assert bypass_empty(small) == 1
    expected = run(small, tiny.batch())
    revived = copy.deepcopy(small)
    weight = find_attention(revived).attention[1].out.get_parameter("weight")
    weight.requires_grad_(True)
    with torch.no_grad():
        weight.normal_()
    assert not torch.allclose(run(revived, tiny.batch()), expected, atol=1e-3)
    bypass = bypasses(small)[0]

    class Adapted(nn.Module):
        """What an adapter does: it adds something to the output projection's result."""

        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base = base

        def forward(self, z: Tensor) -> Tensor:
            output: Tensor = self.base(z)
            # Not the same for all features: a norm after it would not see that.
            return output + z.sum(dim=-1, keepdim=True) * torch.linspace(0, 1, output.shape[-1])

    *parents, leaf = bypass.path
    setattr(bypass.site.get_submodule(".".join(parents)), leaf, Adapted(bypass.out))
    assert running(small, lambda: run(small, tiny.batch())) == [True]
    assert not torch.allclose(run(small, tiny.batch()), expected, atol=1e-3)


def test_the_output_can_be_changed_in_place() -> None:
    model = tiny.GPT2.build()
    small = sliced(model, uneven(find_attention(model).space, empty=1))
    assert bypass_empty(small) == 1
    bypass = bypasses(small)[0]
    bias = bypass.out.get_parameter("bias").detach()
    before = bias.clone()
    with torch.no_grad():
        bypass(torch.zeros(1, 1, tiny.HIDDEN))[0].add_(1.0)
    assert torch.equal(bias, before)


@pytest.mark.parametrize("name", ["albert", "bloom"])
def test_blocks_that_add_more_than_a_bias_stay(name: str) -> None:
    model = tiny.named(name).build(bare=True).double()
    small = sliced(model, some(find_attention(model).space, 0))
    expected = run(small, tiny.batch())
    assert bypass_empty(small) == 0
    assert not bypasses(small)
    assert torch.equal(run(small, tiny.batch()), expected)


@pytest.mark.parametrize("planted", ["value", "cache", "shape", "error"])
@pytest.mark.parametrize("where", ["one", "all"])
def test_a_wrong_bypass_stays_out(
    monkeypatch: pytest.MonkeyPatch, planted: str, where: str
) -> None:
    model: Any = tiny.LLAMA_MHA.build()
    small = sliced(model, some(find_attention(model).space, 0, 2))
    bad = [b.module for b in find_attention(small).attention if b.ghost][
        : 1 if where == "one" else 2
    ]
    expected = run(small, tiny.batch())
    output, feed = Bypass._output, skipped_attention._feed

    def wrong(self: Bypass, states: Tensor) -> Tensor:
        found = output(self, states)
        if self.module not in bad or planted == "cache":
            return found
        if planted == "error":
            raise AttributeError("planted")
        return found[:1] if planted == "shape" else found + 1e-3

    def hungry(
        cache: transformers.Cache, layer: int, states: Tensor, others: Tensor | None
    ) -> None:
        skip = layer == 0 if where == "one" else True
        feed(cache, layer, states[:, :1] if skip else states, others)

    monkeypatch.setattr(Bypass, "_output", wrong)
    if planted == "cache":
        monkeypatch.setattr(skipped_attention, "_feed", hungry)
    left = bypass_empty(small)
    assert left == len(bypasses(small))
    if planted == "cache":
        assert left in (0, 1)  # lengths are read from the first layer alone
        assert not bypasses(small) or bypasses(small)[0].layer == 2
    else:
        assert left == 2 - len(bad)
    torch.testing.assert_close(run(small, tiny.batch()), expected)


@pytest.mark.parametrize("family", [tiny.BERT, tiny.GPT2], ids=lambda f: f.name)
def test_slicing_again_and_loading_anew(family: Family, tmp_path: Path) -> None:
    model = family.build().double()
    small = sliced(model, some(find_attention(model).space, 1))
    assert bypass_empty(small) == 1
    space = find_attention(small).space
    again = np.ones(space.n, dtype=bool)
    again[space.slices[0]] = False
    smaller = slice_heads(small, again)
    assert bypasses(smaller)
    assert bypass_empty(smaller) == 2
    expected = run(smaller, tiny.batch())
    with head_mask(model, some(find_attention(model).space, 0, 1)):
        torch.testing.assert_close(expected, run(model, tiny.batch()), rtol=0, atol=1e-9)
    save_pretrained(smaller, tmp_path / "small")
    loaded = from_pretrained(tmp_path / "small").eval()
    assert bypass_empty(loaded) == 2
    assert torch.equal(run(loaded, tiny.batch()), expected)


def test_an_interrupt_leaves_no_bypass(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Bypass, states: Tensor) -> Tensor:
        raise KeyboardInterrupt

    model = tiny.BERT.build()
    small = sliced(model, some(find_attention(model).space, 0, 2))
    plain = copy.deepcopy(small)
    monkeypatch.setattr(Bypass, "_output", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bypass_empty(small)
    assert not bypasses(small)
    assert [m.training for m in small.modules()] == [m.training for m in plain.modules()]
    assert torch.equal(run(small, tiny.batch()), run(plain, tiny.batch()))


def test_models_that_cannot_be_verified() -> None:
    model = tiny.BERT.build(bare=True)
    small = nn.Sequential(sliced(model, uneven(find_attention(model).space, empty=0)))
    with pytest.raises(ValueError, match="`batch` is needed"):
        bypass_empty(small)
    assert bypass_empty(tiny.BERT.build()) == 0
    whole = sliced(model, uneven(find_attention(model).space))
    assert bypass_empty(whole) == 0
