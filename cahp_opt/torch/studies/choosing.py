"""What a method chooses, kept under the name of all that it depends on."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any, NamedTuple

from cahp_opt.files.store import Row
from cahp_opt.runs.method import Method, Needs, Task, trusted, with_provenance
from cahp_opt.runs.own_objective import OwnObjective
from cahp_opt.runs.recovery import Recovery
from cahp_opt.runs.study_plan import Job
from cahp_opt.selection import Selection
from cahp_opt.torch.methods.model_method import Evidence, chooser_of
from cahp_opt.torch.studies.code_digests import code_of_choice
from cahp_opt.torch.studies.draws import Draw


class Choice(NamedTuple):
    """What a method chose.

    Args:
        selection: the units.
        notes: what makes the choice arbitrary.
        seconds: how long it took.
    """

    selection: Selection
    notes: tuple[str, ...]
    seconds: float

    @staticmethod
    def of(row: Row) -> Choice:
        """A choice that was kept."""
        return Choice(
            Selection.from_json(row["selection"]), tuple(row["notes"]), float(row["seconds"])
        )


class WatchedTask(Task):
    """A task that knows whether somebody has looked at its recovery.

    A choice that was made without a look at it holds for all recoveries, and is made once.
    """

    def __getattribute__(self, name: str) -> Any:
        if name == "recovery":
            object.__getattribute__(self, "__dict__")["watched"] = True
        return object.__getattribute__(self, name)

    @property
    def looked_at(self) -> bool:
        """Whether somebody has."""
        return bool(vars(self).get("watched"))

    @staticmethod
    def of(task: Task) -> WatchedTask:
        """The same task, watched from now on."""
        found = WatchedTask(**{f.name: getattr(task, f.name) for f in fields(Task)})
        vars(found).pop("watched", None)
        return found


def chosen(draw: Draw, job: Job, recovery: Recovery) -> Choice:
    """The choice of a method, made unless it is there.

    Raises:
        Busy: if another process makes it.
        ValueError: if the method refuses.
    """
    store, asked = draw.bench.store, _asked(draw, job, recovery)
    needs = draw.bench.plan.methods[job.method].needs(asked)
    anyhow = None if asked.looked_at else _key(draw, job, needs, None)
    found = None if anyhow is None else store.peek("choices", anyhow)
    if found is not None:
        return Choice.of(found)
    watched = list[bool]()

    def make() -> Row:
        row, looked_at = _choose(draw, job, asked, needs)
        watched.append(looked_at)
        return row

    row = store.row("choices", _key(draw, job, needs, recovery.value), make, wait=False)
    if watched == [False] and anyhow is not None:
        store.row("choices", anyhow, lambda: row)
    return Choice.of(row)


def _asked(draw: Draw, job: Job, recovery: Recovery) -> WatchedTask:
    bench, space = draw.bench, draw.calibrated.stats.space
    return WatchedTask.of(bench.task(bench.plan.limit(job.limit), recovery, draw.seed, space))


def _key(draw: Draw, job: Job, needs: Needs, recovery: str | None) -> object:
    bench, method = draw.bench, draw.bench.plan.methods[job.method]
    limit = bench.limit_key(bench.plan.limit(job.limit))
    return draw.grouped_key(needs), told(method), limit, bench.plan.time_limit, recovery


def told(method: Method) -> object:
    """What a choice depends on through its method, with all of its code."""
    kinds: list[Any] = [type(method)]
    if isinstance(method, OwnObjective):
        kinds.append(method.kind)
    return type(method).__qualname__, repr(method), code_of_choice(*kinds)


def _choose(draw: Draw, job: Job, task: WatchedTask, needs: Needs) -> tuple[Row, bool]:
    bench, method = draw.bench, draw.bench.plan.methods[job.method]
    limit, calibrated = bench.plan.limit(job.limit), draw.calibrated
    began = time.monotonic()
    stats = needs.of(calibrated.stats)
    evidence = Evidence(calibrated.prunable, stats, task, draw.batches, bench.fidelity)
    selection = trusted(method, chooser_of(method, evidence))(task.budget)
    named = with_provenance(selection, method, task, stats, limit.target, bench.recipe.profile)
    row = {
        "selection": named.to_json(),
        "notes": method.remarks(stats),
        "seconds": time.monotonic() - began,
    }
    return row, task.looked_at
