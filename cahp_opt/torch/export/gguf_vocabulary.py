"""A tokenizer as llama.cpp takes it: its tokens, their kinds, and what joins them.

llama.cpp has its own code for every way to split a text, and a file names one of them. Only tokenizers for
which the right one is known are taken; any other would split texts differently, without a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NoReturn, cast

from cahp_opt.torch.export.refusals import ExportError

_WORD = "\u2581"
"""What stands for a space in SentencePiece's tokens."""

_SPLITS: Mapping[str, str] = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
}
"""llama.cpp's name for a way to split texts before byte pairs are joined, by its pattern."""

_OF_GPT2 = "gpt-2"
_WHOLE_WORDS = "llama-bpe"
"""The one way under which llama.cpp takes a word that is a token as it is, before joining anything."""


class TokenKind(IntEnum):
    """The kind of a token, by llama.cpp's numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model.

    Args:
        model: llama.cpp's name for the kind of tokenizer: ``gpt2`` for byte pairs, ``llama`` for SentencePiece.
        split: its name for the way texts are split first.
        tokens: text of every id.
        kinds: kind of every id.
        merges: the pairs that are joined, the first ones first; for byte pairs.
        scores: of every id: the highest one is joined first; for SentencePiece.
        special: ids by what they are: ``bos``, ``eos``, ``unk``, ``pad``, as far as there are such.
        adds_bos: whether a text begins with ``bos``.
        adds_space: whether a space is put before a text.
    """

    model: str
    split: str
    tokens: tuple[str, ...]
    kinds: tuple[TokenKind, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    special: Mapping[str, int]
    adds_bos: bool
    adds_space: bool


def vocabulary_of(tokenizer: Any, size: int) -> Vocabulary:
    """The vocabulary of a tokenizer.

    Args:
        tokenizer: a fast tokenizer of transformers.
        size: rows of the model's table of embeddings; ids without a token are filled up.

    Raises:
        ExportError: if llama.cpp has no code for it that is known to do the same.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        _refuse(f"{type(tokenizer).__name__} has no description of what it does")
    described: str = backend.to_str()
    told: dict[str, Any] = json.loads(described)
    model: dict[str, Any] = told["model"]
    if model.get("type") != "BPE":
        _refuse(f"it is a {model.get('type')} tokenizer, and only byte pairs are known")
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    bytewise = any(step["type"] == "ByteLevel" for step in _steps(told.get("pre_tokenizer")))
    split = _split(told, model) if bytewise else "default"
    adds_space = False if bytewise else _adds_space(told, model)
    ids: dict[str, int] = model["vocab"]
    texts = {number: text for text, number in ids.items()}
    added = {entry["id"]: entry for entry in told.get("added_tokens", ())}
    texts |= {number: entry["content"] for number, entry in added.items()}
    if max(texts) >= size:
        _refuse(f"it has an id {max(texts)}, and the model has {size} embeddings")
    special = {
        name: number
        for name in ("bos", "eos", "unk", "pad")
        if isinstance(number := getattr(tokenizer, f"{name}_token_id", None), int)
    }

    def kind(number: int) -> TokenKind:
        text = texts.get(number)
        if text is None:
            return TokenKind.UNUSED
        if number == special.get("unk") and not bytewise:
            return TokenKind.UNKNOWN
        if not bytewise and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return TokenKind.BYTE
        if number in added:
            return TokenKind.CONTROL if added[number]["special"] else TokenKind.USER_DEFINED
        return TokenKind.NORMAL

    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.setdefault(left + right, rank)
    tokens = tuple(texts.get(number, f"[PAD{number}]") for number in range(size))
    first = cast("list[int]", tokenizer("a")["input_ids"])
    return Vocabulary(
        model="gpt2" if bytewise else "llama",
        split=split,
        tokens=tokens,
        kinds=tuple(map(kind, range(size))),
        merges=tuple(f"{left} {right}" for left, right in pairs) if bytewise else (),
        scores=() if bytewise else tuple(-float(ranks.get(t, len(pairs))) for t in tokens),
        special=special,
        adds_bos=bool(first) and first[0] == special.get("bos"),
        adds_space=adds_space,
    )


def _split(told: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """llama.cpp's name for the way in which a byte-level tokenizer splits texts first."""
    cleaning = [step["type"] for step in _steps(told.get("normalizer")) if step["type"] != "NFC"]
    if cleaning:
        _refuse(f"it changes texts by {', '.join(cleaning)} first")
    steps = list(_steps(told.get("pre_tokenizer")))
    name = None
    if len(steps) == 1 and steps[0].get("use_regex", True):
        name = _OF_GPT2
    elif [step["type"] for step in steps] == ["Split", "ByteLevel"] and not steps[1]["use_regex"]:
        name = _SPLITS.get(steps[0]["pattern"].get("Regex", ""))
    if name is None or any(step.get("add_prefix_space") for step in steps):
        _refuse("it splits texts in a way of its own")
    if bool(model.get("ignore_merges")) != (name == _WHOLE_WORDS):
        _refuse(f"it splits texts as {name} does, and joins bytes in another way")
    return name


def _adds_space(told: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    """Whether a SentencePiece tokenizer puts a space before a text."""
    if not model.get("byte_fallback"):
        _refuse("it has no tokens for single bytes")
    adds = marks = False
    for step in (*_steps(told.get("normalizer")), *_steps(told.get("pre_tokenizer"))):
        if step["type"] == "Prepend" and step["prepend"] == _WORD:
            adds = True
        elif step["type"] == "Replace" and step["pattern"] == {"String": " "}:
            marks = step["content"] == _WORD
        elif step["type"] == "Metaspace" and step["replacement"] == _WORD:
            marks = True
            adds |= step.get("prepend_scheme", "always") != "never"
        else:
            _refuse(f"it changes texts by {step['type']} first")
    if not marks:
        _refuse("it does not mark spaces as SentencePiece does")
    return adds


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """The steps of a part of the description, those of sequences one by one."""
    if part is None:
        return
    inner = part.get("normalizers", part.get("pretokenizers"))
    if inner is None:
        yield part
    else:
        for step in inner:
            yield from _steps(step)


def _refuse(why: str) -> NoReturn:
    raise ExportError(
        f"the tokenizer cannot be written for llama.cpp: {why}. Known are the byte-level ones of GPT-2, Llama 3 "
        "and Qwen 2, and SentencePiece's byte pairs as of Llama 2 and Mistral."
    )
