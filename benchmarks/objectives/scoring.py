"""From the record of a run to what its tables show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = Mapping[str, Any]
Floats = np.ndarray

_RESAMPLES = 2000


@dataclass(frozen=True)
class Correlation:
    """How well an objective ranks random keep-sets.

    Args:
        by_size: Spearman's rank correlation of what it says is lost with the KL divergence, by number of
            units kept; None where all of its values are equal.
        mean: over the sizes; None if one of them is.
        interval: in which 95 % of the means lie if the keep-sets are drawn again from those there are.
        sets: random keep-sets of every size.
    """

    by_size: Mapping[int, float | None]
    mean: float | None
    interval: tuple[float, float] | None
    sets: int


def sizes(record: Row) -> list[int]:
    """Numbers of units kept, from the largest."""
    return sorted((int(size) for size in record["random"]), reverse=True)


def correlations(record: Row) -> dict[str, Correlation]:
    """Of every objective, on the random keep-sets that were judged, as many of every size."""
    judged = record["judged"]
    names = {size: record["random"][str(size)] for size in sizes(record)}
    sets = min(
        next((i for i, name in enumerate(own) if name not in judged), len(own))
        for own in names.values()
    )
    lost = [np.array([judged[name]["kl"] for name in own[:sets]]) for own in names.values()]
    rng = np.random.default_rng(0)
    draws = rng.integers(0, sets, size=(_RESAMPLES, len(lost), sets)) if sets > 1 else None
    found: dict[str, Correlation] = {}
    for objective, by_size in record["values"].items():
        predicted = [-np.array(by_size[str(size)][:sets]) for size in names]
        pairs = list(zip(predicted, lost, strict=True))
        own = [spearman(a[None], b[None])[0] if sets > 1 else np.nan for a, b in pairs]
        interval: tuple[float, float] | None = None
        if draws is not None and np.all(np.isfinite(own)):
            again = [spearman(a[draws[:, i]], b[draws[:, i]]) for i, (a, b) in enumerate(pairs)]
            low, high = np.nanquantile(np.mean(again, axis=0), (0.025, 0.975))
            interval = float(low), float(high)
        found[objective] = Correlation(
            {
                size: float(r) if np.isfinite(r) else None
                for size, r in zip(names, own, strict=True)
            },
            float(np.mean(own)) if np.all(np.isfinite(own)) else None,
            interval,
            sets,
        )
    return found


def spearman(a: Floats, b: Floats) -> Floats:
    """Rank correlation of every row of ``a`` with that of ``b``, ``[rows]``; NaN for a row without ranks."""
    x, y = (ranks(values) for values in (a, b))
    x, y = (values - values.mean(axis=1, keepdims=True) for values in (x, y))
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    product = (x * y).sum(axis=1)
    found: Floats = np.divide(product, scale, out=np.full(len(product), np.nan), where=scale > 0)
    return found


def ranks(rows: Floats) -> Floats:
    """The rank of every value in its row; equal values share the mean of theirs."""
    one, other = rows[:, :, None], rows[:, None, :]
    found: Floats = (other < one).sum(axis=2) + (other == one).sum(axis=2) / 2
    return found


def chosen(record: Row, figure: str) -> dict[str, dict[int, float | None]]:
    """By objective and size, a figure (``kl`` or ``accuracy``) of the keep-set that it chose; the first row
    is the mean of the random keep-sets. None where none was judged."""
    judged = record["judged"]

    def mean(names: Sequence[str]) -> float | None:
        found = [judged[name][figure] for name in names if name in judged]
        return float(np.mean(found)) if found else None

    table = {"random": {size: mean(record["random"][str(size)]) for size in sizes(record)}}
    for objective, by_size in record["chosen"].items():
        kept = {int(size): choice["kept"] for size, choice in by_size.items()}
        table[objective] = {
            size: mean([kept[size]] if size in kept else []) for size in sizes(record)
        }
    return table
