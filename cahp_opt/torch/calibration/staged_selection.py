"""Removing units in stages, with a new calibration of the remaining model before each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from torch import nn

from cahp_opt.arrays import Bools
from cahp_opt.costs.budget import Budget
from cahp_opt.costs.narrowing import over_what_is_left
from cahp_opt.objective import Objective
from cahp_opt.problem import Problem
from cahp_opt.progress import Progress, silent
from cahp_opt.runs.measuring import MeasuringOptions
from cahp_opt.runs.method import Task
from cahp_opt.selection import Selection, select
from cahp_opt.solver import Solver, Status
from cahp_opt.space import Unit
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.pooling import provenance_of
from cahp_opt.torch.blocks.finder import Prunable, find_attention
from cahp_opt.torch.blocks.fingerprint import fingerprint
from cahp_opt.torch.calibration.calibration import measure
from cahp_opt.torch.calibration.collector import Collector
from cahp_opt.torch.calibration.collectors import collectors_for
from cahp_opt.torch.evaluation.fidelity import Fidelity
from cahp_opt.torch.running.batches import Batch
from cahp_opt.torch.running.gates import gated
from cahp_opt.torch.running.repeatable_batches import Repeated


def select_staged(
    model: nn.Module,
    batches: Iterable[Batch],
    objective: Callable[[HeadStats], Objective],
    kept: int,
    solver: Solver,
    *,
    stages: int = 8,
    gradient_examples: int = 256,
    fisher: bool = False,
    time_limit: float | None = None,
    seed: int = 0,
    unit: Unit | None = None,
    progress: Progress = silent,
) -> Selection:
    """Select units to stay *without* recovery, in stages that each remove about the same share.

    A second-order expansion holds only near the model, or the random masks, that it was taken at.
    So stage ``s`` expands at the model that earlier stages left, and keeps ``n_s`` of its units::

        n_s = round(n * (kept / n)^(s / stages))
        S_s = argmax over S in S_{s-1} with |S| = n_s of objective(statistics_s)(S)

    where ``statistics_s`` are taken with gates 0 outside of ``S_{s-1}``, and their matrices with
    gates inside of it that are independently 1 with probability ``n_s / n_{s-1}``, otherwise 0.
    Each stage costs a calibration.

    Args:
        model: the unpruned model; it is left as it was found.
        batches: as for :func:`~cahp_opt.torch.calibrate`; iterated once per stage, and the same
            every time.
        objective: makes the objective from the statistics of one stage, such as
            ``Quadratic.from_stats``: salience, moments, and the matrices at one density, over the
            units that are left, without blocks that lost all of theirs.
        kept: units to keep, at least 1.
        solver: the solver.
        stages: the number of stages, at least 1; those that would remove nothing are left out.
        gradient_examples, fisher: as for :func:`~cahp_opt.torch.calibrate`.
        time_limit: seconds that the solver may take per stage; None for no limit.
        seed: of the masks, the probes and the solver.
        unit: as for :func:`~cahp_opt.torch.find_attention`.
        progress: called once per batch of every stage.

    Returns:
        The selection. Its value, bound and gap are those of the last stage, which chose only among
        the units that earlier stages had left; the certificate and the provenance say so.

    Raises:
        UnsupportedModelError: if the model's attention is not understood.
        ValueError: for a bad argument, batches that cannot be used or change, or an objective or a solver
            that refuses.
    """
    prunable = find_attention(model, unit=unit)
    space = prunable.space
    if not 1 <= kept <= space.n:
        raise ValueError(f"`kept` must be units to keep, 1 to {space.n}, got {kept}.")
    if stages < 1:
        raise ValueError(f"`stages` must be at least 1, got {stages}.")
    measuring = MeasuringOptions(gradient_examples).of(
        {"salience", "gauss_newton", *(["fisher"] if fisher else [])}
    )

    def collectors(density: float) -> list[Collector]:
        return collectors_for(replace(measuring, densities=(density,)))

    counts = stage_counts(space.n, kept, stages)
    budgets = [Budget.heads(space, count) for count in counts[1:]]
    way = StageRun(prunable, Repeated(batches), objective, solver, collectors, time_limit, seed)
    found = way.last(way.narrowed(budgets, progress), budgets[-1])
    return replace(found, provenance={"model": fingerprint(model), **found.provenance})


class Narrowed(NamedTuple):
    """What the stages before the last have left.

    Args:
        left: the units, bool ``[n]``.
        counts: units before every stage.
        stats: what the last stage chooses by, of these units.
    """

    left: Bools
    counts: tuple[int, ...]
    stats: HeadStats


@dataclass(frozen=True, eq=False)
class StageRun:
    """How every stage measures and chooses; see :func:`select_staged`.

    Args:
        prunable: the blocks of the unpruned model.
        batches: the same every time.
        objective, solver, time_limit, seed: as for :func:`select_staged`.
        collectors: what measures a stage that has room for this share of the units of the stage before.
        fidelity: as for :func:`~cahp_opt.torch.calibrate`.
    """

    prunable: Prunable
    batches: Iterable[Batch]
    objective: Callable[[HeadStats], Objective]
    solver: Solver
    collectors: Callable[[float], Iterable[Collector]]
    time_limit: float | None = None
    seed: int = 0
    fidelity: Fidelity | None = None

    def narrowed(self, budgets: Sequence[Budget], progress: Progress = silent) -> Narrowed:
        """Run all stages but for the choice of the last.

        Args:
            budgets: what every stage may keep, the last one at the end. What is left must be able to meet those
                that follow (:func:`~cahp_opt.costs.narrowing.on_the_way`). A stage that would remove nothing is
                left out, and so is the choice of one that would remove all.
            progress: called once per batch of every stage.
        """
        left = np.ones(self.prunable.space.n, dtype=np.bool_)
        counts, room = list[int](), len(left)
        for number, budget in enumerate(budgets, start=1):
            last = number == len(budgets)
            if not last and budget.allows(self.prunable.space.counts(left)):
                continue

            def told(stage: str, done: int, total: int, number: int = number) -> None:
                progress(f"{stage}, stage {number}/{len(budgets)}", done, total)

            counts.append(int(left.sum()))
            before, room = room, int(Task(over_what_is_left(budget, left)).even.sum())
            stats = self._measured(left, max(room, 1) / max(before, room, 1), told)
            if last:
                return Narrowed(left, tuple(counts), stats)
            kept = self._chosen(stats, left, budget).kept
            if kept.any():  # the next stage has to have something to measure
                left[left] = kept
        raise ValueError("`budgets` is empty; at least one stage is needed.")

    def last(self, narrowed: Narrowed, budget: Budget) -> Selection:
        """The choice of the last stage, over all units.

        Raises:
            BudgetError: if nothing of what is left is within the budget.
        """
        found = self._chosen(narrowed.stats, narrowed.left, budget)
        kept = narrowed.left.copy()
        kept[narrowed.left] = found.kept
        counts = (*narrowed.counts, int(kept.sum()))
        facts = {
            "stages": " > ".join(map(str, counts)),
            **provenance_of(narrowed.stats.pooling),
        }
        found = replace(
            found,
            space=budget.space,
            kept=kept,
            costs=budget.costs(budget.space.counts(kept)),
            provenance=facts,
        )
        if len(counts) == 2:
            return found
        certificate = (
            f"the last of {len(counts) - 1} stages alone, which chose {counts[-1]} of {counts[-2]} units: "
            f"{found.certificate}; what was removed before was not considered again"
        )
        status = Status.FEASIBLE if found.status is Status.OPTIMAL else found.status
        return replace(found, status=status, certificate=certificate)

    def _measured(self, left: Bools, density: float, progress: Progress) -> HeadStats:
        with gated(self.prunable, left):
            return measure(
                self.prunable,
                self.batches,
                self.collectors(density),
                fidelity=self.fidelity,
                seed=self.seed,
                progress=progress,
            ).restricted(left)

    def _chosen(self, stats: HeadStats, left: Bools, budget: Budget) -> Selection:
        problem = Problem(self.objective(stats), over_what_is_left(budget, left))
        return select(problem, self.solver, time_limit=self.time_limit, seed=self.seed)


def stage_counts(n: int, kept: int, stages: int) -> list[int]:
    """Units before the first and after every stage, from ``n`` to ``kept`` in about equal ratios."""
    counts = [round(n * (kept / n) ** (stage / stages)) for stage in range(1, stages)]
    between = sorted({count for count in counts if kept < count < n}, reverse=True)
    return [n, *between, kept]
