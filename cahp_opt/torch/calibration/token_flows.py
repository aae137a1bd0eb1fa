"""The inputs of every output projection, and the gradients of the model's output by its outputs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cahp_opt.stats.pooling import Pooling
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.calibration.seeded_draws import digests, generators
from cahp_opt.torch.evaluation.fidelity import Fidelity
from cahp_opt.torch.running.batches import Batch, inputs_of, wide
from cahp_opt.torch.running.idle_rows import SkippingIdleRows

_KEY = "sensitivity"  # of the draws, so that they are not those of the gate gradients


@dataclass(frozen=True, eq=False)
class Flow:
    """The input of one output projection, and the gradient by its output.

    Args:
        heads: its input, the heads' outputs side by side, ``[..., width]``.
        gradient: gradient of the probed output by its output, ``[..., hidden]``.
    """

    heads: Tensor
    gradient: Tensor


class Differentiated(NamedTuple):
    """One pass over a batch, forth and back.

    Args:
        output: the output, as the fidelity takes it, ``[batch, ...]``.
        pooling: how that was pooled; None if it was not.
        flows: for every block one entry for every probe and every run of the block in the pass.
    """

    output: Tensor
    pooling: Pooling | None
    flows: list[list[Flow]]


def differentiated(
    prunable: Prunable, batch: Batch, fidelity: Fidelity, seed: int
) -> Differentiated:
    """Run a model on a batch and take the gradients of its probed output.

    With ``g_t(u)`` the gradient for probe ``u`` by a block's output at token ``t``, a small error
    ``e`` there makes the distance, to second order (see :meth:`Fidelity.probes`)::

        E[1/2 * sum over probes u of (g_t(u)' e)^2]

    Nothing is left on the model, and no parameter gets a gradient.

    Args:
        prunable: the blocks of the model, which is in evaluation mode.
        batch: the batch, on the model's device.
        fidelity: gives the probes of the output.
        seed: of the probes, together with each example's content.
    """
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in prunable]

    def listener(runs: list[tuple[Tensor, Tensor]]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def listen(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            del module
            # An added zero receives the gradient, whether or not parameters require theirs.
            error = torch.zeros_like(output, requires_grad=True)
            runs.append((args[0].detach(), error))
            return output + error

        return listen

    listed: list[list[Flow]] = [[] for _ in prunable]
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        for block, runs in zip(prunable, found, strict=True):
            stack.callback(block.out.register_forward_hook(listener(runs)).remove)
        with SkippingIdleRows():
            returned = prunable.model(**inputs_of(batch))
        output = fidelity.output(returned, batch)
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
    return Differentiated(output.detach(), fidelity.pooling_of(returned), listed)


def flows(prunable: Prunable, batch: Batch, fidelity: Fidelity, seed: int) -> list[list[Flow]]:
    """The flows of :func:`differentiated` alone."""
    return differentiated(prunable, batch, fidelity, seed).flows
