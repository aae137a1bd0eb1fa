"""Pairs of texts with a score of how alike they are, for models that embed texts: each is embedded by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cahp_opt.runs.texts import Example, TextError, TextSplit
from cahp_opt.torch.evaluation.fidelity import Fidelity, PooledEmbedding

PAIR_NOTE = (
    "the labels of the pairs were taken as scores of how alike their texts are, and the texts were embedded one "
    "by one."
)


def are_scored_pairs(texts: TextSplit, fidelity: Fidelity | None) -> bool:
    """Whether texts are pairs with numbers as labels, and the model embeds texts.

    Args:
        texts: the texts.
        fidelity: how the model's outputs are compared; None if they are not.
    """
    return isinstance(fidelity, PooledEmbedding) and all(
        example.pair is not None and math.isfinite(_score(example))
        for example in (*texts.calibration, *texts.held_out)
    )


def calibration_texts(texts: TextSplit) -> list[Example]:
    """The distinct texts of the pairs to calibrate on, without those that are in a held-out pair too.

    Raises:
        TextError: if none is left.
    """
    held_out = {text for pair in texts.held_out for text in both_texts(pair)}
    found = dict.fromkeys(text for pair in texts.calibration for text in both_texts(pair))
    left = [text for text in found if text not in held_out]
    if not left:
        raise TextError(
            "every text of the pairs to calibrate on is in a held-out pair too; give more pairs, or hold none "
            "out."
        )
    return left


def both_texts(pair: Example) -> list[Example]:
    """Both texts of a pair as examples of their own, without a label."""
    return [Example(pair.text), Example(pair.pair or "")]


def scores_of(pairs: Sequence[Example]) -> list[float]:
    """The scores of pairs.

    Raises:
        TextError: for an example that is not a pair, or whose label is not a finite number.
    """
    for each in pairs:
        if each.pair is None or not math.isfinite(_score(each)):
            raise TextError(
                "scored pairs must be two texts with a finite number as label, got "
                f"{'a text without a pair' if each.pair is None else f'the label {each.label!r}'}."
            )
    return [_score(each) for each in pairs]


def _score(example: Example) -> float:
    try:
        return float(example.label or math.nan)
    except ValueError:
        return math.nan
