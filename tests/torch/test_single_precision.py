"""Devices without double precision: everything runs there, and comes to what the CPU measures."""

from __future__ import annotations

from typing import Any

import far_device
import numpy as np
import pytest
import tiny_models
import torch
from batches_by_hand import assert_same
from far_device import FAR, FarTensor, sent

from cahp_opt.torch import TokenWeights, calibrate, find_attention, refit, slice_heads, verify_slice
from cahp_opt.torch.evaluation.evaluation import evaluate

BATCHES = [tiny_models.batch(size=4, length=7, seed=seed) for seed in range(3)]
FAMILIES = [tiny_models.BERT, tiny_models.LLAMA_GQA]


def test_the_device_is_one_without_double_precision() -> None:
    with far_device.far_device():
        far = torch.arange(3.0).to(FAR)
        assert isinstance(far, FarTensor) and far.device == FAR
        assert (far + 1).device == FAR and (2 * far).sum().item() == 6
        for make in (far.double, lambda: torch.zeros(2, dtype=torch.float64, device=FAR)):
            with pytest.raises(TypeError, match="float64"):
                make()
        assert far.cpu().double().sum() == 3


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_calibration(family: tiny_models.Family) -> None:
    options: dict[str, Any] = {
        "sensitivity_examples": 100,
        "divergence_examples": 4,
        "fisher": True,
    }
    batches = [{**batch, "labels": batch["input_ids"]} for batch in BATCHES]
    if family is tiny_models.BERT:
        batches = [{**batch, "labels": batch["input_ids"][:, 0] % 3} for batch in BATCHES]
        options["signature_size"] = 3
    here = calibrate(family.build(num_hidden_layers=2), batches, **options)
    with far_device.far_device():
        there = calibrate(sent(family.build(num_hidden_layers=2)), batches, **options)
    assert_same(here, there, rtol=1e-4)


def test_numbers_in_double_precision_are_sent_in_single() -> None:
    batches = [
        {**batch, "labels": torch.linspace(-1, 1, 4, dtype=torch.float64)} for batch in BATCHES
    ]
    here, there = (tiny_models.BERT.build(num_labels=1) for _ in range(2))
    expected = evaluate(here, here, batches).figures
    with far_device.far_device():
        sent(there)
        found = evaluate(there, there, batches).figures
    assert dict(found) == pytest.approx(dict(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("family", "bare"),
    [(tiny_models.BERT, False), (tiny_models.BERT, True), (tiny_models.LLAMA_GQA, False)],
    ids=["bert", "bert-bare", "llama-gqa"],
)
def test_slicing_refitting_and_judging(family: tiny_models.Family, bare: bool) -> None:
    def whole_way(dense: Any) -> tuple[float, dict[str, float], list[float]]:
        kept = np.arange(find_attention(dense).space.n) % 3 > 0
        small = slice_heads(dense, kept, batch=BATCHES[0])
        apart = verify_slice(dense, small, kept, BATCHES[0])
        fits = refit(small, dense, BATCHES, weighting=TokenWeights(dense))
        figures = dict(evaluate(dense, small, BATCHES).figures)
        return apart, figures, [fit.ridge for fit in fits]

    here = whole_way(family.build(bare=bare))
    with far_device.far_device():
        there = whole_way(sent(family.build(bare=bare)))
    assert there[0] == pytest.approx(here[0], abs=1e-5)
    assert there[1] == pytest.approx(here[1], rel=1e-2, abs=1e-5)
    assert there[2] == here[2]
