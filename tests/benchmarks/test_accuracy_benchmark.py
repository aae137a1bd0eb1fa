"""The benchmark of accuracies, whole, on a tiny random classifier and a few texts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from film_reviews import LAYERS, write_critic, write_reviews

from benchmarks.accuracy import report, run
from benchmarks.accuracy.data import read
from benchmarks.accuracy.earlier import Earlier
from benchmarks.accuracy.training import Recipe, accuracy, groups, train
from benchmarks.pages import stale
from cahp_opt.costs.latency_table import LatencyTable
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.provenance import Provenance
from cahp_opt.studies.outcome import Arm, Cell
from cahp_opt.studies.study import Study
from cahp_opt.torch import evaluate, find_prunable, slice_heads
from cahp_opt.torch.blocks.fingerprint import structure
from cahp_opt.torch.texts.encoding import encode

Trained = tuple[Any, Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tables with two classes."""
    folder = tmp_path_factory.mktemp("data") / "films"
    folder.mkdir()
    write_reviews(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier with its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    write_critic(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> Trained:
    """The model and its tokenizer."""
    load: Any = transformers.AutoModelForSequenceClassification
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(checkpoint)
    return load.from_pretrained(checkpoint).eval(), tokenizer


def bench(data: Path, checkpoint: Path, folder: Path, **more: str) -> Study:
    """The record after a run."""
    given = {
        "data": str(data),
        "checkpoint": str(checkpoint),
        "cache": str(folder / "cache"),
        "output": str(folder / "films-heads.safetensors"),
        "methods": "random,osscar",
        "limits": "4 heads",
        "texts": "12",
        **more,
    }
    assert run.main([part for name, value in given.items() for part in (f"--{name}", value)]) == 0
    return Study.load(folder / "films-heads.safetensors")


@pytest.fixture(scope="module")
def record(data: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """One seed of two methods, and then two of one of them."""
    folder = tmp_path_factory.mktemp("run")
    first = bench(data, checkpoint, folder)
    assert len(first.outcomes) == 4 and not first.missing
    return bench(data, checkpoint, folder, methods="random", seeds="2")


def test_runs_add_to_the_record(
    record: Study, data: Path, checkpoint: Path, loaded: Trained
) -> None:
    """It keeps what it had, and its figures are those of the models."""
    assert {(c.method, c.recovery, c.seed) for c in record.cells} == {
        *(("osscar", recovery, 0) for recovery in ("none", "refit")),
        *(("random", recovery, seed) for recovery in ("none", "refit") for seed in (0, 1)),
    }
    model, tokenizer = loaded
    batches = encode(read(data).test, tokenizer, model, batch_size=4, max_length=64)
    outcome = record.of(Arm("osscar", "4 heads", "none"))[0]
    figures = evaluate(model, slice_heads(model, outcome.kept), batches).figures
    assert outcome.kept.sum() == 4 and record.model == checkpoint.name
    assert outcome.scores.value("accuracy") == figures["accuracy"]
    assert outcome.scores.value("kl") == pytest.approx(figures["kl"], rel=1e-3)
    refitted = record.of(Arm("osscar", "4 heads", "refit"))[0]
    assert refitted.scores.value("kl") != outcome.scores.value("kl")
    assert {"date", "transformers", "texts of a draw"} <= set(record.provenance)


def test_the_page_says_what_the_record_says(record: Study, tmp_path: Path) -> None:
    (tmp_path / "earlier.json").write_text(
        json.dumps(
            {
                "made": {"films": "Made by hand."},
                "rows": [
                    ["films", "random", "4 heads", "none", 0, 0.5, 0.25, "a CPU"],
                    ["films", "random", "4 heads", "none", 1, 0.7, 0.35, "a CPU"],
                    ["films", "greedy-kl", "4 heads", "an epoch", 0, 0.6, 0.1, "a CPU"],
                ],
            }
        ),
        encoding="utf-8",
    )
    two = report.files({"a": record, "b": record, "b-heads": record}, [])["accuracy.md"]
    together, accuracy = (
        two.partition("## 2 tasks together")[2],
        record.of(Arm("osscar", "4 heads", "none")),
    )
    share = 100 * accuracy[0].scores.value("accuracy")
    assert any(
        f"{share:.1f}" in line for line in together.splitlines() if line.startswith("| osscar")
    )
    failed = {Cell("kwon", "4 heads", "none", 0): "it ran out of memory."}
    made = report.files(
        {"films-heads": replace(record, missing=failed)},
        Earlier.read(tmp_path / "earlier.json"),
    )
    assert set(made) == {"accuracy.md", "accuracy-films-heads.svg"}
    rows = {row.arm: row for row in record.rows()}
    none, refit = (rows[Arm("random", "4 heads", r)].figures for r in ("none", "refit"))
    now = f"{100 * none['accuracy'].value:.1f} ± {100 * (none['accuracy'].error or 0):.1f}"
    then = f"{100 * refit['accuracy'].value:.1f} ± {100 * (refit['accuracy'].error or 0):.1f}"
    lines = made["accuracy.md"].splitlines()
    line = next(line for line in lines if line.startswith("| random |"))
    cells = [
        f"**{now}**; {none['kl'].value:.4f}",
        f"**{then}**; {refit['kl'].value:.4f}",
    ]
    assert line.replace("**", "") == f"| random | {' | '.join(cells)} |".replace("**", "")
    assert "- without a result: kwon, 4 heads, none, 0: it ran out of memory." in lines
    points = 100 * (none["accuracy"].value - 0.6)
    beside = (
        f"| random | 4 heads | none | 60.0 ± 10.0 (2); 0.300 | {now} (2); {none['kl'].value:.3f} "
        f"| {points:+.1f} | {none['kl'].value - 0.3:+.3f} |"
    )
    assert beside in lines and "| greedy-kl |  | 60.0 (1); 0.100 |" in lines
    assert made["accuracy-films-heads.svg"].count('<circle cx="') == 1 + 4
    assert stale(made, tmp_path, report.PICTURES) == list(made)
    (tmp_path / "accuracy-gone.svg").write_text("", encoding="utf-8")
    assert stale({}, tmp_path, report.PICTURES) == ["accuracy-gone.svg"]


def test_a_table_of_the_encoder_serves_models_of_all_tasks(
    checkpoint: Path, loaded: Trained, tmp_path: Path
) -> None:
    """It is taken for the model at hand, whose outputs alone differ, and says so to the study."""
    space = find_prunable(loaded[0]).space
    of_another = Provenance(device="a CPU", model="BertForSequenceClassification/0123456789abcdef")
    costs = tuple(np.arange(b.units + 1.0) for b in space.blocks)
    Profile(space, {"prefill": LatencyTable(space, 1.0, costs, of_another)}).save(tmp_path / "t")
    with pytest.raises(ValueError, match="of another model"):
        Profile.load(tmp_path / "t").check(structure(loaded[0]))
    found = run.table_of_encoder(tmp_path / "t", checkpoint)
    found.check(structure(loaded[0]))
    assert found.latency["prefill"].provenance.device == "a CPU"


def test_training_learns_and_keeps_the_best_epoch(data: Path, checkpoint: Path) -> None:
    load: Any = transformers.AutoModelForSequenceClassification
    model = load.from_pretrained(checkpoint)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(checkpoint)
    texts = read(data)
    assert texts.name == "films" and {e.label for e in texts.train} == {"0", "1"}
    rates = [group["lr"] for group in groups(model, Recipe())]
    assert max(rates) == 5e-4 and min(rates) == pytest.approx(1.2e-4 * 0.9**LAYERS)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    log = train(model, tokenizer, texts, Recipe(epochs=6, rate=5e-3, batch=8))
    judge = encode(texts.dev, tokenizer, model, batch_size=128, max_length=64)
    assert len(log) == 6 and log[-1]["loss"] < log[0]["loss"]
    assert accuracy(model, judge) == max(epoch["dev"] for epoch in log)
    assert any(not torch.equal(before[name], t) for name, t in model.state_dict().items())
