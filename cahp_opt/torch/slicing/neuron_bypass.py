"""Skipping feed-forward parts without kept groups, one layer at a time (see skipped_neurons.py)."""

from __future__ import annotations

from cahp_opt.torch.blocks.blocks import FeedForwardBlock
from cahp_opt.torch.blocks.linear_layers import base_linear, row_weight
from cahp_opt.torch.slicing.skipped_neurons import BiasAlone, FewNeurons, skip_layers


def is_free(block: FeedForwardBlock) -> bool:
    """Whether nothing stands around the block's layers: no adapter, and no forward of their own."""
    layers = (*block.ins, block.out)
    return all(base_linear(m) is m and "forward" not in vars(m) for m in layers)


def is_skipped(block: FeedForwardBlock) -> bool:
    """Whether a block's layers are skipped."""
    return isinstance(vars(block.out).get("forward"), BiasAlone)


def skip(block: FeedForwardBlock) -> None:
    """Skip the layers of a block without kept groups, in place."""
    stored, hidden = block.width, row_weight(block.out).shape[0]
    ins = {
        path: row_weight(layer).shape[0] // stored
        for path, layer in zip(block.layout.ins, block.ins, strict=True)
    }
    skip_layers(block.site, ins, block.layout.out, stored=stored, hidden=hidden)


def unskip(block: FeedForwardBlock) -> None:
    """Let the layers of a block run again."""
    for layer in (*block.ins, block.out):
        if isinstance(vars(layer).get("forward"), FewNeurons | BiasAlone):
            del vars(layer)["forward"]
