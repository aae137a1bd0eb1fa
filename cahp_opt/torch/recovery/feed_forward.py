"""The feed-forward part of a transformer layer: finding the linear layer that adds to the
stream."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cahp_opt.torch.blocks.blocks import submodules
from cahp_opt.torch.blocks.linear_layers import NotLinearError, base_linear, check_linear
from cahp_opt.torch.recovery.layer_walk import LayerWalk
from cahp_opt.torch.running.batches import Batch, wide

_TOLERANCE = (
    0.05  # relative, for a shift that must appear in the stream; half precision rounds by less
)


@dataclass(frozen=True)
class FeedForward:
    """Where a layer's feed-forward part writes to the residual stream.

    Args:
        block: number of the attention block of the layer.
        out: path in the model of the linear layer that writes; plain, and used once per pass.
        norm: path of the norm between the stream and the layer's output, in models that have it
            there.
    """

    block: int
    out: str
    norm: str | None

    def meet(
        self, walk: LayerWalk, batch: Batch, number: int, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Its input ``[batch, tokens, inner width]`` and the stream behind it ``[batch, tokens, hidden]``.

        Args:
            walk: through the model, as far as the block.
            batch: the batch.
            number: the position of the batch in the data.
            shift: added to its output.

        Raises:
            ValueError: if the layer does not run on this batch.
        """
        found: dict[str, Tensor] = {}

        def at_out(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> Tensor | None:
            found["inner"] = args[0] if args else kwargs["input"]
            return None if shift is None else output + shift.to(output)

        def at_norm(module: nn.Module, args: tuple[Any, ...]) -> None:
            found["stream"] = args[0]

        with ExitStack() as stack:
            out = walk.model.get_submodule(self.out)
            stack.callback(out.register_forward_hook(at_out, with_kwargs=True).remove)
            if self.norm is not None:
                norm = walk.model.get_submodule(self.norm)
                stack.callback(norm.register_forward_pre_hook(at_norm).remove)
            layer = walk.through(self.block, batch, number)
        if "inner" not in found:
            raise ValueError(
                f"`model` ran {self.out!r} on batches[0] but not on batches[{number}]; refit with "
                "`feed_forward=False`, or with batches that every layer sees."
            )
        return found["inner"], found.get("stream", layer)


def find_feed_forward(walk: LayerWalk, block: int, batch: Batch, number: int) -> FeedForward | None:
    """Find the feed-forward part by running the layer; None if it has none that can be refitted.

    It is the last plain linear layer outside of the attention that runs once and whose output is
    added to the residual stream unchanged, which is tried by shifting that output. There is none
    with a norm or a factor behind the feed-forward part, routed experts, flattened rows (OPT),
    quantised weights, adapters, or weights that other layers use too.

    Args:
        walk: through the model, as far as ``block``.
        block: number of the attention block of the layer.
        batch: the batch to run.
        number: the position of the batch in the data.
    """
    runs, output = _runs(walk, block, batch, number)
    apart = {id(module) for each in walk.blocks for module in each.site.modules()}
    for module in walk.layer(block).modules():
        if base_linear(module) is not module:  # inside of a wrapper, such as an adapter
            apart |= {id(inner) for inner in module.modules()}
    names = {id(module): name for name, module in submodules(walk.model)}
    ends = [names[id(m)] for m, out in runs if _is_leaf(m) and _same(out, output)]
    writers = [module for module, out in runs if out.shape == output.shape]
    for module in reversed(writers):
        if id(module) in apart or writers.count(module) > 1 or not is_plain_linear(module):
            continue
        for norm in (None, *ends):
            found = FeedForward(block, names[id(module)], norm)
            if norm != found.out and _adds(found, walk, batch, number):
                return found if is_used_once(walk.model, found.out) else None
    return None


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


def _runs(
    walk: LayerWalk, block: int, batch: Batch, number: int
) -> tuple[list[tuple[nn.Module, Tensor]], Tensor]:
    """Modules of the layer in the order in which they end, each with its output; and the layer's."""
    runs: list[tuple[nn.Module, Tensor]] = []

    def listen(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            runs.append((module, output))

    layer = walk.layer(block)
    with ExitStack() as stack:
        for module in layer.modules():
            if module is not layer:
                stack.callback(module.register_forward_hook(listen).remove)
        output = walk.through(block, batch, number)
    return runs, output


def _adds(found: FeedForward, walk: LayerWalk, batch: Batch, number: int) -> bool:
    """Whether a shift of its output appears unchanged in the stream."""
    before = wide(found.meet(walk, batch, number)[1])
    noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    shift = noise.to(before) * before.std()
    after = wide(found.meet(walk, batch, number, shift)[1])
    missed, added = ((x.square().sum().sqrt()) for x in (after - before - shift, shift))
    return bool(added > 0) and bool(missed <= _TOLERANCE * added)


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.data_ptr() == b.data_ptr()
