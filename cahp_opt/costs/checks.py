"""Measured costs of sliced models, round by round, beside their predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

TOLERANCE = 0.01
"""A relative excess over a limit that still meets it."""
SLACK = 0.03
"""If the measured time is this far below the limit, more units could be kept."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One measured cost of a sliced model beside the unpruned one's, as a rule a time in seconds.

    Args:
        predicted: the sliced model by the table that the units were chosen with; None where none was.
        measured: the sliced model, measured alternately with the unpruned one.
        dense_predicted: the unpruned model by the same table; None where there was none.
        dense_measured: the unpruned model in the same run.
        spread: noise of the machine in that run: the largest relative distance of a median from its
            low quantile.
        limit: the limit on the measured cost; None without one. A limit that is a share of the
            unpruned cost is relative to ``dense_measured``.

    Raises:
        ValueError: for a cost that is not above 0 or not finite.
    """

    predicted: float | None = None
    measured: float
    dense_predicted: float | None = None
    dense_measured: float
    spread: float = 0.0
    limit: float | None = None

    def __post_init__(self) -> None:
        for name, taken in asdict(self).items():
            if name == "spread" or (taken is None and name not in ("measured", "dense_measured")):
                continue
            if taken is None or not (math.isfinite(taken) and taken > 0):
                raise ValueError(f"`{name}` must be finite and above 0, got {taken}.")
        if not (math.isfinite(self.spread) and self.spread >= 0):
            raise ValueError(f"`spread` must be finite and at least 0, got {self.spread}.")

    @property
    def error(self) -> float | None:
        """How far the sliced model's measured cost is from the prediction, relative to that."""
        return _apart(self.measured, self.predicted)

    @property
    def dense_error(self) -> float | None:
        """The same of the unpruned model: how far the machine has drifted since its table."""
        return _apart(self.dense_measured, self.dense_predicted)

    @property
    def ratio(self) -> float:
        """The sliced model's measured share of the unpruned cost."""
        return self.measured / self.dense_measured

    @property
    def predicted_ratio(self) -> float | None:
        """The predicted share."""
        if self.predicted is None or self.dense_predicted is None:
            return None
        return self.predicted / self.dense_predicted

    @property
    def ratio_error(self) -> float | None:
        """How far the measured share is from the predicted one, relative to that."""
        return _apart(self.ratio, self.predicted_ratio)

    @property
    def speed_up(self) -> float:
        """How many times less the sliced model takes."""
        return self.dense_measured / self.measured

    @property
    def over(self) -> float | None:
        """How far the measured cost is over the limit, relative to it; below 0 if it is within."""
        return _apart(self.measured, self.limit)


def _apart(measured: float, told: float | None) -> float | None:
    return None if told is None else measured / told - 1


@dataclass(frozen=True, kw_only=True)
class Round:
    """One sliced model that was measured.

    Args:
        counts: units kept per block.
        goals: by name of the budget's table, such as ``latency``, the cost that it limits.
        workloads: by name of the table of the profile, such as ``prefill``, what one run takes.
        device: name of the processor it was measured on.
        repeats: timed runs of each model.
        fastest: whether it was timed only because the tables say that nothing meets the budget: the
            fastest model that the other limits allow.

    Raises:
        ValueError: for a value of another type.
    """

    counts: tuple[int, ...]
    goals: Mapping[str, Check]
    workloads: Mapping[str, Check] = field(default_factory=lambda: dict[str, Check]())
    device: str = ""
    repeats: int = 0
    fastest: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("device", str), ("repeats", int), ("fastest", bool)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(
                    f"`{name}` of a round must be of type {kind.__name__}, got {getattr(self, name)!r}."
                )

    @property
    def over(self) -> float:
        """The largest relative excess over a limit; below 0 if all are met."""
        return max(
            (check.over for check in self.goals.values() if check.over is not None), default=-1.0
        )

    @property
    def error(self) -> float:
        """The relative error of prediction of largest size, with its sign."""
        return max((check.error or 0.0 for check in self.goals.values()), key=abs, default=0.0)

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
            ValueError, KeyError, TypeError: if it is not a round.
        """
        fields = dict(data)
        if "floor" in fields:  # what `fastest` was called before
            fields["fastest"] = fields.pop("floor")
        for kind in ("goals", "workloads"):
            fields[kind] = {name: Check(**check) for name, check in data[kind].items()}
        fields["counts"] = tuple(int(count) for count in data["counts"])
        return Round(**fields)
