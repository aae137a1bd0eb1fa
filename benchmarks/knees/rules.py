"""Where rules stop on a curve of quality against units kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cahp_opt import knee

DEGREES = (2, 3, 4, 5, 6)
"""Of the polynomial that smooths a curve, as in the paper of the seed method."""
TOLERANCE: Mapping[str, float] = {"kl": 0.05, "accuracy": 0.01}
"""What the tolerance rule may lose: nats, or a share of the sentences."""


def knees(kept: Sequence[str], quality: Sequence[float]) -> dict[str, str]:
    """The keep-sets at the knees, by the degree of the polynomial or ``points``."""
    units = [keep.count("1") for keep in kept]
    of = dict(zip(units, kept, strict=True))
    found = {"points": of[int(knee(units, quality))]}
    for degree in DEGREES:
        smooth = min(degree, len(units) - 1)
        found[str(degree)] = of[int(knee(units, quality, degree=smooth))]
    return found


def value_rules(frontier: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Where the knees of the objective's own value stop."""
    found = knees(frontier["kept"], frontier["values"])
    return {("explained variance", rule): kept for rule, kept in found.items()}


def measured_rules(points: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """Where knees and tolerances on measured quality stop."""
    kept = [point["kept"] for point in points]
    found = dict[tuple[str, str], str]()
    for name, quality in (
        ("kl", [-point["kl"] for point in points]),
        ("accuracy", [point["accuracy"] for point in points]),
    ):
        for rule, where in knees(kept, quality).items():
            found[name, rule] = where
        enough = np.array(quality) >= max(quality) - TOLERANCE[name]
        least = min(np.flatnonzero(enough), key=lambda i: kept[i].count("1"))
        found[name, "tolerance"] = kept[least]
    return found
