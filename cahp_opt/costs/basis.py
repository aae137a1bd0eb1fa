"""What a selection's limits rest on: the goals, the measured tables, and remarks about those."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, NamedTuple, cast

from cahp_opt.costs.goals import Goal, LatencyGoal, ResourceGoal, goal_of
from cahp_opt.costs.provenance import Provenance

_FACTS = ("device", "dtype", "batch", "sequence_length", "phase", "execution", "threads")
_RENAMED = {"dense_seconds": "dense", "batch_size": "batch"}
_EARLIER = ("goals", "workloads", "remarks")
_EARLIEST = ("latency", "dense_seconds", "device", "batch_size", "sequence_length")


class Recorded(NamedTuple):
    """What a selection keeps of a measured table: the unpruned cost, and where it was measured."""

    dense: float
    where: Provenance


@dataclass(frozen=True)
class Basis:
    """What the limits of a selection rest on.

    Args:
        goals: the limits as they were stated, apart from numbers of units.
        tables: by name of the workload or the resource, the measured tables that the goals are about.
        remarks: what to know before trusting those tables, as sentences.

    Raises:
        ValueError: for an unpruned cost that is not above 0.
    """

    goals: tuple[Goal, ...] = ()
    tables: Mapping[str, Recorded] = field(default_factory=lambda: dict[str, Recorded]())
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, (dense, _) in self.tables.items():
            if not (isfinite(dense) and dense > 0):
                raise ValueError(f"the unpruned cost of {name!r} must be above 0, got {dense}.")

    def in_words(self) -> Iterator[tuple[str, str]]:
        """Every fact with its name, as texts for people."""
        if self.goals:
            yield "goals", " ".join(goal.option for goal in self.goals)
        for name, (dense, where) in self.tables.items():
            how = f"{where.batch} x {where.sequence_length} tokens, {where.dtype}, {where.execution.value}"
            measured = "estimated" if where.estimated else "measured"
            yield f"unpruned {name}", f"{dense:.6g}, {measured} with {how}, on {where.device}"
        if self.remarks:
            yield "remarks", " ".join(self.remarks)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        tables = dict[str, Any]()
        for name, (dense, where) in self.tables.items():
            facts = where.to_json()
            kept = {fact: facts[fact] for fact in (*_FACTS, "estimated")}
            tables[name] = {"dense": dense, **kept}
        goals = [["latency" if isinstance(g, LatencyGoal) else g.name, str(g)] for g in self.goals]
        return {"goals": goals, "tables": tables, "remarks": list(self.remarks)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Basis:
        """The inverse of :meth:`to_json`. Limits on resources that are not known here become remarks, so
        that a model loads where the resource it was pruned for cannot be measured.

        Raises:
            ValueError: if it cannot be understood.
        """
        try:
            remarks: Any = data["remarks"]
            if not isinstance(remarks, list) or not all(isinstance(r, str) for r in remarks):  # pyright: ignore[reportUnknownVariableType]
                raise ValueError(f"its remarks are {remarks!r}")
            goals = [(str(name), str(text)) for name, text in data["goals"]]
            foreign = [
                f"the limit {name}={text} is on a resource that is not known here, and is not checked."
                for name, text in goals
                if not _known(name)
            ]
            return Basis(
                tuple(goal_of(name, text) for name, text in goals if _known(name)),
                {
                    name: _recorded(told)
                    for name, told in data["tables"].items()
                    if " " not in name or _known(name)
                },
                (*cast("list[str]", remarks), *foreign),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise _not_said(error) from None

    @staticmethod
    def from_texts(told: Mapping[str, str]) -> tuple[Basis, dict[str, str]]:
        """The basis out of the provenance of an earlier release, which held it as JSON in texts.

        Returns:
            It, and the rest of the provenance.

        Raises:
            ValueError: if it cannot be understood.
        """
        earliest = _EARLIEST if "dense_seconds" in told else ()
        rest = {k: text for k, text in told.items() if k not in (*_EARLIER, *earliest)}
        try:
            goals = json.loads(told.get("goals", "[]"))
            tables = json.loads(told.get("workloads", "{}"))
            remarks = json.loads(told.get("remarks", "[]"))
            if "goals" not in told and "latency" in told:
                goals = [["latency", told["latency"]]]
            if not tables and earliest:  # of the one workload that there was
                facts = {
                    "dense": float(told["dense_seconds"]),
                    "device": told.get("device", ""),
                    "batch": int(told.get("batch_size", 0)),
                    "sequence_length": int(told.get("sequence_length", 0)),
                }
                tables = {"prefill": facts}
        except ValueError as error:
            raise _not_said(error) from None
        return Basis.from_json({"goals": goals, "tables": tables, "remarks": remarks}), rest


def recorded(dense: float, where: Provenance) -> Recorded:
    """What a selection keeps of a table with this unpruned cost."""
    facts = {fact: getattr(where, fact) for fact in _FACTS}
    return Recorded(dense, Provenance(**facts, estimated=where.estimated))


def _known(name: str) -> bool:
    """Whether there is such a cost, by the name of a goal."""
    return name == "latency" or ResourceGoal.is_name(name)


def _not_said(error: Exception) -> ValueError:
    return ValueError(
        f"the selection does not say what its limits rest on ({error}); select again."
    )


def _recorded(told: Mapping[str, Any]) -> Recorded:
    facts = {_RENAMED.get(name, name): fact for name, fact in told.items()}
    dense = float(facts.pop("dense"))
    return Recorded(dense, Provenance.from_json(facts))
