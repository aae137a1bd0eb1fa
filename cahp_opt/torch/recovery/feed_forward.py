"""The feed-forward parts of transformer layers: where each adds to the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor, nn

from cahp_opt.torch.blocks.blocks import FeedForwardBlock, submodules
from cahp_opt.torch.blocks.linear_layers import NotLinearError, base_linear, check_linear
from cahp_opt.torch.recovery.layer_walk import Behind, LayerWalk, Place
from cahp_opt.torch.running.batches import Batch, wide

_TOLERANCE = (
    0.05  # relative, for a shift that must appear in the stream; half precision rounds by less
)


def find_feed_forward(
    walk: LayerWalk, layer: int, block: str, apart: Sequence[nn.Module], batch: Batch
) -> Place | None:
    """Find a feed-forward part that is no block by running its layer; None if there is none to refit.

    It is the last plain linear layer outside of the attention that runs once and whose output is
    added to the residual stream unchanged, which is tried by shifting that output. There is none
    with a norm or a factor behind the feed-forward part, routed experts, flattened rows (OPT),
    quantised weights, adapters, or weights that other layers use too.

    Args:
        walk: through the model, as far as the layer.
        layer: the number of the layer.
        block: the name of its attention block.
        apart: the sites of attention.
        batch: the batch to run, the first of the walk.
    """
    output, runs = walk.outputs(layer, batch, 0)
    left_out = {id(inner) for site in apart for inner in site.modules()}
    for module in walk.layers[layer].modules():
        if base_linear(module) is not module:  # inside of a wrapper, such as an adapter
            left_out |= {id(inner) for inner in module.modules()}
    names = {id(module): name for name, module in submodules(walk.model)}
    writers = [module for module, out in runs if out.shape == output.shape]
    for module in reversed(writers):
        if id(module) in left_out or writers.count(module) > 1 or not is_plain_linear(module):
            continue
        place = Place(block, layer, names[id(module)], Behind.LAYER)
        found = _adding(walk, place, runs, output, batch)
        if found is not None:
            return found if is_used_once(walk.model, found.out) else None
    return None


def place_of_block(
    walk: LayerWalk, layer: int, block: FeedForwardBlock, batch: Batch
) -> Place | None:
    """Where a feed-forward part that is a block is refitted; None if it runs several times, or other layers
    use its weights too.

    If its output is not added to the stream unchanged, because a norm, a factor or routed experts stand
    between, what is missing is seen in the output itself.

    Args:
        walk: through the model, as far as the layer.
        layer: the number of the layer.
        block: the block, in the model of the walk.
        batch: the batch to run, the first of the walk.

    Raises:
        ValueError: if the model does not run it on this batch.
    """
    output, runs = walk.outputs(layer, batch, 0)
    names = {id(module): name for name, module in submodules(walk.model)}
    times = [module for module, _ in runs].count(block.out)
    if not times:
        raise ValueError(
            f"`model` did not run block {block.name!r} on this input; refit needs batches that every block "
            "sees."
        )
    if times > 1 or not is_used_once(walk.model, names[id(block.out)]):
        return None
    place = Place(block.name, layer, names[id(block.out)], Behind.OUTPUT)
    if any(module is block.out and out.shape == output.shape for module, out in runs):
        return _adding(walk, replace(place, behind=Behind.LAYER), runs, output, batch) or place
    return place


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer without a wrapper, whose weights may be set."""
    with suppress(NotLinearError):
        check_linear(module)
        return base_linear(module) is module
    return False


def is_used_once(model: nn.Module, path: str) -> bool:
    """Whether only the module at ``path`` uses its parameters in the model."""
    own = {id(parameter) for parameter in model.get_submodule(path).parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return sum(id(parameter) in own for _, parameter in every) == len(own)


def _adding(
    walk: LayerWalk,
    place: Place,
    runs: Sequence[tuple[nn.Module, Tensor]],
    output: Tensor,
    batch: Batch,
) -> Place | None:
    """The place with what the layer returns as its stream, or with what the norm there reads; None if its
    output is in neither unchanged."""
    names = {id(module): name for name, module in submodules(walk.model)}
    order = [names[id(module)] for module, _ in runs]
    behind = runs[order.index(place.out) + 1 :]
    ends = [names[id(m)] for m, out in behind if _is_leaf(m) and _same(out, output)]
    for norm in (None, *ends):
        found = replace(place, norm=norm)
        if _adds(found, walk, batch):
            return found
    return None


def _adds(place: Place, walk: LayerWalk, batch: Batch) -> bool:
    """Whether a shift of its output appears unchanged in the stream."""
    before = wide(walk.meet(place, batch, 0).stream)
    noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    shift = noise.to(before) * before.std()
    after = wide(walk.meet(place, batch, 0, shift).stream)
    missed, added = ((x.square().sum().sqrt()) for x in (after - before - shift, shift))
    return bool(added > 0) and bool(missed <= _TOLERANCE * added)


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.data_ptr() == b.data_ptr()
