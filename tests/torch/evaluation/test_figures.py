"""Figures that would be the same for any model, and labels that are none, are not taken for something."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch import Tensor

from cahp_opt.torch import calibrate, fidelity_of, finetune, refit, slice_heads
from cahp_opt.torch.evaluation.evaluation import FEW, evaluate
from cahp_opt.torch.evaluation.fidelity import ClassLogits, Regression, TokenLogits
from cahp_opt.torch.evaluation.scorers import neighbour_agreement

BATCH = tiny_models.batch(size=3)


@pytest.mark.parametrize(
    ("texts", "neighbours"), [(2, 0), (4, 0), (5, 1), (12, 2), (40, 9), (41, 10), (60, 10)]
)
def test_neighbours_are_a_quarter_of_the_texts_at_most(texts: int, neighbours: int) -> None:
    dense, other = (tiny_models.BERT.build(bare=True, seed=seed) for seed in (0, 3))
    found = evaluate(dense, other, [tiny_models.batch(size=texts)]).figures
    names = [f"neighbour_agreement_at_{neighbours}"] if neighbours else []
    assert list(found) == ["cosine_distance", *names]
    assert all(found[name] < 0.9 for name in names)  # of models that have nothing in common
    same = evaluate(dense, dense, [tiny_models.batch(size=texts)]).figures
    assert all(same[name] == 1 for name in names)


def test_unrelated_vectors_agree_by_chance_only() -> None:
    generator = torch.Generator().manual_seed(0)
    for n in (5, 9, 13, 41):
        k = min(10, (n - 1) // 4)
        tries = [
            float(
                neighbour_agreement(
                    torch.randn(n, 6, generator=generator),
                    torch.randn(n, 6, generator=generator),
                    k,
                ).mean()
            )
            for _ in range(60)
        ]
        assert sum(tries) / 60 < 0.3


def test_few_texts_and_single_answers_are_noted() -> None:
    dense: Any = tiny_models.BERT.build()
    few = evaluate(dense, dense, [tiny_models.batch(size=FEW - 1)])
    assert f"the figures compare {FEW - 1} texts only" in few.notes[0]
    assert "1 text only" in evaluate(dense, dense, [tiny_models.batch(size=1)]).notes[0]
    many = [tiny_models.batch(size=8, seed=seed) for seed in range(5)]
    labels = [torch.arange(8) % 3 for _ in many]
    told = evaluate(dense, dense, [{**b, "labels": y} for b, y in zip(many, labels, strict=True)])
    assert told.notes == ()
    one = evaluate(dense, dense, [{**b, "labels": torch.ones(8, dtype=torch.long)} for b in many])
    assert len(one.notes) == 1 and "a single label" in one.notes[0]
    with torch.no_grad():
        dense.classifier.bias[1] += 1e3
    assert "the same answer to all" in evaluate(dense, dense, many).notes[0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_labels_that_are_no_numbers_are_refused_by_everything(bad: float) -> None:
    model = tiny_models.BERT.build(num_labels=1)
    small = slice_heads(model, np.arange(12) % 2 == 0, batch=BATCH)
    good = {**BATCH, "labels": torch.tensor([0.5, 1.0, 2.0])}
    batches = [good, {**BATCH, "labels": torch.tensor([0.5, bad, 2.0])}]
    words = r"`batches\[1\]` has `labels` that are NaN or infinite"
    for run in (
        lambda: evaluate(model, small, batches),
        lambda: calibrate(model, batches),
        lambda: finetune(small, batches, dense=model),
        lambda: refit(small, model, batches),
    ):
        with pytest.raises(ValueError, match=words):
            run()


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, 1], "`labels` of the type list; give them as a tensor"),
        (
            torch.tensor([0.0, 1.0, 2.0]),
            "of the type torch.float32, and this model is a classifier",
        ),
        (torch.tensor([0, 1, 3]), "hold 3, and the classes of this model are 0 to 2"),
        (torch.tensor([0, -1, 2]), "hold -1, and the classes"),
        (torch.tensor([0, 1]), r"have the shape \[2\], and .* the shape \[3\]"),
        (torch.eye(3), r"have the shape \[3, 3\]"),
    ],
)
def test_labels_of_another_kind_are_refused(labels: object, words: str) -> None:
    model = tiny_models.BERT.build()
    for run in (evaluate, None):
        with pytest.raises(ValueError, match=words):
            if run is None:
                calibrate(model, [{**BATCH, "labels": labels}])
            else:
                run(model, model, [{**BATCH, "labels": labels}])


def test_labels_of_tokens_and_of_numbers_are_checked_too() -> None:
    output = torch.randn(2, 4, 5)
    good = {"input_ids": torch.ones(2, 4, dtype=torch.long)}
    for labels, words in (
        (torch.full((2, 4), 5), "hold 5, and the classes of this model are 0 to 4"),
        (torch.ones(2, 3, dtype=torch.long), r"the shape \[2, 3\]"),
        (torch.ones(2, 4), "of the type torch.float32"),
    ):
        with pytest.raises(ValueError, match=words):
            TokenLogits(causal=False).loss(output, {**good, "labels": labels})
    with pytest.raises(ValueError, match=r"the shape \[3\], and .* the shape \[2, 1\]"):
        Regression().loss(torch.ones(2, 1), {"labels": torch.ones(3)})
    one: Tensor | None = Regression().loss(torch.ones(2, 1), {"labels": torch.zeros(2)})
    assert one is not None and one.tolist() == [0.5, 0.5]


def test_examples_without_a_label_do_not_count_as_wrong() -> None:
    model = tiny_models.BERT.build()
    predicted = model(**BATCH).logits.argmax(dim=-1)
    labels = torch.where(torch.arange(3) == 1, -100, predicted)
    figures = evaluate(model, model, [{**BATCH, "labels": labels}]).figures
    assert figures["accuracy"] == figures["dense_accuracy"] == 1
    loss = ClassLogits().loss(torch.zeros(3, 3), {"labels": labels})
    assert loss is not None and loss[1] == 0 and (loss[[0, 2]] > 1).all()


def test_a_classifier_of_one_class_is_refused() -> None:
    """Its probability is 1 whatever it computes: nothing would be measured, and anything selected."""
    classifier: Any = tiny_models.BERT.build(num_labels=1)
    classifier.config.problem_type = "single_label_classification"
    make = tiny_models.of_transformers("BertForTokenClassification")
    for model in (classifier, make(tiny_models.BERT.config(num_labels=1))):
        with pytest.raises(
            ValueError, match="a classifier of one class, whose probability is always 1"
        ):
            fidelity_of(model)
    assert fidelity_of(tiny_models.BERT.build(num_labels=1)) == Regression()
