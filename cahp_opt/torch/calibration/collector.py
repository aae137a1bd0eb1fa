"""What fills a statistic: asked for as a value, started on a model, and given one batch after another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from cahp_opt.runs.measuring import Measuring
from cahp_opt.stats.statistic import Statistic
from cahp_opt.torch.blocks.finder import Attention
from cahp_opt.torch.calibration.token_weights import TokenWeights
from cahp_opt.torch.evaluation.fidelity import Fidelity
from cahp_opt.torch.running.batches import Batch

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured.

    Args:
        model: the model, in evaluation mode.
        attention: its blocks.
        fidelity: what is differentiated.
        seed: of masks and probes, together with each example's content.
        token_weights: learns how much each token counts, where a collector finds out; None for nobody.
    """

    model: nn.Module
    attention: Attention
    fidelity: Fidelity
    seed: int = 0
    token_weights: TokenWeights | None = None


@dataclass(frozen=True, eq=False)
class Dense:
    """What the unpruned model gave for the examples of a batch.

    Args:
        output: its output, as the fidelity takes it, ``[batch, ...]``.
        together: whether the first axis of all activations is that of the examples.
        number: the position of the batch in the data.
        whole: whether these are all examples of the batch.
    """

    output: Tensor
    together: bool
    number: int
    whole: bool


class Collecting(ABC):
    """Sums over examples that are being added up."""

    def see(self, block: int, outputs: Tensor, batch: Batch) -> None:
        """Take the head outputs ``[batch, tokens, width]`` of one block, while the unpruned model runs.

        It comes before :meth:`add`, with all examples of the batch.
        """
        del block, outputs, batch

    def add(self, batch: Batch, dense: Dense) -> None:
        """Add the examples of a batch.

        Raises:
            ValueError: for a batch or a gradient that cannot be used.
        """
        del batch, dense

    @abstractmethod
    def result(self) -> Mapping[str, Statistic]:
        """What was added up, by the names of the statistics."""


class Collector(ABC):
    """Asks for statistics. It is a value, and can be started for as many calibrations as one likes."""

    examples: int | None = None
    """How many examples are added, from the first on; None for all."""

    @classmethod
    def wanted(cls, measuring: Measuring) -> Self | None:
        """The collector for what is to be measured; None if it has nothing to do.

        Raises:
            ValueError: for a number that makes no sense.
        """
        del measuring
        return None

    @abstractmethod
    def start(self, subject: Subject) -> Collecting:
        """Sums of nothing yet."""


def at_least_0(argument: str, number: int | None) -> None:
    """Refuse a negative number; None is none.

    Raises:
        ValueError: naming the argument.
    """
    if number is not None and number < 0:
        raise ValueError(f"`{argument}` must be at least 0, got {number}.")
