"""Fine-tuning: the loss is right, goes down, and nothing else is touched."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch import Tensor, nn

from cahp_opt.torch.blocks.finder import find_attention, find_prunable
from cahp_opt.torch.evaluation.fidelity import ClassLogits, PooledEmbedding, TokenLogits
from cahp_opt.torch.recovery import finetuning
from cahp_opt.torch.recovery.finetuning import finetune
from cahp_opt.torch.slicing.slicing import slice_heads

pytest.importorskip("accelerate")


def sliced(family: tiny_models.Family, counts: tuple[int, ...] = (2, 0, 1)) -> tuple[Any, Any]:
    dense = family.build()
    space = find_attention(dense).space
    place = np.concatenate([np.arange(units) for units in space.units])
    return dense, slice_heads(dense, place < np.array(counts)[space.block_of])


def sliced_in_neurons(family: tiny_models.Family) -> tuple[Any, Any]:
    dense = family.build()
    prunable = find_prunable(dense)
    kept = np.ones(prunable.space.n, dtype=bool)
    kept[prunable.space.slices[2]] = kept[prunable.space.slices[3]] = False
    return dense, slice_heads(prunable, kept)


def numpy_state() -> str:
    return repr([np.array(part).tolist() for part in np.random.get_state()])


def texts(family: tiny_models.Family, *, labels: bool = True) -> list[dict[str, Tensor]]:
    batches = [tiny_models.batch(size=6, length=9, seed=s) for s in range(4)]
    for batch in batches if labels else ():
        ids, real = batch["input_ids"], batch["attention_mask"].bool()
        if family.name in ("gpt2", "llama-gqa"):
            batch["labels"] = torch.where(real, ids, -100)
        else:
            batch["labels"] = ids[:, 1] % 2
    return batches


@pytest.mark.parametrize("distil", [False, True], ids=["labels", "distilled"])
@pytest.mark.parametrize(
    "family", [tiny_models.BERT, tiny_models.GPT2, tiny_models.LLAMA_GQA], ids=lambda f: f.name
)
def test_the_loss_goes_down_and_ghosts_stay(family: tiny_models.Family, distil: bool) -> None:
    dense, model = sliced(family)
    model.eval()
    before = {name: p.clone() for name, p in model.named_parameters()}
    untouched = {name: p.clone() for name, p in dense.named_parameters()}
    batches = texts(family)
    states = torch.get_rng_state(), random.getstate(), numpy_state()
    attributes = [set(vars(module)) for module in model.modules()]
    steps: list[tuple[int, int]] = []
    losses = finetune(
        model,
        batches,
        dense=dense if distil else None,
        epochs=5,
        learning_rate=5e-3,
        progress=lambda _, done, total: steps.append((done, total)),
    )
    assert len(losses) == 20 and steps == [(i + 1, 20) for i in range(20)]
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert frozen and not frozen & changed and len(changed) > 10
    assert find_attention(model).attention[1].ghost
    assert all(torch.equal(p, untouched[n]) for n, p in dense.named_parameters())
    assert all(p.grad is None for p in (*model.parameters(), *dense.parameters()))
    assert not model.training and [set(vars(m)) for m in model.modules()] == attributes
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert states[2] == numpy_state()


def test_empty_parts_of_both_kinds_stay_empty() -> None:
    dense, model = sliced_in_neurons(tiny_models.BERT)
    before = {name: p.clone() for name, p in model.named_parameters()}
    finetune(model, texts(tiny_models.BERT), dense=dense, learning_rate=5e-3)
    heads, neurons = find_prunable(model).blocks[2:4]
    for block in (heads, neurons):
        assert block.ghost and not block.out.get_parameter("weight").any()
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    layer = "bert.encoder.layer.1"
    assert {f"{layer}.intermediate.dense.{n}" for n in ("weight", "bias")} < frozen
    assert all(torch.equal(model.get_parameter(name), before[name]) for name in frozen)
    bias = f"{layer}.output.dense.bias"
    assert not torch.equal(model.get_parameter(bias), before[bias])


def test_a_caller_may_have_autocast_on() -> None:
    """Autocast keeps the weights it has cast until its context ends; training must not see old ones."""
    dense, model = sliced(tiny_models.BERT)
    options: dict[str, Any] = {"dense": dense, "epochs": 2, "learning_rate": 5e-3}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = finetune(model, texts(tiny_models.BERT), **options)
    _, again = sliced(tiny_models.BERT)
    expected = finetune(again, texts(tiny_models.BERT), **options)
    np.testing.assert_allclose(losses, expected, rtol=0.05)


def test_the_same_seed_gives_the_same_weights() -> None:
    found: list[tuple[tuple[float, ...], Tensor]] = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed + len(found))  # of no account
        dense, model = sliced(tiny_models.BERT)
        losses = finetune(model, texts(tiny_models.BERT), dense=dense, seed=seed)
        found.append((losses, torch.cat([p.detach().flatten() for p in model.parameters()])))
    assert found[0][0] == found[1][0] != found[2][0]
    assert torch.equal(found[0][1], found[1][1])


def test_distillation_by_hand() -> None:
    """Two classes: p = (3/4, 1/4) against (1/2, 1/2) at temperature 2."""
    dense = torch.tensor([[2 * np.log(3.0), 0.0]])
    other = torch.tensor([[7.0, 7.0]])
    kl = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert ClassLogits().softened(dense, other, {}, 2.0).item() == pytest.approx(4 * kl, rel=1e-5)
    batch = {"input_ids": torch.ones(1, 2), "attention_mask": torch.tensor([[1, 0]])}
    pair = [torch.stack([x, 100 * torch.rand(1, 2)], dim=1) for x in (dense, other)]  # and padding
    found = TokenLogits(causal=True).softened(pair[0], pair[1], batch, 2.0)
    assert found.item() == pytest.approx(4 * kl, rel=1e-5)
    plain = PooledEmbedding().softened(torch.eye(2), torch.ones(2, 2), {}, 2.0)
    torch.testing.assert_close(plain, torch.full((2,), 1 - 0.5**0.5))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_loss_mixes_labels_and_distance(share: float) -> None:
    family = tiny_models.BERT
    dense, model = sliced(family)
    for each in (dense, model):  # no dropout
        for module in each.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    batch = texts(family)[0]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        mine, theirs = model.eval()(**inputs).logits, dense(**inputs).logits
    log_p, log_q = (theirs / 3).log_softmax(-1), (mine / 3).log_softmax(-1)
    distance = 9 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    labels = nn.functional.cross_entropy(mine, batch["labels"])
    (loss,) = finetune(model, [batch], dense=dense, distillation=share, temperature=3.0)
    assert loss == pytest.approx(float(share * distance + (1 - share) * labels), rel=1e-4)


def test_without_labels_the_dense_model_is_enough() -> None:
    dense, model = sliced(tiny_models.MPNET)
    losses = finetune(
        model, texts(tiny_models.MPNET, labels=False), dense=dense, epochs=6, learning_rate=5e-3
    )
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "`epochs` must be a whole number of at least 1, got 0"),
        ({"learning_rate": -1.0}, "`learning_rate` must be a finite number above 0, got -1"),
        ({"weight_decay": -1.0}, "`weight_decay` must be"),
        ({"distillation": 1.5}, "`distillation` must be a share from 0 to 1, got 1.5"),
        ({"temperature": 0.0}, "`temperature` must be a finite number above 0, got 0"),
        ({"learning_rate": 1e30, "epochs": 3}, "the loss is nan at step"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_errors_of_options(options: dict[str, Any], message: str) -> None:
    _, model = sliced(tiny_models.GPT2)
    with pytest.raises(ValueError, match=message):
        finetune(model, texts(tiny_models.GPT2), **options)


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, model = sliced(tiny_models.BERT)
    batches = texts(tiny_models.BERT)
    with pytest.raises(ValueError, match="`batches` have no `labels` to learn from"):
        finetune(model, texts(tiny_models.BERT, labels=False))
    with pytest.raises(ValueError, match="same object"):
        finetune(dense, batches, dense=dense)
    with pytest.raises(ValueError, match="`batches` is empty"):
        finetune(model, [], dense=dense)
    with pytest.raises(ValueError, match="weights in float16"):
        finetune(model.half(), batches)
    monkeypatch.setattr(finetuning, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'cahp-opt\[finetune\]'"):
        finetune(dense, batches)
