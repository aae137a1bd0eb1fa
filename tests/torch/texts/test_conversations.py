"""Conversations become what the tokenizer's chat template makes of them, and nothing is added to that."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tiny_models
from command_line import make_tokenizer

from cahp_opt.runs.text_counts import TextCounts
from cahp_opt.runs.texts import Example, TextError
from cahp_opt.torch.texts.encoding import encode_and_count
from cahp_opt.torch.texts.tokenizing import token_rows

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "{{ m.role }} {{ m.content }} [SEP] {% endfor %}"
)


def chat(*turns: tuple[str, str]) -> Example:
    return Example(json.dumps([{"role": r, "content": c} for r, c in turns]), chat=True)


def test_the_template_writes_the_texts() -> None:
    tokenizer = make_tokenizer()
    conversation = chat(("w1", "w2 w3"), ("w4", "w5"))
    with pytest.raises(TextError, match="no chat template .* `text_column`"):
        list(token_rows([conversation], tokenizer, 9))
    tokenizer.chat_template = TEMPLATE
    ids = [tokenizer.vocab[word] for word in ["w1", "w2", "w3", "[SEP]", "w4", "w5", "[SEP]"]]
    [(row, cut_off)] = token_rows([conversation], tokenizer, 9)
    assert row is not None and row["input_ids"] == ids and cut_off == 0
    [(row, cut_off)] = token_rows([conversation], tokenizer, 5)
    assert row is not None and row["input_ids"] == ids[:5] and cut_off == 2
    with pytest.raises(TextError, match=r"refuses the conversation .*w1.*no system here"):
        list(token_rows([chat(("system", "w1"))], tokenizer, 9))


class SlowWords:
    """A tokenizer in Python, which cuts by itself and says nothing of it."""

    is_fast, truncation_side = False, "right"

    def __call__(self, texts: list[str], pairs: None, **options: Any) -> dict[str, Any]:
        most = options["max_length"] if options["truncation"] else None
        return {"input_ids": [[int(word) for word in text.split()][:most] for text in texts]}


def test_what_a_slow_tokenizer_cuts_off_is_counted_too() -> None:
    rows = list(token_rows([Example("1 2 3"), Example("1 2"), Example("1")], SlowWords(), 2))
    assert [(values and values["input_ids"], cut) for values, cut in rows] == [
        ([1, 2], 1),
        ([1, 2], 0),
        ([1], 0),
    ]


def test_texts_and_tokens_are_counted() -> None:
    model = tiny_models.BERT.build(bare=True)
    examples = [Example("w1 w2 w3 w4 w5"), Example("w1"), Example("w1 w2 w3")]
    found = encode_and_count(examples, make_tokenizer(), model, batch_size=2, max_length=5)
    assert found.counts == TextCounts(texts=3, tokens=13, cut_texts=1, cut_tokens=2)
    assert sum(int(batch["attention_mask"].sum()) for batch in found.batches) == 13
    assert "3 texts, 13 tokens; 2 more tokens (13.3 %) of 1 texts" in found.counts.in_words()


def test_labels_of_some_texts_are_refused() -> None:
    model = tiny_models.BERT.build()
    examples = [Example("w1", label="0"), Example("w2")]
    with pytest.raises(TextError, match="1 of 2 texts have no label"):
        encode_and_count(examples, make_tokenizer(), model, batch_size=2, max_length=5)
