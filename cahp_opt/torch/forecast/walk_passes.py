"""How often a recovery runs the layers of either model, from the places that it visits alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.blocks.linear_layers import row_weight
from cahp_opt.torch.calibration.statistics_bytes import ReadShape
from cahp_opt.torch.forecast.timed_batch import positions
from cahp_opt.torch.recovery.kept_streams import may_keep
from cahp_opt.torch.recovery.layer_walk import Behind, LayerWalk, Place
from cahp_opt.torch.recovery.path import places_of, with_attention
from cahp_opt.torch.recovery.shortcuts import find_shortcuts
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
        inputs: the size of the inputs of the linear layer at every place in the unpruned model, relative to that
            of a residual stream; 0 where nothing is saved by remembering them. Empty for 0 everywhere.
        kept: bytes of residual streams that the calibration kept, so that the unpruned model does not run; 0 for
            none.
    """

    places: Sequence[Place]
    layers: int
    sizes: Sequence[int]
    memory: int
    resumes: bool = True
    inputs: Sequence[float] = ()
    kept: int = 0

    @property
    def remembered(self) -> float:
        """The share of all streams that there is room for, from the first batch on."""
        return self._kept / sum(self.sizes) if self.resumes else 0.0

    @property
    def held(self) -> int:
        """The bytes that are held at once, beside those that the calibration kept: of streams one per batch of either
        model that runs, and one that was met ahead; and the inputs of the linear layers in one layer, of the unpruned
        model's size."""
        inputs = round(self._most_inputs * self._kept_with_inputs)
        return self._streams * self._kept + inputs if self.resumes else 0

    @property
    def known(self) -> float:
        """The share of all streams beside which the inputs of linear layers are remembered."""
        return self._kept_with_inputs / sum(self.sizes) if self.resumes else 0.0

    @property
    def enough(self) -> int:
        """The memory that would hold all streams."""
        return 3 * sum(self.sizes)

    @property
    def dense(self) -> TimesRun:
        """The runs of the unpruned model: each layer once, and as far as each place from the start for
        batches whose streams there is no room for."""
        last = self.places[-1] if self.places else None
        if last is None or self.kept:
            return TimesRun(0.0, 0.0)
        once = TimesRun(last.layer + 1, last.layer + _to_the_end(last))
        again = TimesRun(0.0, 0.0)
        # A run ends where the next layer begins, if the next place lies there.
        for place, behind in zip(self.places, [*self.places[1:], last], strict=True):
            onward = self.memory and behind.layer > place.layer
            done = 1 if onward else _to_the_end(place)
            again = TimesRun(again.attention + place.layer + 1, again.whole + place.layer + done)
        return self._mixed(once, again)

    @property
    def sliced(self) -> TimesRun:
        """The runs of the sliced model: from the layer of the place before to each place, or from the start for
        batches whose streams there is no room for. What comes before a place in the layer where a run begins
        does not run again if the inputs there are remembered."""
        resumed, again, before = TimesRun(0.0, 0.0), TimesRun(0.0, 0.0), 0
        attention = whole = 0
        for number, place in enumerate(self.places):
            known = [p for p in self._known_before(number) if p.layer == before]
            attention += any(p.behind is Behind.ATTENTION for p in known)
            ahead = place.layer > before
            whole += ahead and any(p.behind is not Behind.ATTENTION for p in known)
            resumed, again = (
                TimesRun(
                    runs.attention + place.layer - start + 1,
                    runs.whole + place.layer - start + _to_the_end(place),
                )
                for runs, start in ((resumed, before), (again, 0))
            )
            before = place.layer
        resumed = TimesRun(
            resumed.attention - attention * self._of_remembered,
            resumed.whole - whole * self._of_remembered,
        )
        return self._mixed(resumed, again)

    @property
    def runs_again(self) -> list[float]:
        """How often the linear layer at every place runs again over the texts, on inputs that are remembered."""
        starts = [place.layer for place in self.places]
        return [
            self.known * starts[number:-1].count(place.layer) if self._is_known(number) else 0.0
            for number, place in enumerate(self.places)
        ]

    def _is_known(self, number: int) -> bool:
        """Whether the inputs at a place are remembered; those at the first never are."""
        return number > 0 and bool(self.inputs) and self.inputs[number] > 0

    def _known_before(self, number: int) -> list[Place]:
        return [place for n, place in enumerate(self.places[:number]) if self._is_known(n)]

    @property
    def _of_remembered(self) -> float:
        """The share of the remembered streams beside which inputs are."""
        return self.known / self.remembered if self.remembered else 0.0

    @property
    def _most_inputs(self) -> float:
        """The inputs that are remembered in one layer at most, relative to a residual stream."""
        sums = dict[int, float]()
        for number, place in enumerate(self.places):
            if self._is_known(number):
                sums[place.layer] = sums.get(place.layer, 0.0) + self.inputs[number]
        return max(sums.values(), default=0.0)

    @property
    def _streams(self) -> int:
        """How many streams of every batch are remembered beside those that the calibration kept."""
        return 1 if self.kept else 3

    @property
    def _kept_with_inputs(self) -> int:
        room, kept = self.memory - self.kept - self._streams * self._kept, 0
        left = self.memory // 3
        for size in self.sizes:
            if size <= left:
                left -= size
                if size * self._most_inputs <= room:
                    room -= math.ceil(size * self._most_inputs)
                    kept += size
        return kept

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
        inputs: as for :class:`WalkForecast`.
        kept: bytes per position of the streams behind all places that a calibration keeps.
    """

    places: tuple[Place, ...]
    shapes: tuple[ReadShape, ...]
    layers: int
    attention_share: float
    stream: int
    resumes: bool
    inputs: tuple[float, ...] = ()
    kept: int = 0

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
        walk = LayerWalk(prunable, 2**29)
        with torch.no_grad(), evaluating(model):
            batch = prepare(raw, model, "batches[0]")
            places = places_of(prunable, batch, feed_forward=feed_forward)
            few = examples(batch, 0, 1)
            streams = [walk.meet(place, few, 0).stream for place in places]
            outs = [place.out for place in places]
            shortcuts = find_shortcuts(model, walk.layers, outs, few) if walk.resumes else {}
        whole = sum(map(_weights, walk.layers))
        attention = sum(_weights(block.site) for block in prunable.attention)
        dtype = next(model.parameters()).dtype.itemsize
        shapes = [_shape(model.get_submodule(place.out), place) for place in places]
        stream = sum(dtype * stream.numel() // positions(few) for stream in streams[:1])
        widths = zip(outs, shapes, strict=True)
        return WalkedModel(
            tuple(places),
            tuple(shapes),
            len(walk.layers),
            attention / whole,
            stream,
            walk.resumes,
            tuple(
                dtype * shape.width / stream if out in shortcuts else 0.0 for out, shape in widths
            ),
            sum(stream.nbytes // positions(few) for stream in streams),
        )

    def over(self, tokens: Sequence[int], memory: int, *, keeping: bool = False) -> WalkForecast:
        """The runs over batches of these numbers of positions, padding included.

        Args:
            tokens: by batch.
            memory: bytes of streams to remember.
            keeping: whether the calibration keeps the streams of the unpruned model if there is room.
        """
        sizes = [self.stream * number for number in tokens]
        kept = self.kept * sum(tokens) if keeping else 0
        if not may_keep(kept, len(self.places), memory):
            kept = 0
        return WalkForecast(
            self.places, self.layers, sizes, memory, self.resumes, inputs=self.inputs, kept=kept
        )


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
