"""Closed-form recovery: least squares on the outputs of the kept units."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cahp_opt.progress import Progress, silent
from cahp_opt.runs.recovery import Weighting
from cahp_opt.torch.blocks.blocks import CUT, Cut
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.blocks.linear_layers import base_linear, bias_of, is_conv1d, row_weight
from cahp_opt.torch.recovery.feed_forward import is_plain_linear, is_used_once
from cahp_opt.torch.recovery.kept_streams import STREAM_BYTES
from cahp_opt.torch.recovery.layer_walk import Behind, Place, check_runs_once
from cahp_opt.torch.recovery.matching import both_found, check_match
from cahp_opt.torch.recovery.path import check_walkable, places_of, with_attention
from cahp_opt.torch.recovery.ridge import RidgeSums, RowBuffer
from cahp_opt.torch.recovery.side_by_side import Gap, SideBySide
from cahp_opt.torch.recovery.token_weights import TokenWeights
from cahp_opt.torch.running.batches import Batch, batch_size, length
from cahp_opt.torch.running.preparing import prepared
from cahp_opt.torch.running.repeatable_batches import Repeated
from cahp_opt.torch.running.undisturbed import evaluating

RIDGES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 10.0)
"""The penalties that :func:`refit` chooses from."""

_USUAL = 1e-2  # the penalty if there are too few examples to hold some out
_SHARE = 5  # one example in this many is held out


@dataclass(frozen=True)
class BlockFit:
    """How one linear layer was fitted.

    Args:
        block: the name of its block; of a feed-forward part that is no block, of the attention block before
            it.
        ridge: the penalty of the fit.
        unexplained: the squared error of the fit on held-out examples, relative to that without a
            fit; if above 1, the layer was left as it was. None if no example was held out.
        feed_forward: whether it is the output of a feed-forward part rather than of attention.
    """

    block: str
    ridge: float
    unexplained: float | None = None
    feed_forward: bool = False


def refit(
    model: nn.Module | Prunable,
    dense: nn.Module | Prunable,
    batches: Iterable[Batch],
    *,
    ridge: float | None = None,
    weighting: Weighting | TokenWeights = Weighting.AUTO,
    feed_forward: bool = True,
    memory: int = STREAM_BYTES,
    progress: Progress = silent,
) -> tuple[BlockFit, ...]:
    """Refit the layers by which a sliced ``model`` writes to its residual stream, in place.

    Layer by layer, first the output projection of attention and then the last linear layer of the
    feed-forward part behind it, pruned or where it is understood, change by the weights ``D`` and the
    bias ``d`` of::

        min over D, d: sum_t w_t |r_t - D z_t - d|^2 / sum_t w_t + ridge * mean(diag C) * |D|^2

    ``z_t`` is the layer's input at token ``t`` in the sliced model, and ``C`` its covariance;
    ``r_t`` is what is missing in the stream behind the layer, dense minus sliced, so that later
    layers repair what earlier ones lost; and ``w_t = E[g_t' g_t]``, with ``g_t`` the gradient of
    the dense model's probed output by what the block writes at ``t`` (see
    :class:`~cahp_opt.torch.TokenWeights`; of a feed-forward part that is no block, by what the
    attention before it writes). No labels, no gradient steps. Refitting the remaining
    weights of a layer on its pruned inputs is the step of ThiNet (Luo et al. 2017) and OSSCAR (Meng
    et al. 2024).

    The penalty is on the *change* of the weights, so that without a removed unit nothing changes.
    It is chosen per layer: every fifth example is held out, the penalty of :data:`RIDGES` whose fit
    on the others is best there wins (the error falls and then rises with the penalty, so only those near that of
    the layer before are tried), and the layer is fitted with it on all examples, or left as it
    is if no penalty improves it. All of that comes from the same running sums.

    Few texts overfit: take 1 500 or more. A block without kept units only gets a new bias; a layer
    without a bias is fitted without ``d``, and then ``C`` is about 0.

    Args:
        model: the sliced model, or its blocks. Only these layers change; its mode stays. Of a model pruned in
            neurons alone the attention is fitted too, where it is understood.
        dense: the model that it was sliced from, or its blocks, of the same kinds.
        batches: keyword arguments for both models, with ``attention_mask`` where there is padding. They
            are iterated once per layer that is fitted and must be the same every time, such as a
            list or a ``DataLoader`` that does not shuffle; those of a generator are kept in memory
            during the call.
        ridge: the penalty, as above; None to choose it (1e-2 with fewer than five examples).
        weighting: the weights ``w_t``, which take a forward and a backward pass of ``dense``
            per example, or 1 for every token, as by default where ``dense`` embeds all of them; :class:`~cahp_opt.torch.TokenWeights` of ``dense``
            for a fidelity of your own, or to take the weights once for several refits on the same
            batches.
        feed_forward: whether the feed-forward parts are fitted too. It repairs more, takes several
            times as long, and up to six square matrices of the inner width that is left in double
            precision: 0.5 GB for 3072 neurons, 10 GB for 14336. A pruned part behind which there is a
            norm or a factor is fitted to its own output in ``dense``. One that was not asked to be
            pruned is left as it is then, and so are routed experts, adapters on it, and weights that
            are used elsewhere too.
        memory: bytes to remember: residual streams, a third at most each for those that the runs of either model
            resume from and for those to be met, so that every layer of ``dense`` runs once; and in what they
            leave over, what the refitted layers read, so that most of the sliced model runs once too. The
            streams of 700 000 tokens, padding included, of models 384 wide fill the default, or those of 65 000
            of models 4096 wide; what lies beyond costs more runs. Those that ``weighting`` kept count too, and
            ``dense`` does not run then. The weights, one number per token and block, are kept beside it.
        progress: called once per layer and batch.

    Returns:
        How each layer was fitted, in the order of the path.

    Raises:
        UnsupportedModelError: if the attention of a model is not understood.
        ValueError: if the models do not match, ``ridge`` or ``memory`` is negative, ``batches`` is empty,
            cannot be used or changes, or activations are NaN or infinite.
    """
    if not (ridge is None or (ridge >= 0 and math.isfinite(ridge))):
        raise ValueError(
            f"`ridge` must be a finite number of at least 0, or None to choose it, got {ridge}."
        )
    if memory < 0:
        raise ValueError(f"`memory` must be a number of bytes, at least 0, got {memory}.")
    small, whole = both_found(model, dense)
    return refit_found(
        small,
        whole,
        batches,
        ridge=ridge,
        weighting=weighting,
        feed_forward=feed_forward,
        memory=memory,
        progress=progress,
    )


def refit_found(
    small: Prunable,
    whole: Prunable,
    batches: Iterable[Batch],
    *,
    ridge: float | None = None,
    weighting: Weighting | TokenWeights = Weighting.AUTO,
    feed_forward: bool = True,
    memory: int = STREAM_BYTES,
    progress: Progress = silent,
) -> tuple[BlockFit, ...]:
    """:func:`refit` for a sliced and a dense model whose blocks were found already."""
    small, whole = with_attention(small), with_attention(whole)
    check_match(small, whole)
    with torch.no_grad(), evaluating(small.model, whole.model):
        fits = LayerFits(
            small,
            whole,
            batches,
            ridge=ridge,
            weights=_token_weights(whole, weighting, memory),
            feed_forward=feed_forward,
            memory=memory,
            progress=progress,
        )
        found = tuple(fits.fit(index) for index in range(len(fits.blocks)))
    if fits.unknown:
        raise ValueError(
            "the gradients of the output of `dense` hold NaN or infinite values, although its activations "
            "are finite; load it in float32, or pass `weighting=Weighting.EQUAL`. `model` was refitted with "
            "the weight 1 for those tokens."
        )
    return found


def check_refittable(prunable: Prunable, batch: Batch) -> None:
    """Refuse a model, sliced or not, that :func:`refit` could not walk: run one batch through it.

    Args:
        prunable: the blocks of the model, unpruned or sliced.
        batch: keyword arguments for it.

    Raises:
        ValueError: if its layers cannot be run one after the other.
    """
    check_walkable(with_attention(prunable), batch, feed_forward=bool(prunable.feed_forward))


class _Fitted(NamedTuple):
    """A linear layer of the sliced model that is fitted.

    Args:
        place: where it is, and where the stream behind it is seen.
        block: the number of its block, whose padding it has.
        out: the layer.
        inputs: the number of its input features that are fitted, from the first.
        feed_forward: whether it is part of a feed-forward part.
    """

    place: Place
    block: int
    out: nn.Module
    inputs: int
    feed_forward: bool

    def sums(self) -> RidgeSums:
        weight = row_weight(self.out)
        return RidgeSums(self.inputs, len(weight), weight.device)


def _fitted(places: Sequence[Place], small: Prunable, dense: nn.Module) -> Iterator[_Fitted]:
    """The places whose layers in the sliced model may be fitted."""
    numbers = {block.name: number for number, block in enumerate(small)}
    blocks = {id(block.out) for block in small}
    for place in places:
        out = small.model.get_submodule(place.out)
        if _may_be_fitted(small.model, place, dense, plain=id(out) not in blocks):
            number, attention = numbers[place.block], place.behind is Behind.ATTENTION
            # The mark of a feed-forward part is on its output layer, whether or not it is among the blocks.
            cut: Cut | None = getattr(base_linear(out), CUT, None)
            ghost = small.blocks[number].ghost if attention else cut is not None and not cut.kept
            yield _Fitted(
                place, number, out, 0 if ghost else row_weight(out).shape[1], not attention
            )


class LayerFits:
    """The fits of a refit, one after the other, with what may happen to the sliced model in between.

    Gradients are off and both models are in evaluation mode as long as it is used.

    Args:
        small: the blocks of the sliced model, or of one with gates on it.
        whole: those of the unpruned one.
        batches, ridge, feed_forward, memory, progress: as for :func:`refit`.
        weights: of the tokens; None for 1 each.
        blocks_alone: whether to leave alone what is not among the blocks.

    Raises:
        ValueError: as :func:`refit` does.
    """

    def __init__(
        self,
        small: Prunable,
        whole: Prunable,
        batches: Iterable[Batch],
        *,
        ridge: float | None = None,
        weights: TokenWeights | None = None,
        feed_forward: bool = True,
        blocks_alone: bool = False,
        memory: int = STREAM_BYTES,
        progress: Progress = silent,
    ) -> None:
        if weights is None:
            weights = TokenWeights(whole, weighting=Weighting.EQUAL, memory=0)
        data = Repeated(batches)
        first = next(prepared(data, whole.model))
        check_runs_once(whole, first)
        places = places_of(whole, first, feed_forward=feed_forward)
        own = {id(block.out): number for number, block in enumerate(small)}
        layers = list(_fitted(places, small, whole.model))
        self._layers = [one for one in layers if id(one.out) in own or not blocks_alone]
        self.blocks = tuple(own.get(id(one.out)) for one in self._layers)
        """The number of the block of every fit; None for a layer that is not among the blocks."""
        fitted = [one.place for one in self._layers]
        self._sides = SideBySide(
            small, whole, fitted, data, length(batches), memory=memory, weights=weights
        )
        self._ridge, self._weights, self._progress = ridge, weights, progress
        self._last = {False: _USUAL, True: _USUAL}  # penalties, by whether of a feed-forward part
        self._total = len(small)
        self.unknown = False
        """Whether a token had no finite weight."""

    def fit(self, index: int) -> BlockFit:
        """Fit a layer, in place; every one once, in their order."""
        layer, ridge = self._layers[index], self._ridge
        sums, held_out = self._sums(index, layer, hold_out=ridge is None)
        if not (sums.finite and held_out.finite):
            name = repr(layer.place.out) if layer.feed_forward else f"block {layer.place.block!r}"
            raise ValueError(
                f"activations at {name} hold NaN or infinite values; check the weights and the "
                "precision of both models."
            )
        bias = bias_of(layer.out)
        usual = BlockFit(layer.place.block, _USUAL, feed_forward=layer.feed_forward)
        fit = _choose(
            usual,
            sums,
            held_out,
            ridge,
            intercept=bias is not None,
            start=self._last[usual.feed_forward],
        )
        if fit.ridge in RIDGES:
            self._last[fit.feed_forward] = fit.ridge
        sums.merge(held_out)
        # If all weights are 0, the output does not depend on this layer.
        if sums.count and (fit.unexplained is None or fit.unexplained <= 1):
            _correct(layer, bias, *sums.solve(fit.ridge, intercept=bias is not None))
        return fit

    def _sums(self, index: int, layer: _Fitted, *, hold_out: bool) -> tuple[RidgeSums, RidgeSums]:
        fitted, apart = RowBuffer(layer.sums()), RowBuffer(layer.sums())
        stage = f"refit block {layer.block + 1}/{self._total}"
        stage += ", feed-forward" if self.blocks[index] is None else ""
        examples, rows = 0, self._sides.rows
        for gap in self._sides.gaps(index):
            inputs = gap.inputs[..., : layer.inputs]
            x, y = (rows(layer.block, values, gap) for values in (inputs, gap.missing))
            w = self._weights_of(layer, gap)
            held_out = rows(layer.block, _held_out(inputs, examples, gap.batch), gap)[:, 0]
            if hold_out and bool(held_out.any()):
                apart.add(x[held_out], y[held_out], w[held_out])
                x, y, w = x[~held_out], y[~held_out], w[~held_out]
            fitted.add(x, y, w)
            examples += batch_size(gap.batch)
            self._progress(stage, gap.number + 1, self._sides.total)
        return fitted.finish(), apart.finish()

    def _weights_of(self, layer: _Fitted, gap: Gap) -> Tensor:
        """The weight of every row that is not padding, ``[rows]``."""
        by_token = self._weights.of(layer.place.block, gap.missing, gap.dense_batch, gap.number)
        w = self._sides.rows(layer.block, by_token, gap)[:, 0]
        known = w.isfinite()
        self.unknown |= not bool(known.all())
        # The check of activations reports better where it went wrong.
        return torch.where(known, w, 1)


def _token_weights(
    whole: Prunable, weighting: Weighting | TokenWeights, memory: int
) -> TokenWeights:
    if isinstance(weighting, TokenWeights):
        if weighting.dense is not whole.model:
            raise ValueError(
                "`weighting` was taken on another model than `dense`; take it on `dense`."
            )
        return weighting
    try:
        return TokenWeights(whole, weighting=weighting, memory=memory)
    except ValueError as error:
        raise ValueError(
            f"`weighting` cannot be taken for the output of `dense`: {error} Pass "
            "`weighting=TokenWeights(dense, fidelity=...)` or `Weighting.EQUAL`."
        ) from None


def _held_out(values: Tensor, before: int, batch: Batch) -> Tensor:
    """Which positions of ``values [..., width]`` belong to an example that is held out, ``[..., 1]``.

    It depends on the number of the example in the data, and so not on how examples are batched.
    """
    positions, size = values.shape[:-1], batch_size(batch)
    rows = math.prod(positions)
    example = before + torch.arange(rows, device=values.device) * size // max(rows, 1)
    return (example % _SHARE == _SHARE - 1).view(*positions, 1)


def _may_be_fitted(model: nn.Module, place: Place, dense: nn.Module, *, plain: bool) -> bool:
    """Whether a layer is the sliced model's own, and one whose weights can be set; ``plain`` for without a
    wrapper."""
    out = model.get_submodule(place.out)
    theirs = {id(parameter) for parameter in dense.parameters()}
    if any(id(parameter) in theirs for parameter in out.parameters()):
        return False
    if place.behind is Behind.ATTENTION:
        return True
    return (is_plain_linear(out) or not plain) and is_used_once(model, place.out)


def _choose(
    fit: BlockFit,
    sums: RidgeSums,
    held_out: RidgeSums,
    ridge: float | None,
    *,
    intercept: bool,
    start: float,
) -> BlockFit:
    """With the penalty that is given, or the best of :data:`RIDGES` on what was held out, from ``start`` on."""
    if ridge is not None or not (sums.count and held_out.count):
        return replace(fit, ridge=_USUAL if ridge is None else ridge)
    unchanged = held_out.error(sums.nothing(), None)
    if not unchanged:
        return replace(fit, ridge=RIDGES[0], unexplained=0.0)
    equations = sums.equations(intercept=intercept)

    def error(index: int) -> float:
        return held_out.error(*equations.solution(RIDGES[index]))

    best, least = _lowest(error, len(RIDGES), RIDGES.index(start))
    return replace(fit, ridge=RIDGES[best], unexplained=least / unchanged)


def _lowest(value: Callable[[int], float], number: int, start: int) -> tuple[int, float]:
    """Where the lowest of some values is, the first of equal ones, and that value.

    They fall and then rise, as errors do with the penalty of a fit; so only those from ``start`` to the lowest
    are computed, and its neighbours.
    """
    best, least = start, value(start)
    for step in (-1, 1):
        while 0 <= best + step < number:
            there = value(best + step)
            if there > least or (step > 0 and there == least):
                break
            best, least = best + step, there
        if best < start:
            break
    return best, least


def _correct(
    layer: _Fitted, bias: Tensor | None, weights: Tensor, intercept: Tensor | None
) -> None:
    """Add fitted weights ``[targets, inputs]`` and the intercept to those of the layer."""
    if bias is not None and intercept is not None:
        bias.copy_(bias + _there(intercept, bias))
    if layer.inputs:
        weight = layer.out.get_parameter("weight")
        weight.copy_(weight + _there(weights.T if is_conv1d(layer.out) else weights, weight))


def _there(change: Tensor, weight: Tensor) -> Tensor:
    """A change on the device of the weight; in single precision on another device."""
    return change if change.device == weight.device else change.float().to(weight.device)
