"""What the numbers of a record mean, in words: for pages, model cards and the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from cahp_opt.selection import Selection


class Meaning(NamedTuple):
    """What a number is.

    Args:
        name: as a table shows it.
        sentence: what it measures.
        higher_is_better: whether a larger number is better.
    """

    name: str
    sentence: str
    higher_is_better: bool = True


_OBJECTIVES = {
    "explained-output": Meaning(
        "explained output",
        "What the blocks write, weighted by how strongly the model's output depends on it, and how much of "
        "it least squares on the kept units still explains.",
    ),
    "explained-variance": Meaning(
        "explained variance",
        "The variance of what the blocks write, and how much of it least squares on the kept units still "
        "explains.",
    ),
    "salience": Meaning(
        "kept salience",
        "The mean absolute gradient of the loss by the gate of a unit (Michel et al. 2019), summed over the "
        "kept units.",
    ),
    "gauss-newton": Meaning(
        "avoided damage",
        "The damage to the output that removing every unit does, by a quadratic model of the distance, and "
        "how much of it the kept units avoid.",
    ),
    "facility-location": Meaning(
        "represented salience",
        "How well every unit is represented by the kept one that attends most alike, weighted by salience.",
    ),
    "complementarity": Meaning(
        "represented signatures",
        "How close every unit is to a kept one in how it separates the classes.",
    ),
}

_FIGURES = {
    "kl": Meaning(
        "KL divergence, nats",
        "from the unpruned model's probabilities, mean over examples; 0 means equal",
        False,
    ),
    "kl_per_token": Meaning(
        "KL divergence per token, nats",
        "from the unpruned model's probabilities, mean over tokens; 0 means equal",
        False,
    ),
    "agreement": Meaning("agreement", "share of answers that are the unpruned model's"),
    "accuracy": Meaning("accuracy", "share of answers that are right"),
    "f1": Meaning("macro F1", "harmonic mean of precision and recall, mean over classes"),
    "perplexity": Meaning("perplexity", "of the held-out texts; 1 is a perfect prediction", False),
    "rms_difference": Meaning(
        "difference from unpruned",
        "root mean square of the difference of the predictions; 0 means equal",
        False,
    ),
    "rms_error": Meaning("error", "root mean square of the distance from the labels", False),
    "cosine_distance": Meaning(
        "cosine distance",
        "of an embedding from the unpruned model's, mean over examples; 0 means the same direction, 1 means "
        "unrelated",
        False,
    ),
    "spearman": Meaning(
        "Spearman's correlation",
        "of the cosines of pairs with their scores; 1 is a perfect ranking",
    ),
}
_NEIGHBOURS = re.compile(r"neighbour_agreement_at_(\d+)")


def objective_meaning(selection: Selection) -> Meaning:
    """What the value of a selection is."""
    facts = selection.provenance
    told = facts.get("objective") or facts.get("method") or "the objective"
    return _OBJECTIVES.get(told, Meaning(f"value of {told}", "Larger is better."))


def figure_meaning(name: str) -> Meaning:
    """What a figure of closeness or quality is, by its name in a report."""
    found = _NEIGHBOURS.fullmatch(name)
    if found:
        return Meaning(
            f"{found[1]} nearest neighbours",
            f"share of a text's {found[1]} nearest other texts that are the unpruned model's",
        )
    return _FIGURES.get(name, Meaning(name.replace("_", " "), ""))


def number(x: float | None, digits: int = 4) -> str:
    """A number with this many digits that count, or all of a larger whole one; a dash where there is none."""
    if x is None or math.isnan(x):
        return "-"
    if not math.isfinite(x):
        return "unlimited"
    return f"{x:,.0f}" if 10**digits <= abs(x) < 1e9 else f"{x:,.{digits}g}"


def percent(x: float | None, digits: int = 1, *, sign: bool = False) -> str:
    """A share as a percentage; a dash where there is none."""
    if x is None or math.isnan(x):
        return "-"
    return f"{100 * x:{'+' if sign else ''}.{digits}f} %"


def share_of_whole(x: float) -> str:
    """A share of the unpruned model's value: never rounded up to all of it."""
    if math.isnan(x):
        return "-"
    for digits in (1, 2, 3, 4):
        told = f"{100 * x:.{digits}f}"
        if x >= 1 or float(told) < 100:
            return f"{told} %"
    return "more than 99.999 %"


def kept_in_words(selection: Selection) -> str:
    """How much is kept, such as ``46 of 72 heads and 6,656 of 9,216 neurons``."""
    totals = selection.space.totals(selection.counts)
    return " and ".join(f"{t.kept:,} of {t.of:,} {t.what}" for t in totals)


def value_in_words(selection: Selection) -> str:
    """The value with its meaning, such as ``explained output: 98.7 % of the unpruned model's``."""
    name = objective_meaning(selection).name
    if math.isnan(selection.value):
        return "no objective was computed for this selection"
    if math.isnan(selection.share):
        return f"{name}: {selection.value:.6g}"
    return f"{name}: {share_of_whole(selection.share)} of the unpruned model's"


def gap_in_words(selection: Selection) -> str:
    """What is proved about other keep-sets, as a clause: ``no other keep-set has more than ...``."""
    gap = selection.gap
    if not math.isfinite(gap):
        return "nothing is proved about other keep-sets"
    if gap < 1e-12:
        return "proved: no other keep-set within the budget has more"
    return f"proved: no other keep-set within the budget has over {100 * gap:.2g} % more"


def certificate_in_words(selection: Selection) -> list[str]:
    """What the certificate proves, about which objective, and what it does not, as sentences."""
    name, facts = objective_meaning(selection).name, selection.provenance
    about = facts.get("objective") or facts.get("method") or "the objective"
    if math.isnan(selection.value):
        return ["No objective was computed for this selection, so nothing is proved about it."]
    if not math.isfinite(selection.gap):
        told = f"Nothing is proved about other keep-sets: {selection.certificate}."
        return [told, f"The choice was made by {about}."]
    if selection.gap < 1e-12:
        first = f"No other keep-set within the budget has more {name}: this one is optimal."
    else:
        first = (
            f"No other keep-set within the budget has over {100 * selection.gap:.2g} % more {name} than "
            "this one."
        )
    return [
        first,
        f"The proof: {selection.certificate}.",
        f"It is about {about}, as calibration measured it, and about the predicted costs. It says nothing "
        "of other objectives, and nothing of quality on other texts, which is measured for itself.",
    ]


def paired_figures(figures: Mapping[str, float]) -> list[tuple[str, float | None, float]]:
    """Figures by name, each with the unpruned model's own (None for figures of closeness) and the value."""
    return [
        (name, figures.get(f"dense_{name}"), value)
        for name, value in figures.items()
        if not name.startswith("dense_")
    ]
