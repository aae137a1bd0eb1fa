"""The ways of selecting that are compared, each with the calibration that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from torch import nn

from cahp_opt import Budget, Problem, Selection, select
from cahp_opt.arrays import Bools, Ints
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.target import Target
from cahp_opt.objective import Objective
from cahp_opt.objectives import (
    Complementarity,
    Curvature,
    ExplainedVariance,
    FacilityLocation,
    Modular,
    Quadratic,
)
from cahp_opt.runs.measuring import Measuring
from cahp_opt.runs.objective_and_solver import ObjectiveAndSolver as Choice
from cahp_opt.runs.recovery import Recovery
from cahp_opt.solver import Solver
from cahp_opt.solvers import CAHP, MIQP, DynamicProgram, LazyGreedy, LocalSearch, RandomSubset, TopK
from cahp_opt.space import HeadSpace
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.torch import calibrate, fidelity_of, find_attention
from cahp_opt.torch.calibration.calibration import measure
from cahp_opt.torch.calibration.collectors import collectors_for
from cahp_opt.torch.methods.removal import removal_path
from cahp_opt.torch.methods.true_distance import TrueDistance
from cahp_opt.torch.running.batches import Batch, batch_size, inputs_of

MIQP_SECONDS = 10.0
GREEDY_TEXTS = 64


@dataclass(frozen=True, eq=False)
class Task:
    """What is asked of a method.

    Args:
        space: the blocks.
        target: what the selection has to keep to.
        profile: the latency table, for targets that are about time.
        recovery: what the sliced model gets.
        seed: of the draw of the calibration texts, and of the method where it draws too.
        texts: how many calibration texts there are.
    """

    space: HeadSpace
    target: Target
    profile: Profile | None
    recovery: Recovery
    seed: int
    texts: int

    @cached_property
    def budget(self) -> Budget:
        """The target as a budget."""
        return self.target.budget(self.space, self.profile)

    @cached_property
    def even(self) -> Ints:
        """Counts as even over the blocks as the budget has room for, ``[blocks]``."""
        counts = np.zeros(len(self.space.blocks), dtype=np.int64)
        counts[:] = self.budget.fewest
        grown = True
        while grown:
            grown = False
            for block in np.argsort(counts, kind="stable"):
                more = counts.copy()
                more[block] += 1
                if more[block] <= self.budget.most[block] and self.budget.allows(more):
                    counts, grown = more, True
        return counts

    @property
    def density(self) -> float:
        """The share of the units that an even allocation keeps."""
        return round(float(self.even.sum()) / self.space.n, 3)

    def solve(
        self,
        objective: Objective,
        solver: Solver,
        *,
        budget: Budget | None = None,
        time_limit: float | None = None,
    ) -> Selection:
        """The best keep-set for an objective that this solver finds."""
        problem = Problem(objective, budget or self.budget)
        return select(problem, solver, time_limit=time_limit, seed=self.seed)


@dataclass(frozen=True)
class Needs:
    """What a method has to know about the model; the defaults ask for nothing but the head outputs.

    Args:
        labels: whether gradients are those of the task loss.
        densities: of masks for Gauss-Newton matrices.
        gradients: examples whose gradients are taken; None for all.
        divergence: examples whose attention maps are compared.
        signatures: cells along each side of attention maps by class.
        fisher: whether empirical Fisher matrices are taken under the same masks.
        path: whether the greedy removals of all units are tried out, and nothing else.
        choice: a choice of the library, which says what it needs by itself.
    """

    labels: bool = False
    densities: tuple[float, ...] = ()
    gradients: int | None = 0
    divergence: int = 0
    signatures: int = 0
    fisher: bool = False
    path: bool = False
    choice: Choice | None = None

    def measure(
        self, model: nn.Module, batches_of: Callable[[int | None], Sequence[Batch]], seed: int
    ) -> Measured:
        """Measure it.

        Args:
            model: the dense model.
            batches_of: makes labelled batches of the first so many texts, or of all.
            seed: of random masks and probes.
        """
        if self.path:
            return Measured(path=whole_path(model, batches_of(GREEDY_TEXTS)))
        batches = batches_of(None)
        bare = batches if self.labels else [inputs_of(batch) for batch in batches]
        if self.choice is not None:
            asked = collectors_for(Measuring(self.choice.objective.needs))
            return Measured(measure(find_attention(model), bare, asked, seed=seed))
        texts = sum(map(batch_size, batches))
        return Measured(
            calibrate(
                model,
                bare,
                densities=self.densities,
                fisher=self.fisher,
                gradient_examples=texts if self.gradients is None else self.gradients,
                divergence_examples=self.divergence,
                signature_size=self.signatures,
                seed=seed,
            )
        )


class Measured(NamedTuple):
    """What was measured; None where it was not asked for."""

    stats: HeadStats | None = None
    path: list[int] | None = None

    @property
    def heads(self) -> HeadStats:
        """The statistics, where there must be some."""
        assert self.stats is not None
        return self.stats


@dataclass(frozen=True)
class Method:
    """A way of selecting.

    Args:
        name: what tables call it.
        choose: the selection, from what was measured.
        needs: what is to be measured; None for nothing.
        seeds: how many seeds; None for as many as there are draws of calibration texts.
    """

    name: str
    choose: Callable[[Measured, Task], Selection]
    needs: Callable[[Task], Needs | None] = field(default=lambda task: None)
    seeds: int | None = None


def _random(measured: Measured, task: Task) -> Selection:
    return task.solve(Modular(np.ones(task.space.n)), RandomSubset())


def _michel(measured: Measured, task: Task) -> Selection:
    return task.solve(Modular.from_stats(measured.heads), TopK())


def _fisher(measured: Measured, task: Task) -> Selection:
    diagonal = Modular.from_curvature(measured.heads, 1.0, Curvature.FISHER)
    return task.solve(diagonal, TopK())


def _kwon(measured: Measured, task: Task) -> Selection:
    """The counts of the Fisher diagonal; then the best units of every block under its own Fisher matrix
    (all subsets are tried, where Kwon et al. 2022 improve greedily)."""
    counts = _fisher(measured, task).counts
    block, matrix = task.space.block_of, Curvature.FISHER.of(measured.heads, 1.0)
    within = np.where(block[:, None] == block[None, :], matrix, 0.0)
    fixed = Budget(task.space, (), counts, counts)
    return task.solve(Quadratic.damage_avoided(within), DynamicProgram(), budget=fixed)


def _osscar(measured: Measured, task: Task) -> Selection:
    """Even counts, and in every block the reconstruction of its output by local swaps (Meng et al. 2024)."""
    fixed = Budget(task.space, (), task.even, task.even)
    explained = ExplainedVariance.from_stats(measured.heads)
    return task.solve(explained, LocalSearch(LazyGreedy()), budget=fixed)


def whole_path(model: nn.Module, batches: Sequence[Batch], least: int = 0) -> list[int]:
    """Units in the order in which they are removed, down to this many: one nested path serves all budgets."""
    attention = find_attention(model)
    distance = TrueDistance(attention, fidelity_of(model), batches)
    return removal_path(Budget.heads(attention.space, least), distance.without)


def along(path: Sequence[int], n: int, removed: int) -> Bools:
    """What is kept of ``n`` units after so many removals."""
    kept = np.ones(n, dtype=np.bool_)
    kept[list(path[:removed])] = False
    return kept


def _greedy(measured: Measured, task: Task) -> Selection:
    """The first keep-set along the path of removals that is within the budget."""
    assert measured.path is not None
    n = task.space.n
    for removed in range(n + 1):
        kept = along(measured.path, n, removed)
        if task.budget.allows(task.space.counts(kept)):
            return Selection.from_kept(task.space, kept)
    raise ValueError("no keep-set along the greedy path is within the budget.")


def _seed_method(measured: Measured, task: Task) -> Selection:
    """As many clusters as the budget holds, rather than those of the knee."""
    most = task.space.n if task.target.heads is None else task.target.heads
    return task.solve(Complementarity.from_stats(measured.heads), CAHP(clusters=most))


def _facility(measured: Measured, task: Task) -> Selection:
    return task.solve(FacilityLocation.from_stats(measured.heads), LocalSearch())


def _gauss_newton(measured: Measured, task: Task) -> Selection:
    damage = Quadratic.from_stats(measured.heads, density=task.density)
    return task.solve(damage, MIQP(), time_limit=MIQP_SECONDS)


def _explained(measured: Measured, task: Task) -> Selection:
    return task.solve(ExplainedVariance.from_stats(measured.heads), DynamicProgram())


def _choice(task: Task) -> Choice:
    return Choice.suiting(task.recovery)


def _default(measured: Measured, task: Task) -> Selection:
    """What `cahp prune` does by itself. The only place that knows how it is asked."""
    choice = _choice(task)
    return task.solve(choice.objective.build(measured.heads), choice.solver.build())


SLOPES = Needs(labels=True, densities=(1.0,), gradients=None, fisher=True)
"""The label loss of all texts, by the gates of the unpruned model: one measurement for three methods."""

METHODS: Mapping[str, Method] = {
    "default": Method("default", _default, lambda task: Needs(choice=_choice(task))),
    "seed-method": Method(
        "seed method",
        _seed_method,
        lambda task: Needs(labels=True, gradients=-(-task.texts // 4), signatures=32),
        seeds=5,
    ),
    "random": Method("random", _random, seeds=10),
    "michel": Method("Michel, top-k", _michel, lambda task: SLOPES),
    "fisher": Method("Fisher diagonal, top-k", _fisher, lambda task: SLOPES),
    "kwon": Method("Kwon-style", _kwon, lambda task: SLOPES),
    "osscar": Method("OSSCAR-style", _osscar, lambda task: Needs()),
    "explained-variance": Method(
        "explained variance, dynamic program", _explained, lambda task: Needs()
    ),
    "gauss-newton": Method(
        "Gauss-Newton at the density kept, MIQP",
        _gauss_newton,
        lambda task: Needs(densities=(task.density,), gradients=256),
    ),
    "facility-location": Method(
        "facility location", _facility, lambda task: Needs(gradients=256, divergence=64)
    ),
    "greedy": Method("greedy on the true KL", _greedy, lambda task: Needs(path=True)),
}
"""By the name that the command line takes, in the order in which the work is done."""
