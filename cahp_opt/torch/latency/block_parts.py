"""The modules whose time is the time of a block.

An attention block is one module. A feed-forward part is one in most decoders; in BERT it is two siblings, which
hold the activation, or the norm and the residual, too; in OPT its layers lie bare in the module of the layer,
beside attention. So its parts are the largest modules that run and hold a layer of the block and no other linear
layer, and what runs between its layers outside of these. Arithmetic that is in no module of its own, such
as a product of gates, is left to the fit of whole models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from torch import nn

from cahp_opt.torch.blocks.blocks import (
    FeedForwardBlock,
    Prunable,
    PrunableBlock,
    submodules,
    within,
)
from cahp_opt.torch.blocks.linear_layers import is_linear


def watched(prunable: Prunable, block: PrunableBlock) -> dict[str, nn.Module]:
    """The modules of a block's site to listen to, by their paths there, so that :func:`parts` can choose."""
    if not isinstance(block, FeedForwardBlock):
        return {"": block.site}
    wanted = {path for chain in _chains(prunable, block) for path in chain}
    others = _in_attention(prunable)
    return {
        path: module
        for path, module in submodules(block.site)
        if path in wanted or (id(module) not in others and not _has_weights(module))
    }


def parts(prunable: Prunable, block: PrunableBlock, called: Sequence[str]) -> tuple[str, ...]:
    """The paths of a block's parts in its site; none if it did not run.

    Args:
        prunable: all blocks of the model.
        block: one of them.
        called: the paths of :func:`watched`, in the order of their calls in one run.
    """
    if not isinstance(block, FeedForwardBlock):
        return ("",) if called else ()
    found: list[str] = []
    for chain in _chains(prunable, block):
        largest = next((path for path in chain if path in called), None)
        if largest is None:
            return ()
        found.append(largest)
    start = called.index(block.layout.ins[0])
    end = called.index(block.layout.out, start)  # of its first run, if several layers share it
    inside: Mapping[str, nn.Module] = dict(submodules(block.site))
    for path in called[start:end]:
        if not _has_weights(inside[path]) and not any(within(path, part) for part in found):
            found.append(path)
    return tuple(dict.fromkeys(found))


def _chains(prunable: Prunable, block: FeedForwardBlock) -> Iterator[list[str]]:
    """For every layer of the block the modules around it that hold no attention and no other linear layer, which
    may be one of attention that is no block; largest first."""
    others = _in_attention(prunable)
    own = {id(module) for layer in (*block.ins, block.out) for module in layer.modules()}
    for path in (*block.layout.ins, block.layout.out):
        yield [
            place
            for place in ["", *accumulate(path.split("."), "{}.{}".format)]
            if all(
                id(m) in own or not (id(m) in others or is_linear(m))
                for m in block.site.get_submodule(place).modules()
            )
        ]


def _in_attention(prunable: Prunable) -> set[int]:
    return {id(module) for block in prunable.attention for module in block.site.modules()}


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
