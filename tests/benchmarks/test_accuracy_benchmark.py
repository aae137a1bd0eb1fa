"""The benchmark of accuracies, whole, on a tiny random classifier and a few texts."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from film_reviews import HEADS, LAYERS, write_critic, write_reviews
from torch.nn import functional

from benchmarks.accuracy import figures, report, run
from benchmarks.accuracy.cost import counted
from benchmarks.accuracy.data import read
from benchmarks.accuracy.methods import METHODS, Task, along, whole_path
from benchmarks.accuracy.training import Recipe, accuracy, groups, train
from benchmarks.machine import described
from benchmarks.pages import stale
from cahp_opt.costs.budget import BudgetError
from cahp_opt.costs.latency_table import LatencyTable
from cahp_opt.costs.provenance import Provenance
from cahp_opt.costs.target import Target
from cahp_opt.files.store import Busy
from cahp_opt.runs.recovery import Recovery
from cahp_opt.torch import find_attention, head_mask
from cahp_opt.torch.texts.encoding import encode

pytest.importorskip("sklearn")
pytest.importorskip("ortools")
pytest.importorskip("accelerate")

FULL = {"random", "michel", "fisher", "kwon", "osscar", "explained-variance", "greedy"}
"""Methods that always use up a budget of units."""
ALL = {"recovery": "none,refit", "budgets": "4"}


@pytest.fixture(scope="module", autouse=True)
def few_seeds() -> Iterator[None]:
    """Methods that are run on many seeds are run on three."""
    with pytest.MonkeyPatch.context() as patch:
        for name, method in METHODS.items():
            patch.setitem(METHODS, name, replace(method, seeds=method.seeds and 3))
        yield


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


@pytest.fixture(scope="module")
def loaded(checkpoint: Path, data: Path) -> tuple[Any, list[dict[str, torch.Tensor]]]:
    """The model, and its test set in batches."""
    load: Any = transformers.AutoModelForSequenceClassification
    model = load.from_pretrained(checkpoint).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(checkpoint)
    batches = encode(read(str(data)).test, tokenizer, model, batch_size=4, max_length=64)
    return model, batches


def arguments(data: Path, checkpoint: Path, folder: Path, **more: str) -> list[str]:
    given = {
        "data": str(data),
        "checkpoint": str(checkpoint),
        "cache": str(folder / "cache"),
        "output": str(folder / "films.json"),
        "calibration": "12",
        "repeats": "1",
        "seeds": "1",
        **more,
    }
    return [part for name, value in given.items() for part in (f"--{name}", value)]


def bench(data: Path, checkpoint: Path, folder: Path, **more: str) -> dict[str, Any]:
    """The record of a run."""
    lines = list[str]()
    assert run.main(arguments(data, checkpoint, folder, **more), lines.append) == 0
    found: dict[str, Any] = json.loads((folder / "films.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def record(
    data: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Every method with and without a refit, in two shards, and where."""
    folder = tmp_path_factory.mktemp("run")
    first = bench(data, checkpoint, folder, **ALL, shard="0/2")
    assert first["missing"] > 0
    return folder, bench(data, checkpoint, folder, **ALL, shard="1/2")


def test_every_method_is_measured(
    record: tuple[Path, dict[str, Any]], loaded: tuple[Any, list[dict[str, torch.Tensor]]]
) -> None:
    _, found = record
    model, batches = loaded
    seeds = {name: method.seeds or 1 for name, method in METHODS.items()}
    assert found["missing"] == 0 and len(found["rows"]) == 2 * sum(seeds.values())
    labels = torch.cat([batch["labels"] for batch in batches])

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([model(b["input_ids"], b["attention_mask"]).logits for b in batches])

    dense = logits()
    right = float((dense.argmax(-1) == labels).float().mean())
    assert found["dense"]["test"] == pytest.approx(right, abs=1e-5)
    changed = 0
    for row in found["rows"]:
        kept = np.array([c == "1" for c in row["kept"].replace("/", "")])
        counts = [part.count("1") for part in row["kept"].split("/")]
        assert row["counts"] == counts and len(counts) == LAYERS
        assert sum(counts) == 4 or (sum(counts) < 4 and row["method"] not in FULL)
        with head_mask(model, kept):
            masked = logits()
        right = float((masked.argmax(-1) == labels).float().mean())
        apart = functional.kl_div(
            masked.log_softmax(-1), dense.log_softmax(-1), log_target=True, reduction="none"
        )
        before = row["before"]
        assert before["test"] == pytest.approx(right, abs=1e-5)
        assert before["kl"] == pytest.approx(float(apart.sum(-1).mean()), abs=2e-5)
        if row["recovery"] == "none":
            assert {name: row[name] for name in before} == before and "refit" not in row["cost"]
        else:
            changed += row["kl"] != before["kl"]
            assert row["cost"]["refit"]["passes"] > 0
    assert changed > 10


