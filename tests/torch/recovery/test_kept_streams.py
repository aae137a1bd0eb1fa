"""Residual streams that the unpruned model showed before a refit: it does not run again, and nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import tiny_models
import torch
from torch import Tensor, nn

from cahp_opt.torch import TokenWeights, calibrate, find_attention, find_prunable, refit
from cahp_opt.torch.blocks.finder import Prunable
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
    enough = all_of_them * (places + 3) // places
    assert known(whole, batches, memory=enough).streams.nbytes == all_of_them
    short = known(whole, batches, memory=enough - places)
    assert short.streams.nbytes == 0
    models = [sliced(whole) for _ in range(2)]
    refit(models[0], whole, batches, weighting=short)
    refit(models[1], whole, batches, weighting=known(whole, batches))
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(one, other)


def test_other_texts_of_the_same_shape_are_refused() -> None:
    model, batches = tiny_models.BERT.build(), batches_of(tiny_models.BERT)
    whole = find_prunable(model)
    weights = known(whole, batches)
    others = [tiny_models.batch(size=5, length=9, seed=77), *batches[1:]]
    with pytest.raises(
        ValueError, match="`weighting` was taken on other batches: batch 0 had other examples"
    ):
        refit(sliced(whole), whole, others, weighting=weights)


@pytest.mark.parametrize("name", ["bart", "albert", "swin"])
def test_a_model_that_no_refit_can_walk_is_calibrated_all_the_same(name: str) -> None:
    family = tiny_models.named(name)
    whole = find_attention(family.build())
    batches = [family.batch(seed=seed) for seed in range(2)]
    weights = known(whole, batches)
    assert len(weights.taken) == 2 and weights.streams.nbytes == 0
