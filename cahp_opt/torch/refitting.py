"""Closed-form recovery: kept units take over what the removed ones can no longer say."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cahp_opt.progress import Progress, silent
from cahp_opt.torch.attention import Attention, AttentionBlock, find_attention
from cahp_opt.torch.batching import Batch, prepared
from cahp_opt.torch.blocks import out_bias, out_weight
from cahp_opt.torch.fidelity import wide
from cahp_opt.torch.linears import is_conv1d
from cahp_opt.torch.padding import Padding
from cahp_opt.torch.preserving import evaluating
from cahp_opt.torch.regression import RidgeSums
from cahp_opt.torch.walking import Point, Walk, check_runs_once

_MEMORY = 2**29
"""Bytes of residual streams remembered per model, so that a block costs one layer rather than all
layers before it; 512 MiB are 350 000 tokens of a model 384 wide, or 33 000 of one 4096 wide."""


def refit(
    model: nn.Module,
    dense: nn.Module,
    batches: Iterable[Batch],
    *,
    ridge: float = 1e-2,
    progress: Progress = silent,
) -> None:
    """Give the output projections of a sliced ``model`` new weights and biases, in place.

    Block after block along the pruned path, least squares on the kept units' outputs of what is missing
    in the residual stream after the attention: the dense block's output, and the drift that the
    stream has already picked up, so that later blocks repair what earlier ones lost. No labels, no
    gradients. Re-fitting the remaining weights of a layer on its pruned inputs is the step of ThiNet
    (Luo et al. 2017) and OSSCAR (Meng et al. 2024).

    The ridge penalty is on the *change* of the weights: where the texts do not say better, they stay.
    Without a removed unit nothing changes, whatever the penalty; and a large one does less harm than
    one that pulls the weights towards 0.

    Few texts overfit: take 1 500 or more. A block without kept units only gets a new bias; one
    without a bias is fitted without an intercept.

    Args:
        model: the sliced model. Only its output projections change; its mode stays.
        dense: the model that it was sliced from.
        batches: keyword arguments for both models, with ``attention_mask`` where there is padding.
            They are kept in memory for the time of the call, their activations only up to a limit.
        ridge: penalty on the change, relative to the mean variance of the kept units' outputs.
        progress: called once per block and batch.

    Raises:
        UnsupportedModelError: if the attention of a model is not understood.
        ValueError: if the models do not match, ``ridge`` is negative, ``batches`` is empty or cannot be
            used, or activations are NaN or infinite.
    """
    if not (ridge >= 0 and math.isfinite(ridge)):
        raise ValueError(f"`ridge` must be a finite number of at least 0, got {ridge}.")
    if model is dense:
        raise ValueError("`model` and `dense` are the same object; slice a copy and refit that.")
    attention, reference = find_attention(model), find_attention(dense)
    _check_match(attention, reference)
    padding = Padding(model, attention)
    data = list(batches)  # walked once per block, in the same order every time
    with torch.no_grad(), evaluating(model, dense):
        for batch in prepared(data[:1], dense):
            check_runs_once(dense, reference, batch)
        ahead, behind = Walk(dense, reference, _MEMORY), Walk(model, attention, _MEMORY)
        for b, block in enumerate(attention):
            stage = f"refit block {b + 1}/{len(attention)}"
            sums = _sums(block)
            both = zip(prepared(data, model), prepared(data, dense), strict=True)
            for number, (batch, dense_batch) in enumerate(both):
                goal, here = ahead.to(b, dense_batch, number), behind.to(b, batch, number)
                heads = wide(here.heads)[..., :0] if block.ghost else wide(here.heads)
                missing = _stream(goal).to(heads.device) - _stream(here)
                sums.add(padding.rows(b, heads, batch), padding.rows(b, missing, batch))
                progress(stage, number + 1, len(data))
            if not sums.finite:
                raise ValueError(
                    f"activations at block {block.name!r} hold NaN or infinite values; check the "
                    "weights and the precision of both models."
                )
            _correct(block, *sums.solve(ridge, intercept=out_bias(block) is not None))


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
