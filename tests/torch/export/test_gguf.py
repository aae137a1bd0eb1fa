"""GGUF files: what llama.cpp computes from them, and what it could not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
import vocabularies
from tiny_models import sliced
from tokenizers import normalizers, pre_tokenizers

from cahp_opt.torch import ExportError, export_gguf, find_prunable, slice_heads
from cahp_opt.torch.export.gguf_check import run_file
from cahp_opt.torch.export.gguf_vocabulary import TokenKind, Vocabulary, vocabulary_of

PROMPTS = [[5, 77, 300, 12], [9, 8, 7, 200, 100, 50, 25]]


def build(counts: list[int], neurons: list[int], **fields: Any) -> Any:
    """A tiny Llama that keeps so many key/value groups of four, and groups of neurons of eight, by layer."""
    usual = {"vocab_size": vocabularies.SIZE, "hidden_size": 64, "intermediate_size": 128}
    model = tiny.LLAMA_GQA.build(
        num_hidden_layers=len(counts), max_position_embeddings=128, **{**usual, **fields}
    )
    prunable = find_prunable(model)
    kept = np.zeros(prunable.space.n, dtype=np.bool_)
    wanted = {True: iter(counts), False: iter(neurons)}
    rng = np.random.default_rng(0)
    for block, where in zip(prunable.space.blocks, prunable.space.slices, strict=True):
        count = next(wanted[block.unit.of_attention])
        kept[where.start + rng.permutation(block.units)[:count]] = True
    return slice_heads(prunable, kept)


def taken(model: Any, prompt: list[int], tokens: int = 12) -> list[int]:
    """The model's own greedy tokens, one that ends a text like any other."""
    found = list[int]()
    for _ in range(tokens):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *found]]), use_cache=False).logits
        found.append(int(logits[0, -1].argmax()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("counts", "neurons", "fields"),
    [
        ([3, 2, 1, 4], [8, 8, 8, 8], {}),
        ([3, 2, 1, 4], [5, 8, 1, 3], {}),
        ([2, 0, 3, 4], [4, 7, 2, 8], {}),
        ([0, 4, 3, 0], [4, 7, 2, 8], {}),
        ([2, 4, 3, 1], [0, 7, 2, 0], {}),
        ([0, 4, 0, 0], [0, 0, 2, 0], {}),
        ([3, 1], [2, 5], {"tie_word_embeddings": True, "head_dim": 16}),
        (
            [3, 1],
            [2, 5],
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "rope_theta": 10000.0,
                    "factor": 4.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 16,
                }
            },
        ),
    ],
)
def test_llama_cpp_takes_the_same_tokens(
    counts: list[int], neurons: list[int], fields: dict[str, Any], tmp_path: Path
) -> None:
    """12 of 12, after each of two prompts; uneven heads, uneven neurons, emptied blocks of both kinds, also the
    first and the last."""
    small = build(counts, neurons, **fields)
    file = tmp_path / "model.gguf"
    export_gguf(small, file, tokenizer=vocabularies.byte_level())
    for prompt, steps in zip(PROMPTS, run_file(file, PROMPTS, 12)[0], strict=True):
        assert [token for token, _ in steps] == taken(small, prompt)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert file.stat().st_size < 4 * sum(p.numel() for p in small.parameters()) + 200_000


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays(dtype: torch.dtype, tmp_path: Path) -> None:
    small, file = build([3, 1], [2, 5]).to(dtype), tmp_path / "model.gguf"
    export_gguf(small, file, tokenizer=vocabularies.sentence_piece())
    whole = tmp_path / "whole.gguf"
    export_gguf(small.float(), whole, tokenizer=vocabularies.sentence_piece())
    assert file.stat().st_size < 0.8 * whole.stat().st_size


