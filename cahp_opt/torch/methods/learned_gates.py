"""Gates learnt by stochastic gradient on frozen weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import numpy as np
import torch

from cahp_opt.arrays import Floats
from cahp_opt.objectives import Modular
from cahp_opt.runs.method import Task
from cahp_opt.selection import Chooser, chooser
from cahp_opt.solvers import DynamicProgram
from cahp_opt.torch.calibration.gate_gradients import runs_together
from cahp_opt.torch.methods.gate_prices import GatePrices
from cahp_opt.torch.methods.gate_samples import GateEstimator, GumbelTop, HardConcrete
from cahp_opt.torch.methods.model_method import Evidence, ModelMethod
from cahp_opt.torch.methods.unpruned_outputs import UnprunedOutputs
from cahp_opt.torch.running.batches import Batch, batch_size, examples, first_examples, inputs_of
from cahp_opt.torch.running.gates import gated
from cahp_opt.torch.running.preparing import prepared
from cahp_opt.torch.running.undisturbed import evaluating


class Gates(Enum):
    """How gates are drawn and differentiated."""

    HARD_CONCRETE = HardConcrete()
    """Hard concrete gates (Louizos et al. 2018), for attention heads by Voita et al. 2019."""
    STRAIGHT_THROUGH = GumbelTop()
    """Straight-through Gumbel top-k: differentiable subset pruning (Li et al. 2021)."""


class GateLoss(Enum):
    """What the gates are learnt by."""

    DISTANCE = "distance"
    """The distance of the output from the unpruned model's, which needs no labels."""
    TASK = "task"
    """The loss of the labels, as published."""


