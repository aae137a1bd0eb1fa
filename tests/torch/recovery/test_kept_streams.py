"""Residual streams that the unpruned model showed before a refit: it does not run again, and nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch import Tensor, nn

from cahp_opt.runs.recovery import Weighting
from cahp_opt.stats.pooling import Pooling
from cahp_opt.torch import TokenWeights, calibrate, find_attention, find_prunable, refit
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.calibration.calibration import measure
from cahp_opt.torch.calibration.output_moments import HeadOutputs
from cahp_opt.torch.evaluation.fidelity import ClassLogits, PooledEmbedding
from cahp_opt.torch.running.batches import Batch
from cahp_opt.torch.slicing.slicing import slice_heads

SIZE, BATCHES = 5, 3
FIRST = 1  # run of the first batch, which is checked


def batches_of(family: tiny_models.Family) -> list[dict[str, Tensor]]:
    """Three batches of different lengths."""
    return [family.batch(size=SIZE, length=length, seed=length) for length in (9, 7, 8)]


def sliced(whole: Prunable) -> nn.Module:
    """The model with every other unit."""
    return slice_heads(whole, np.arange(whole.space.n) % 2 == 0)


class Runs:
    """Counts how often the last attention of a model sees a whole batch from here on; a refit tries fewer
    examples."""

    def __init__(self, model: nn.Module) -> None:
        self._seen = list[int]()
        find_attention(model).blocks[-1].out.register_forward_hook(self._see)

    def _see(self, module: nn.Module, args: object, output: Tensor) -> None:
        self._seen.append(len(output))

    @property
    def number(self) -> int:
        return self._seen.count(SIZE)


def known(whole: Prunable, batches: Sequence[Batch], *, memory: int | None = None) -> TokenWeights:
    """Weights that a calibration took."""
    weights = TokenWeights(whole) if memory is None else TokenWeights(whole, memory=memory)
    calibrate(
        whole,
        batches,
        densities=(),
        gradient_examples=0,
        sensitivity_examples=SIZE * BATCHES,
        token_weights=weights,
    )
    return weights


@pytest.mark.parametrize(
    "family",
    [tiny_models.BERT, tiny_models.MPNET, tiny_models.GPT2, tiny_models.LLAMA_GQA],
    ids=lambda family: family.name,
)
def test_the_unpruned_model_does_not_run_again_and_the_weights_are_the_same(
    family: tiny_models.Family,
) -> None:
    model, batches = family.build(), batches_of(family)
    whole = find_prunable(model)
    kept, forgotten = known(whole, batches), known(whole, batches, memory=0)
    assert kept.streams.nbytes and not forgotten.streams.nbytes
    runs = Runs(model)
    models = [sliced(whole) for _ in range(2)]
    fits = [refit(models[0], whole, batches, weighting=kept)]
    assert runs.number == FIRST
    fits.append(refit(models[1], whole, batches, weighting=forgotten))
    assert runs.number > FIRST + BATCHES
    assert fits[0] == fits[1]
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(one, other)


def test_an_embedder_takes_no_gradients_and_does_not_run_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All tokens of a model that embeds them all weigh the same, unless something else is asked for."""
    model, batches = tiny_models.BERT.build(bare=True), batches_of(tiny_models.BERT)
    whole = find_prunable(model)
    small: list[Any] = [sliced(whole) for _ in range(3)]
    refit(small[0], whole, batches, weighting=Weighting.SENSITIVITY)
    with monkeypatch.context() as patched:
        patched.setattr("torch.autograd.grad", None)
        weights = TokenWeights(whole)
        assert weights.differentiates is False
        moments = [HeadOutputs()]
        measure(whole, batches, moments, token_weights=weights)
        runs = Runs(model)
        refit(small[1], whole, batches, weighting=weights)
        assert runs.number == FIRST and weights.streams.nbytes
        refit(small[2], whole, batches, weighting=Weighting.EQUAL)
    assert torch.equal(*(m.pooler.dense.weight for m in small[1:]))
    last = [m.encoder.layer[-1].output.dense.weight for m in small]
    assert torch.equal(last[1], last[2]) and not torch.equal(last[0], last[1])
    for other in (PooledEmbedding(Pooling.CLS), ClassLogits()):
        assert TokenWeights(whole, fidelity=other).differentiates
    assert TokenWeights(whole, weighting=Weighting.SENSITIVITY).differentiates


def test_a_refit_alone_runs_the_unpruned_model_once() -> None:
    """The pass for the weights of the tokens shows the streams too."""
    model, batches = tiny_models.BERT.build(), batches_of(tiny_models.BERT)
    whole = find_prunable(model)
    runs = Runs(model)
    refit(sliced(whole), whole, batches)
    assert runs.number == FIRST + BATCHES


