"""How often a recovery runs the layers of either model, from the places that it visits alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.blocks.linear_layers import row_weight
from cahp_opt.torch.forecast.statistics_bytes import ReadShape
from cahp_opt.torch.forecast.timed_batch import positions
from cahp_opt.torch.recovery.layer_walk import Behind, LayerWalk, Place
from cahp_opt.torch.recovery.path import places_of, with_attention
from cahp_opt.torch.running.batches import Batch, examples, prepare
from cahp_opt.torch.running.undisturbed import evaluating


class TimesRun(NamedTuple):
    """How often the layers of a model run over texts: 1 is every layer once over every text.

    Args:
        attention: as far as the attention in them.
        whole: to their end.
    """

    attention: float
    whole: float

    def passes(self, share: float) -> float:
        """The same in forward passes, where attention makes this share of a layer."""
        return share * self.attention + (1 - share) * self.whole


@dataclass(frozen=True)
class WalkForecast:
    """The runs of :class:`~cahp_opt.torch.recovery.side_by_side.SideBySide`.

    Args:
        places: all places, in the order in which they are visited.
        layers: the number of layers of the model.
        sizes: the bytes of a residual stream of every batch.
        memory: bytes of streams to remember, as for :func:`~cahp_opt.torch.refit`.
        resumes: whether a run can begin at a layer other than the first.
    """

    places: Sequence[Place]
    layers: int
    sizes: Sequence[int]
    memory: int
    resumes: bool = True

    @property
    def remembered(self) -> float:
        """The share of all streams that there is room for, from the first batch on."""
        return self._kept / sum(self.sizes) if self.resumes else 0.0

    @property
    def held(self) -> int:
        """The bytes of streams that are held at once: one per batch of either model, and one that was met ahead."""
        return 3 * self._kept if self.resumes else 0

    @property
    def enough(self) -> int:
        """The memory that would hold all streams."""
        return 3 * sum(self.sizes)

    @property
    def dense(self) -> TimesRun:
        """The runs of the unpruned model: each layer once, and as far as each place from the start for
        batches whose streams there is no room for."""
        last = self.places[-1] if self.places else None
        if last is None:
            return TimesRun(0.0, 0.0)
        once = TimesRun(last.layer + 1, last.layer + _to_the_end(last))
        again = TimesRun(0.0, 0.0)
        for place in self.places:  # a run ends where the next layer begins, if it goes on there
            onward = self.memory and place is not last and place.layer + 1 < self.layers
            done = 1 if onward else _to_the_end(place)
            again = TimesRun(again.attention + place.layer + 1, again.whole + place.layer + done)
        return self._mixed(once, again)

    @property
    def sliced(self) -> TimesRun:
        """The runs of the sliced model: from the layer of the place before to each place, or from the start for
        batches whose streams there is no room for."""
        resumed, again, before = TimesRun(0.0, 0.0), TimesRun(0.0, 0.0), 0
        for place in self.places:
            resumed, again = (
                TimesRun(
                    runs.attention + place.layer - start + 1,
                    runs.whole + place.layer - start + _to_the_end(place),
                )
                for runs, start in ((resumed, before), (again, 0))
            )
            before = place.layer
        return self._mixed(resumed, again)

    @property
    def _kept(self) -> int:
        room = self.memory // 3
        left = room
        for size in self.sizes:
            left -= size if size <= left else 0
        return room - left

    def _mixed(self, remembered: TimesRun, others: TimesRun) -> TimesRun:
        share = self.remembered
        parts = (share * a + (1 - share) * b for a, b in zip(remembered, others, strict=True))
        return TimesRun(*(part / self.layers for part in parts))


@dataclass(frozen=True)
class WalkedModel:
    """What the runs of a recovery depend on.

    Args:
        places: all places, in the order in which they are visited.
        shapes: of the linear layers at the places.
        layers: the number of layers.
        attention_share: the share of attention in the weights of all layers.
        stream: bytes of a residual stream per position.
        resumes: whether a run can begin at a layer other than the first.
    """

    places: tuple[Place, ...]
    shapes: tuple[ReadShape, ...]
    layers: int
    attention_share: float
    stream: int
    resumes: bool

    @staticmethod
    def of(
        prunable: Prunable, raw: Batch, *, feed_forward: bool, attention_too: bool
    ) -> WalkedModel:
        """Look at the unpruned model, and run the first examples of a batch through it.

        Args:
            prunable: its blocks.
            raw: the batch, tensors ``[batch, tokens]``.
            feed_forward: whether feed-forward parts are visited.
            attention_too: whether attention is visited where neurons alone are pruned.

        Raises:
            ValueError: if the layers cannot be run one after the other.
        """
        prunable = with_attention(prunable) if attention_too else prunable
        model = prunable.model
        walk = LayerWalk(prunable, 0)
        with torch.no_grad(), evaluating(model):
            batch = prepare(raw, model, "batches[0]")
            places = places_of(prunable, batch, feed_forward=feed_forward)
            few = examples(batch, 0, 1)
            streams = [walk.meet(place, few, 0).stream for place in places[:1]]
        whole = sum(map(_weights, walk.layers))
        attention = sum(_weights(block.site) for block in prunable.attention)
        dtype = next(model.parameters()).dtype.itemsize
        return WalkedModel(
            tuple(places),
            tuple(_shape(model.get_submodule(place.out), place) for place in places),
            len(walk.layers),
            attention / whole,
            sum(dtype * stream.numel() // positions(few) for stream in streams),
            walk.resumes,
        )

    def over(self, tokens: Sequence[int], memory: int) -> WalkForecast:
        """The runs over batches of these numbers of positions, padding included.

        Args:
            tokens: by batch.
            memory: bytes of streams to remember.
        """
        sizes = [self.stream * number for number in tokens]
        return WalkForecast(self.places, self.layers, sizes, memory, self.resumes)


def _shape(out: nn.Module, place: Place) -> ReadShape:
    hidden, width = row_weight(out).shape
    return ReadShape(width, hidden, place.behind is Behind.ATTENTION)


def _weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _to_the_end(place: Place) -> int:
    """1 if a run that ends at a place has run its layer to the end, otherwise 0."""
    return 0 if place.behind is Behind.ATTENTION else 1


def fit_bytes(inputs: int, targets: int) -> int:
    """The bytes that fitting a layer takes: two :class:`~cahp_opt.torch.recovery.ridge.RidgeSums`, those of
    texts to fit and of those held out, and while a penalty is solved for four more square matrices of the
    inputs and as many of the weights."""
    return 8 * (6 * inputs**2 + 6 * inputs * targets + 2 * (inputs + targets + 1))
