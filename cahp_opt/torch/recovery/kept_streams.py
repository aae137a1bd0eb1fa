"""The residual streams of an unpruned model, kept from a pass that was made for something else."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

import torch
from torch import Tensor

from cahp_opt.runs.plan import RecoveryOptions
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.recovery.layer_walk import LayerWalk, Place, Visit
from cahp_opt.torch.recovery.path import LOOKED_AT, walked_places, with_attention
from cahp_opt.torch.running.batches import Batch, examples

STREAM_BYTES = RecoveryOptions().stream_bytes
"""The bytes for residual streams, unless another number is given."""


class _Path(NamedTuple):
    """A walk through a model, and the places on it."""

    walk: LayerWalk
    places: tuple[Place, ...]


class KeptStreams:
    """The residual streams of an unpruned model behind every place that a refit fits: with them it does not run that
    model.

    They are in main memory, of all batches or of none: where they turn out to take more than their share of the
    memory, what a refit needs to run the sliced model comes first.

    Args:
        prunable: the blocks of the model, which is in evaluation mode whenever it runs.
        memory: bytes of residual streams for a whole refit; see :func:`may_keep`.
    """

    def __init__(self, prunable: Prunable, memory: int) -> None:
        self._prunable, self._memory = prunable, memory
        self._path: _Path | None = None
        self._kept: dict[int, dict[object, Tensor]] = {}
        self.nbytes = 0
        """The bytes that are kept."""

    def wants(self, number: int) -> bool:
        """Whether there is room, and the streams of the batch at this position are not kept yet."""
        return self._memory > 0 and number not in self._kept

    @contextmanager
    def watching(self, batch: Batch, number: int) -> Generator[None]:
        """Keep the streams of the pass over a batch that the model makes meanwhile, in place of those that were kept
        for this position.

        Args:
            batch: the batch, on the model's device.
            number: its position in the data.
        """
        if self._memory and self._path is None:
            self._path = self._find(batch)
        if self._path is None:
            self.forget()
            yield
            return
        visit = Visit(self._path.places, number, ends=False)
        with ExitStack() as stack:
            visit.listen(self._path.walk, stack)
            yield
        self._keep(visit)

    def of(self, place: Place, number: int) -> Tensor | None:
        """The stream behind a place for the batch at a position, ``[..., hidden]``; None if it is not kept."""
        return self._kept.get(number, {}).get(place.seen)

    def forget(self) -> None:
        """Give up what is kept, and keep nothing from here on."""
        self._memory = self.nbytes = 0
        self._path = None
        self._kept.clear()

    def _find(self, batch: Batch) -> _Path | None:
        """The places; None if a refit could not walk the model, and would say why."""
        few = examples(batch, 0, LOOKED_AT)
        with torch.no_grad(), suppress(ValueError):
            whole = with_attention(self._prunable)
            places = tuple(walked_places(whole, few, feed_forward=True))
            return _Path(LayerWalk(whole, 0), places) if places else None
        return None

    def _keep(self, visit: Visit) -> None:
        if not visit.complete:
            self.forget()
            return
        found = dict[object, Tensor]()
        for index, place in enumerate(visit.places):
            found[place.seen] = visit.streams[index].detach().cpu()
        self.nbytes -= sum(stream.nbytes for stream in self._kept.pop(visit.number, {}).values())
        self.nbytes += sum(stream.nbytes for stream in found.values())
        self._kept[visit.number] = found
        if not may_keep(self.nbytes, len(visit.places), self._memory):
            self.forget()


def may_keep(kept: int, places: int, memory: int) -> bool:
    """Whether the streams behind some places have room beside one more, which the sliced model resumes from.

    Args:
        kept: the bytes of these streams.
        places: the number of places.
        memory: bytes of residual streams for a whole refit.
    """
    return kept * (places + 1) <= memory * places
