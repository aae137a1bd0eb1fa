"""Judged models have the figures that `evaluate` gives, and the unpruned model runs once."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch import nn

from cahp_opt.torch.evaluation.evaluation import Judge, evaluate
from cahp_opt.torch.running.batches import inputs_of

METRICS: Any = import_module("sklearn.metrics")
FAMILIES = {"classes": tiny_models.BERT, "tokens": tiny_models.GPT2}


def batches(family: str) -> list[dict[str, Any]]:
    made = [tiny_models.batch(size=6, seed=seed, padded=False) for seed in range(3)]
    if family == "tokens":
        return made
    return [{**batch, "labels": torch.arange(6) % 3} for batch in made]


def counted(model: nn.Module) -> list[int]:
    runs = list[int]()
    model.register_forward_hook(lambda *_: runs.append(1))
    return runs


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kept", "again"), [(2**30, 0), (0, 3)])
def test_a_judge_says_what_evaluate_says(family: str, kept: int, again: int) -> None:
    dense, *others = (FAMILIES[family].build(seed=seed) for seed in range(3))
    runs = counted(dense)
    judge = Judge(dense, batches(family), kept_bytes=kept)
    assert len(runs) == 3
    for model in others:
        runs.clear()
        scores = judge(model)
        assert len(runs) == again
        figures = evaluate(dense, model, batches(family)).figures
        alike = {name: x for name, x in figures.items() if not name.startswith("dense_")}
        assert scores.values() == pytest.approx(alike) and scores.examples == 18
        own = scores.headline.name
        assert judge.unpruned.value() == pytest.approx(figures[f"dense_{own}"])
    assert judge.unpruned.values()["agreement"] == 1


def test_accuracies_are_those_of_scikit_learn() -> None:
    model = tiny_models.BERT.build().eval()
    given = batches("classes")
    with torch.no_grad():
        found = [model(**inputs_of(batch)).logits.argmax(-1) for batch in given]
    labels = torch.cat([batch["labels"] for batch in given])
    figures = evaluate(model, tiny_models.BERT.build(seed=1), given).figures
    both = labels, torch.cat(found)
    assert figures["dense_accuracy"] == pytest.approx(METRICS.accuracy_score(*both))
    assert figures["dense_f1"] == pytest.approx(METRICS.f1_score(*both, average="macro"))


def test_labels_in_some_batches_are_counted_there() -> None:
    model = tiny_models.BERT.build(num_labels=1).eval()
    labels = torch.tensor([0.5, 1.0, 2.0])
    one, other = (tiny_models.batch(size=3, seed=seed) for seed in (0, 1))
    with torch.no_grad():
        apart = model(**one).logits[:, 0] - labels
    found = evaluate(model, model, [{**one, "labels": labels}, other])
    assert found.figures["rms_error"] == pytest.approx(float(apart.square().mean().sqrt()))
    assert found.scores.arrays["labelled"].tolist() == [1, 1, 1, 0, 0, 0]
    assert list(evaluate(model, model, [other]).figures) == ["rms_difference"]


def test_a_text_without_a_next_token_has_no_loss() -> None:
    model = tiny_models.GPT2.build()
    one = tiny_models.batch(size=2, length=1, padded=False)
    assert list(evaluate(model, model, [one]).figures) == ["kl_per_token", "agreement"]
    longer = tiny_models.batch(size=2, length=5, padded=False)
    scores = evaluate(model, model, [one, longer]).scores
    assert scores.arrays["targets"].tolist() == [0, 0, 4, 4]
    assert np.isfinite(scores.value("perplexity"))
