"""One draw of calibration texts, and all that methods measure on it, each once and only if it is asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from benchmarks.accuracy.data import Data
from cahp_opt import Budget, HeadStats, LatencyTable
from cahp_opt.objectives import ExplainedVariance
from cahp_opt.runs.method import Task
from cahp_opt.runs.texts import Example
from cahp_opt.selection import Chooser
from cahp_opt.stats.neuron_order import in_order_of_price
from cahp_opt.torch import Prunable, TokenWeights, fidelity_of
from cahp_opt.torch.calibration.calibration import measure
from cahp_opt.torch.calibration.token_gradients import TokenGradients
from cahp_opt.torch.methods import Kwon, Magnitude
from cahp_opt.torch.methods.model_method import Evidence
from cahp_opt.torch.running.batches import inputs_of
from cahp_opt.torch.texts.encoding import encode

EXAMPLES = Kwon.examples
"""Labelled texts of Kwon et al."""


@dataclass(frozen=True, eq=False)
class Source:
    """The model and the texts that draws are made from.

    Args:
        data: the data set; draws are of its training examples.
        model: the unpruned classifier.
        tokenizer: the model's.
        longest: tokens per text.
    """

    data: Data
    model: nn.Module
    tokenizer: Any
    longest: int

    def encoded(self, examples: Sequence[Example], size: int, seed: int) -> list[dict[str, Tensor]]:
        """Labelled batches of some examples."""
        return encode(
            examples,
            self.tokenizer,
            self.model,
            batch_size=size,
            max_length=self.longest,
            seed=seed,
        )


@dataclass(frozen=True, eq=False)
class Draw:
    """One draw.

    Args:
        source: what it is drawn from.
        seed: of the draw.
        texts: calibration texts, which the refit sees too.
        table: the latency table of the groups of neurons.
        grouped: the blocks of the model in those groups, as the neurons stand.
    """

    source: Source
    seed: int
    texts: int
    table: LatencyTable
    grouped: Prunable

    @cached_property
    def _examples(self) -> list[Example]:
        """Those of the baseline with labels; the calibration texts come first."""
        train = self.source.data.train
        return random.Random(self.seed).sample(train, min(max(self.texts, EXAMPLES), len(train)))

    @cached_property
    def batches(self) -> list[dict[str, Tensor]]:
        """The calibration texts, without labels."""
        found = self.source.encoded(self._examples[: self.texts], 32, self.seed)
        return [dict(inputs_of(batch)) for batch in found]

    @cached_property
    def labelled(self) -> list[dict[str, Tensor]]:
        """The labelled examples of Kwon et al."""
        return self.source.encoded(self._examples[:EXAMPLES], 32, self.seed)

    @cached_property
    def weights(self) -> TokenWeights:
        """What tokens count in a refit."""
        return TokenWeights(self.grouped)

    @cached_property
    def stats(self) -> HeadStats:
        """The token sensitivity of the blocks, with neurons grouped by the price of removing them."""
        asked = [TokenGradients(self.texts)]
        found = measure(self.grouped, self.batches, asked, token_weights=self.weights)
        return in_order_of_price(found)

    @cached_property
    def explained(self) -> ExplainedVariance:
        """The objective of the library, which remembers the best units of every block."""
        return ExplainedVariance.from_sensitivity(self.stats)

    @cached_property
    def ordered(self) -> Prunable:
        """The blocks in the same groups."""
        return self.grouped.grouped(self.stats.space)

    @cached_property
    def kwon(self) -> Chooser:
        """The method of Kwon et al., which remembers the gradients."""
        return Kwon(EXAMPLES).chooser_on(self._evidence)

    @cached_property
    def magnitude(self) -> Chooser:
        """The method that looks at weights alone."""
        return Magnitude().chooser_on(self._evidence)

    @property
    def _evidence(self) -> Evidence:
        """What these look at; statistics are none of it."""
        space = self.grouped.space
        return Evidence(
            self.grouped,
            HeadStats(space, "", 0, 0),
            Task(Budget(space), labelled=True),
            self.labelled,
            fidelity_of(self.source.model),
        )
