"""Closed-form recovery: least squares on the outputs of the kept units."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cahp_opt.progress import Progress, silent
from cahp_opt.runs.recovery import Weighting
from cahp_opt.torch.blocks.blocks import out_weight
from cahp_opt.torch.blocks.finder import AttentionBlock, Prunable, PrunableBlock, find_attention
from cahp_opt.torch.blocks.linear_layers import bias_of, is_conv1d, row_weight
from cahp_opt.torch.calibration.token_weights import TokenWeights
from cahp_opt.torch.recovery.feed_forward import (
    FeedForward,
    find_feed_forward,
    is_plain_linear,
    is_used_once,
)
from cahp_opt.torch.recovery.layer_walk import LayerWalk, check_runs_once
from cahp_opt.torch.recovery.ridge import RidgeSums
from cahp_opt.torch.running.batches import Batch, batch_size, length, prepare, wide
from cahp_opt.torch.running.padding import Padding
from cahp_opt.torch.running.preparing import PaddingCheck, prepared
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
        block: the name of its attention block.
        ridge: the penalty of the fit.
        unexplained: the squared error of the fit on held-out examples, relative to that without a
            fit; if above 1, the layer was left as it was. None if no example was held out.
        feed_forward: whether it is the output of the feed-forward part behind the block rather than the
            block's output projection.
    """

    block: str
    ridge: float
    unexplained: float | None = None
    feed_forward: bool = False


