"""A sliced model and the one it was sliced from: the blocks of both, found and compared."""

from __future__ import annotations

from torch import nn

from cahp_opt.torch.blocks.blocks import out_weight
from cahp_opt.torch.blocks.finder import (
    AttentionBlock,
    Prunable,
    PrunableBlock,
    blocks_cut,
    find_prunable,
)


def both_found(
    model: nn.Module | Prunable, dense: nn.Module | Prunable
) -> tuple[Prunable, Prunable]:
    """The blocks of both: those that were given, or of the kinds of those, or all that was cut.

    Raises:
        ValueError: if both are one model.
    """
    if isinstance(dense, Prunable):
        small, whole = model if isinstance(model, Prunable) else _like(dense, model), dense
    else:
        small = blocks_cut(model)
        whole = _like(small, dense)
    if small.model is whole.model:
        raise ValueError("`model` and `dense` are the same object; slice a copy and recover that.")
    return small, whole


def _like(prunable: Prunable, model: nn.Module) -> Prunable:
    heads, neurons = bool(prunable.attention), bool(prunable.feed_forward)
    return find_prunable(model, heads=heads, neurons=neurons)


def check_match(sliced: Prunable, whole: Prunable) -> None:
    """Refuse two models of which the first was not sliced from the second.

    Raises:
        ValueError: naming the block in which they differ.
    """
    mine, theirs = [b.name for b in sliced], [b.name for b in whole]
    if mine != theirs:
        raise ValueError(
            f"`model` has the blocks {mine} and `dense` has {theirs}; pass the model that `model` was "
            "sliced from."
        )
    for small, large in zip(sliced, whole, strict=True):
        if not (isinstance(small, AttentionBlock) and isinstance(large, AttentionBlock)):
            if small.width > large.width:
                raise ValueError(
                    f"block {small.name!r} has {small.width} neurons in `model` and {large.width} in "
                    "`dense`; pass the model that `model` was sliced from."
                )
        elif small.heads > large.heads or small.head_dim != large.head_dim:
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
