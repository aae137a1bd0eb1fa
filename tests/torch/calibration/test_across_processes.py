"""Calibration in two processes over gloo gives what one process gives on all data."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from batches_by_hand import assert_same, collate, texts
from torch import distributed
from torch.multiprocessing.spawn import start_processes

from cahp_opt.runs.measuring import MeasuringOptions
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.pooling import Pooling
from cahp_opt.torch import find_prunable
from cahp_opt.torch.calibration.across_processes import gather_stats
from cahp_opt.torch.calibration.calibration import calibrate
from cahp_opt.torch.pipeline.calibrating import Calibrated, calibrate_kinds
from cahp_opt.torch.recovery.token_weights import TokenWeights

PROCESSES = 2


def measured(rows: list[list[int]], seed: int = 0, **options: object) -> HeadStats:
    model = tiny_models.BERT.build(seed=seed).double()
    options.setdefault("divergence_examples", 100)
    options.setdefault("signature_size", 3)
    options.setdefault("fisher", True)
    options.setdefault("sensitivity_examples", 100)
    batches = [
        {**collate(part), "labels": torch.tensor([len(row) // 3 for row in part])}
        for part in (rows[:2], rows[2:])
    ]
    return calibrate(model, batches, **options)  # type: ignore[arg-type]


def shares() -> list[list[list[int]]]:
    rows = texts(9)
    return [rows[:4], rows[4:]]  # of different sizes


@contextmanager
def connected(rank: int, folder: Path) -> Iterator[None]:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=PROCESSES
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def refusal(stats: HeadStats) -> str:
    try:
        gather_stats(stats)
    except ValueError as error:
        return str(error)
    return "accepted"


def of_both_kinds(rows: list[list[int]], memory: float | None = None) -> Calibrated:
    """Statistics whose arrays lie in memory in different ways; the neurons are put in order in between."""
    model = tiny_models.BERT.build().double()
    batches = [collate(rows[i : i + 2]) for i in range(0, len(rows), 2)]
    weights = TokenWeights(find_prunable(model))
    amounts = MeasuringOptions(3, 6, statistics_memory=memory)
    wanted = amounts.of({"moments", "sensitivity", "salience"})
    found = calibrate_kinds(find_prunable(model), batches, wanted, token_weights=weights)
    assert sorted(weights.taken) == list(range(len(batches)))
    return found


def work(rank: int, folder: Path) -> None:
    """What each process does; it writes down what it got."""
    torch.set_num_threads(1)
    mine = measured(shares()[rank])
    with connected(rank, folder):
        gather_stats(mine).save(folder / f"{rank}.safetensors")
        of_both_kinds(texts(9)).stats.save(folder / f"both-{rank}.safetensors")
        # As the first process says, some blocks at a time.
        apart = of_both_kinds(texts(9), memory=8e-5 if rank == 0 else 1)
        apart.stats.save(folder / f"apart-{rank}.safetensors")
        said = [
            refusal(measured(shares()[rank], seed=rank)),
            refusal(measured(shares()[rank], densities=(1.0, 0.5) if rank else (1.0,))),
            refusal(measured(shares()[rank], divergence_examples=rank)),
            refusal(measured(shares()[rank], signature_size=rank)),
            refusal(measured(shares()[rank], fisher=bool(rank))),
            refusal(measured(shares()[rank], sensitivity_examples=rank)),
        ]
        pooled = replace(mine, pooling=list(Pooling)[rank])
        said.append(refusal(pooled))
        said.append(refusal(pooled if rank else mine))
        alike = gather_stats(replace(mine, pooling=Pooling.MAX))
        said.append(str(alike.pooling is Pooling.MAX))
    (folder / f"{rank}.txt").write_text("\n".join(said), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gathering")
    method = "spawn"
    if "forkserver" in multiprocessing.get_all_start_methods():  # imports once for both
        method = "forkserver"
        multiprocessing.set_forkserver_preload(["cahp_opt.torch", "transformers"])
    start_processes(work, (folder,), nprocs=PROCESSES, start_method=method)  # type: ignore[no-untyped-call]
    return folder


def test_every_process_gets_the_sums_of_one_process(folder: Path) -> None:
    one = measured([row for share in shares() for row in share])
    results = [HeadStats.load(folder / f"{rank}.safetensors") for rank in range(PROCESSES)]
    for result in results:
        assert_same(result, one, rtol=1e-8)
        assert result.signatures is not None and one.signatures is not None
        assert np.array_equal(result.signatures.counts, one.signatures.counts)
        np.testing.assert_allclose(result.signatures.mean, one.signatures.mean, atol=1e-12)
        np.testing.assert_allclose(result.signatures.squares, one.signatures.squares, atol=1e-12)
        assert result.salience.count == one.salience.count == 9
    assert_same(results[0], results[1], rtol=0)


def test_processes_that_share_the_texts_put_neurons_in_the_same_order(folder: Path) -> None:
    one = of_both_kinds(texts(9)).stats
    mine: list[HeadStats] = []
    for rank in range(PROCESSES):
        mine.append(HeadStats.load(folder / f"both-{rank}.safetensors"))
        assert mine[rank].space == one.space and mine[rank].salience.count == 3
        assert mine[rank].sensitivity[0].examples == one.sensitivity[0].examples == 6
        assert_same(mine[rank], one, rtol=1e-6)
    assert_same(mine[0], mine[1], rtol=0)
    for rank in range(PROCESSES):
        assert_same(HeadStats.load(folder / f"apart-{rank}.safetensors"), mine[0], rtol=0)


def test_every_process_refuses_what_does_not_add_up(folder: Path) -> None:
    for rank in range(PROCESSES):
        said = (folder / f"{rank}.txt").read_text(encoding="utf-8").splitlines()
        assert said[0].startswith("process 1 calibrated another model than process 0")
        assert all(s.startswith("process 1 calibrated with other options") for s in said[1:6])
        poolings, unrecorded, alike = said[6:]
        assert poolings.startswith("process 1 calibrated with cls pooling, and process 0 with mean")
        assert "process 0 with no pooling that was recorded" in unrecorded
        assert alike == "True"


def test_one_process_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = measured(texts(3), divergence_examples=0)
    assert gather_stats(stats) is stats
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="a launcher started 2 processes"):
        gather_stats(stats)