@dataclass(frozen=True)
class LearnedGates(ModelMethod):
    """A gate on every unit, learnt by stochastic gradient while the weights stay as they are.

    Every step draws gates for each text of a batch, so that their (expected) cost is within a limit that falls
    from that of nearly open gates to the budget's, at equal ratios over the first part of the steps, and stays
    there. In place of a penalty with a weight to be tuned, every limit has the exact price at which it is met,
    and gradients take into account that prices follow the logits
    (:class:`~cahp_opt.torch.methods.gate_prices.GatePrices`). At the end the scores of the units are
    ``-log(1 - p)`` for the probability ``p`` that a gate is open, by the mean of the logits after the limit has
    come down, and the best keep-set within the budget for their sum is found exactly.

    The default options cost 25 forward and backward passes over 512 texts, and the unpruned outputs one forward
    pass more.

    Args:
        gates: the estimator.
        loss: what is learnt by.
        steps: the number of steps.
        texts: calibration texts, from the start, that are learnt from.
        batch_size: texts in a step.
        rate: the learning rate of Adam, in logits.
        descent: the share of the steps in which the limit falls.
        start: the first logit of every gate.

    Raises:
        ValueError: for a number out of range.
    """

    source: ClassVar[str] = (
        "Louizos, Welling and Kingma, Learning Sparse Neural Networks through L0 Regularization, 2018, and Voita et "
        "al., Analyzing Multi-Head Self-Attention, 2019 (hard concrete); Li, Cotterell and Sachan, Differentiable "
        "Subset Pruning of Transformer Heads, 2021 (straight-through)"
    )

    gates: Gates = Gates.STRAIGHT_THROUGH
    loss: GateLoss = GateLoss.DISTANCE
    steps: int = 400
    texts: int = 512
    batch_size: int = 32
    rate: float = 0.1
    descent: float = 0.6
    start: float = 2.0

    def __post_init__(self) -> None:
        for name in ("steps", "texts", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not self.rate > 0:
            raise ValueError(f"`rate` must be above 0, got {self.rate}.")
        if not 0 <= self.descent < 1:
            raise ValueError(f"`descent` must be at least 0 and below 1, got {self.descent}.")

    def check(self, task: Task) -> None:
        """Also refuses texts without labels, to learn by the task loss."""
        super().check(task)
        if self.loss is GateLoss.TASK and not task.labelled:
            raise ValueError(
                "`loss` is GateLoss.TASK, which needs labelled texts, and these have none; give labels, or learn by "
                "GateLoss.DISTANCE."
            )

    def chooser_on(self, evidence: Evidence) -> Chooser:
        """Learns the gates for the budget of the task; other budgets choose by the same scores."""
        task = evidence.task
        self.check(task)
        logits, prices = _Training(self, evidence).run(), GatePrices(task.budget)
        estimator: GateEstimator = self.gates.value
        found = prices.meeting(logits[None], estimator.openness, prices.limits)[0]
        scores = estimator.weights(logits - found @ prices.slopes)
        return chooser(
            Modular(scores), DynamicProgram(), time_limit=task.time_limit, seed=task.seed
        )


class _Training:
    """The steps of one training.

    Args:
        method: the options.
        evidence: the model and the texts.
    """

    def __init__(self, method: LearnedGates, evidence: Evidence) -> None:
        self._method, self._evidence = method, evidence
        self._prunable, self._fidelity = evidence.prunable, evidence.fidelity
        self._estimator: GateEstimator = method.gates.value
        self._prices = GatePrices(evidence.task.budget)
        self._rng = np.random.default_rng(evidence.task.seed)
        self._unpruned = UnprunedOutputs(self._prunable, self._fidelity)

    def run(self) -> Floats:
        """The logits, ``[n]``."""
        method, model = self._method, self._prunable.model
        logits: Floats = np.full(self._prunable.space.n, method.start)
        first = self._prices.costs(self._estimator.openness(logits)[None])[0]
        falling = max(1, round(method.descent * method.steps))
        adam, total, summed = _Adam(method.rate, len(logits)), np.zeros(len(logits)), 0
        with torch.inference_mode(False), evaluating(model):
            batches = list(self._parts(prepared(self._evidence.batches, model)))
            together = runs_together(self._prunable, batches[0])
            order = list[int]()
            for step in range(method.steps):
                order = order or self._rng.permutation(len(batches)).tolist()
                number = order.pop()
                limits = _between(first, self._prices.limits, min(1.0, (step + 1) / falling))
                gradient = self._gradient(logits, limits, batches[number], number, together)
                logits = adam.step(logits, gradient)
                if step + 1 >= falling:
                    total, summed = total + logits, summed + 1
                self._evidence.progress(method.name, step + 1, method.steps)
        return total / summed

    def _gradient(
        self, logits: Floats, limits: Floats, batch: Batch, number: int, together: bool
    ) -> Floats:
        """The gradient of the loss by the logits, ``[n]``, with the prices that follow them."""
        rows = batch_size(batch) if together else 1
        draw = self._estimator.drawn(logits, rows, self._prices, limits, self._rng)
        by_distance = self._method.loss is GateLoss.DISTANCE
        dense = self._unpruned.of(batch, number) if by_distance else None
        gates = torch.tensor(draw.gates, dtype=torch.float32, requires_grad=True)
        with torch.enable_grad(), gated(self._prunable, gates if together else gates[0]):
            output = self._fidelity.output(self._prunable.model(**inputs_of(batch)), batch)
            if dense is None:
                loss = self._fidelity.loss(output, batch)
            else:
                loss = self._fidelity.distance(dense, output, batch)
        if loss is None:
            raise ValueError(
                "`loss` is GateLoss.TASK, and the batches have no labels that this output can be judged by; give "
                "labels, or learn by GateLoss.DISTANCE."
            )
        (by_gate,) = torch.autograd.grad(loss.mean(), gates)
        by_logit = (by_gate.double().cpu().numpy() * draw.slopes).sum(axis=0)
        if not np.isfinite(by_logit).all():
            raise ValueError(
                "`model` gives gradients that are NaN or infinite; run it in single precision."
            )
        return self._prices.projected(by_logit, draw.steepness, draw.prices)

    def _parts(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The texts in batches that are no larger than a step takes."""
        for batch in first_examples(batches, self._method.texts):
            for start in range(0, batch_size(batch), self._method.batch_size):
                yield examples(batch, start, start + self._method.batch_size)


class _Adam:
    """Adam (Kingma and Ba 2015), in double precision."""

    def __init__(self, rate: float, n: int) -> None:
        self._rate, self._count = rate, 0
        self._mean, self._square = np.zeros(n), np.zeros(n)

    def step(self, values: Floats, gradient: Floats) -> Floats:
        self._count += 1
        self._mean = 0.9 * self._mean + 0.1 * gradient
        self._square = 0.999 * self._square + 0.001 * gradient**2
        mean = self._mean / (1 - 0.9**self._count)
        square = self._square / (1 - 0.999**self._count)
        found: Floats = values - self._rate * mean / (np.sqrt(square) + 1e-30)
        return found


def _between(first: Floats, last: Floats, share: float) -> Floats:
    """Limits a share of the way down, at equal ratios, ``[limits]``."""
    ratio = np.where((first > 0) & (last > 0), last / np.where(first > 0, first, 1.0), 1.0)
    plain = first + share * (last - first)
    found: Floats = np.where((first > 0) & (last > 0), first * ratio**share, plain)
    return np.maximum(found, last)