def test_what_is_done_is_not_done_again(
    record: tuple[Path, dict[str, Any]],
    data: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, found = record

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("it was done before")

    for name in ("slice_heads", "refit", "measure_latency"):
        monkeypatch.setattr(run, name, never)
    again = bench(data, checkpoint, folder, **ALL)
    assert again["rows"] == found["rows"]
    with pytest.raises(AssertionError, match="done before"):
        bench(data, checkpoint, folder, recovery="none", budgets="3", methods="michel")


def test_a_latency(
    data: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the time is outside of the blocks, so 0.8 of it leaves 60 % of the units."""

    def table(model: Any, *args: object, **kwargs: object) -> LatencyTable:
        space = find_attention(model).space
        return LatencyTable(space, 1.0, (np.linspace(0, 0.5, HEADS + 1),) * LAYERS)

    monkeypatch.setattr(run, "measure_latency", table)
    methods = {"methods": "osscar,greedy,default,seed-method", "recovery": "none"}
    found = bench(data, checkpoint, tmp_path, budgets="0.8", **methods)
    for row in found["rows"]:
        assert row["latency"] == pytest.approx(0.5 + 0.5 * sum(row["counts"]) / 8, abs=1e-4)
        assert sum(row["counts"]) == 4 or (sum(row["counts"]) < 4 and row["method"] not in FULL)
    with pytest.raises(BudgetError, match="latency"):
        bench(data, checkpoint, tmp_path, budgets="0.4", **methods)


def test_a_table_from_elsewhere(
    record: tuple[Path, dict[str, Any]],
    data: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is not measured here, and the rows can be used without the statistics that they come from."""
    model: Any = transformers.AutoModelForSequenceClassification
    space = find_attention(model.from_pretrained(checkpoint)).space
    facts = Provenance(device="elsewhere", threads=3)
    table = LatencyTable(space, 1.0, (np.linspace(0, 0.5, HEADS + 1),) * LAYERS, facts)
    table.save(tmp_path / "table.json")
    monkeypatch.setattr(run, "measure_latency", None)
    methods = {"methods": "osscar,random", "recovery": "none", "most-seeds": "1"}
    shutil.copytree(record[0] / "cache", tmp_path / "cache")
    for kind in ("statistics", "chosen", "latency"):
        shutil.rmtree(tmp_path / "cache" / kind)
    where = {"table": str(tmp_path / "table.json"), "budgets": "4,0.8"}
    found = bench(data, checkpoint, tmp_path, **methods, **where)
    assert (found["table"]["device"], found["table"]["threads"]) == ("elsewhere", 3)
    assert [sum(row["counts"]) for row in found["rows"]] == [4, 4, 4, 4]
    here = described(torch.device("cpu"))
    assert all(row["device"] == here and row["timed_on"] == [here] for row in found["rows"])
    before = figures.those(record[1], method="osscar", budget="4", recovery="none")
    after = figures.those(found, method="osscar", budget="4")
    assert [row["kept"] for row in after] == [row["kept"] for row in before]
    methods["methods"] = "michel"
    late = bench(data, checkpoint, tmp_path, **methods, **where, minutes="0")
    assert not late["rows"] and late["missing"] > 0


def test_an_epoch(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    found = bench(
        data,
        checkpoint,
        tmp_path,
        recovery="refit,refit+1-epoch",
        budgets="4",
        methods="michel",
        rate="0.01",
    )
    refitted, trained = found["rows"]
    assert (refitted["recovery"], trained["recovery"]) == ("refit", "refit+1-epoch")
    assert refitted["kept"] == trained["kept"] and refitted["kl"] != trained["kl"]
    assert trained["cost"]["train"]["seconds"] > 0


def test_shards_are_a_partition() -> None:
    limits = [run.Limit("24"), run.Limit("0.8")]
    todo = run.cells(list(METHODS), limits, list(run.RECOVERIES), 3)
    parts = [run.share(todo, f"{i}/3") for i in range(3)]
    assert sorted(cell for part in parts for cell in part) == sorted(todo)
    keys = [{cell[:3] for cell in part} for part in parts]
    assert not keys[0] & keys[1] and all(keys)
    trained = [cell.recovery.endswith("1-epoch") for cell in todo]
    assert trained == sorted(trained) and todo[0].limit.text == "24"


def test_the_main_comparisons_are_made_first() -> None:
    limits = [run.Limit(text) for text in run.BUDGETS.split(",")]
    todo = run.cells(list(METHODS), limits, list(run.RECOVERIES), 3)
    urgent = run.urgent_first(todo)
    assert sorted(urgent) == sorted(todo)
    seeds = [min(METHODS[method].seeds or 3, 10) for method in run.URGENT["methods"]]
    first = 2 * 3 * sum(seeds)
    assert {(c.method, c.limit.text) for c in urgent[:first]} == {
        (method, budget) for method in run.URGENT["methods"] for budget in run.URGENT["budgets"]
    }
    assert {c.recovery for c in urgent[:first]} == {"none", "refit"}
    trained = urgent[first : first + 12]
    assert {(c.method, c.limit.text, c.seed, c.recovery) for c in trained} == {
        (method, "18", seed, recovery)
        for method in ("default", "seed-method")
        for seed in range(3)
        for recovery in ("1-epoch", "refit+1-epoch")
    }
    assert urgent[first + 12 :] == [c for c in todo if c not in urgent[: first + 12]]


def test_a_cell_that_is_busy_or_fails_stops_no_other() -> None:
    done = list[str]()

    class Bench:
        def work(self, cell: str) -> None:
            if cell == "busy" and "last" not in done:
                raise Busy
            if cell == "bad":
                raise ValueError("no")
            done.append(cell)

    of: Any = Bench()
    todo: Any = ["busy", "bad", "next", "last"]
    failed = list[Any]()
    found: list[Any] = list(run.worked(of, todo, math.inf, failed))
    assert found == done == ["next", "last", "busy"]
    assert [cell for cell, _ in failed] == ["bad"]
    assert list(run.worked(of, todo, 0.0, failed)) == []


def test_greedy_removal_is_what_brute_force_finds(
    loaded: tuple[Any, list[dict[str, torch.Tensor]]],
) -> None:
    model, batches = loaded
    n = HEADS * LAYERS

    def log_probabilities() -> torch.Tensor:
        with torch.no_grad():
            outs = [model(b["input_ids"], b["attention_mask"]).logits for b in batches]
        return torch.cat(outs).double().log_softmax(-1)

    dense = log_probabilities()
    kept, expected = np.ones(n, dtype=np.bool_), list[int]()
    while kept.sum() > 1:
        damage = np.full(n, np.inf)
        for unit in np.flatnonzero(kept):
            there = kept.copy()
            there[unit] = False
            with head_mask(model, there):
                other = log_probabilities()
            damage[unit] = float((dense.exp() * (dense - other)).sum())
        expected.append(int(damage.argmin()))
        kept[expected[-1]] = False
    assert whole_path(model, batches, least=1) == expected
    assert along(expected, n, 2).sum() == n - 2


def test_a_backward_pass_costs_two_forward_passes(
    loaded: tuple[Any, list[dict[str, torch.Tensor]]],
) -> None:
    model, batches = loaded
    with counted(model) as cost:
        with torch.no_grad():
            model(**batches[0])
        assert cost.examples == pytest.approx(len(batches[0]["labels"]))
        model(**batches[1]).loss.backward()
    model.zero_grad()
    sizes = [len(batch["labels"]) for batch in batches]
    assert cost.examples == pytest.approx(sizes[0] + 3 * sizes[1])


def test_even_counts(loaded: tuple[Any, list[dict[str, torch.Tensor]]]) -> None:
    space = find_attention(loaded[0]).space
    task = Task(space, Target(heads=5, minimum=0), None, Recovery.REFIT, 0, 12)
    assert task.even.tolist() == [3, 2] and task.density == pytest.approx(5 / 8)


def test_training_learns_and_keeps_the_best_epoch(data: Path, checkpoint: Path) -> None:
    load: Any = transformers.AutoModelForSequenceClassification
    model = load.from_pretrained(checkpoint)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(checkpoint)
    texts = read(str(data))
    assert texts.labels == ["0", "1"] and texts.name == data.name
    rates = [group["lr"] for group in groups(model, Recipe())]
    assert max(rates) == 5e-4 and min(rates) == pytest.approx(1.2e-4 * 0.9**LAYERS)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    log = train(model, tokenizer, texts, Recipe(epochs=6, rate=5e-3, batch=8))
    judge = encode(texts.dev, tokenizer, model, batch_size=128, max_length=64)
    assert len(log) == 6 and log[-1]["loss"] < log[0]["loss"]
    assert accuracy(model, judge) == max(epoch["dev"] for epoch in log)
    assert any(not torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_the_page_says_what_the_record_says(
    record: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, found = record
    made = report.files({"films": found})
    assert set(made) == {
        "accuracy.md",
        *(f"accuracy-films-{name}.svg" for name in ("heads", "latency", "layers")),
    }
    rows = figures.those(found, method="random", budget="4", recovery="refit")
    values = [row["test"] for row in rows]
    error = np.std(values, ddof=1) / len(values) ** 0.5
    cell = f"{100 * np.mean(values):.1f} ± {100 * error:.1f} (3)"
    line = next(x for x in made["accuracy.md"].split("### Refit")[1].splitlines() if "random" in x)
    assert line == f"| random | {cell} |"
    assert stale(made, tmp_path, report.PICTURES) == list(made)
    for name, content in made.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "accuracy-gone-heads.svg").write_text("", encoding="utf-8")
    assert stale(made, tmp_path, report.PICTURES) == ["accuracy-gone-heads.svg"]


def test_seconds_of_two_devices_are_not_mixed() -> None:
    gpu, cpu = {"timed_on": ["GPU"]}, {"timed_on": ["CPU, 1 thread"]}
    both = {"timed_on": ["CPU, 1 thread", "GPU"]}
    assert figures.timed_alike([gpu, gpu, both, cpu]) == ("CPU, 1 thread", [cpu])
    assert figures.timed_alike([{"timed_on": ["old"]}, gpu, gpu, both]) == ("GPU", [gpu, gpu])
    assert figures.timed_alike([{}]) == (figures.EARLIER, [{}])
    assert figures.timed_alike([both])[1] == []
    assert figures.devices([{"device": "GPU"}, {}, {}]) == f"{figures.EARLIER} (2), GPU (1)"


def test_the_headline_has_the_columns_that_were_measured() -> None:
    def row(method: str, budget: str, recovery: str, seed: int, test: float) -> dict[str, Any]:
        return {
            "method": method,
            "budget": budget,
            "recovery": recovery,
            "seed": seed,
            "test": test,
            "kl": 1 - test,
        }

    rows = [
        row("default", "24", "refit", 0, 0.5),
        row("default", "24", "refit", 1, 0.52),
        row("random", "24", "refit", 0, 0.4),
        row("random", "36", "refit", 0, 0.9),
        row("greedy", "36", "refit", 0, 0.9),
        row("default", "18", "refit+1-epoch", 0, 0.515),
    ]
    record = {
        "data": "films",
        "units": [12] * 6,
        "sizes": {"test": 2491},
        "dense": {"test": 0.53},
        "names": {"default": "default", "random": "random", "greedy": "greedy"},
        "rows": rows,
    }
    assert report.headline({"films": record}).splitlines() == [
        "| test accuracy, %; KL, nats | films: 24 of 72, refit | films: 18 of 72, refit and one epoch |",
        "|---|---|---|",
        "| unpruned | 53.0 | 53.0 |",
        "| default | 51.0 ± 1.0 (2); 0.490 | 51.5 (1); 0.485 |",
        "| random | 40.0 (1); 0.600 |  |",
        "",
        "One standard error from the size of the test set, in points: films 1.0.",
    ]
