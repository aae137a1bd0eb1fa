"""Texts, pairs of texts and conversations as rows of tokens, cut to a length, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from cahp_opt.runs.texts import Example, TextError
from cahp_opt.torch.texts.chat_template import written_out

_CHUNK = 64  # examples that are tokenized at once


class TokenRow(NamedTuple):
    """One example as tokens.

    Args:
        values: by name of the input, such as ``input_ids``, one number per token; None if the tokenizer leaves
            no token of the text.
        cut_off: how many tokens of it are beyond the length.
    """

    values: dict[str, list[int]] | None
    cut_off: int = 0


def token_rows(examples: Sequence[Example], tokenizer: Any, length: int) -> Iterator[TokenRow]:
    """``tokenizer(text, pair, truncation=True, max_length=length)`` for every example.

    Texts are cut here, of a pair the longer one first, because the tokenizer keeps what it cuts off: of a pair
    every part of the one with every part of the other. Conversations are written out by the tokenizer's chat
    template, which adds the special tokens itself.

    Args:
        examples: the texts; all of them have pairs, or none.
        tokenizer: of transformers.
        length: the most tokens per row, with those that the tokenizer adds.

    Yields:
        One row per example.

    Raises:
        TextError: if ``length`` is below the number of tokens that the tokenizer adds to a text or a pair, or
            it has no chat template for a conversation.
    """
    for start in range(0, len(examples), _CHUNK):
        chunk = [written_out(each, tokenizer) for each in examples[start : start + _CHUNK]]
        paired, chat = chunk[0].pair is not None, chunk[0].chat
        cut_here = getattr(tokenizer, "is_fast", False)

        def encoded(part: Sequence[Example], paired: bool = paired, **options: Any) -> Any:
            return tokenizer(
                [e.text for e in part],
                [e.pair for e in part] if paired else None,
                padding=False,
                return_special_tokens_mask=True,
                verbose=False,
                **options,
            )

        told: dict[str, Any] = {"add_special_tokens": False} if chat else {}
        cut: dict[str, Any] = {} if cut_here else {"max_length": length}
        found = encoded(chunk, **told, **cut, truncation=not cut_here)
        for i, example in enumerate(chunk):
            row = {key: list(found[key][i]) for key in found}
            whole = len(row["input_ids"])
            if cut_here:
                left = tokenizer.truncation_side == "left"
                places = _kept(found.sequence_ids(i), length, left, paired=paired)
                row = {key: [values[place] for place in places] for key, values in row.items()}
            elif whole == length:  # it may have been cut
                whole = len(encoded([example], **told, truncation=False)["input_ids"][0])
            if len(row["input_ids"]) > length:  # it cuts nothing where its own tokens leave no room
                raise _too_short(length, tokenizer.num_special_tokens_to_add(paired), paired)
            hollow = all(row.pop("special_tokens_mask", [0]))
            if hollow and _leaves_nothing(tokenizer, example):
                yield TokenRow(None)
            else:
                yield TokenRow(row, whole - len(row["input_ids"]))


def _leaves_nothing(tokenizer: Any, example: Example) -> bool:
    """Whether no token is left of the texts, however long a row may be."""
    return not tokenizer.tokenize(example.text) and not tokenizer.tokenize(example.pair or "")


def _kept(sources: Sequence[int | None], length: int, left: bool, *, paired: bool) -> Sequence[int]:
    """The places of the tokens that are kept: those added, and the first or last of both texts."""
    if len(sources) <= length:
        return range(len(sources))
    own = ([i for i, of in enumerate(sources) if of == text] for text in (0, 1))
    first, second = own
    added = len(sources) - len(first) - len(second)
    if added > length:
        raise _too_short(length, added, paired)
    shares = _shares(len(first), len(second), length - added)
    gone: set[int] = set()
    for places, share in zip((first, second), shares, strict=True):
        gone.update(places[: len(places) - share] if left else places[share:])
    return [i for i in range(len(sources)) if i not in gone]


def _too_short(length: int, added: int, paired: bool) -> TextError:
    return TextError(
        f"`max_length` is {length}, and the tokenizer adds {added} tokens to a "
        f"{'pair of texts' if paired else 'text'}; give more."
    )


def _shares(first: int, second: int, most: int) -> tuple[int, int]:
    """How many tokens of two texts are kept, as in ``tokenizers``: the longer one is cut first."""
    if first + second <= most:
        return first, second
    if first > second:
        kept_of_second, kept_of_first = _shares(second, first, most)
        return kept_of_first, kept_of_second
    if first > most // 2:
        return most // 2, most - most // 2
    return first, most - first