def refit(
    model: nn.Module,
    dense: nn.Module,
    batches: Iterable[Batch],
    *,
    ridge: float | None = None,
    weighting: Weighting | TokenWeights = Weighting.SENSITIVITY,
    feed_forward: bool = True,
    memory: int = 2**29,
    progress: Progress = silent,
) -> tuple[BlockFit, ...]:
    """Refit the layers by which a sliced ``model`` writes to its residual stream, in place.

    In the order of the blocks, first the output projection of each block's attention and then the
    last linear layer of the feed-forward part behind it, where that is understood, change by the
    weights ``D`` and the bias ``d`` of::

        min over D, d: sum_t w_t |r_t - D z_t - d|^2 / sum_t w_t + ridge * mean(diag C) * |D|^2

    ``z_t`` is the layer's input at token ``t`` in the sliced model, and ``C`` its covariance;
    ``r_t`` is what is missing in the stream behind the layer, dense minus sliced, so that later
    layers repair what earlier ones lost; and ``w_t = E[g_t' g_t]``, with ``g_t`` the gradient of
    the dense model's probed output by what the block's attention writes at ``t`` (see
    :class:`~cahp_opt.torch.TokenWeights`). No labels, no gradient steps. Refitting the remaining
    weights of a layer on its pruned inputs is the step of ThiNet (Luo et al. 2017) and OSSCAR (Meng
    et al. 2024).

    The penalty is on the *change* of the weights, so that without a removed unit nothing changes.
    It is chosen per layer: every fifth example is held out, the penalty of :data:`RIDGES` whose fit
    on the others is best there wins, and the layer is fitted with it on all examples, or left as it
    is if no penalty improves it. All of that comes from the same running sums.

    Few texts overfit: take 1 500 or more. A block without kept units only gets a new bias; a layer
    without a bias is fitted without ``d``, and then ``C`` is about 0.

    Args:
        model: the sliced model. Only these layers change; its mode stays.
        dense: the model that it was sliced from.
        batches: keyword arguments for both models, with ``attention_mask`` where there is padding. They
            are iterated once per layer that is fitted and must be the same every time, such as a
            list or a ``DataLoader`` that does not shuffle; those of a generator are kept in memory
            during the call.
        ridge: the penalty, as above; None to choose it (1e-2 with fewer than five examples).
        weighting: the weights ``w_t``, which take one more forward and backward pass of ``dense``
            per example, or 1 for every token; :class:`~cahp_opt.torch.TokenWeights` of ``dense``
            for a fidelity of your own, or to take the weights once for several refits on the same
            batches.
        feed_forward: whether the feed-forward parts are fitted too. It repairs more, takes several
            times as long, and up to six square matrices of its inner width in double precision. A
            part that does not add to the stream unchanged and alone is left as it is: routed
            experts, a norm or a factor behind it, adapters, weights that are used elsewhere too.
        memory: bytes of residual streams to remember, half for each model, so that a block costs
            one layer rather than all layers before it. The default holds 175 000 tokens, padding
            included, of models 384 wide, or 16 000 of models 4096 wide. The weights, one number per
            token and block, are kept beside it.
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
    if model is dense:
        raise ValueError("`model` and `dense` are the same object; slice a copy and refit that.")
    return refit_found(
        find_attention(model),
        find_attention(dense),
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
    weighting: Weighting | TokenWeights = Weighting.SENSITIVITY,
    feed_forward: bool = True,
    memory: int = 2**29,
    progress: Progress = silent,
) -> tuple[BlockFit, ...]:
    """:func:`refit` for a sliced and a dense model whose blocks were found already."""
    _check_match(small, whole)
    model, dense, data = small.model, whole.model, Repeated(batches)
    with torch.no_grad(), evaluating(model, dense):
        first = next(prepared(data, dense))
        check_runs_once(whole, first)
        passes = _Passes(
            data,
            length(batches),
            LayerWalk(whole, memory // 2),
            LayerWalk(small, memory // 2),
            Padding(small),
            _token_weights(whole, weighting),
            progress,
            PaddingCheck(dense),
        )
        fits = list[BlockFit]()
        for b, block in enumerate(small):
            stage = f"refit block {b + 1}/{len(small)}"
            fits.append(passes.fit(_of_attention(b, block), ridge, stage))
            found = find_feed_forward(passes.ahead, b, first, 0) if feed_forward else None
            if found is not None and _may_be_fitted(model, found.out, dense):
                place = _of_feed_forward(block, found, model)
                fits.append(passes.fit(place, ridge, f"{stage}, feed-forward"))
    if passes.unknown:
        raise ValueError(
            "the gradients of the output of `dense` hold NaN or infinite values, although its activations "
            "are finite; load it in float32, or pass `weighting=Weighting.EQUAL`. `model` was refitted with "
            "the weight 1 for those tokens."
        )
    return tuple(fits)


def check_refittable(prunable: Prunable, batch: Batch) -> None:
    """Refuse a model, sliced or not, that :func:`refit` could not walk: run one batch through it.

    Args:
        prunable: the blocks of the model, unpruned or sliced.
        batch: keyword arguments for it.

    Raises:
        ValueError: if its layers cannot be run one after the other.
    """
    model = prunable.model
    with torch.no_grad(), evaluating(model):
        ready = prepare(batch, model, "batches[0]")
        check_runs_once(prunable, ready)
        walk = LayerWalk(prunable, 2**29)
        for block in range(len(prunable)):
            walk.to(block, ready, 0)


class _Place(NamedTuple):
    """A linear layer that is fitted.

    Args:
        block: the number of its block.
        fit: how the fit is reported.
        name: for messages.
        out: the layer.
        inputs: the number of its input features that are fitted, from the first.
        meet: gives its input ``[..., inputs]`` and the stream behind it ``[..., hidden]``, in the
            model of a walk.
    """

    block: int
    fit: BlockFit
    name: str
    out: nn.Module
    inputs: int
    meet: Callable[[LayerWalk, Batch, int], tuple[Tensor, Tensor]]

    def sums(self) -> RidgeSums:
        weight = row_weight(self.out)
        return RidgeSums(self.inputs, len(weight), weight.device)


def _of_attention(number: int, block: PrunableBlock) -> _Place:
    def meet(walk: LayerWalk, batch: Batch, index: int) -> tuple[Tensor, Tensor]:
        """The stream is before the norm, in models that have it there."""
        point = walk.to(number, batch, index)
        return point.heads, wide(point.residual) + wide(point.out)

    inputs = 0 if block.ghost else block.width
    fit = BlockFit(block.name, _USUAL)
    return _Place(number, fit, f"block {block.name!r}", block.out, inputs, meet)


def _of_feed_forward(block: PrunableBlock, found: FeedForward, model: nn.Module) -> _Place:
    out = model.get_submodule(found.out)
    fit = BlockFit(block.name, _USUAL, feed_forward=True)
    return _Place(found.block, fit, repr(found.out), out, row_weight(out).shape[1], found.meet)


@dataclass(eq=False)
class _Passes:
    """The passes over the data, one for every layer that is fitted.

    Args:
        data: the batches.
        total: the number of batches; 0 before they were counted.
        ahead: through the dense model.
        behind: through the sliced model.
        padding: which tokens count.
        weights: their weights; None for 1 each.
        progress: called once per layer and batch.
        rows: refuses batches in which padding changes what is read.
        unknown: whether a token had no finite weight.
    """

    data: Repeated
    total: int
    ahead: LayerWalk
    behind: LayerWalk
    padding: Padding
    weights: TokenWeights | None
    progress: Progress
    rows: PaddingCheck
    unknown: bool = False

    def fit(self, place: _Place, ridge: float | None, stage: str) -> BlockFit:
        """Fit a layer, in place."""
        sums, held_out = self._sums(place, stage, hold_out=ridge is None)
        if not (sums.finite and held_out.finite):
            raise ValueError(
                f"activations at {place.name} hold NaN or infinite values; check the weights and the "
                "precision of both models."
            )
        bias = bias_of(place.out)
        fit = _choose(place.fit, sums, held_out, ridge, intercept=bias is not None)
        sums.merge(held_out)
        # If all weights are 0, the output does not depend on this layer.
        if sums.count and (fit.unexplained is None or fit.unexplained <= 1):
            _correct(place, bias, *sums.solve(fit.ridge, intercept=bias is not None))
        return fit

    def _sums(self, place: _Place, stage: str, *, hold_out: bool) -> tuple[RidgeSums, RidgeSums]:
        sums, held_out, b = place.sums(), place.sums(), place.block
        examples = done = 0
        for done, raw in enumerate(self.data, start=1):
            batch, dense_batch = (
                prepare(raw, walk.model, f"batches[{done - 1}]")
                for walk in (self.behind, self.ahead)
            )
            self.rows.check(dense_batch, f"batches[{done - 1}]")
            _, goal = place.meet(self.ahead, dense_batch, done - 1)
            met, stream = place.meet(self.behind, batch, done - 1)
            inputs = wide(met)[..., : place.inputs]
            missing = wide(goal).to(inputs.device) - wide(stream)
            x, y = (self.padding.rows(b, values, batch) for values in (inputs, missing))
            w = y.new_ones(len(y))
            if self.weights is not None:
                by_token = self.weights.of(b, missing, dense_batch, done - 1)
                w = self.padding.rows(b, by_token, batch)[:, 0]
                known = w.isfinite()
                self.unknown |= not bool(known.all())
                w = torch.where(
                    known, w, 1
                )  # the check of activations reports better where it went wrong
            apart = self.padding.rows(b, _held_out(inputs, examples, batch), batch)[:, 0]
            if hold_out and bool(apart.any()):
                held_out.add(x[apart], y[apart], w[apart])
                x, y, w = x[~apart], y[~apart], w[~apart]
            sums.add(x, y, w)
            examples += batch_size(batch)
            self.progress(stage, done, self.total)
        self.total = done
        return sums, held_out


def _token_weights(whole: Prunable, weighting: Weighting | TokenWeights) -> TokenWeights | None:
    if isinstance(weighting, TokenWeights):
        if weighting.dense is not whole.model:
            raise ValueError(
                "`weighting` was taken on another model than `dense`; take it on `dense`."
            )
        return weighting
    if weighting is Weighting.EQUAL:
        return None
    try:
        return TokenWeights(whole)
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


def _may_be_fitted(model: nn.Module, path: str, dense: nn.Module) -> bool:
    """Whether the layer at ``path`` is the sliced model's own, and one whose weights can be set."""
    out = model.get_submodule(path)
    theirs = {id(parameter) for parameter in dense.parameters()}
    own = not any(id(parameter) in theirs for parameter in out.parameters())
    return own and is_plain_linear(out) and is_used_once(model, path)


