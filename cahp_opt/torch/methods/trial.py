"""A tiny classifier to try methods on that run the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cahp_opt.costs.budget import Budget
from cahp_opt.costs.prune import Prune
from cahp_opt.runs.measuring import MeasuringOptions
from cahp_opt.runs.method import Method, Task
from cahp_opt.runs.recovery import Recovery
from cahp_opt.selection import Chooser
from cahp_opt.space import HeadSpace
from cahp_opt.torch.blocks.finder import Prunable, find_prunable
from cahp_opt.torch.calibration.calibration import measure
from cahp_opt.torch.calibration.collectors import collectors_for
from cahp_opt.torch.evaluation.fidelity import fidelity_of
from cahp_opt.torch.methods.model_method import Evidence, chooser_of

_TEXTS, _TOKENS, _VOCABULARY, _CLASSES = 4, 6, 24, 3
_AMOUNTS = MeasuringOptions(signature_size=2)


@dataclass(frozen=True, eq=False)
class ModelTrial:
    """A model with labelled batches: a :class:`~cahp_opt.testing.MethodTrial` for all methods.

    Args:
        prunable: the blocks of the model.
        batches: labelled, tensors ``[batch, tokens]``.
    """

    prunable: Prunable
    batches: Sequence[Mapping[str, Tensor]]

    @property
    def space(self) -> HeadSpace:
        """The units."""
        return self.prunable.space

    def task(self, budget: Budget, seed: int) -> Task:
        """Every recovery by turns of the seed."""
        recovery = list(Recovery)[seed % len(Recovery)]
        return Task(budget, recovery, labelled=True, seed=seed)

    def chooser(self, method: Method, task: Task) -> Chooser:
        """That of the model, and of what the method has to have measured on it."""
        fidelity = fidelity_of(self.prunable.model)
        asked = collectors_for(method.needs(task).measuring(_AMOUNTS))
        stats = measure(self.prunable, self.batches, asked, fidelity=fidelity, seed=task.seed)
        evidence = Evidence(self.prunable, stats, task, self.batches, fidelity)
        return chooser_of(method, evidence)

    def reordered(self, blocks: Sequence[int]) -> None:
        """A model has its blocks in one order."""
        del blocks


def tiny_trial(prune: Prune = Prune.BOTH) -> ModelTrial:
    """A random encoder with the layers of BERT, two of them, and a few texts with labels::

        check_method(MyMethod(), trials=[tiny_trial()])

    Args:
        prune: the kinds of blocks to choose from: four heads and four groups of neurons in every layer.

    Raises:
        ImportError: if transformers is not installed.
    """
    from transformers import BertConfig, BertForSequenceClassification

    untyped: Any = torch
    with untyped.random.fork_rng(devices=[]):
        untyped.manual_seed(0)
        config = BertConfig(
            vocab_size=_VOCABULARY,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=20,
            max_position_embeddings=_TOKENS,
            initializer_range=0.3,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        config.num_labels = _CLASSES
        model = BertForSequenceClassification(config)
        model.train(False)
        batches = [
            {
                "input_ids": torch.randint(1, _VOCABULARY, (_TEXTS, _TOKENS)),
                "attention_mask": torch.ones(_TEXTS, _TOKENS, dtype=torch.int64),
                "labels": torch.arange(_TEXTS) % _CLASSES,
            }
            for _ in range(2)
        ]
    prunable = find_prunable(
        model, heads=prune.heads, neurons=prune.neurons, neuron_group=5 if prune.neurons else None
    )
    return ModelTrial(prunable, batches)