TEXTS = (
    *("", "a", "don't WE'RE they'll", "<s>special</s> inside", "1 22 333 4444 55555"),
    *(
        "  two  spaces\n\nand\ttabs  ",
        "    indented(code)\r\n\r\nend   ",
        "na\u00efve \u4f60\u597d \U0001f600",
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["gpt-2", "llama-bpe", "qwen2", ""])
def test_llama_cpp_makes_the_same_tokens_of_texts(split: str, tmp_path: Path) -> None:
    tokenizer = vocabularies.byte_level(split) if split else vocabularies.sentence_piece()
    export_gguf(build([3, 1], [2, 5]), tmp_path / "m.gguf", tokenizer=tokenizer)
    _, found = run_file(tmp_path / "m.gguf", [[5]], 1, TEXTS)
    assert found == [tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.mark.slow
def test_a_vocabulary_that_is_read_differently_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cahp_opt.torch.export import gguf_file

    def wrong(tokenizer: Any, size: int) -> Vocabulary:
        return replace(vocabulary_of(tokenizer, size), adds_space=False)

    monkeypatch.setattr(gguf_file, "vocabulary_of", wrong)
    with pytest.raises(ExportError, match="makes other tokens of"):
        export_gguf(
            build([3, 1], [2, 5]), tmp_path / "m.gguf", tokenizer=vocabularies.sentence_piece()
        )
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here, because queries and keys are left in the order that transformers has."""
    from cahp_opt.torch.export import gguf_file

    monkeypatch.setattr(gguf_file, "_turned", lambda weight, heads: weight)
    with pytest.raises(ExportError, match="computes something else than the model"):
        export_gguf(build([3, 1], [2, 5]), tmp_path / "m.gguf", tokenizer=vocabularies.byte_level())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sliced(tiny.GPT2), "`model` is a GPT2LMHeadModel, and llama.cpp runs layers"),
        (lambda: sliced(tiny.QWEN2), "`model` is a Qwen2ForCausalLM"),
        (lambda: tiny.LLAMA_GQA.build(attention_bias=True), "layer 0 has a bias"),
        (lambda: tiny.LLAMA_GQA.build(hidden_act="gelu"), "activation 'gelu'"),
        (
            lambda: tiny.LLAMA_GQA.build(
                rope_scaling={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
            ),
            "rotary embeddings of the kind 'dynamic'",
        ),
        (lambda: tiny.LLAMA_GQA.build().double(), "weights of torch.float64"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(make: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=re.escape(words)):
        export_gguf(make(), tmp_path / "m.gguf", tokenizer=None)
    assert not any(tmp_path.iterdir())


# --- tokenizers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["gpt-2", "llama-bpe", "qwen2"])
def test_byte_level_vocabularies(split: str) -> None:
    tokenizer = vocabularies.byte_level(split)
    found = vocabulary_of(tokenizer, vocabularies.SIZE + 5)
    assert (found.model, found.split, found.scores) == ("gpt2", split, ())
    assert found.tokens[: vocabularies.SIZE] == tuple(
        tokenizer.convert_ids_to_tokens(list(range(vocabularies.SIZE)))
    )
    assert found.kinds[:3] == (TokenKind.CONTROL,) * 3 and found.kinds[3] is TokenKind.NORMAL
    assert set(found.kinds[vocabularies.SIZE :]) == {TokenKind.UNUSED}
    assert found.special == {"unk": 0, "bos": 1, "eos": 2} and not found.adds_bos
    left, right = found.merges[0].split(" ")
    assert left + right in found.tokens


def test_sentence_piece_vocabularies() -> None:
    """A token that is joined earlier has the higher score, which is what llama.cpp joins by."""
    found = vocabulary_of(vocabularies.sentence_piece(), vocabularies.SIZE)
    assert (found.model, found.merges, found.adds_space) == ("llama", (), True)
    assert found.kinds[:4] == (
        *(TokenKind.UNKNOWN, TokenKind.CONTROL, TokenKind.CONTROL),
        TokenKind.BYTE,
    )
    joined = [s for t, s in zip(found.tokens, found.scores, strict=True) if len(t) == 2]
    assert joined == sorted(joined, reverse=True) and len(set(joined)) > 10


def test_other_tokenizers_are_refused() -> None:
    strange = vocabularies.byte_level()
    strange.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()]
    )
    with pytest.raises(ExportError, match="splits texts in a way of its own"):
        vocabulary_of(strange, vocabularies.SIZE)
    with pytest.raises(ExportError, match="has an id 383, and the model has 40 embeddings"):
        vocabulary_of(vocabularies.byte_level(), 40)
    lower = vocabularies.byte_level()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ExportError, match="changes texts by Lowercase"):
        vocabulary_of(lower, vocabularies.SIZE)
    words = vocabularies.sentence_piece()
    words.backend_tokenizer.normalizer = normalizers.NFKC()
    with pytest.raises(ExportError, match="changes texts by NFKC first"):
        vocabulary_of(words, vocabularies.SIZE)
    with pytest.raises(ExportError, match="NoneType has no description"):
        vocabulary_of(None, vocabularies.SIZE)
