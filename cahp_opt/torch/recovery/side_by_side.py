"""A sliced model and the one it was sliced from, run over the same batches as far as one place after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.recovery.layer_walk import LayerWalk, Place
from cahp_opt.torch.recovery.path import LOOKED_AT, DenseStreams
from cahp_opt.torch.recovery.shortcuts import find_shortcuts
from cahp_opt.torch.recovery.token_weights import TokenWeights
from cahp_opt.torch.running.batches import Batch, examples, prepare, wide
from cahp_opt.torch.running.padding import Padding
from cahp_opt.torch.running.preparing import PaddingCheck
from cahp_opt.torch.running.repeatable_batches import Repeated


class Gap(NamedTuple):
    """What one batch shows at a place, padding included.

    Args:
        batch: the batch, as the sliced model takes it.
        dense_batch: the same, as the unpruned model takes it.
        number: its position in the data.
        inputs: of the linear layer in the sliced model, ``[..., width]``.
        missing: the stream behind the place in the unpruned model less that in the sliced one, ``[..., hidden]``.
    """

    batch: Batch
    dense_batch: Batch
    number: int
    inputs: Tensor
    missing: Tensor


class SideBySide:
    """Both models over the same batches.

    Args:
        small: the blocks of the sliced model.
        whole: those of the unpruned one; both models are in evaluation mode.
        places: all places, in the order in which they are asked for.
        data: the batches.
        total: their number; 0 if it is not known.
        memory: bytes to remember: residual streams, at most a third each for those that the runs of either model
            resume from and for those to be met, and in what they leave over, inputs of linear layers that were met.
        weights: of the tokens; where they keep residual streams, the unpruned model does not run. None for
            neither.

    Raises:
        ValueError: if the layers of a model cannot be run one after the other.
    """

    def __init__(
        self,
        small: Prunable,
        whole: Prunable,
        places: Sequence[Place],
        data: Repeated,
        total: int,
        *,
        memory: int,
        weights: TokenWeights | None = None,
    ) -> None:
        self.total = total
        """The number of batches; 0 before they were counted."""
        self._small, self._whole, self._data = small.model, whole.model, data
        self._places = tuple(places)
        self._streams = DenseStreams(LayerWalk(whole, memory // 3), [*places], memory // 3)
        self._behind = LayerWalk(small, memory // 3)
        self._weights = weights
        self._memory = memory
        self._padding = Padding(small)
        self._check = PaddingCheck(whole.model)
        self._known = 0  # batches from the start that were checked: they stay the same

    def gaps(self, index: int) -> Iterator[Gap]:
        """What every batch shows at the place of that number; every place is asked for once, in their order.

        Raises:
            ValueError: for a batch that cannot be used, or that does not reach the place.
        """
        done = 0
        for done, raw in enumerate(self._data, start=1):
            number = done - 1
            known = number < self._known
            batch, dense_batch = (
                prepare(raw, model, f"batches[{number}]", known=known)
                for model in (self._small, self._whole)
            )
            if not known:
                self._check.check(dense_batch, f"batches[{number}]")
                if self._weights is not None:
                    self._weights.check(dense_batch, number)
                    self._weights.take(dense_batch, number)
                self._known = done
            if index == number == 0 and self._behind.resumes:
                outs, few = [place.out for place in self._places], examples(batch, 0, LOOKED_AT)
                layers = self._behind.layers
                self._behind.shortcuts = find_shortcuts(self._small, layers, outs, few)
            there = self._there(index, dense_batch, number)
            met = self._behind.meet(self._places[index], batch, number)
            inputs = wide(met.inputs)
            missing = wide(there).to(inputs.device) - wide(met.stream)
            yield Gap(batch, dense_batch, number, inputs, missing)
        self.total = done
        if index == 0:  # what the residual streams leave over
            self._behind.room = self._memory - self._held

    def _there(self, index: int, batch: Batch, number: int) -> Tensor:
        """The stream of the unpruned model behind a place, ``[..., hidden]``."""
        kept = None
        if self._weights is not None:
            kept = self._weights.streams.of(self._places[index], number)
        return self._streams.of(index, batch, number) if kept is None else kept

    @property
    def _held(self) -> int:
        """The bytes of the residual streams of both models: of the unpruned one as many as it may come to."""
        own = self._behind.held
        kept = 0 if self._weights is None else self._weights.streams.nbytes
        return own + kept if kept else 3 * own

    def rows(self, block: int, values: Tensor, gap: Gap) -> Tensor:
        """The rows of ``values`` ``[..., width]`` of a block that are not padding, ``[rows, width]``."""
        return self._padding.rows(block, values, gap.batch)
