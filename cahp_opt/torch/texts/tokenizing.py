"""Texts and pairs of texts as rows of tokens, cut to a length, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cahp_opt.runs.texts import Example, TextError

_CHUNK = 64  # examples that are tokenized at once: a tokenizer keeps what it cuts off


def token_rows(
    examples: Sequence[Example], tokenizer: Any, length: int
) -> Iterator[dict[str, list[int]] | None]:
    """``tokenizer(text, pair, truncation=True, max_length=length)`` for every example.

    Pairs are cut here, the longer text first, because the tokenizer keeps every part of the one that it
    cuts off with every part of the other.

    Args:
        examples: the texts; all of them have pairs, or none.
        tokenizer: of transformers.
        length: the most tokens per row, with those that the tokenizer adds.

    Yields:
        One row per example; None if the tokenizer leaves no token of the text.

    Raises:
        TextError: if ``length`` is below the number of tokens that the tokenizer adds to a text or a pair.
    """
    for start in range(0, len(examples), _CHUNK):
        chunk = examples[start : start + _CHUNK]
        paired = chunk[0].pair is not None
        cut_here = paired and getattr(tokenizer, "is_fast", False)
        encoded = tokenizer(
            [e.text for e in chunk],
            [e.pair for e in chunk] if paired else None,
            padding=False,
            return_special_tokens_mask=True,
            verbose=False,
            **({"truncation": False} if cut_here else {"truncation": True, "max_length": length}),
        )
        for i, example in enumerate(chunk):
            row = {key: list(encoded[key][i]) for key in encoded}
            if cut_here:
                left = tokenizer.truncation_side == "left"
                places = _kept(encoded.sequence_ids(i), length, left)
                row = {key: [values[place] for place in places] for key, values in row.items()}
            if len(row["input_ids"]) > length:  # it cuts nothing where its own tokens leave no room
                raise _too_short(length, tokenizer.num_special_tokens_to_add(paired), paired)
            hollow = all(row.pop("special_tokens_mask", [0]))
            yield None if hollow and _leaves_nothing(tokenizer, example) else row


def _leaves_nothing(tokenizer: Any, example: Example) -> bool:
    """Whether no token is left of the texts, however long a row may be."""
    return not tokenizer.tokenize(example.text) and not tokenizer.tokenize(example.pair or "")


def _kept(sources: Sequence[int | None], length: int, left: bool) -> list[int]:
    """The places of a pair's tokens that are kept: those added, and the first or last of both texts."""
    own = ([i for i, of in enumerate(sources) if of == text] for text in (0, 1))
    first, second = own
    added = len(sources) - len(first) - len(second)
    if added > length:
        raise _too_short(length, added, paired=True)
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
