"""Skipping feed-forward parts without kept groups, one layer at a time.

What stands between the layers differs from model to model: activations, products of gates, whole modules around
each layer. All of it runs on, on a single neuron of zeros: the layers that make the neurons give that
at once, and the output layer, when it meets so few, gives its bias.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cahp_opt.torch.blocks.blocks import FeedForwardBlock
from cahp_opt.torch.blocks.linear_layers import base_linear, bias_of, row_weight
from cahp_opt.torch.slicing.ghost_layers import adds_bias_alone, is_in_place


class SkippedPart:
    """A feed-forward part without kept groups, as its layers see it.

    Args:
        block: such a block.
    """

    def __init__(self, block: FeedForwardBlock) -> None:
        self.site, self.out = block.site, block.out
        paths = (*block.layout.ins, block.layout.out)
        self.places = [(path.split("."), block.site.get_submodule(path)) for path in paths]

    @property
    def applies(self) -> bool:
        """Whether the part may be skipped now: not in training, nor if a layer was replaced or is listened
        to, or the output layer's weight can be trained or is not zero any more."""
        return (
            not self.out.training
            and all(is_in_place(self.site, path, layer) for path, layer in self.places)
            and adds_bias_alone(self.out)
        )


class FewNeurons:
    """The forward of a layer that makes neurons: one of zeros in place of every stretch of rows.

    Classes rather than closures, so that models with them can be copied and pickled.

    Args:
        part: the part.
        layer: the layer.
        width: neurons to give, one for every stretch.
    """

    def __init__(self, part: SkippedPart, layer: nn.Module, width: int) -> None:
        self.part, self.layer, self.width = part, layer, width

    def __call__(self, states: Tensor) -> Tensor:
        """Zeros ``[..., width]`` for states ``[..., hidden]``; the stock result if the part is not skipped."""
        if not self.part.applies:
            return _stock(self.layer, states)
        return states.new_zeros((*states.shape[:-1], self.width))


class BiasAlone:
    """The forward of the output layer: its bias, if the part is skipped.

    Args:
        layer: the layer.
        stored: the neurons that it has weights for.
        hidden: the width of what it returns.
    """

    def __init__(self, layer: nn.Module, stored: int, hidden: int) -> None:
        self.layer, self.stored, self.hidden = layer, stored, hidden

    def __call__(self, neurons: Tensor) -> Tensor:
        """The bias ``[..., hidden]`` for a single neuron, and the stock result for as many as are stored."""
        if neurons.shape[-1] == self.stored:
            return _stock(self.layer, neurons)
        shape = (*neurons.shape[:-1], self.hidden)
        bias = bias_of(self.layer)
        # A copy, because code that adds to it in place would change the bias.
        return neurons.new_zeros(shape) if bias is None else bias.expand(shape).clone()


def is_free(block: FeedForwardBlock) -> bool:
    """Whether nothing stands around the block's layers: no adapter, and no forward of their own."""
    layers = (*block.ins, block.out)
    return all(base_linear(m) is m and "forward" not in vars(m) for m in layers)


def is_skipped(block: FeedForwardBlock) -> bool:
    """Whether a block's layers are skipped."""
    return isinstance(vars(block.out).get("forward"), BiasAlone)


def skip(block: FeedForwardBlock) -> None:
    """Skip the layers of a block without kept groups, in place."""
    part, stored = SkippedPart(block), block.width
    for layer in block.ins:
        width = row_weight(layer).shape[0] // stored
        vars(layer)["forward"] = FewNeurons(part, layer, width)
    hidden = row_weight(block.out).shape[0]
    vars(block.out)["forward"] = BiasAlone(block.out, stored, hidden)


def unskip(block: FeedForwardBlock) -> None:
    """Let the layers of a block run again."""
    for layer in (*block.ins, block.out):
        if isinstance(vars(layer).get("forward"), FewNeurons | BiasAlone):
            del vars(layer)["forward"]


def _stock(layer: nn.Module, given: Tensor) -> Tensor:
    cls: Any = type(layer)
    result: Tensor = cls.forward(layer, given)
    return result
