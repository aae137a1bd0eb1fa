"""How many texts and tokens a model was really given of some data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TextCounts:
    """Texts and tokens, as they were encoded.

    Args:
        texts: texts that became tokens.
        tokens: tokens of them that the model reads, with those that the tokenizer adds.
        empty: texts of which the tokenizer leaves no token, left out.
        cut_texts: texts that are longer than the maximal length.
        cut_tokens: tokens of them beyond it.
    """

    texts: int = 0
    tokens: int = 0
    empty: int = 0
    cut_texts: int = 0
    cut_tokens: int = 0

    def __add__(self, other: TextCounts) -> TextCounts:
        """What both are together."""
        return TextCounts(
            self.texts + other.texts,
            self.tokens + other.tokens,
            self.empty + other.empty,
            self.cut_texts + other.cut_texts,
            self.cut_tokens + other.cut_tokens,
        )

    def notes(self) -> list[str]:
        """A sentence about the texts that were left out; none if there are none."""
        if not self.empty:
            return []
        return [
            f"texts of which the tokenizer leaves no token, left out: {self.empty} of "
            f"{self.texts + self.empty}."
        ]

    def in_words(self) -> str:
        """The figures as one clause."""
        told = f"{self.texts:,} texts, {self.tokens:,} tokens"
        if not self.cut_tokens:
            return told
        share = 100 * self.cut_tokens / (self.tokens + self.cut_tokens)
        return (
            f"{told}; {self.cut_tokens:,} more tokens ({share:.1f} %) of {self.cut_texts:,} texts are beyond the "
            "maximal length, and cut off"
        )
