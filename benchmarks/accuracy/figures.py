"""Means over seeds of what `run.py` recorded."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]


class Mean(NamedTuple):
    """A mean over seeds, its standard error (None for one seed), and how many seeds."""

    value: float
    error: float | None
    seeds: int

    def percent(self) -> str:
        """As a table shows shares; with the number of seeds."""
        error = "" if self.error is None else f" ± {100 * self.error:.1f}"
        return f"{100 * self.value:.1f}{error} ({self.seeds})"

    def plain(self) -> str:
        """As a table shows other figures."""
        error = "" if self.error is None else f" ± {self.error:.3f}"
        return f"{self.value:.3f}{error}"


def mean(values: Sequence[float]) -> Mean | None:
    """Their mean; None without values."""
    if not values:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Mean(statistics.fmean(values), error, len(values))


def those(record: Row, **wanted: str) -> list[Row]:
    """The rows with these values."""
    return [row for row in record["rows"] if all(row[k] == v for k, v in wanted.items())]


def mean_of(rows: Sequence[Row], figure: Callable[[Row], float | None]) -> Mean | None:
    """The mean of a figure over rows, without those that lack it."""
    found = [figure(row) for row in rows]
    return mean([value for value in found if value is not None])


def budgets(record: Row) -> list[str]:
    """All budgets: latencies, then units, the largest first."""
    return sorted(
        {row["budget"] for row in record["rows"]}, key=lambda b: ("." not in b, -float(b))
    )


def methods(record: Row, rows: Sequence[Row] | None = None) -> list[str]:
    """All methods that have rows, in the order of the benchmark."""
    there = {row["method"] for row in (record["rows"] if rows is None else rows)}
    return [name for name in record["names"] if name in there]


def recoveries(record: Row) -> list[str]:
    """All recoveries that have rows, the cheapest first."""
    there = {row["recovery"] for row in record["rows"]}
    return [name for name in RECOVERIES if name in there]


def devices(rows: Sequence[Row]) -> str:
    """What the rows were made on, each device with its number of rows, the most first."""
    made = Counter(row.get("device", EARLIER) for row in rows).most_common()
    return ", ".join(f"{device} ({count})" for device, count in made)


def timed_alike(rows: Sequence[Row]) -> tuple[str, list[Row]]:
    """The rows whose costs were all taken on one device, and which: seconds of two cannot be compared.

    It is a CPU if there are any such rows of one, and else the device that has most of them.
    """
    found = dict[str, list[Row]]()
    for row in rows:
        on = row.get("timed_on", [EARLIER])
        if len(on) == 1:
            found.setdefault(on[0], []).append(row)
    if not found:
        return EARLIER, []
    return max(found.items(), key=lambda item: (is_cpu(item[0]), len(item[1])))


def is_cpu(device: str) -> bool:
    """Whether that is the description of a CPU."""
    return device.endswith((" thread", " threads"))


EARLIER = "AMD EPYC, 1 thread"
"""What the results were made on that do not tell it."""
RECOVERIES = {
    "none": "No recovery",
    "refit": "Refit",
    "1-epoch": "One epoch, without a refit",
    "refit+1-epoch": "Refit and one epoch",
}
"""In words."""
