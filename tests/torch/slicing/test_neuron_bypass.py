"""Feed-forward parts without kept groups that do not run are as good as those that do."""

from __future__ import annotations

import copy
import functools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
from tiny_models import Family
from torch import Tensor, nn

from cahp_opt.torch.blocks.blocks import FeedForwardBlock
from cahp_opt.torch.blocks.finder import blocks_cut, find_prunable
from cahp_opt.torch.checkpoints.checkpoint import from_pretrained, save_pretrained
from cahp_opt.torch.running.gates import head_mask
from cahp_opt.torch.slicing.bypass import bypass_empty
from cahp_opt.torch.slicing.skipped_neurons import BiasAlone, FewNeurons
from cahp_opt.torch.slicing.slicing import slice_heads
from cahp_opt.torch.slicing.verification import verify_slice

NAMES = ("bert", "gpt2", "llama-gqa", "modernbert", "opt", "t5", "clip")
"""Siblings, a module of its own, Conv1D, gated, fused, bare in the layer, without bias, two towers."""


def emptied(family: Family, *, precision: torch.dtype = torch.float64) -> tuple[Any, Any, Any]:
    """A model, a keep-set with a layer gone and another uneven, and the sliced model."""
    model: Any = family.build().to(precision)
    prunable = find_prunable(model)
    kept = np.ones(prunable.space.n, dtype=bool)
    first = next(i for i, b in enumerate(prunable) if isinstance(b, FeedForwardBlock))
    for index, where in enumerate(prunable.space.slices):
        kept[where.start] = False
        if index == first:
            kept[where] = False
    return prunable, kept, slice_heads(prunable, kept, batch=family.batch())


