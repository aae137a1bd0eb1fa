"""Greedy removal by the true damage."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cahp_opt.arrays import Bools
from cahp_opt.costs.budget import Budget
from cahp_opt.objectives import Modular
from cahp_opt.problem import Problem
from cahp_opt.selection import Chooser, Selection, select
from cahp_opt.solver import Status
from cahp_opt.solvers import DynamicProgram
from cahp_opt.torch.methods.model_method import Evidence, ModelMethod
from cahp_opt.torch.methods.removal import removal_path
from cahp_opt.torch.methods.true_distance import TrueDistance
from cahp_opt.torch.running.batches import first_examples
from cahp_opt.torch.running.preparing import prepared


@dataclass(frozen=True)
class GreedyKL(ModelMethod):
    """Removes unit after unit, each time the one that leaves the output closest to the unpruned model's for the
    cost that it saves, until the budget allows what is left. What then fits in again is put back, the last first.

    The baseline that trusts no model of the damage. Distances are measured: the KL divergence of a classifier
    or language model, one minus the cosine of embeddings. To remove ``r`` of ``n`` units it runs about
    ``r * n / 2`` times half of the model on the texts.

    Args:
        texts: calibration texts, from the start, that outputs are compared on.
        shortlist: units that are tried before each removal, those whose removal was cheapest when it was tried
            last; None for all.

    Raises:
        ValueError: for a number below 1.
    """

    source: ClassVar[str] = (
        "baseline; the greedy pruning of heads by a measured loss is that of Michel, Levy and Neubig, Are "
        "Sixteen Heads Really Better than One?, 2019, with the distance measured in place of its gradient"
    )

    texts: int = 64
    shortlist: int | None = None

    def __post_init__(self) -> None:
        for name in ("texts", "shortlist"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"`{name}` must be at least 1, got {number}.")

    def chooser_on(self, evidence: Evidence) -> Chooser:
        """Removes units on the model."""
        task, model = evidence.task, evidence.prunable.model
        batches = list(first_examples(prepared(evidence.batches, model), self.texts))
        distance = TrueDistance(evidence.prunable, evidence.fidelity, batches)

        def told(removed: int) -> None:
            evidence.progress(self.name, removed, 0)

        def choose(budget: Budget) -> Selection:
            start = time.monotonic()
            limit = task.time_limit
            path = removal_path(
                budget,
                distance.without,
                shortlist=self.shortlist,
                deadline=math.inf if limit is None else start + limit,
                progress=told,
            )
            kept = along(path, budget)
            late = limit is not None and time.monotonic() > start + limit
            counts = budget.space.counts(kept)
            return Selection(
                budget.space,
                kept,
                distance.value(kept),
                0.0,
                budget.costs(counts),
                Status.TIME_LIMIT if late else Status.FEASIBLE,
                "no distance is below 0, that of the unpruned model",
                repr(self),
                time.monotonic() - start,
                {"removed": len(path)},
            )

        return choose


def along(path: list[int], budget: Budget) -> Bools:
    """What is left at the end of a path of removals, with those that went last put back where that is still within
    the budget, bool ``[n]``; if the budget does not allow the end of the path, those within it that go last on the
    path.

    A unit that saves much may go where little had to be saved, and leave room for units that went before it.
    """
    space = budget.space
    kept = np.ones(space.n, dtype=np.bool_)
    kept[path] = False
    if not budget.allows(space.counts(kept)):
        late = np.full(space.n, 1.0 + len(path))
        late[path] = 1.0 + np.arange(len(path))
        kept = select(Problem(Modular(late), budget), DynamicProgram()).kept.copy()
    gone = np.array(path[::-1], dtype=np.int64)
    for unit in gone:
        block = space.block_of[unit]
        waiting = gone[(space.block_of[gone] == block) & ~kept[gone]]
        larger = np.flatnonzero(budget.allowed[block][space.counts(kept)[block] + 1 :])
        if kept[unit] or not len(larger):
            continue
        more = kept.copy()
        more[waiting[: larger[0] + 1]] = True
        if budget.allows(space.counts(more)):
            kept = more
    return kept
