"""The outputs of the unpruned model, which methods compare others with again and again."""

from __future__ import annotations

import torch
from torch import Tensor

from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.evaluation.fidelity import Fidelity
from cahp_opt.torch.running.batches import Batch, inputs_of

_MEMORY = 2**28


class UnprunedOutputs:
    """The outputs on batches, taken once as long as there is room.

    Args:
        prunable: the blocks of the unpruned model, which is in evaluation mode.
        fidelity: takes the output.
        memory: bytes of outputs to keep; others are computed every time.
    """

    def __init__(self, prunable: Prunable, fidelity: Fidelity, memory: int = _MEMORY) -> None:
        self._model, self._fidelity, self._room = prunable.model, fidelity, memory
        self._known: dict[int, Tensor] = {}

    def of(self, batch: Batch, number: int) -> Tensor:
        """The output ``[batch, ...]`` on a batch.

        Args:
            batch: ready for the model.
            number: its position in the data.
        """
        if number in self._known:
            return self._known[number]
        with torch.no_grad():
            output = self._fidelity.output(self._model(**inputs_of(batch)), batch)
        size = output.numel() * output.element_size()
        if size <= self._room:
            self._room -= size
            self._known[number] = output
        return output
