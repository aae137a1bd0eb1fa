"""The path of a refit: every linear layer that is fitted, in the order of the fits."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor

from cahp_opt.torch.blocks.blocks import FeedForwardBlock, Prunable, submodules
from cahp_opt.torch.blocks.finder import along_the_path, find_attention
from cahp_opt.torch.recovery.feed_forward import find_feed_forward, place_of_block
from cahp_opt.torch.recovery.layer_walk import Behind, LayerWalk, Place, check_runs_once
from cahp_opt.torch.running.batches import Batch, examples, prepare
from cahp_opt.torch.running.undisturbed import evaluating

LOOKED_AT = 2
"""Examples to look at: what runs in a layer, and where a part adds to the stream, is the same for all."""

_NO_LIMIT = 2**62


def with_attention(prunable: Prunable) -> Prunable:
    """The blocks, and the attention of a model that was pruned in neurons alone: fitting that repairs too.

    Without attention that is understood, or with several blocks of it in a layer, they stay as they are.
    """
    if prunable.attention:
        return prunable
    with suppress(ValueError):
        attention = find_attention(prunable.model)
        blocks = along_the_path(prunable.model, (*attention, *prunable))
        both = Prunable(prunable.model, blocks, prunable.skipped)
        LayerWalk(both, 0)
        return both
    return prunable


def places_of(prunable: Prunable, batch: Batch, *, feed_forward: bool) -> list[Place]:
    """Every place of the unpruned model that a refit fits, layer by layer.

    In a layer attention comes first, and then what is seen in the layer's output: in one where both add to
    the stream at once, the feed-forward part then repairs what attention could not, and nothing twice.

    Args:
        prunable: the blocks of the unpruned model, which is in evaluation mode.
        batch: a batch, of which the first examples are run.
        feed_forward: whether to fit feed-forward parts.

    Raises:
        ValueError: if the layers cannot be run one after the other, or the batch does not reach a block.
    """
    walk = LayerWalk(prunable, _NO_LIMIT)
    few = examples(batch, 0, LOOKED_AT)
    apart = [block.site for block in prunable.attention]
    names = {id(module): name for name, module in submodules(prunable.model)}
    places: list[Place] = []
    for layer in range(len(walk.layers)):
        own = [b for b, at in zip(prunable, walk.layer_of, strict=True) if at == layer]
        attention = [b for b in own if not isinstance(b, FeedForwardBlock)]
        parts = [b for b in own if isinstance(b, FeedForwardBlock)]
        places += [Place(b.name, layer, names[id(b.out)], Behind.ATTENTION) for b in attention]
        if not feed_forward:
            continue
        found = [place_of_block(walk, layer, part, few) for part in parts]
        if not parts:
            found = [find_feed_forward(walk, layer, attention[0].name, apart, few)]
        there = [place for place in found if place is not None]
        places += sorted(there, key=lambda place: place.behind is Behind.LAYER)
    return places


def check_walkable(prunable: Prunable, batch: Batch, *, feed_forward: bool) -> None:
    """Refuse a model, sliced or not, whose layers cannot be run one after the other: run one batch through it.

    Args:
        prunable: the blocks of the model.
        batch: keyword arguments for it.
        feed_forward: as for :func:`places_of`.

    Raises:
        ValueError: if a layer cannot be met.
    """
    model = prunable.model
    with torch.no_grad(), evaluating(model):
        walked_places(prunable, prepare(batch, model, "batches[0]"), feed_forward=feed_forward)


def walked_places(prunable: Prunable, batch: Batch, *, feed_forward: bool) -> list[Place]:
    """:func:`places_of`, each of which was met in a walk over the batch.

    Raises:
        ValueError: if a layer cannot be met.
    """
    check_runs_once(prunable, batch)
    walk = LayerWalk(prunable, 2**29)
    places = places_of(prunable, batch, feed_forward=feed_forward)
    for place in places:
        walk.meet(place, batch, 0)
    return places


class DenseStreams:
    """The streams of the unpruned model behind every place.

    As long as memory allows, each of its layers runs once over the data: one run gives the streams
    behind all places of a layer, and where it cannot be resumed, of all layers.

    Args:
        walk: through the unpruned model.
        places: all places, in the order in which they are asked for.
        memory: bytes of streams to remember.
    """

    def __init__(self, walk: LayerWalk, places: list[Place], memory: int) -> None:
        self._walk, self._places, self._memory = walk, places, memory
        self._ready: dict[tuple[int, int], Tensor] = {}
        self._most = 1  # bytes of a stream, as far as is known

    def of(self, index: int, batch: Batch, number: int) -> Tensor:
        """The stream behind a place, ``[..., hidden]``; every place is asked for once.

        Args:
            index: the number of the place.
            batch: the batch, on the model's device.
            number: the position of the batch in the data.

        Raises:
            ValueError: if the model does not run a place on this batch.
        """
        ready = self._ready.pop((index, number), None)
        if ready is not None:
            self._memory += ready.nbytes
            return ready
        together = self._together(index)
        behind = self._places[index + len(together) :]
        # Not past places of the layer that there was no room to meet ahead.
        onward = self._memory > 0 and bool(behind) and behind[0].layer > together[-1].layer
        found, move_on = self._walk.streams(together, batch, number, onward=onward)
        self._most = max(self._most, *(stream.nbytes for stream in found))
        for later, stream in enumerate(found[1:], start=index + 1):
            if stream.nbytes > self._memory:
                return found[0]
            self._memory -= stream.nbytes
            self._ready[later, number] = stream
        move_on()
        return found[0]

    def _together(self, index: int) -> list[Place]:
        """The places from this one that one run serves."""
        places = self._places[index : index + 1 + self._memory // self._most]
        if not self._walk.resumes:
            return places
        return [place for place in places if place.layer == places[0].layer]
