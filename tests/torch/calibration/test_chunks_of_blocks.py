"""Blocks measured some at a time give what one pass over all of them gives, and memory for some of them suffices."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections import namedtuple
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_models
import torch
from batches_by_hand import collate, texts, trace

from cahp_opt import Problem, Selection, select
from cahp_opt.costs.target import Target
from cahp_opt.objectives import ExplainedVariance
from cahp_opt.runs.measuring import Measuring, MeasuringOptions
from cahp_opt.solvers import DynamicProgram
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.statistic import joined
from cahp_opt.torch import TokenWeights, find_prunable
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.calibration import chunks as chunks_module
from cahp_opt.torch.calibration.calibration import measure
from cahp_opt.torch.calibration.chunks import block_bytes, chunks, memory_for_statistics
from cahp_opt.torch.calibration.statistics_bytes import read_shapes
from cahp_opt.torch.pipeline import calibrating
from cahp_opt.torch.pipeline.calibrating import Calibrated, calibrate_kinds

ROWS = texts(9)
BATCHES = [collate(ROWS[i : i + 3]) for i in range(0, 9, 3)]
LABELLED = [{**batch, "labels": torch.tensor([0, 1, i % 2])} for i, batch in enumerate(BATCHES)]
BOTH = MeasuringOptions(4, 5).of({"moments", "sensitivity", "salience"})
MAPS = MeasuringOptions(4, 5, 2, 3).of(
    {"moments", "sensitivity", "fisher", "divergence", "signatures"}
)


class Run(NamedTuple):
    """What a calibration gave, and how it went.

    Args:
        found: its result.
        weights: of the tokens of every batch, by block, and the streams of the unpruned model.
        blocks: how many blocks every pass was about.
        told: the progress, in steps done and in all.
    """

    found: Calibrated
    weights: TokenWeights
    blocks: list[int]
    told: list[tuple[int, int]]

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        statistics = self.found.stats.statistics
        return joined({name: statistic.arrays() for name, statistic in statistics.items()})


def run(prunable: Prunable, measuring: Measuring, memory: float, folder: Path | None) -> Run:
    """A calibration with this much memory for statistics, in GiB."""
    weights = TokenWeights(prunable)
    blocks, told = list[int](), list[tuple[int, int]]()

    def counting(some: Prunable, *args: Any, **options: Any) -> HeadStats:
        blocks.append(len(some))
        return measure(some, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrating, "measure", counting)
        found = calibrate_kinds(
            prunable,
            LABELLED if "signatures" in measuring else BATCHES,
            replace(measuring, amounts=replace(measuring.amounts, statistics_memory=memory)),
            token_weights=weights,
            folder=folder,
            progress=lambda stage, done, total: told.append((done, total)),
        )
    return Run(found, weights, blocks, told)


def selected(stats: HeadStats) -> Selection:
    """Half of the units, by the sensitivity."""
    neurons = None if stats.space.of_attention.all() else 0.5
    target = Target(heads=6, neurons=neurons).numbers(stats.space)
    return select(Problem(ExplainedVariance.from_sensitivity(stats), target), DynamicProgram())


@pytest.mark.parametrize(
    ("family", "measuring", "neurons", "at_once", "passes"),
    [
        ("bert", BOTH, True, 1, [1, 1, 1, 1, 1, 1, 6]),
        ("llama-gqa", BOTH, True, 2, [2, 2, 2, 6]),
        ("bert", MAPS, False, 2, [3, 2, 1]),
    ],
)
def test_statistics_do_not_depend_on_the_memory_for_them(
    family: str,
    measuring: Measuring,
    neurons: bool,
    at_once: int,
    passes: list[int],
    tmp_path: Path,
) -> None:
    """Maps, and gates where there is no order to wait for, are measured first, and gates on ordered neurons last."""
    model = tiny_models.named(family).build()
    prunable, before = find_prunable(model, neurons=neurons), trace(model)
    size = sum(block_bytes(read_shapes(prunable), measuring)) / len(prunable)
    whole = run(prunable, measuring, math.inf, tmp_path)
    parts = run(prunable, measuring, at_once * size / 2**30, tmp_path)
    assert trace(model) == before and not list(tmp_path.iterdir())
    assert whole.blocks == [len(prunable)] * (1 + neurons) and parts.blocks == passes
    chunks_ = len(passes) - 1
    assert (3 * chunks_, 3 * chunks_) in parts.told
    assert parts.found.stats.space == whole.found.stats.space == parts.found.prunable.space
    mine, theirs = parts.arrays, whole.arrays
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)
    known, expected = parts.weights.taken, whole.weights.taken
    assert known.keys() == expected.keys() == {0, 1, 2}
    for batch, by_block in expected.items():
        assert all(map(torch.equal, known[batch], by_block))
    assert parts.weights.streams.nbytes == whole.weights.streams.nbytes > 0
    one, other = selected(whole.found.stats), selected(parts.found.stats)
    assert np.array_equal(one.kept, other.kept) and one.value == other.value


@pytest.mark.parametrize(
    ("sizes", "most", "expected"),
    [
        ([3, 3, 3, 3], 12, [4]),
        ([3, 3, 3, 3], 11.9, [3, 1]),
        ([3, 9, 3, 3], 6, [1, 1, 2]),
        ([3, 9, 3], 0, [1, 1, 1]),
        ([], 0, [0]),
    ],
)
def test_as_many_blocks_as_fit_are_measured_together(
    sizes: list[int], most: float, expected: list[int]
) -> None:
    found = chunks(sizes, most)
    assert list(map(len, found)) == expected
    assert [number for part in found for number in part] == list(range(len(sizes)))


def test_half_of_the_free_memory_is_shared_by_the_processes_of_a_machine(monkeypatch: Any) -> None:
    monkeypatch.setattr(chunks_module, "free_memory", lambda: 800.0)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert memory_for_statistics(MeasuringOptions()) == 400
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory_for_statistics(MeasuringOptions()) == 100
    assert memory_for_statistics(MeasuringOptions(statistics_memory=0.5)) == 2**29


def test_a_folder_without_room_is_refused_before_the_first_pass(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(100))
    for folder in (tmp_path, None):
        with pytest.raises(ValueError, match=r"has room for .*`--statistics-memory`") as raised:
            run(find_prunable(tiny_models.BERT.build()), BOTH, 0, folder)
        assert str(folder or tempfile.gettempdir()) in str(raised.value)
