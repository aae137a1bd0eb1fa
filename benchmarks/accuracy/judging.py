"""How good a sliced model is: accuracy and distance from the dense model, on whole splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from cahp_opt.torch.evaluation import evaluation
from cahp_opt.torch.running.batches import Batch


class Judge:
    """Compares models with the dense one, whose outputs are computed once.

    Args:
        dense: the unpruned classifier.
        splits: labelled batches by the name of the split.
    """

    def __init__(self, dense: nn.Module, splits: Mapping[str, Sequence[Batch]]) -> None:
        self._judges = {name: evaluation.Judge(dense, split) for name, split in splits.items()}

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Accuracies ``dev`` and ``test``, and the mean KL divergence from the dense model on test."""
        scores = {name: judge(model) for name, judge in self._judges.items()}
        found = {name: each.value("accuracy") for name, each in scores.items()}
        return found | {"kl": scores["test"].value("kl")} if "test" in scores else found
