"""Calibration of what is large: much data, half precision, shared keys, weights that are elsewhere."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from batches_by_hand import assert_same, collate, texts
from torch import Tensor, nn

from cahp_opt.stats.moments import BlockMoments
from cahp_opt.torch.blocks.finder import find_attention
from cahp_opt.torch.blocks.fingerprint import fingerprint
from cahp_opt.torch.blocks.out_weight import readout_weight
from cahp_opt.torch.calibration.calibration import calibrate
from cahp_opt.torch.calibration.output_moments import MomentSums
from cahp_opt.torch.running.batches import Batch, device_of


def live_tensors() -> tuple[int, int]:
    """How many tensors there are, and their bytes."""
    gc.collect()
    found = [t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter)]
    return len(found), sum(t.numel() * t.element_size() for t in found)


def test_memory_does_not_grow_with_the_data() -> None:
    model = tiny_models.LLAMA_GQA.build()
    earlier: list[weakref.ref[Tensor]] = []
    live: list[tuple[int, int]] = []

    def stream() -> Iterator[Batch]:
        for number in range(9):
            batch = collate(texts(4, seed=1), extra=number % 2)
            assert all(ref() is None for ref in earlier[:-1])  # the last one may still be at hand
            if number in (2, 8):
                live.append(live_tensors())
            earlier.append(weakref.ref(batch["input_ids"]))
            yield batch
            del batch

    calibrate(model, stream(), divergence_examples=100)
    assert live[0] == live[1]


def test_half_precision_is_off_by_its_own_rounding_only() -> None:
    half = tiny_models.LLAMA_GQA.build().bfloat16()
    single = copy.deepcopy(half).float()  # the very same weights
    batches = [collate(texts(4, seed=s)) for s in range(6)]
    for batch in batches:  # with labels, because rounding can tip which token a probe draws
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    a, b = calibrate(half, batches), calibrate(single, batches)

    def error(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.linalg.norm(x - y) / np.linalg.norm(y))

    assert a.tokens == b.tokens
    for x, y in zip(a.moments, b.moments, strict=True):
        assert error(x.scatter, y.scatter) < 0.03 and error(x.readout, y.readout) < 1e-6
    assert error(a.salience.sum, b.salience.sum) < 0.05


def test_sums_lose_nothing_over_many_batches() -> None:
    model = tiny_models.BERT.build().bfloat16()
    attention = find_attention(model)
    sums = MomentSums(attention)
    z = torch.randn(2, 5, tiny_models.HIDDEN, generator=torch.Generator().manual_seed(0))
    z = (z + 3).bfloat16()
    batch = {"input_ids": torch.ones(2, 5, dtype=torch.long)}
    for _ in range(3000):
        sums.see(0, z, batch)
    moments = sums.result()["moments"]
    assert isinstance(moments, BlockMoments)
    found = moments.entries[0]
    exact = z.double().flatten(0, 1).numpy()
    apart = exact - exact.mean(axis=0)
    assert found.count == 30000
    # Single precision alone would be off by 1e-4 by then, and half precision would stand still.
    np.testing.assert_allclose(found.scatter / 3000, apart.T @ apart, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.sum / 3000, exact.sum(axis=0), rtol=1e-6)


def test_a_group_is_the_sum_of_its_heads() -> None:
    model, batch = tiny_models.LLAMA_GQA.build().double(), collate(texts(5))
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    stats = calibrate(model, [{**batch, "labels": labels}])
    attention = find_attention(model)
    heads = attention.attention[0].heads
    gates = torch.ones(5, len(attention) * heads, dtype=torch.float64, requires_grad=True)
    seen: list[Tensor] = []

    def hook(block: int, width: int) -> Any:
        def scale(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            own = gates[:, block * heads : (block + 1) * heads]
            seen.append(args[0].detach())
            return (args[0] * own.repeat_interleave(width // heads, dim=1)[:, None],)

        return scale

    handles = [b.out.register_forward_pre_hook(hook(i, b.width)) for i, b in enumerate(attention)]
    logits = model(**batch).logits
    for handle in handles:
        handle.remove()
    loss = nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100
    )
    each = loss.sum(dim=1) / (labels[:, 1:] != -100).sum(dim=1)
    (by_head,) = torch.autograd.grad(each.sum(), gates)
    by_group = by_head.reshape(5, attention.space.n, -1).sum(dim=2)  # two heads per group
    np.testing.assert_allclose(stats.salience.sum, by_group.abs().sum(dim=0), rtol=1e-8)
    for moments, z in zip(stats.moments, seen, strict=True):
        rows = z[batch["attention_mask"] != 0]
        apart = rows - rows.mean(dim=0)
        np.testing.assert_allclose(moments.scatter, apart.T @ apart, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("family", [tiny_models.GPT2, tiny_models.LLAMA_GQA], ids=lambda f: f.name)
def test_offloaded_weights_are_read(family: tiny_models.Family) -> None:
    accelerate: Any = pytest.importorskip("accelerate")
    model, batches = family.build(), [collate(texts(5))]
    plain = calibrate(model, batches)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(p.is_meta for p in model.parameters())
    assert device_of(model) == torch.device("cpu")
    assert_same(calibrate(model, batches), plain, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrapped_weight_is_what_the_module_does(dtype: torch.dtype) -> None:
    class Adapter(nn.Module):
        """Adds a product of small matrices to a layer, as LoRA does."""

        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(12, 8)
            self.down, self.up = nn.Linear(12, 2, bias=False), nn.Linear(2, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.base(x) + self.up(self.down(x))
            return found

    layer = Adapter().to(dtype)
    weight = readout_weight(layer, 12).double()
    base, down, up = (m.weight.detach().double() for m in (layer.base, layer.down, layer.up))
    torch.testing.assert_close(
        weight, base + up @ down, rtol=0, atol=1e-6 if dtype is torch.float32 else 1e-2
    )


def test_the_model_itself_is_wanted() -> None:
    model = tiny_models.BERT.build()
    with pytest.raises(ValueError, match=r"`model` is a DataParallel.*`model.module`"):
        calibrate(nn.DataParallel(model), [collate(texts(2))])
    assert fingerprint(model) == fingerprint(tiny_models.BERT.build())
