"""One batch that stands for all others: how long its passes take, and what it shows of the model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cahp_opt.runs.forecast import PassTimes
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.calibration.seeded_draws import digests, generators
from cahp_opt.torch.calibration.token_flows import flows
from cahp_opt.torch.evaluation.fidelity import Fidelity
from cahp_opt.torch.latency.stopwatch import waiting
from cahp_opt.torch.running.batches import Batch, device_of, inputs_of, prepare, real_tokens
from cahp_opt.torch.running.undisturbed import evaluating


@dataclass(frozen=True)
class TimedBatch:
    """What one batch shows.

    Args:
        tokens: positions of the batch, padding included.
        times: per token.
        probes: backward passes for the sensitivity of the output to tokens.
        losses: whether its labels are those of a task that the output is judged by.
    """

    tokens: int
    times: PassTimes
    probes: int
    losses: bool

    @staticmethod
    def of(
        prunable: Prunable, raw: Batch, fidelity: Fidelity, *, gradients: bool, seed: int = 0
    ) -> TimedBatch:
        """Run a batch forward once, and with gradients once more where they are needed.

        Args:
            prunable: the blocks of the model.
            raw: the batch, tensors ``[batch, tokens]``.
            fidelity: takes the output, and gives its probes.
            gradients: whether to time a backward pass; otherwise it counts as none.
            seed: of the probes.

        Raises:
            ValueError: for a batch that cannot be used.
        """
        model, tokens = prunable.model, positions(raw)
        batch = prepare(raw, model, "batches[0]")
        found: list[Tensor] = []

        def forward() -> None:
            with torch.no_grad():
                found.append(fidelity.output(model(**inputs_of(batch)), batch))

        with evaluating(model):
            ahead = _seconds(model, forward)
            output, rngs = found[0], generators(digests(batch), seed, "forecast")
            probes = len(fidelity.probes(output, batch, rngs))
            back = 0.0
            if gradients:
                both = _seconds(model, lambda: flows(prunable, batch, fidelity, seed))
                back = max(both - ahead, 0.0) / probes
            losses = fidelity.loss(output, batch) is not None
        return TimedBatch(tokens, PassTimes(ahead / tokens, back / tokens), probes, losses)


def positions(batch: Batch) -> int:
    """The positions of a batch that the model runs over, padding included; of images one each."""
    return real_tokens(batch).numel()


def _seconds(model: nn.Module, work: Callable[[], object]) -> float:
    wait = waiting(device_of(model))
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start
