"""Choices and targets: what models that choose and models that write are given."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from command_line import make_tokenizer, sentences

from cahp_opt.runs.texts import Example, TextError
from cahp_opt.torch import calibrate, refit, slice_heads
from cahp_opt.torch.evaluation.evaluation import evaluate
from cahp_opt.torch.running.batches import IGNORED, inputs_of
from cahp_opt.torch.texts.encoding import encode, timing_batch

CHOOSER = dataclasses.replace(tiny_models.BERT, headed="BertForMultipleChoice")


def questions(n: int, choices: int = 3) -> list[Example]:
    texts = iter(sentences(n * (choices + 1)))
    return [
        Example(
            next(texts), label=str(i % choices), choices=tuple(next(texts) for _ in range(choices))
        )
        for i in range(n)
    ]


def encoded(examples: list[Example], model: Any, size: int = 4) -> list[dict[str, Any]]:
    tokenizer = make_tokenizer()
    if model.config.is_encoder_decoder:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return encode(examples, tokenizer, model, batch_size=size, max_length=32)


def test_choices_are_read_beside_their_text() -> None:
    model, one = CHOOSER.build(), Example("w1 w2", "w3", "1", choices=("w4", "w5 w6"))
    (batch,) = encoded([one], model)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (1, 2, 8)
    assert batch["input_ids"][0].tolist() == [[2, 5, 6, 3, 7, 8, 3, 0], [2, 5, 6, 3, 7, 9, 10, 3]]
    assert batch["labels"].tolist() == [1]
    by_text = dataclasses.replace(one, label="w5 w6")
    assert encoded([by_text], model)[0]["labels"].tolist() == [1]
    with torch.no_grad():
        assert model(**inputs_of(batch)).logits.shape == (1, 2)


def test_choices_that_are_numbers() -> None:
    """A label is a place, unless one of them cannot be."""
    sums = Example("w1", label="1", choices=("w4", "3", "2", "1"))
    more = dataclasses.replace(sums, label="3")
    model = CHOOSER.build()
    (batch,) = encoded([sums, more], model)
    assert sorted(batch["labels"].tolist()) == [1, 3]
    (batch,) = encoded([sums, dataclasses.replace(sums, label="w4")], model)
    assert sorted(batch["labels"].tolist()) == [0, 3]


def test_examples_of_as_many_choices_are_together() -> None:
    batches = encoded([*questions(5), *questions(3, 2)], CHOOSER.build())
    assert sorted(batch["input_ids"].shape[:2] for batch in batches) == [(1, 3), (3, 2), (4, 3)]


@pytest.mark.parametrize(
    ("example", "told"),
    [
        (Example("w1"), "the texts have no choices.*choice0"),
        (Example("w1", choices=("w2",)), "no choices"),
        (
            Example("w1", None, "2", choices=("w2", "w3")),
            "'2' is not one of the choices: give the numbers of all, from 0 to 1",
        ),
        (Example("w1", None, "w4", choices=("w2", "w3")), "'w4' is not one of the choices"),
    ],
)
def test_what_is_no_choice(example: Example, told: str) -> None:
    with pytest.raises(TextError, match=told):
        encoded([example], CHOOSER.build())


def test_a_model_that_does_not_choose_refuses_choices() -> None:
    with pytest.raises(TextError, match="does not choose between texts"):
        encoded(questions(2), tiny_models.BERT.build())


def test_a_model_that_chooses_is_pruned_like_others() -> None:
    model, examples = CHOOSER.build(), questions(12)
    one, many = encoded(examples, model, 1), encoded(examples, model, 5)
    options: dict[str, Any] = {"gradient_examples": 12, "sensitivity_examples": 12}
    alone, together = (calibrate(model, batches, **options) for batches in (one, many))
    for name, statistic in alone.statistics.items():
        for a, b in zip(_numbers(statistic), _numbers(together.statistics[name]), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5, err_msg=name)
    assert alone.tokens == together.tokens == sum(int(b["attention_mask"].sum()) for b in one)
    small = slice_heads(model, np.arange(12) % 3 > 0, batch=many[0])
    before = evaluate(model, small, many).figures["kl"]
    refit(small, model, many)
    assert evaluate(model, small, many).figures["kl"] < before
    assert timing_batch(model, batch_size=2, sequence_length=7)["input_ids"].shape == (2, 1, 7)


def _numbers(statistic: Any) -> list[np.ndarray]:
    """All arrays in a statistic."""
    if isinstance(statistic, np.ndarray):
        return [statistic]
    inner = vars(statistic).values() if hasattr(statistic, "__dict__") else ()
    if isinstance(statistic, dict):
        inner = statistic.values()
    elif isinstance(statistic, (list, tuple)):
        inner = statistic
    return [array for each in inner for array in _numbers(each)]


@pytest.mark.parametrize("family", ["bart", "t5", "marian"])
def test_the_second_text_is_what_a_decoder_is_to_write(family: str) -> None:
    model = tiny_models.named(family).build()
    batches = encoded([Example("w1 w2 w3", "w4 w5"), Example("w6", "w7 w8 w9")], model)
    (batch,) = batches
    wanted = [[2, 8, 9, 3, IGNORED], [2, 11, 12, 13, 3]]
    assert sorted(batch["labels"].tolist()) == sorted(wanted)
    assert (batch["labels"] != IGNORED).equal(batch["decoder_attention_mask"].bool())
    given = {**inputs_of(batch), "decoder_attention_mask": batch["decoder_attention_mask"]}
    own = {k: v for k, v in given.items() if not k.startswith("decoder_")}
    with torch.no_grad():
        expected = model(**own, labels=batch["labels"]).logits
        found = model(**given).logits
    real = batch["labels"] != IGNORED
    torch.testing.assert_close(found[real], expected[real])
