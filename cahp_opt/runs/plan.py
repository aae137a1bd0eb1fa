"""What one whole run is told."""

from __future__ import annotations

from dataclasses import dataclass

from cahp_opt.costs.workloads import Workload
from cahp_opt.runs.recovery import Recovery, Weighting


@dataclass(frozen=True)
class Reading:
    """How texts become batches.

    Args:
        batch_size: texts per batch.
        max_length: tokens per text, at most.
        seed: of the order of the batches.
    """

    batch_size: int = 32
    max_length: int = 128
    seed: int = 0


@dataclass(frozen=True)
class Applying:
    """What is done once the selection stands.

    Args:
        recovery: how the sliced model gets back what it lost, where there are texts.
        workloads: what the sliced model is timed with, at least one.
        reading: how texts become batches.
        rounds: sliced models that are timed until a latency goal is met, at most.
        epochs: of fine-tuning.
        learning_rate: of fine-tuning.
        weighting: how much each token counts in the refit.
        feed_forward: whether the refit fits the feed-forward parts too.
    """

    recovery: Recovery = Recovery.REFIT
    workloads: tuple[Workload, ...] = (Workload(),)
    reading: Reading = Reading()
    rounds: int = 3
    epochs: int = 1
    learning_rate: float = 5e-5
    weighting: Weighting = Weighting.SENSITIVITY
    feed_forward: bool = True
