"""How much each token counts in a least-squares fit."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor, nn

from cahp_opt.torch.attention import Attention
from cahp_opt.torch.batching import Batch
from cahp_opt.torch.fidelity import Fidelity, fidelity_of
from cahp_opt.torch.sensitivity import flows


class Weighting(Enum):
    """How much each token counts in a least-squares fit."""

    SENSITIVITY = "sensitivity"
    """By how strongly the model's output depends on what the block writes there."""
    EQUAL = "equal"
    """All the same."""


class TokenWeights:
    """Tells the weights of a batch's tokens block by block, and remembers them.

    Args:
        model: the model, in evaluation mode, whose blocks run once per pass.
        attention: its blocks.
        weighting: how much each token counts.
        fidelity: what is differentiated; None for what fits the model's head.
        seed: of the probes, together with each example's content.
    """

    def __init__(
        self,
        model: nn.Module,
        attention: Attention,
        weighting: Weighting,
        fidelity: Fidelity | None,
        seed: int,
    ) -> None:
        self._model, self._attention, self._seed = model, attention, seed
        self._fidelity: Fidelity | None = None
        if weighting is Weighting.SENSITIVITY:
            self._fidelity = fidelity_of(model) if fidelity is None else fidelity
        self._known: dict[int, list[Tensor]] = {}

    def of(self, block: int, out: Tensor, batch: Batch, number: int) -> Tensor:
        """The weights at one block, shape ``[..., 1]`` for its output ``out [..., hidden]``.

        Args:
            block: which block.
            out: for its shape and device only.
            batch: the batch, on the model's device.
            number: the position of the batch in the data.
        """
        if self._fidelity is None:
            return torch.ones_like(out[..., :1])
        if number not in self._known:
            found = flows(self._model, self._attention, batch, self._fidelity, self._seed)
            self._known[number] = [
                torch.stack([f.gradient.square().sum(dim=-1, keepdim=True) for f in runs]).sum(
                    dim=0
                )
                for runs in found
            ]
        return self._known[number][block].to(out.device)
