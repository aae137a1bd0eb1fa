"""The benchmark of heads and neurons under one latency, whole, on a tiny random classifier and a few texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from film_reviews import HEADS, LAYERS, NEURONS, write_critic, write_reviews

from benchmarks.both_kinds import run
from benchmarks.both_kinds.methods import METHODS, even
from cahp_opt import Block, BudgetError, HeadSpace, LatencyTable, Unit

GROUP = 4
GROUPS = NEURONS // GROUP


def made_up(space: HeadSpace) -> LatencyTable:
    """Half of the time is for the blocks: 2 for each unit of attention, 1 for each group, and a start each."""
    rates = [2.0 if block.unit.of_attention else 1.0 for block in space.blocks]
    costs = [
        rate * np.arange(block.units + 1) + 0.5 * (np.arange(block.units + 1) > 0)
        for block, rate in zip(space.blocks, rates, strict=True)
    ]
    return LatencyTable(space, sum(float(c[-1]) for c in costs), tuple(costs))


TABLE = made_up(
    HeadSpace(
        tuple(
            block
            for layer in range(LAYERS)
            for block in (
                Block(f"attention.{layer}", HEADS),
                Block(f"output.{layer}", GROUPS, Unit.NEURON_GROUP),
            )
        )
    )
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tables with two classes."""
    folder = tmp_path_factory.mktemp("films")
    write_reviews(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier with its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    write_critic(folder)
    return folder


def started(folder: Path, data: Path, checkpoint: Path, **more: str) -> tuple[Any, list[str]]:
    """The record of a run and what it tells."""
    given = {
        "data": str(data),
        "checkpoint": str(checkpoint),
        "cache": str(folder / "cache"),
        "output": str(folder / "films.json"),
        "texts": "12",
        "draws": "1",
        "neuron-group": str(GROUP),
        "repeats": "1",
        "shares": "0.8",
        "threads": "1",
        **more,
    }
    lines = list[str]()
    words = [part for name, value in given.items() for part in (f"--{name}", value)]
    assert run.main(words, lines.append) == 0
    return json.loads((folder / "films.json").read_text(encoding="utf-8")), lines


def test_the_whole_run(
    data: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, with a clock that is not noisy; and what was interrupted is not done again."""
    monkeypatch.setattr(run, "ONLY", {})
    monkeypatch.setattr(
        run, "measure_latency", lambda prunable, batch, repeats: made_up(prunable.space)
    )
    record, lines = started(tmp_path, data, checkpoint)
    rows = {row["method"]: row for row in record["rows"]}
    assert list(rows) == list(METHODS)
    for row in rows.values():
        assert row["kl"] > -1e-6  # but for rounding
        assert 0 <= row["accuracy"] <= 1 and row["measured"] > 0
        assert 0.5 < row["predicted"] <= 0.8 and len(row["heads"]) == len(row["neurons"]) == LAYERS
        assert row["seconds"].keys() == {"choose", "repair"}
    assert rows["heads"]["neurons"] == [NEURONS] * LAYERS != rows["both"]["neurons"]
    assert rows["neurons"]["heads"] == [HEADS] * LAYERS != rows["heads"]["heads"]
    assert rows["kwon"]["neurons"] == rows["kwon-refit"]["neurons"]
    assert rows["kwon"]["kl"] != rows["kwon-refit"]["kl"]
    assert len(lines) == 2 + len(METHODS) + 1 and lines[2].startswith("| 0.8 | heads and neurons |")

    def refuse(self: run.Bench, cell: run.Cell) -> Any:
        pytest.fail(f"{cell} is done again")

    monkeypatch.setattr(run.Bench, "_done", refuse)
    again, _ = started(tmp_path, data, checkpoint, methods="kwon")  # what is there stays
    assert again["rows"] == record["rows"]


def test_an_unknown_method_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--data", "none", "--methods", "both,best"])
    assert "--methods has 'best'" in capsys.readouterr().err


def test_heads_alone_are_compared_where_they_reach() -> None:
    found = run.cells(["both", "heads"], [0.7, 0.5], 2)
    assert [(cell.share, cell.method) for cell in found[:3]] == [
        (0.7, "both"),
        (0.7, "heads"),
        (0.5, "both"),
    ]
    assert len(found) == 6 and found[3].draw == 1


@pytest.mark.parametrize("share", [0.65, 0.75, 0.9, 1.0])
def test_even_shares_fill_the_time(share: float) -> None:
    counts = even(TABLE, share)
    shares = counts / TABLE.space.units
    steps = 1 / TABLE.space.units
    assert np.all(np.abs(shares[:, None] - shares[None, :]) <= steps[:, None] + steps[None, :])
    assert TABLE.predict(counts) <= share * TABLE.dense
    for more in np.eye(len(counts), dtype=np.int64) + counts:
        grown = bool(np.all(more <= TABLE.space.units))
        assert not grown or TABLE.predict(more) > share * TABLE.dense


def test_even_shares_have_a_floor() -> None:
    with pytest.raises(BudgetError, match="latency"):
        even(TABLE, 0.5)
