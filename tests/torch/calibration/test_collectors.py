"""Collectors: one of one's own is measured beside those of the library."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import tiny_models
import torch
from batches_by_hand import collate, texts
from torch import Tensor

from cahp_opt.runs.measuring import Measuring
from cahp_opt.stats.registry import STATISTICS
from cahp_opt.stats.statistic import Statistic
from cahp_opt.stats.totals import PerUnit
from cahp_opt.torch import calibrate, find_attention
from cahp_opt.torch.calibration.calibration import measure
from cahp_opt.torch.calibration.collector import Collecting, Collector, Dense, Subject
from cahp_opt.torch.calibration.collectors import COLLECTORS, collectors_for
from cahp_opt.torch.calibration.gate_gradients import GateGradients
from cahp_opt.torch.calibration.output_moments import HeadOutputs
from cahp_opt.torch.calibration.token_gradients import TokenGradients
from cahp_opt.torch.running.batches import Batch, batch_size


@dataclass(frozen=True)
class Lengths(Collector):
    """Asks for the sum of squares of what every unit puts out, padding included."""

    examples: int | None = None

    def start(self, subject: Subject) -> Squares:
        return Squares(subject)


class Squares(Collecting):
    def __init__(self, subject: Subject) -> None:
        self._units = [block.units for block in subject.prunable]
        self._sum = np.zeros(subject.prunable.space.n)
        self._parts: list[Tensor] = []
        self._count = 0

    def see(self, block: int, outputs: Tensor, batch: Batch) -> None:
        assert len(self._parts) == block and batch_size(batch) == len(outputs)
        shape = (len(outputs), outputs.shape[1], self._units[block], -1)
        self._parts.append(outputs.reshape(shape).square().sum(dim=(1, 3)))

    def add(self, batch: Batch, dense: Dense) -> None:
        assert batch_size(batch) == len(dense.output)
        for start, part in zip(np.cumsum([0, *self._units]), self._parts, strict=False):
            own = part[: batch_size(batch)].sum(dim=0).double().numpy()
            self._sum[start : start + len(own)] += own
        self._count += batch_size(batch)
        self._parts = []

    def result(self) -> Mapping[str, Statistic]:
        return {"lengths": PerUnit(self._sum, self._count)}


def test_a_collector_of_ones_own() -> None:
    model, rows = tiny_models.BERT.build().double(), texts(6)
    batches = [collate(rows[:2]), collate(rows[2:])]
    stats = calibrate(model, batches, gradient_examples=2, collectors=[Lengths()])
    lengths = stats.statistic("lengths", PerUnit)
    assert lengths is not None and lengths.count == 6 and stats.salience.count == 2
    assert list(stats.statistics) == ["salience", "gauss_newton", "moments", "lengths"]
    few = calibrate(model, batches[1:], collectors=[Lengths(examples=3)])
    alone = [calibrate(model, [collate(rows[2:5])], collectors=[Lengths()]) for _ in range(2)]
    first, again = few.statistics["lengths"], alone[0].statistics["lengths"]
    assert isinstance(first, PerUnit) and isinstance(again, PerUnit)
    both = (alone[0] + alone[1]).statistics["lengths"]
    assert first.count == again.count == 3 and isinstance(both, PerUnit) and both.count == 6
    assert np.all(again.sum > 0) and np.array_equal(both.sum, 2 * again.sum)


def test_one_statistic_has_one_collector() -> None:
    with pytest.raises(ValueError, match="two `collectors` give the statistic `salience`"):
        calibrate(tiny_models.BERT.build(), [collate(texts(2))], collectors=[GateGradients()])


def test_every_statistic_is_collected_where_it_is_asked_for() -> None:
    model, batch = tiny_models.BERT.build(), collate(texts(3))
    batch["labels"] = batch["input_ids"][:, 0] % 2
    every = frozenset(STATISTICS)
    assert (
        measure(find_attention(model), [batch], collectors_for(Measuring(every))).statistics.keys()
        == every
    )
    assert len(collectors_for(Measuring(every))) == len(COLLECTORS)
    for name in every:
        always = {"salience"}  # of no examples
        always |= {"moments"} if name != "sensitivity" else set()
        stats = measure(
            find_attention(model), [batch], collectors_for(Measuring(frozenset({name})))
        )
        expected = {name} | always | ({"gauss_newton"} if name == "fisher" else set())
        assert stats.statistics.keys() == expected
        gradients = name in ("salience", "gauss_newton", "fisher")
        assert stats.salience.count == 3 * gradients


@pytest.mark.parametrize("asked", [HeadOutputs(), TokenGradients()])
def test_sums_are_given_up_for_what_is_made_of_them(asked: Collector) -> None:
    """The matrices of a wide model would be there twice otherwise, for all blocks at once."""
    prunable = find_attention(tiny_models.BERT.build())
    kept: list[Collecting] = []

    class Keeping(Collector):
        def start(self, subject: Subject) -> Collecting:
            kept.append(asked.start(subject))
            return kept[0]

    stats = measure(prunable, [collate(texts(3))], [Keeping()])
    assert kept and len(stats.statistics) == 1
    width = prunable.blocks[0].width
    squares = [
        one
        for one in gc.get_objects()
        if type(one) is Tensor and one.dtype == torch.float64 and one.shape == (width, width)
    ]
    assert not squares
