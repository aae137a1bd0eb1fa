"""Workloads: the inputs that a model is timed on, as the user states them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cahp_opt.costs.basis import Basis
from cahp_opt.costs.goals import LatencyGoal
from cahp_opt.costs.provenance import Execution, Phase, Provenance

_FORM = re.compile(r"\s*(?:([a-z][a-z0-9_-]*)=)?([a-z]+):(\d{1,9})(?:x(\d{1,9}))?\s*", re.ASCII)


@dataclass(frozen=True)
class Workload:
    """The input and phase that a model is timed on.

    Args:
        batch_size: texts per batch.
        sequence_length: tokens per text, while decoding those in the cache; None for 128, or fewer if
            the model has fewer positions.
        repeats: timed runs of every point.
        name: its name in goals; that of its phase if empty.
        phase: prefill or decode.
        execution: how the model is run.

    Raises:
        ValueError: for a size or a number of repeats below 1.
    """

    batch_size: int = 8
    sequence_length: int | None = None
    repeats: int = 20
    name: str = ""
    phase: Phase = Phase.PREFILL
    execution: Execution = Execution.EAGER

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.phase.value)
        for argument in ("batch_size", "sequence_length", "repeats"):
            number = getattr(self, argument)
            if number is not None and number < 1:
                raise ValueError(f"`{argument}` of a workload must be at least 1, got {number}.")

    @staticmethod
    def parse(text: str, *, repeats: int = 20, execution: Execution = Execution.EAGER) -> Workload:
        """The workload that a text such as ``decode:8x1024`` or ``long=prefill:1x4096`` states.

        It is ``[NAME=]PHASE:BATCH[xLENGTH]``; without a name it is called after its phase.

        Args:
            text: the text.
            repeats: timed runs of every point.
            execution: how the model is run.

        Raises:
            ValueError: for anything else.
        """
        found = _FORM.fullmatch(text)
        phases = [phase.value for phase in Phase]
        if found is None or found[2] not in phases or not int(found[3]) or found[4] == "0":
            raise ValueError(
                f"`--workload` must be [NAME=]PHASE:BATCHxLENGTH with one of the phases {phases}, such as "
                f"decode:8x1024 or long=prefill:1x4096, got {text!r}."
            )
        length = None if found[4] is None else int(found[4])
        return Workload(int(found[3]), length, repeats, found[1] or "", Phase(found[2]), execution)

    @staticmethod
    def of(name: str, facts: Provenance, repeats: int = 20) -> Workload:
        """The workload that a table was measured with, as far as its provenance states it."""
        length = facts.sequence_length or None
        return Workload(facts.batch or 8, length, repeats, name, facts.phase, facts.execution)


def workloads_for(
    goals: Iterable[LatencyGoal], given: Iterable[Workload], default: Workload
) -> tuple[Workload, ...]:
    """The workloads to measure for these goals.

    Args:
        goals: the latency goals.
        given: the requested workloads. Without any, those that the goals name, of the size of
            ``default``.
        default: the size, and the workload if neither names one.

    Raises:
        ValueError: if two workloads have one name, or a goal is about one that is not there.
    """
    goals, named = list(goals), list[Workload]()
    for workload in given:
        if workload.name in {other.name for other in named}:
            raise ValueError(
                f"two workloads are named {workload.name!r}; name one otherwise, as in "
                f"other={workload.phase.value}:{workload.batch_size}x{workload.sequence_length or 128}."
            )
        named.append(workload)
    if not named:
        names = dict.fromkeys(n for goal in goals for n, _ in goal.terms or ((default.name, 1.0),))
        phases = {phase.value: phase for phase in Phase}
        for name in names or {default.name: None}:
            if name not in phases:
                raise ValueError(
                    f"there is no workload {name!r}; say what it is, as in --workload "
                    f"{name}=decode:8x1024."
                )
            size = (default.batch_size, default.sequence_length, default.repeats)
            named.append(Workload(*size, name, phases[name], default.execution))
    for goal in goals:
        goal.runs(workload.name for workload in named)
    return tuple(named)


def recorded_workloads(basis: Basis, repeats: int = 20) -> tuple[Workload, ...]:
    """The workloads that a selection was timed with; none if it was timed with none.

    Args:
        basis: what the selection rests on.
        repeats: timed runs of every point.
    """
    timed = {name: where for name, (_, where) in basis.tables.items() if " " not in name}
    return tuple(Workload.of(name, where, repeats) for name, where in timed.items())
