"""Methods over all tasks together: mean accuracies, and which of them the examples tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import TypeAlias

import numpy as np

from cahp_opt.arrays import Floats
from cahp_opt.studies.outcome import Arm
from cahp_opt.studies.scores import Scores
from cahp_opt.studies.study import Study

Place: TypeAlias = tuple[str, str]
"""A limit and a recovery."""
LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class OverTasks:
    """A method at a limit with a recovery, on several tasks.

    Args:
        right: for every task by test example the share of seeds with the right class, ``[examples]``.
        kl: for every task the mean divergence in nats.
        unpruned: for every task the unpruned model's accuracy.
    """

    right: tuple[Floats, ...]
    kl: tuple[float, ...]
    unpruned: tuple[float, ...]

    @staticmethod
    def of(studies: Sequence[Study], method: str, place: Place) -> OverTasks | None:
        """Of these tasks; None if a task lacks it."""
        found = [study.of(Arm(method, *place)) for study in studies]
        if not found or not all(found):
            return None
        return OverTasks(
            tuple(
                np.mean([_right(o.scores) for o in outcomes.values()], axis=0) for outcomes in found
            ),
            tuple(fmean(o.scores.value("kl") for o in outcomes.values()) for outcomes in found),
            tuple(study.unpruned.value("accuracy") for study in studies),
        )

    @property
    def accuracy(self) -> float:
        """The mean over tasks."""
        return fmean(float(task.mean()) for task in self.right)

    @property
    def lost(self) -> float:
        """The accuracy that the unpruned models have more, as a mean over tasks."""
        return fmean(self.unpruned) - self.accuracy

    def behind(self, other: OverTasks) -> tuple[float, float]:
        """How much less accurate it is than another on the same examples, and the standard error of that.

        The tasks are those that there are; the error is that of their test examples alone, taken in pairs.
        """
        tasks = [b - a for a, b in zip(self.right, other.right, strict=True)]
        variance = sum(float(d.var(ddof=1)) / len(d) for d in tasks)
        return fmean(float(d.mean()) for d in tasks), float(variance**0.5) / len(tasks)


def _right(scores: Scores) -> Floats:
    right: Floats = (scores.arrays["predicted"] == scores.arrays["label"]).astype(np.float64)
    return right


def places_of(studies: Sequence[Study]) -> list[Place]:
    """The limits and recoveries that every task has, the least pruning first."""
    per_task = [{(c.limit, c.recovery) for c in study.cells} for study in studies]
    return sorted(set[Place].intersection(*per_task), key=lambda p: (p[1], p[0]), reverse=True)


def methods_at(studies: Sequence[Study], place: Place) -> dict[str, OverTasks]:
    """By name, the methods that every task has at a place, the best first."""
    names = dict.fromkeys(method for study in studies for method in study.methods)
    found = {name: OverTasks.of(studies, name, place) for name in names}
    there = {name: each for name, each in found.items() if each is not None}
    return dict(sorted(there.items(), key=lambda item: -item[1].accuracy))


def ties(methods: Mapping[str, OverTasks]) -> set[str]:
    """The best method, and those that the test examples do not tell from it."""
    if not methods:
        return set()
    first, most = next(iter(methods.values())), most_errors(methods)
    found = {name: each.behind(first) for name, each in methods.items()}
    return {name for name, (less, error) in found.items() if less <= most * error}


def most_errors(methods: Mapping[str, OverTasks]) -> float:
    """Standard errors that a difference from the best may have by chance, corrected for the number of methods."""
    return NormalDist().inv_cdf(1 - (1 - LEVEL) / 2 / max(1, len(methods) - 1))


def everywhere(studies: Sequence[Study]) -> dict[Place, dict[str, OverTasks]]:
    """The methods that every task has, by place."""
    return {place: methods_at(studies, place) for place in places_of(studies)}


def table(studies: Sequence[Study]) -> str:
    """Methods by limits and recoveries: mean accuracy, what that is less than the unpruned, and divergence."""
    found = everywhere(studies)
    best = {place: ties(methods) for place, methods in found.items()}
    dense = f"{100 * fmean(study.unpruned.value('accuracy') for study in studies):.1f}"
    lines = [
        "| method | " + " | ".join(f"{limit}, {recovery}" for limit, recovery in found) + " |",
        "|---" * (len(found) + 1) + "|",
        "| unpruned | " + " | ".join([dense] * len(found)) + " |",
    ]
    for name in dict.fromkeys(name for methods in found.values() for name in methods):
        cells = list[str]()
        for place, methods in found.items():
            cells.append("")
            if (each := methods.get(name)) is not None:
                bold = "**" * (name in best[place])
                told = f"{bold}{100 * each.accuracy:.1f}{bold} ({-100 * each.lost:+.1f})"
                cells[-1] = f"{told}; {fmean(each.kl):.4f}"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def section(records: Mapping[str, Study], picture: str) -> str:
    """What the tasks say together, with the picture of that name; empty for fewer than two."""
    studies = [*records.values()]
    if len(studies) < 2 or not places_of(studies):
        return ""
    tested = sum(study.unpruned.examples for study in studies)
    intro = (
        f"Means over {len(studies)} tasks ({', '.join(records)}; {tested:,} test examples): accuracy in per cent, in brackets what that is "
        "more or less than the unpruned models', and the KL divergence from them in nats. A method stands here where every task has it. **Bold** is "
        "the best, and what a paired test over the examples of these tasks does not tell from it at 95 %, corrected for the "
        "number of methods."
    )
    shown = f"![Accuracy that methods lose, over all tasks]({picture})"
    return f"## {len(studies)} tasks together\n\n{intro}\n\n{table(studies)}\n\n{shown}"
