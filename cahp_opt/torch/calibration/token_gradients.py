"""How strongly a model's output depends on what each block writes, token by token."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cahp_opt.arrays import Floats, Ints
from cahp_opt.stats.sensitivity import Sensitivity
from cahp_opt.torch.blocks.finder import Attention
from cahp_opt.torch.blocks.out_weight import readout_weight
from cahp_opt.torch.calibration.output_moments import column_order
from cahp_opt.torch.calibration.seeded_draws import digests, generators
from cahp_opt.torch.evaluation.fidelity import Fidelity
from cahp_opt.torch.running.batches import Batch, batch_size, inputs_of, wide
from cahp_opt.torch.running.centring import ScatterSums, centred, in_double
from cahp_opt.torch.running.padding import Padding

_KEY = "sensitivity"  # of the draws, so that they are not those of the gate gradients


@dataclass(frozen=True, eq=False)
class Flow:
    """What went through one output projection, and what came back.

    Args:
        heads: its input, the heads' outputs side by side, ``[..., width]``.
        gradient: gradient of the probed output by its output, ``[..., hidden]``.
    """

    heads: Tensor
    gradient: Tensor


def flows(
    model: nn.Module, attention: Attention, batch: Batch, fidelity: Fidelity, seed: int
) -> list[list[Flow]]:
    """Run a model on a batch and take the gradients of its probed output.

    With the gradients ``g`` at a token, half the sum of ``(g' e)^2`` is, on average over the probes, the
    distance of the output that a small error ``e`` of the block's output at that token makes (to second
    order, see :meth:`Fidelity.probes`). Nothing is left on the model, and no parameter gets a
    gradient.

    Args:
        model: the model, in evaluation mode.
        attention: its blocks.
        batch: the batch, on the model's device.
        fidelity: what is differentiated.
        seed: of the probes, together with each example's content.

    Returns:
        For every block what went through it: one entry for every probe and every run of the block in the
        pass.
    """
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in attention]

    def listener(runs: list[tuple[Tensor, Tensor]]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def listen(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            del module
            # A zero that is added tells its gradient, whether or not parameters want theirs.
            error = torch.zeros_like(output, requires_grad=True)
            runs.append((args[0].detach(), error))
            return output + error

        return listen

    listed: list[list[Flow]] = [[] for _ in attention]
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        for block, runs in zip(attention, found, strict=True):
            stack.callback(block.out.register_forward_hook(listener(runs)).remove)
        output = fidelity.output(model(**inputs_of(batch)), batch)
        errors = [error for runs in found for _, error in runs]
        rngs = generators(digests(batch), seed, _KEY)
        for probe in fidelity.probes(output.detach(), batch, rngs):
            gradients = iter(
                torch.autograd.grad(
                    (output * probe).sum(), errors, retain_graph=True, materialize_grads=True
                )
            )
            for runs, flow in zip(found, listed, strict=True):
                flow.extend(Flow(heads, wide(next(gradients))) for heads, _ in runs)
    return listed


class SensitivitySums:
    """Adds up the moments of the head outputs, every token weighted by the output's sensitivity to it.

    A batch is centred and multiplied in the precision of the model, at least single, and added up in double.

    Args:
        model: the model, in evaluation mode.
        attention: its blocks.
        fidelity: what is differentiated.
        seed: of the probes, together with each example's content.
    """

    def __init__(
        self, model: nn.Module, attention: Attention, fidelity: Fidelity, seed: int
    ) -> None:
        self._model, self._attention = model, attention
        self._fidelity, self._seed = fidelity, seed
        self._padding = Padding(model, attention)
        self._readout = [readout_weight(block.out, block.width) for block in attention]
        self._order = [column_order(block) for block in attention]
        self._sums = [_Sums(block.width) for block in attention]
        self._examples = 0

    def add(self, batch: Batch) -> list[list[Flow]]:
        """Add one batch, and tell what went through the blocks.

        Raises:
            ValueError: naming the block if a gradient or a head output is not finite.
        """
        found = flows(self._model, self._attention, batch, self._fidelity, self._seed)
        for b, (block, runs) in enumerate(zip(self._attention, found, strict=True)):
            for flow in runs:
                g = self._padding.rows(b, flow.gradient, batch)
                z = wide(self._padding.rows(b, flow.heads, batch))
                if not self._sums[b].add(z, g, wide(self._readout[b]).to(g.device)):
                    raise ValueError(
                        f"the gradients or head outputs of block {block.name!r} hold NaN or infinite "
                        "values; check the model's weights, or calibrate in float32."
                    )
        self._examples += batch_size(batch)
        return found

    def result(self) -> tuple[Sensitivity, ...]:
        """The weighted moments of every block; the columns stand unit by unit."""
        return tuple(
            sums.result(order, self._examples)
            for sums, order in zip(self._sums, self._order, strict=True)
        )


class _Sums:
    """The running sums of one block, in double precision in main memory."""

    def __init__(self, width: int) -> None:
        self._heads = ScatterSums(width, torch.device("cpu"))
        self._metric: Floats = np.zeros((width, width))

    def add(self, z: Tensor, g: Tensor, readout: Tensor) -> bool:
        """Add rows of head outputs and gradients; whether all of them were finite."""
        weights, back = g.square().sum(dim=1), g @ readout
        found, sums = centred(z, weights), self._heads
        # Of one matrix with itself, so that it is symmetric.
        scaled = found.deviations * weights[:, None].sqrt()
        sums.add(float(in_double(weights).sum()), found.mean(sums.mean.device), scaled.T @ scaled)
        self._metric = self._metric + (back.T @ back).cpu().double().numpy()
        return bool(np.isfinite(sums.weight + float(sums.scatter.trace()) + self._metric.trace()))

    def result(self, order: Ints, examples: int) -> Sensitivity:
        sums, square = self._heads, np.ix_(order, order)
        first: Floats = (sums.mean * sums.weight).numpy()
        scatter: Floats = sums.scatter.numpy()
        return Sensitivity(
            first[order], scatter[square], self._metric[square], sums.weight, examples
        )