def _choose(
    fit: BlockFit, sums: RidgeSums, held_out: RidgeSums, ridge: float | None, *, intercept: bool
) -> BlockFit:
    if ridge is not None or not (sums.count and held_out.count):
        return replace(fit, ridge=_USUAL if ridge is None else ridge)
    unchanged = held_out.error(sums.nothing(), None)
    solutions = sums.solutions(RIDGES, intercept=intercept)
    errors = [held_out.error(*solution) for solution in solutions]
    least = min(errors)
    unexplained = least / unchanged if unchanged else 0.0
    return replace(fit, ridge=RIDGES[errors.index(least)], unexplained=unexplained)


def _correct(place: _Place, bias: Tensor | None, weights: Tensor, intercept: Tensor | None) -> None:
    """Add fitted weights ``[targets, inputs]`` and the intercept to those of the layer."""
    if bias is not None and intercept is not None:
        bias.copy_(bias + _there(intercept, bias))
    if place.inputs:
        weight = place.out.get_parameter("weight")
        weight.copy_(weight + _there(weights.T if is_conv1d(place.out) else weights, weight))


def _there(change: Tensor, weight: Tensor) -> Tensor:
    """A change on the device of the weight; in single precision on another device."""
    return change if change.device == weight.device else change.float().to(weight.device)


def _check_match(sliced: Prunable, whole: Prunable) -> None:
    mine, theirs = [b.name for b in sliced], [b.name for b in whole]
    if mine != theirs:
        raise ValueError(
            f"`model` has the blocks {mine} and `dense` has {theirs}; pass the model that `model` was "
            "sliced from."
        )
    for small, large in zip(sliced, whole, strict=True):
        if not (isinstance(small, AttentionBlock) and isinstance(large, AttentionBlock)):
            continue
        if small.heads > large.heads or small.head_dim != large.head_dim:
            raise ValueError(
                f"block {small.name!r} has {small.heads} heads of width {small.head_dim} in `model` "
                f"and {large.heads} of {large.head_dim} in `dense`; pass the model that `model` was "
                "sliced from."
            )
        if _hidden(small) != _hidden(large):
            raise ValueError(
                f"block {small.name!r} writes {_hidden(small)} features in `model` and {_hidden(large)} in "
                "`dense`; pass the model that `model` was sliced from."
            )


def _hidden(block: PrunableBlock) -> int:
    return out_weight(block).shape[0]
