"""What was measured after selecting and slicing, round by round, beside what had been predicted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

TOLERANCE = 0.01
"""A relative excess over a limit that still meets it."""
SLACK = 0.03
"""A time that is further than that below its limit gives quality away for nothing."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One time of a sliced model, predicted and measured, in seconds.

    Args:
        predicted: the sliced model by the table that the units were chosen with.
        measured: the sliced model, timed in turns with the unpruned one.
        dense_predicted: the unpruned model by the same table.
        dense_measured: the unpruned model in the same run.
        spread: noise of the machine in that run: the largest relative distance of a median from its
            low quantile.
        limit: what the measured time was to keep to; None where nothing limits it. A limit that is a
            share of the unpruned time counts from ``dense_measured``.

    Raises:
        ValueError: for a time that is not above 0 or not finite.
    """

    predicted: float
    measured: float
    dense_predicted: float
    dense_measured: float
    spread: float = 0.0
    limit: float | None = None

    def __post_init__(self) -> None:
        times = {name: value for name, value in asdict(self).items() if name != "spread"}
        if self.limit is None:
            del times["limit"]
        for name, taken in times.items():
            if not (math.isfinite(taken) and taken > 0):
                raise ValueError(f"`{name}` must be finite seconds above 0, got {taken}.")
        if not (math.isfinite(self.spread) and self.spread >= 0):
            raise ValueError(f"`spread` must be finite and at least 0, got {self.spread}.")

    @property
    def error(self) -> float:
        """How far the sliced model's measured time is from the prediction, relative to that."""
        return self.measured / self.predicted - 1

    @property
    def dense_error(self) -> float:
        """The same of the unpruned model: how far the machine has drifted since its table."""
        return self.dense_measured / self.dense_predicted - 1

    @property
    def ratio(self) -> float:
        """The sliced model's measured share of the unpruned time."""
        return self.measured / self.dense_measured

    @property
    def predicted_ratio(self) -> float:
        """The predicted share."""
        return self.predicted / self.dense_predicted

    @property
    def over(self) -> float | None:
        """How far the measured time is over the limit, relative to it; below 0 if it is within."""
        return None if self.limit is None else self.measured / self.limit - 1


@dataclass(frozen=True, kw_only=True)
class Round:
    """One sliced model that was timed.

    Args:
        counts: units kept per block.
        goals: by name of the budget's table, such as ``latency``, the time that it limits.
        workloads: by name of the workload, such as ``prefill``, one run of it.
        device: name of the processor it was measured on.
        repeats: timed runs of each model.
        floor: whether it was timed only because the tables say that nothing meets the budget: the
            fastest model that the other limits allow.

    Raises:
        ValueError: for a value of another type.
    """

    counts: tuple[int, ...]
    goals: Mapping[str, Check]
    workloads: Mapping[str, Check] = field(default_factory=lambda: dict[str, Check]())
    device: str = ""
    repeats: int = 0
    floor: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("device", str), ("repeats", int), ("floor", bool)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(
                    f"`{name}` of a round must be of type {kind.__name__}, got {getattr(self, name)!r}."
                )

    @property
    def over(self) -> float:
        """How far it is over the limit that it keeps to least, relative; below 0 if all are met."""
        return max(
            (check.over for check in self.goals.values() if check.over is not None), default=-1.0
        )

    @property
    def error(self) -> float:
        """The relative error of prediction that is largest in size, with its sign."""
        return max((check.error for check in self.goals.values()), key=abs, default=0.0)

    @property
    def spread(self) -> float:
        """The largest noise in the round's measurements."""
        return max((check.spread for check in self.goals.values()), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {**asdict(self), "counts": list(self.counts)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Round:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError, KeyError, TypeError: if it is no round.
        """
        fields = dict(data)
        for kind in ("goals", "workloads"):
            fields[kind] = {name: Check(**check) for name, check in data[kind].items()}
        fields["counts"] = tuple(int(count) for count in data["counts"])
        return Round(**fields)
