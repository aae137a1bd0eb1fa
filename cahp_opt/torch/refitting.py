"""Closed-form recovery: kept units take over what the removed ones can no longer say."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cahp_opt.progress import Progress, silent
from cahp_opt.recovery import Weighting
from cahp_opt.torch.attention import Attention, AttentionBlock, find_attention
from cahp_opt.torch.batching import Batch, batch_size, length, prepare, prepared
from cahp_opt.torch.blocks import out_bias, out_weight
from cahp_opt.torch.fidelity import wide
from cahp_opt.torch.linears import is_conv1d
from cahp_opt.torch.padding import Padding
from cahp_opt.torch.preserving import evaluating
from cahp_opt.torch.regression import RidgeSums
from cahp_opt.torch.repeating import Repeated
from cahp_opt.torch.token_weights import TokenWeights
from cahp_opt.torch.walking import Point, Walk, check_runs_once

RIDGES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 10.0)
"""What :func:`refit` chooses the penalty from."""

_USUAL = 1e-2  # where there are too few examples to hold some out
_SHARE = 5  # one example in so many is held out


@dataclass(frozen=True)
class BlockFit:
    """How one block was fitted.

    Args:
        block: its name.
        ridge: the penalty that was used.
        unexplained: what the fit leaves of the squared error on examples that it did not see, as a
            share of the error without a fit, so that more than 1 is a loss; None where no example was
            held out.
    """

    block: str
    ridge: float
    unexplained: float | None = None


def refit(
    model: nn.Module,
    dense: nn.Module,
    batches: Iterable[Batch],
    *,
    ridge: float | None = None,
    weighting: Weighting | TokenWeights = Weighting.SENSITIVITY,
    memory: int = 2**29,
    progress: Progress = silent,
) -> tuple[BlockFit, ...]:
    """Give the output projections of a sliced ``model`` new weights and biases, in place.

    Block after block along the pruned path, least squares on the kept units' outputs of what is missing
    in the residual stream after the attention: the dense block's output, and the drift that the
    stream has already picked up, so that later blocks repair what earlier ones lost. No labels, no
    gradients. Re-fitting the remaining weights of a layer on its pruned inputs is the step of ThiNet
    (Luo et al. 2017) and OSSCAR (Meng et al. 2024).

    The ridge penalty is on the *change* of the weights: where the texts do not say better, they stay.
    Without a removed unit nothing changes, whatever the penalty; and a large one does less harm than
    one that pulls the weights towards 0. It is chosen per block: every fifth example is held out, the
    penalty of :data:`RIDGES` whose fit on the others is best there wins, and the block is fitted with it
    on all examples. All of that comes from the same running sums, without another pass over the data.

    Tokens count by how strongly the dense model's output depends on what the block writes there, so that
    no weight is spent on what is never read: a classifier that reads one token needs nothing else from
    its last block. That takes one more forward and backward pass of the dense model per example.

    Few texts overfit: take 1 500 or more. A block without kept units only gets a new bias; one
    without a bias is fitted without an intercept.

    Args:
        model: the sliced model. Only its output projections change; its mode stays.
        dense: the model that it was sliced from.
        batches: keyword arguments for both models, with ``attention_mask`` where there is padding. They
            are walked through once per block and must be the same every time, such as a list or a
            ``DataLoader`` that does not shuffle; a generator's are kept in memory for the time of the
            call.
        ridge: penalty on the change, relative to the mean variance of the kept units' outputs; None to
            choose it (1e-2 with fewer than five examples).
        weighting: how much each token counts; :class:`~cahp_opt.torch.TokenWeights` of ``dense`` for a
            fidelity of your own, or to take the weights once for several refits on the same batches.
        memory: bytes of residual streams that may be remembered, so that a block costs one layer rather
            than all layers before it. Half of it is for each model; what the default holds is 175 000
            tokens of models 384 wide, or 16 000 of models 4096 wide, padding included. Beside it
            the weights are kept, one number per token and block.
        progress: called once per block and batch.

    Returns:
        How each block was fitted, in the order of the blocks.

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
    attention, reference = find_attention(model), find_attention(dense)
    _check_match(attention, reference)
    padding = Padding(model, attention)
    data, total = Repeated(batches), length(batches)
    fits = list[BlockFit]()
    with torch.no_grad(), evaluating(model, dense):
        check_runs_once(dense, reference, next(prepared(data, dense)))
        weights, unknown = _token_weights(dense, weighting), False
        ahead, behind = Walk(dense, reference, memory // 2), Walk(model, attention, memory // 2)
        for b, block in enumerate(attention):
            stage = f"refit block {b + 1}/{len(attention)}"
            sums, held_out = _sums(block), _sums(block)
            done = examples = 0
            for done, raw in enumerate(data, start=1):
                batch, dense_batch = (
                    prepare(raw, m, f"batches[{done - 1}]") for m in (model, dense)
                )
                goal, here = ahead.to(b, dense_batch, done - 1), behind.to(b, batch, done - 1)
                heads = wide(here.heads)[..., :0] if block.ghost else wide(here.heads)
                missing = _stream(goal).to(heads.device) - _stream(here)
                x, y = padding.rows(b, heads, batch), padding.rows(b, missing, batch)
                w = y.new_ones(len(y))
                if weights is not None:
                    by_token = weights.of(b, missing, dense_batch, done - 1)
                    w = padding.rows(b, by_token, batch)[:, 0]
                    known = w.isfinite()
                    unknown |= not bool(known.all())
                    w = torch.where(known, w, 1)  # activations tell better where it went wrong
                apart = padding.rows(b, _held_out(heads, examples, batch), batch)[:, 0]
                if ridge is None and bool(apart.any()):
                    held_out.add(x[apart], y[apart], w[apart])
                    x, y, w = x[~apart], y[~apart], w[~apart]
                sums.add(x, y, w)
                examples += batch_size(batch)
                progress(stage, done, total)
            total = done
            if not (sums.finite and held_out.finite):
                raise ValueError(
                    f"activations at block {block.name!r} hold NaN or infinite values; check the "
                    "weights and the precision of both models."
                )
            intercept = out_bias(block) is not None
            fits.append(_choose(block, sums, held_out, ridge, intercept))
            sums.merge(held_out)
            if sums.count:  # else the output depends on nothing that the block writes
                _correct(block, *sums.solve(fits[-1].ridge, intercept=intercept))
    if unknown:
        raise ValueError(
            "the gradients of the output of `dense` hold NaN or infinite values, although its activations "
            "do not; load it in float32, or pass `weighting=Weighting.EQUAL`. `model` was refitted with "
            "equal weights where there were none."
        )
    return tuple(fits)


def _token_weights(dense: nn.Module, weighting: Weighting | TokenWeights) -> TokenWeights | None:
    if isinstance(weighting, TokenWeights):
        if weighting.dense is not dense:
            raise ValueError(
                "`weighting` was taken on another model than `dense`; take it on that."
            )
        return weighting
    if weighting is Weighting.EQUAL:
        return None
    try:
        return TokenWeights(dense)
    except ValueError as error:
        raise ValueError(
            f"`weighting` needs to know what the output of `dense` is: {error} Give it as "
            "`weighting=TokenWeights(dense, fidelity=...)`, or take `Weighting.EQUAL`."
        ) from None


def _held_out(values: Tensor, before: int, batch: Batch) -> Tensor:
    """Which positions of ``values [..., width]`` belong to an example that is held out, ``[..., 1]``.

    It depends on the number of the example in the data, and so not on how examples are batched.
    """
    positions, size = values.shape[:-1], batch_size(batch)
    rows = math.prod(positions)
    example = before + torch.arange(rows, device=values.device) * size // max(rows, 1)
    return (example % _SHARE == _SHARE - 1).view(*positions, 1)


def _choose(
    block: AttentionBlock,
    sums: RidgeSums,
    held_out: RidgeSums,
    ridge: float | None,
    intercept: bool,
) -> BlockFit:
    if ridge is not None or not (sums.count and held_out.count):
        return BlockFit(block.name, _USUAL if ridge is None else ridge)
    weights = torch.zeros_like(out_weight(block)[:, : sums.inputs], dtype=torch.float64)
    unchanged = held_out.error(weights, None)
    solutions = sums.solutions(RIDGES, intercept=intercept)
    errors = [held_out.error(*solution) for solution in solutions]
    least = min(errors)
    unexplained = least / unchanged if unchanged else 0.0
    return BlockFit(block.name, RIDGES[errors.index(least)], unexplained)


def _stream(point: Point) -> Tensor:
    """The residual stream after the attention (before the norm, in models that have it there)."""
    return wide(point.residual) + wide(point.out)


def _correct(block: AttentionBlock, weights: Tensor, intercept: Tensor | None) -> None:
    """Add fitted weights ``[hidden, width]`` and the intercept to the output projection's."""
    bias = out_bias(block)
    if bias is not None and intercept is not None:
        bias.copy_(bias + intercept)
    if not block.ghost:
        weight = block.out.get_parameter("weight")
        weight.copy_(weight + (weights.T if is_conv1d(block.out) else weights))


def _sums(block: AttentionBlock) -> RidgeSums:
    weight = out_weight(block)
    return RidgeSums(0 if block.ghost else block.width, len(weight), weight.device)


def _check_match(attention: Attention, reference: Attention) -> None:
    mine, theirs = [b.name for b in attention], [b.name for b in reference]
    if mine != theirs:
        raise ValueError(
            f"`model` has the blocks {mine} and `dense` has {theirs}; pass the model that `model` was "
            "sliced from."
        )
    for small, large in zip(attention, reference, strict=True):
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


def _hidden(block: AttentionBlock) -> int:
    return out_weight(block).shape[0]
