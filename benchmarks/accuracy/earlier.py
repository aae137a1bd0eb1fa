"""What was measured before the benchmark was a study: means over test examples, for attention heads alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cahp_opt.studies.outcome import Arm
from cahp_opt.studies.study import SeedMean, Study


def percent(mean: SeedMean) -> str:
    """A share as tables show it."""
    return f"{100 * mean.value:.1f}" + ("" if mean.error is None else f" ± {100 * mean.error:.1f}")


class Means(NamedTuple):
    """Means over the seeds of one arm."""

    accuracy: SeedMean
    kl: SeedMean
    seeds: int

    @staticmethod
    def of(pairs: Sequence[tuple[float, float]]) -> Means:
        """The means of accuracies and divergences, a pair per seed."""
        accuracies, divergences = zip(*pairs, strict=True)
        return Means(SeedMean.of(accuracies), SeedMean.of(divergences), len(pairs))

    def __str__(self) -> str:
        return f"{percent(self.accuracy)} ({self.seeds}); {self.kl.value:.3f}"


@dataclass(frozen=True)
class Earlier:
    """The earlier results of one data set.

    Args:
        name: of the data set.
        made: a sentence on what they were made with.
        arms: the means.
    """

    name: str
    made: str
    arms: Mapping[Arm, Means]

    @staticmethod
    def read(path: Path) -> list[Earlier]:
        """The results in a file, by data set."""
        told, found = json.loads(path.read_text(encoding="utf-8")), list[Earlier]()
        for name, made in told["made"].items():
            arms = dict[Arm, list[tuple[float, float]]]()
            for data, method, limit, recovery, _, accuracy, kl, _ in told["rows"]:
                if data == name:
                    arms.setdefault(Arm(method, limit, recovery), []).append((accuracy, kl))
            found.append(Earlier(name, made, {arm: Means.of(own) for arm, own in arms.items()}))
        return found

    @property
    def table(self) -> str:
        """Methods by limits and recoveries."""
        places = dict.fromkeys(arm[1:] for arm in self.arms)
        rule = "|---" * (len(places) + 1) + "|"
        lines = [f"| method | {' | '.join(map(', '.join, places))} |", rule]
        for method in dict.fromkeys(arm.method for arm in self.arms):
            cells = (str(self.arms.get(Arm(method, *place), "")) for place in places)
            lines.append(f"| {method} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def beside(self, study: Study) -> str:
        """What a study of the same data measured too, with the differences; empty if that is nothing."""
        lines = [
            "| method | limit | recovery | earlier | now | accuracy, points | KL |",
            "|---" * 7 + "|",
        ]
        for arm in (arm for arm in study.arms if arm in self.arms):
            scores = [outcome.scores for outcome in study.of(arm).values()]
            now = Means.of([(each.value("accuracy"), each.value("kl")) for each in scores])
            then = self.arms[arm]
            points, apart = (a.value - b.value for a, b in zip(now[:2], then[:2], strict=True))
            lines.append(
                f"| {' | '.join(arm)} | {then} | {now} | {100 * points:+.1f} | {apart:+.3f} |"
            )
        return "\n".join(lines) if len(lines) > 2 else ""
