"""The weights of tokens in a refit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor, nn

from cahp_opt.torch.blocks.finder import Prunable, PrunableBlock, find_attention
from cahp_opt.torch.calibration.token_flows import Flow, flows
from cahp_opt.torch.evaluation.fidelity import Fidelity, fidelity_of
from cahp_opt.torch.running.batches import Batch


class TokenWeights:
    """The weights of tokens by :attr:`Weighting.SENSITIVITY`, computed once and remembered::

        w_t = sum over probes u of |g_t(u)|^2,    E[w_t] = tr(J_t' H J_t)

    with ``g_t(u) = J_t' u`` the gradient of the probed output by a block's output at token ``t``,
    ``[hidden]``, ``J_t`` the Jacobian of the model's output, and ``H`` the Hessian of the distance
    (see :meth:`Fidelity.probes`): twice the expected distance that random errors of variance 1 at
    the token make. A classifier that reads one token has weights of 0 elsewhere in its last block.

    They depend on the dense model and the batches alone, and cost more than the rest of a refit: give one
    of these to :func:`~cahp_opt.torch.calibrate` and to every :func:`~cahp_opt.torch.refit` of the same
    model on the same batches.

    Args:
        dense: the dense model, or its blocks if they were found already; they run once per pass.
        fidelity: the distance; None for the one that fits the model's head.
        seed: of the probes, together with each example's content.
    """

    def __init__(
        self, dense: nn.Module | Prunable, *, fidelity: Fidelity | None = None, seed: int = 0
    ) -> None:
        self._blocks = dense if isinstance(dense, Prunable) else find_attention(dense)
        self.dense = self._blocks.model
        self._fidelity = fidelity_of(self.dense) if fidelity is None else fidelity
        self._seed = seed
        self.taken: dict[int, list[Tensor]] = {}
        """The known weights of every block, ``[..., 1]``, by the position of the batch in the
        data."""

    def take(self, batch: Batch, number: int) -> None:
        """Take the weights of one batch, if they are not known; arguments as for :meth:`of`."""
        if number not in self.taken:
            found = flows(self._blocks, batch, self._fidelity, self._seed)
            self.remember(found, number)

    def remember(self, found: Sequence[Sequence[Flow]], number: int) -> None:
        """Keep the weights of one batch that went through the dense model already."""
        self.taken[number] = [
            torch.stack([f.gradient.square().sum(dim=-1, keepdim=True) for f in runs]).sum(dim=0)
            for runs in found
        ]

    def of(self, block: str, out: Tensor, batch: Batch, number: int) -> Tensor:
        """The weights at one block, shape ``[..., 1]`` for its output ``out [..., hidden]``.

        Args:
            block: its name; those of the nearest block are taken if the weights are of others alone, such
                as of attention.
            out: for its shape and device only.
            batch: the batch, on the dense model's device; the model is in evaluation mode.
            number: the position of the batch in the data.

        Raises:
            ValueError: if this position held a batch of another shape before.
        """
        self.take(batch, number)
        weights = self.taken[number][self._nearest(block)].to(out.device)
        if out.ndim == 2:  # flattened rows
            weights = weights.flatten(0, -2)
        if weights.shape[:-1] != out.shape[:-1]:
            raise ValueError(
                f"`weighting` was taken on other batches: batch {number} had rows "
                f"{list(weights.shape[:-1])} then, and has {list(out.shape[:-1])} now; take it again."
            )
        return weights

    def _nearest(self, name: str) -> int:
        """The block of a name, or the one in the same layer: with the longest common beginning of its
        path."""

        def common(block: PrunableBlock) -> tuple[bool, int]:
            pairs = zip(block.name.split("."), name.split("."), strict=False)
            return block.name == name, len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))

        return max(range(len(self._blocks)), key=lambda index: common(self._blocks.blocks[index]))
