"""The protocol of collectors: a value that asks for a statistic, and the sums that fill it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor

from cahp_opt.runs.measuring import Measuring
from cahp_opt.stats.statistic import Statistic
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.calibration.token_flows import Flow
from cahp_opt.torch.evaluation.fidelity import Fidelity
from cahp_opt.torch.running.batches import Batch

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class Subject:
    """The model to measure.

    Args:
        prunable: the blocks of the model, which is in evaluation mode.
        fidelity: the distance to differentiate.
        seed: of masks and probes, together with each example's content.
    """

    prunable: Prunable
    fidelity: Fidelity
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Dense:
    """The unpruned model's output for the examples of a batch.

    Args:
        output: its output, as the fidelity takes it, ``[batch, ...]``.
        together: whether the first axis of all activations is that of the examples.
        flows: of every block, where the same pass gave them for these examples; None where it did not.
    """

    output: Tensor
    together: bool
    flows: Sequence[Sequence[Flow]] | None = None


class Collecting(ABC):
    """Sums over examples that are being added up."""

    differentiates: ClassVar[bool] = False
    """Whether :attr:`Dense.flows` is of use, so that one pass should give it with the output."""

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
        """The statistics by name."""


class Collector(ABC):
    """Asks for statistics. It is a value, and can be started for any number of calibrations."""

    examples: int | None = None
    """The number of examples to add, from the start; None for all."""
    by_block: ClassVar[bool] = False
    """Whether it gives :class:`~cahp_opt.stats.by_block.ByBlock` statistics, that of a block the same whichever other
    blocks are measured, so that large models may be measured some blocks at a time."""

    @classmethod
    def wanted(cls, measuring: Measuring) -> Self | None:
        """The collector for these measurements; None if it is not needed.

        Raises:
            ValueError: for a number that makes no sense.
        """
        del measuring
        return None

    @abstractmethod
    def start(self, subject: Subject) -> Collecting:
        """Empty sums for a model."""


class PassReader(Protocol):
    """What takes something else from the passes over the unpruned model, such as
    :class:`~cahp_opt.torch.TokenWeights`."""

    @property
    def differentiates(self) -> bool:
        """Whether it wants gradients."""
        ...

    def wants(self, number: int, /) -> bool:
        """Whether it wants to see the pass over the batch at this position."""
        ...

    def watching(self, batch: Batch, number: int, /) -> AbstractContextManager[None]:
        """Lasts while the unpruned model runs a batch that is wanted."""
        ...

    def remember(self, found: Sequence[Sequence[Flow]], number: int, /) -> None:
        """Take what came of it: for every block one entry for every probe and every run of the block."""
        ...


def at_least_0(argument: str, number: int | None) -> None:
    """Refuse a negative number; None is allowed.

    Raises:
        ValueError: naming the argument.
    """
    if number is not None and number < 0:
        raise ValueError(f"`{argument}` must be at least 0, got {number}.")
