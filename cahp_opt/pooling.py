"""How the hidden states of a text's tokens become its embedding."""

from __future__ import annotations

from enum import Enum


class Pooling(str, Enum):
    """What of the last hidden states stands for a text; padding on either side never counts.

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
