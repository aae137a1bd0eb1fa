"""How good a sliced model is: accuracy and distance from the dense model, on whole splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cahp_opt.torch import fidelity_of
from cahp_opt.torch.running.batches import Batch, inputs_of


class Judge:
    """Compares models with the dense one, whose outputs are computed once.

    Args:
        dense: the unpruned classifier.
        splits: labelled batches by the name of the split.
    """

    def __init__(self, dense: nn.Module, splits: Mapping[str, Sequence[Batch]]) -> None:
        self._splits = splits
        self._fidelity = fidelity_of(dense)
        self._dense = {name: self._outputs(dense, split) for name, split in splits.items()}

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Accuracies ``dev`` and ``test``, and the mean KL divergence from the dense model on test."""
        found = dict[str, float]()
        for name, batches in self._splits.items():
            outputs = self._outputs(model, batches)
            right = [o.argmax(-1) == b["labels"] for o, b in zip(outputs, batches, strict=True)]
            found[name] = float(torch.cat(right).double().mean())
            if name == "test":
                triples = zip(self._dense[name], outputs, batches, strict=True)
                apart = [self._fidelity.distance(*triple).double() for triple in triples]
                found["kl"] = float(torch.cat(apart).mean())
        return found

    def _outputs(self, model: Any, batches: Sequence[Batch]) -> list[Tensor]:
        model.eval()
        with torch.inference_mode():
            return [self._fidelity.output(model(**inputs_of(b)), b) for b in batches]