def run(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(**batch)[0]
    return output


def ghost_of(model: nn.Module) -> FeedForwardBlock:
    (block,) = (b for b in blocks_cut(model).feed_forward if b.ghost)
    return block


def noting(widths: list[int], inner: Any) -> Any:
    """A forward that notes the width that it is given first."""

    def forward(x: Tensor) -> Any:
        widths.append(x.shape[-1])
        return inner(x)

    return forward


def multiplies(model: nn.Module, batch: Any) -> bool:
    """Whether the empty part multiplies anything: its output layer is given more than one neuron."""
    widths: list[int] = []
    block = ghost_of(model)
    inner = vars(block.out)["forward"]
    vars(block.out)["forward"] = noting(widths, inner)
    run(model, batch)
    vars(block.out)["forward"] = inner
    assert widths
    return widths != [1] * len(widths)


@pytest.mark.parametrize("name", NAMES)
def test_skipping_changes_nothing(name: str, tmp_path: Path) -> None:
    family = tiny.named(name)
    prunable, kept, small = emptied(family)
    batch = family.batch()
    before = run(small, batch)
    assert bypass_empty(small, batch) == bypass_empty(small, batch) == 1
    assert torch.equal(run(small, batch), before)
    assert not multiplies(small, batch)
    assert verify_slice(prunable, small, kept, batch) <= 1e-9
    with head_mask(prunable, kept):
        torch.testing.assert_close(before, run(prunable.model, batch), rtol=0, atol=1e-9)
    # A loaded model skips by itself, and copies and pickles do.
    save_pretrained(small, tmp_path / "small")
    loaded = from_pretrained(tmp_path / "small").eval()
    for other in (loaded, copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert not multiplies(other, batch)
        torch.testing.assert_close(run(other, batch), before, rtol=0, atol=1e-12)


def test_a_whole_layer_goes() -> None:
    family = tiny.BERT
    model = family.build().double()
    prunable = find_prunable(model)
    kept = np.ones(prunable.space.n, dtype=bool)
    for where in prunable.space.slices[2:4]:
        kept[where] = False
    small = slice_heads(prunable, kept)
    before = run(small, tiny.batch())
    assert bypass_empty(small) == 2
    used = [0]
    plain = nn.Linear.forward

    def counted(self: nn.Linear, x: Tensor) -> Tensor:
        used[0] += self.weight.numel()
        return plain(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "forward", counted)
        torch.testing.assert_close(run(small, tiny.batch()), before, rtol=0, atol=1e-12)
    linear = [m for m in small.modules() if isinstance(m, nn.Linear)]
    layer: Any = small.get_submodule("bert.encoder.layer.1")
    gone = [m for m in layer.modules() if isinstance(m, nn.Linear)]
    # All but the projection of zeros that lies outside of BERT's attention module.
    outside = layer.attention.output.dense.weight.numel()
    assert used[0] == sum(m.weight.numel() for m in {*linear} - {*gone}) + outside


@pytest.mark.parametrize("name", ["bert", "llama-gqa"])
@pytest.mark.parametrize("kind", ["attention", "feed-forward"])
@pytest.mark.parametrize("change", ["data", "replaced", "trainable", "adapter", "loaded"])
def test_other_weights_are_never_skipped(name: str, kind: str, change: str) -> None:
    """Whatever way they came there, even those that leave no trace but the numbers."""
    model: Any = tiny.named(name).build().double()
    prunable = find_prunable(model)
    kept = np.ones(prunable.space.n, dtype=bool)
    kept[prunable.space.slices[0 if kind == "attention" else 1]] = False
    small = slice_heads(prunable, kept)
    plain = copy.deepcopy(small)
    assert bypass_empty(small) == 1
    before = run(small, tiny.batch())

    def changed(where: nn.Module) -> Tensor:
        (block,) = (b for b in blocks_cut(where) if b.ghost)
        out: Any = block.out
        noise = torch.randn(out.weight.shape, generator=torch.Generator().manual_seed(0)).double()
        if change == "data":
            out.weight.data += noise
        elif change == "replaced":
            out.weight = nn.Parameter(noise, requires_grad=False)
        elif change == "trainable":
            out.weight.requires_grad_(True).data.copy_(noise)
        elif change == "loaded":
            where.load_state_dict({**where.state_dict(), f"{place(where, out)}.weight": noise})
        else:
            parent, _, leaf = place(where, out).rpartition(".")
            setattr(where.get_submodule(parent), leaf, Added(out, noise))
        return run(where, tiny.batch())

    expected = changed(plain)
    assert not torch.allclose(expected, before, atol=1e-3)
    torch.testing.assert_close(changed(small), expected, rtol=0, atol=1e-12)


def place(model: nn.Module, module: nn.Module) -> str:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    return next(name for name, found in modules.items() if found is module)


class Added(nn.Module):
    """What an adapter does."""

    def __init__(self, base: nn.Module, delta: Tensor) -> None:
        super().__init__()
        self.base, self.delta = base, delta

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base(x) + x @ self.delta.T
        return result


def test_training_and_listeners_see_the_stock_layers() -> None:
    _, _, small = emptied(tiny.LLAMA_GQA, precision=torch.float32)
    assert bypass_empty(small) == 1
    block = ghost_of(small)
    assert isinstance(vars(block.ins[0])["forward"], FewNeurons)
    heard: list[int] = []
    hook = block.out.register_forward_pre_hook(lambda _, args: heard.append(args[0].shape[-1]))
    run(small, tiny.batch())
    hook.remove()
    small.train()
    inner = vars(block.out)["forward"]
    vars(block.out)["forward"] = noting(heard, inner)
    small(**tiny.batch())
    assert heard == [block.width] * 2


def test_compiled_and_exported() -> None:
    _, _, small = emptied(tiny.LLAMA_GQA, precision=torch.float32)
    assert bypass_empty(small) == 1
    ids = tiny.batch(padded=False)["input_ids"]
    wrapped = tiny.OfTokens(small, use_cache=False).eval()
    with torch.no_grad():
        expected = wrapped(ids)
        compiled: Any = torch.compile(wrapped, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(ids), expected)
        torch._dynamo.reset()
        program: Any = torch.export.export(wrapped, (ids,))
        torch.testing.assert_close(program.module()(ids), expected)


@pytest.mark.parametrize("planted", ["value", "error"])
def test_a_wrong_bypass_stays_out(monkeypatch: pytest.MonkeyPatch, planted: str) -> None:
    _, _, small = emptied(tiny.BERT)
    expected = run(small, tiny.batch())
    given = BiasAlone.__call__

    def wrong(self: BiasAlone, x: Tensor) -> Tensor:
        if planted == "error":
            raise IndexError("planted")
        found = given(self, x)
        return found + 1e-3 * torch.linspace(0, 1, found.shape[-1])

    monkeypatch.setattr(BiasAlone, "__call__", wrong)
    assert bypass_empty(small) == 0
    forwards = [vars(module).get("forward") for module in small.modules()]
    assert not any(isinstance(found, FewNeurons | BiasAlone) for found in forwards)
    assert torch.equal(run(small, tiny.batch()), expected)


def test_generation() -> None:
    prunable, kept, small = emptied(tiny.LLAMA_GQA)
    assert bypass_empty(small) == 1
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    batch = tiny.batch(padded=False)
    generate = functools.partial(prunable.model.generate, **batch, **options)
    with head_mask(prunable, kept):
        expected = generate()
    assert torch.equal(small.generate(**batch, **options), expected)
    assert not torch.equal(generate(), expected)
