"""The residual streams of an unpruned model, kept from a pass that was made for something else."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress

import torch
from torch import Tensor

from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.calibration.output_moments import home
from cahp_opt.torch.recovery.layer_walk import LayerWalk, Place, Visit
from cahp_opt.torch.recovery.path import walked_places, with_attention
from cahp_opt.torch.running.batches import Batch, examples

STREAM_BYTES = 3 * 2**30
"""The bytes for residual streams, unless another number is given."""

_LOOKED_AT = 2  # examples; what runs in a layer is the same for all
_BESIDE = 3  # residual streams of all batches that a refit may need beside those that are kept


class KeptStreams:
    """The residual streams of an unpruned model behind every place that a refit fits: with them it does not run that
    model.

    They are kept of all batches or of none: where they turn out to take more than their share of the memory,
    what a refit needs to run both models comes first.

    Args:
        prunable: the blocks of the model, which is in evaluation mode whenever it runs.
        memory: bytes of residual streams for a whole refit. One stream per place may be kept if three more of
            that size would fit too.
    """

    def __init__(self, prunable: Prunable, memory: int) -> None:
        self._prunable, self._memory = prunable, memory
        self._walk: LayerWalk | None = None
        self._places: tuple[Place, ...] = ()
        self._kept: dict[int, dict[Place, Tensor]] = {}
        self.nbytes = 0
        """The bytes that are kept."""

    @property
    def wanted(self) -> bool:
        """Whether there is room for any."""
        return self._memory > 0

    @contextmanager
    def watching(self, batch: Batch, number: int) -> Generator[None]:
        """Keep the streams of the pass over a batch that the model makes meanwhile.

        Args:
            batch: the batch, on the model's device.
            number: its position in the data.
        """
        walk = self._walk or self._find(batch) if self._memory else None
        if walk is None or number in self._kept:
            yield
            return
        visit = Visit(self._places, number, ends=False)
        with ExitStack() as stack:
            visit.listen(walk, stack)
            yield
        self._keep(visit)

    def of(self, place: Place, number: int) -> Tensor | None:
        """The stream behind a place for the batch at a position, ``[..., hidden]``; None if it is not kept."""
        return self._kept.get(number, {}).get(place)

    def _find(self, batch: Batch) -> LayerWalk | None:
        """The walk through the model, with the places; None if a refit could not walk it, and would say why."""
        few = examples(batch, 0, _LOOKED_AT)
        with torch.no_grad(), suppress(ValueError):
            whole = with_attention(self._prunable)
            self._places = tuple(walked_places(whole, few, feed_forward=True))
            self._walk = LayerWalk(whole, 0)
        if not self._places:
            self._give_up()
        return self._walk

    def _keep(self, visit: Visit) -> None:
        if not visit.complete:
            self._give_up()
            return
        found = dict[Place, Tensor]()
        for index, place in enumerate(self._places):
            stream = visit.streams[index].detach()
            found[place] = stream.to(home(stream.device, self._memory))
        self.nbytes += sum(stream.nbytes for stream in found.values())
        if not may_keep(self.nbytes, len(self._places), self._memory):
            self._give_up()
            return
        self._kept[visit.number] = found

    def _give_up(self) -> None:
        self._memory = self.nbytes = 0
        self._kept.clear()


def may_keep(kept: int, places: int, memory: int) -> bool:
    """Whether there is room for the streams behind some places beside what a refit needs.

    Args:
        kept: the bytes of these streams.
        places: the number of places.
        memory: bytes of residual streams for a whole refit.
    """
    return kept * (places + _BESIDE) <= memory * places
