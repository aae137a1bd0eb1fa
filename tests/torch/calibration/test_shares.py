"""Processes that measure together see what one process sees alone; two of them are tried one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from cahp_opt.runs.measuring import MeasuringOptions
from cahp_opt.torch import find_prunable
from cahp_opt.torch.calibration.calibration import measure
from cahp_opt.torch.calibration.collectors import collectors_for
from cahp_opt.torch.calibration.shares import Share, told_by_first
from cahp_opt.torch.calibration.token_gradients import TokenGradients

SIZES = (4, 3, 4, 2, 1)


@pytest.fixture
def batches() -> list[dict[str, torch.Tensor]]:
    return [tiny_models.batch(size=size, length=6, seed=size) for size in SIZES]


@pytest.mark.parametrize("most", [0, 3, 9, 100])
def test_shares_add_up_to_the_whole(most: int, batches: list[dict[str, torch.Tensor]]) -> None:
    prunable = find_prunable(tiny_models.BERT.build().double())
    wanted = {"moments", "sensitivity", "gauss_newton", "salience"}
    asked = collectors_for(MeasuringOptions(5, 7, 0, 0).of(wanted))
    asked = [TokenGradients(most) if isinstance(c, TokenGradients) else c for c in asked]

    def measured(share: Share) -> Any:
        own = [share.asking(collector, batches) for collector in asked]
        return measure(prunable, share.of(batches), own)

    whole, (first, second) = measured(Share()), (measured(Share(r, 2)) for r in range(2))
    both = first + second
    assert both.examples == whole.examples == sum(SIZES)
    for name, statistic in whole.statistics.items():
        for part, array in statistic.arrays().items():
            np.testing.assert_allclose(both.statistics[name].arrays()[part], array, atol=1e-9)


def test_every_batch_has_one_process(batches: list[dict[str, torch.Tensor]]) -> None:
    places: dict[int, int] = {}
    for rank in range(3):
        share = Share(rank, 3)
        for own, batch in enumerate(share.of(batches)):
            assert batch is batches[share.number(own)]
            places[share.number(own)] = rank
    assert sorted(places) == list(range(5))


def test_processes_without_a_batch_are_refused(batches: list[dict[str, torch.Tensor]]) -> None:
    with pytest.raises(ValueError, match="5, fewer than the 6 processes"):
        Share(0, 6).of(batches)


def test_alone_there_is_nobody_to_ask() -> None:
    assert Share.here() == Share() and told_by_first("mine") == "mine"
