"""How the hidden states of a text's tokens become its embedding."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

POOLING = "pooling"
"""Key of a selection's provenance for the pooling of the embeddings it was judged by."""


class Pooling(str, Enum):
    """How the last hidden states become the embedding of a text; padding on either side never
    counts.

    Distances between embeddings are those of their directions, so a factor does not matter.
    """

    MEAN = "mean"
    """The mean over all tokens."""
    CLS = "cls"
    """The first token's."""
    LAST = "last"
    """The last token's, as in decoders that embed."""
    MAX = "max"
    """The largest value of every feature over all tokens."""
    WEIGHTED_MEAN = "weighted-mean"
    """The mean over all tokens, weighted by their positions 1, 2, 3, ..."""
    MEAN_SQRT_LEN = "mean-sqrt-len"
    """The sum over all tokens over the square root of their number."""

    @property
    def reads_one_token(self) -> bool:
        """Whether one token's state is the embedding, so that nothing else in the last block counts."""
        return self in (Pooling.CLS, Pooling.LAST)


def recorded_pooling(provenance: Mapping[str, str]) -> Pooling | None:
    """The pooling that the embeddings of a selection's model were judged by; None if it states
    none."""
    told = provenance.get(POOLING)
    return next((pooling for pooling in Pooling if pooling.value == told), None)


def provenance_of(pooling: Pooling | None) -> dict[str, str]:
    """The entries of a selection's provenance for a pooling; none for None."""
    return {} if pooling is None else {POOLING: pooling.value}


def in_words(pooling: Pooling | None) -> str:
    """A pooling as a sentence names it."""
    return "no pooling that was recorded" if pooling is None else f"{pooling.value} pooling"
