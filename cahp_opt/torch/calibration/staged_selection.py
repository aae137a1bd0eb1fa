"""Removing units in stages, with a new calibration of the remaining model before each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise

import numpy as np
from torch import nn

from cahp_opt.costs.budget import Budget
from cahp_opt.objective import Objective
from cahp_opt.problem import Problem
from cahp_opt.progress import Progress, silent
from cahp_opt.runs.measuring import MeasuringOptions
from cahp_opt.selection import Selection, select
from cahp_opt.solver import Solver, Status
from cahp_opt.space import Unit
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.pooling import Pooling, provenance_of
from cahp_opt.torch.blocks.finder import find_attention
from cahp_opt.torch.blocks.fingerprint import fingerprint
from cahp_opt.torch.calibration.calibration import measure
from cahp_opt.torch.calibration.collectors import collectors_for
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
    statistics = {"salience", "gauss_newton", *(["fisher"] if fisher else [])}
    measuring = MeasuringOptions(gradient_examples).of(statistics)
    data, left = Repeated(batches), np.ones(space.n, dtype=np.bool_)
    counts = stage_counts(space.n, kept, stages)
    found: Selection | None = None
    pooling: Pooling | None = None
    for number, (before, after) in enumerate(pairwise(counts), start=1):

        def told(stage: str, done: int, total: int, number: int = number) -> None:
            progress(f"{stage}, stage {number}/{len(counts) - 1}", done, total)

        with gated(prunable, left):
            stats = measure(
                prunable,
                data,
                collectors_for(replace(measuring, densities=(after / before,))),
                seed=seed,
                progress=told,
            ).restricted(left)
        pooling = stats.pooling
        problem = Problem(objective(stats), Budget.heads(stats.space, after))
        found = select(problem, solver, time_limit=time_limit, seed=seed)
        left[left] = found.kept
    assert found is not None  # there is a stage even where nothing is removed
    stages_told = " > ".join(map(str, counts))
    facts = {"model": fingerprint(model), "stages": stages_told, **provenance_of(pooling)}
    if len(counts) == 2:
        return replace(found, provenance=facts)
    certificate = (
        f"the last of {len(counts) - 1} stages alone, which chose {counts[-1]} of {counts[-2]} units: "
        f"{found.certificate}; what was removed before was not considered again"
    )
    status = Status.FEASIBLE if found.status is Status.OPTIMAL else found.status
    return replace(
        found, space=space, kept=left, status=status, certificate=certificate, provenance=facts
    )


def stage_counts(n: int, kept: int, stages: int) -> list[int]:
    """Units before the first and after every stage, from ``n`` to ``kept`` in about equal ratios."""
    counts = [round(n * (kept / n) ** (stage / stages)) for stage in range(1, stages)]
    between = sorted({count for count in counts if kept < count < n}, reverse=True)
    return [n, *between, kept]