def test_streams_are_kept_of_all_batches_or_of_none() -> None:
    model, batches = tiny_models.BERT.build(), batches_of(tiny_models.BERT)
    whole = find_prunable(model)
    all_of_them, places = known(whole, batches).streams.nbytes, len(whole)
    enough = all_of_them * (places + 1) // places
    assert known(whole, batches, memory=enough).streams.nbytes == all_of_them
    short = known(whole, batches, memory=enough - places)
    assert short.streams.nbytes == 0
    models = [sliced(whole) for _ in range(2)]
    refit(models[0], whole, batches, weighting=short)
    refit(models[1], whole, batches, weighting=known(whole, batches))
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(one, other)


def test_layers_that_share_a_norm_keep_a_stream_each() -> None:
    """The norm that shows the stream of one layer runs again in the next ones."""
    model: Any = tiny_models.BERT.build()
    layers, batches = model.bert.encoder.layer, batches_of(tiny_models.BERT)
    for layer in layers:
        layer.output.LayerNorm = layers[0].output.LayerNorm
    whole = find_prunable(model)
    small = [sliced(whole) for _ in range(3)]
    refit(small[0], whole, batches, weighting=known(whole, batches))
    refit(small[1], whole, batches, weighting=known(whole, batches, memory=0))
    refit(small[2], whole, batches)
    for one, *others in zip(*(m.parameters() for m in small), strict=True):
        assert all(torch.equal(one, other) for other in others)


@pytest.mark.parametrize("changed", ["texts", "padding", "model"])
def test_another_pass_than_the_one_that_was_seen_is_refused(changed: str) -> None:
    family = tiny_models.LLAMA_GQA
    model, batches = family.build(), batches_of(family)
    whole = find_prunable(model)
    small, weights = sliced(whole), known(whole, batches)
    first, told = batches[0], "on other batches: batch 0 held"
    if changed == "model":
        told = "before the weights of `dense` were changed"
        with torch.no_grad():
            next(model.parameters()).mul_(1.1)
    elif changed == "texts":
        first = family.batch(size=SIZE, length=9, seed=77)
    else:  # on the other side
        first = {name: value.flip(1) for name, value in first.items()}
    with pytest.raises(ValueError, match=f"`weighting` was taken {told}"):
        refit(small, whole, [first, *batches[1:]], weighting=weights)


def test_inputs_without_axes_tell_batches_apart() -> None:
    model, (batch, *_) = tiny_models.BERT.build(), batches_of(tiny_models.BERT)
    weights = TokenWeights(find_prunable(model), memory=0)
    first, other = ({**batch, "scale": torch.tensor(scale)} for scale in (2.0, 3.0))
    with weights.watching(first, 0):
        pass
    weights.check(first, 0)
    with pytest.raises(ValueError, match="batch 0 held other examples"):
        weights.check(other, 0)


def test_the_same_pass_for_other_blocks_keeps_no_stream_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batches = tiny_models.BERT.build(), batches_of(tiny_models.BERT)
    whole = find_prunable(model)
    weights = known(whole, batches)
    again = weights.of_blocks(range(2))
    again.taken.clear()
    with monkeypatch.context() as patched:
        patched.setattr("cahp_opt.torch.recovery.kept_streams.Visit", None)
        again.take(batches[0], 0)
    assert len(again.taken) == 1
    with torch.no_grad():
        next(model.parameters()).mul_(1.1)  # another model shows others
    again.taken.clear()
    before = weights.streams.nbytes
    again.take(batches[0], 0)
    assert weights.streams.nbytes == before
    weights.check(batches[0], 0)
    with pytest.raises(ValueError, match="before the weights of `dense` were changed"):
        weights.check(batches[1], 1)


def test_a_pass_that_failed_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = tiny_models.BERT.build(), batches_of(tiny_models.BERT)
    whole = find_prunable(model)
    weights = TokenWeights(whole)
    for name in ("flows", "TokenWeights.remember"):  # in the pass, and behind it
        with monkeypatch.context() as patched:
            patched.setattr(f"cahp_opt.torch.recovery.token_weights.{name}", None)
            with pytest.raises(TypeError):
                weights.take(batches[1], 0)
    small = [sliced(whole) for _ in range(2)]
    for number, batch in enumerate(batches):
        weights.take(batch, number)
    refit(small[0], whole, batches, weighting=weights)
    refit(small[1], whole, batches)
    for one, other in zip(*(m.parameters() for m in small), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["bart", "albert", "swin"])
def test_a_model_that_no_refit_can_walk_is_calibrated_all_the_same(name: str) -> None:
    family = tiny_models.named(name)
    whole = find_attention(family.build())
    batches = [family.batch(seed=seed) for seed in range(2)]
    weights = known(whole, batches)
    assert len(weights.taken) == 2 and weights.streams.nbytes == 0
