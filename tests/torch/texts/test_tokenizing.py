"""Rows of tokens: the tokenizer's own, in bounded memory, and without texts that become no token."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import tiny_models
from command_line import WORDS, make_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cahp_opt.runs.texts import Example, TextError
from cahp_opt.torch.texts.encoding import encode
from cahp_opt.torch.texts.tokenizing import token_rows

VOCABULARY = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "<s>", "</s>", *WORDS])}
PROCESSORS: dict[str, Any] = {
    "template": None,
    "roberta": processors.RobertaProcessing(("</s>", 3), ("<s>", 2)),
    "bert": processors.BertProcessing(("</s>", 3), ("<s>", 2)),
    "none": processors.ByteLevel(),
    "ends": processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 3)]),
}


def made(kind: str, side: str = "right") -> Any:
    if PROCESSORS[kind] is None:
        tokenizer = make_tokenizer()
    else:
        backend = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
        backend.normalizer = normalizers.Replace("\ufffd", "")
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        backend.post_processor = PROCESSORS[kind]
        make: Any = PreTrainedTokenizerFast
        tokenizer = make(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.truncation_side = side
    return tokenizer


def words(count: int, rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, count))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("paired", [False, True])
def test_rows_are_those_of_the_tokenizer(kind: str, side: str, paired: bool) -> None:
    rng = np.random.default_rng(0)
    tokenizer = made(kind, side)
    for length in range(4 + 2 * paired, 14):
        examples = [
            Example(words(n, rng), words(m, rng) if paired else None)
            for n, m in rng.integers(1, 16, (60, 2))
        ]
        expected = tokenizer(
            [e.text for e in examples],
            [e.pair for e in examples] if paired else None,
            truncation=True,
            max_length=length,
        )
        rows = list(token_rows(examples, tokenizer, length))
        whole = tokenizer(
            [e.text for e in examples], [e.pair for e in examples] if paired else None
        )
        for i, (row, cut_off) in enumerate(rows):
            assert row == {key: expected[key][i] for key in expected}
            assert cut_off == len(whole["input_ids"][i]) - len(expected["input_ids"][i])
    assert max(len(row["input_ids"]) for row, _ in rows if row) == 13


def test_long_pairs_take_no_more_memory_than_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two texts of n tokens each: the tokenizer's own cut makes n * n / length rows of what is left."""
    asked: list[bool] = []
    tokenizer = make_tokenizer()
    call = type(tokenizer).__call__

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        asked.append(options["truncation"])
        encoded = call(self, *args, **options)
        assert all(not e.overflowing for e in encoded.encodings), "parts are kept that were cut off"
        return encoded

    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    rng = np.random.default_rng(0)
    long = words(2000, rng)
    examples = [Example(f"w{i} {long}", long) for i in range(20)]
    tracemalloc.start()
    rows = [row for row, _ in token_rows(examples, tokenizer, 16) if row is not None]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [len(row["input_ids"]) for row in rows] == [16] * 20
    assert asked == [False] and peak < 40e6


def test_a_length_below_what_is_added_to_pairs_is_refused() -> None:
    with pytest.raises(TextError, match="`max_length` is 2, and the tokenizer adds 3 tokens"):
        list(token_rows([Example("w1", "w2")], make_tokenizer(), 2))


@pytest.mark.parametrize("text", ["w1 w2 w3", ""])
def test_a_length_below_what_is_added_to_a_text_is_refused(text: str) -> None:
    """The tokenizer itself does not cut such a text at all."""
    with pytest.raises(TextError, match="`max_length` is 1, and the tokenizer adds 2 .* a text;"):
        list(token_rows([Example("w1 w2 w3"), Example(text)], make_tokenizer(), 1))
    [(row, _)] = token_rows([Example("w1 w2 w3")], made("ends"), 1)  # adds one
    assert row is not None and row["input_ids"] == [3]
    [(row, _)] = token_rows([Example("w1 w2 w3")], made("none"), 1)
    assert row is not None and len(row["input_ids"]) == 1


@pytest.mark.parametrize("kind", [kind for kind in PROCESSORS if PROCESSORS[kind] is not None])
def test_texts_that_become_no_token_are_left_out(kind: str) -> None:
    examples = [Example("w1 w2"), Example("\ufffd"), Example("unknown"), Example("w3")]
    tokenizer: Any = made(kind)
    assert [row is None for row, _ in token_rows(examples, tokenizer, 9)] == [
        False,
        True,
        False,
        False,
    ]
    model = tiny_models.BERT.build(bare=True)
    batches = encode(examples, tokenizer, model, batch_size=8, max_length=9)
    assert sum(len(batch["input_ids"]) for batch in batches) == 3
    with pytest.raises(TextError, match="no token of any text"):
        encode(examples[1:2], tokenizer, model, batch_size=8, max_length=9)
    pairs = [Example("w1", "\ufffd"), Example("\ufffd", "\ufffd")]
    assert [row is None for row, _ in token_rows(pairs, tokenizer, 9)] == [False, True]


def test_texts_that_are_cut_to_nothing_are_no_empty_texts() -> None:
    [(row, cut_off)] = token_rows([Example("w1 w2")], make_tokenizer(), 2)
    assert row is not None and row["input_ids"] == [2, 3] and cut_off == 2
