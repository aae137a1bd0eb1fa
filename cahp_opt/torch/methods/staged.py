"""Choosing in stages, with a new calibration of what is left before each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from cahp_opt.costs.budget import Budget, BudgetError
from cahp_opt.costs.narrowing import on_the_way
from cahp_opt.objectives import Quadratic
from cahp_opt.selection import Chooser, Selection
from cahp_opt.solvers import Tabu
from cahp_opt.torch.calibration.collector import Collector
from cahp_opt.torch.calibration.gate_gradients import GateGradients
from cahp_opt.torch.calibration.staged_selection import Narrowed, StageRun
from cahp_opt.torch.methods.model_method import Evidence, ModelMethod
from cahp_opt.torch.running.batches import first_examples


@dataclass(frozen=True)
class Staged(ModelMethod):
    """The least damage by the Gauss-Newton matrix of the output's distance, in stages with a new calibration of
    the units that are left before each.

    For models that stay without recovery. The limits of the stages lie at equal ratios between the cost of the
    unpruned model and the limits of the budget. With another budget than at first, the last stage chooses again
    among what the stages before it have left, if that can meet the budget. A stage costs a forward pass
    and two forward and backward passes for every example.

    Args:
        stages: the number of stages; those that would remove nothing are left out.
        examples: calibration texts, from the start, that every stage measures.

    Raises:
        ValueError: for a number below 1.
    """

    source: ClassVar[str] = (
        "this library (`select_staged`); stages with new statistics between them are those of Michel, Levy and "
        "Neubig, Are Sixteen Heads Really Better than One?, 2019"
    )

    stages: int = 8
    examples: int = 256

    def __post_init__(self) -> None:
        for name in ("stages", "examples"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    def chooser_on(self, evidence: Evidence) -> Chooser:
        """Runs the stages for the budget of the task."""
        task = evidence.task

        def collectors(density: float) -> list[Collector]:
            return [GateGradients(self.examples, (density,))]

        limit = task.time_limit
        way = StageRun(
            evidence.prunable,
            list(first_examples(evidence.batches, self.examples)),
            Quadratic.from_stats,
            Tabu(iterations=500),  # thousands bring little, and every stage pays
            collectors,
            None if limit is None else limit / self.stages,
            task.seed,
            evidence.fidelity,
        )

        def narrowed(budget: Budget) -> Narrowed:
            shares = (stage / self.stages for stage in range(1, self.stages))
            before = [on_the_way(budget, share) for share in shares]
            return way.narrowed([*before, budget], evidence.progress)

        first = narrowed(task.budget)

        def choose(budget: Budget) -> Selection:
            try:
                found = way.last(first, budget)
            except BudgetError:  # too much of a block is gone
                found = way.last(narrowed(budget), budget)
            return replace(found, solver=f"{self!r}: {found.solver}")

        return choose
