"""The forwards of the layers of a feed-forward part without kept groups.

What stands between the layers differs from model to model: activations, products of gates, whole modules around
each layer. All of it runs on, on a single neuron of zeros: the layers that make the neurons give that
at once, and the output layer, when it meets so few, gives its bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

# Relative, because these files travel together.
from .ghost_layers import adds_bias_alone, is_in_place


class SkippedPart:
    """A feed-forward part without kept groups, as its layers see it.

    Args:
        site: a module around the layers.
        paths: the paths of the layers from there, that of the output layer last.
    """

    def __init__(self, site: nn.Module, paths: tuple[str, ...]) -> None:
        self.site, self.paths = site, paths
        self.places = [(path.split("."), site.get_submodule(path)) for path in paths]
        self.out = self.places[-1][1]

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
        bias: object = getattr(self.layer, "bias", None)
        # A copy, because code that adds to it in place would change the bias.
        return bias.expand(shape).clone() if isinstance(bias, Tensor) else neurons.new_zeros(shape)


def skip_layers(
    site: nn.Module, ins: Mapping[str, int], out: str, *, stored: int, hidden: int
) -> None:
    """Skip the layers of a part without kept groups, in place.

    Args:
        site: a module around them.
        ins: by path of a layer that makes neurons, how many stretches of rows it has.
        out: the path of the output layer.
        stored: the neurons that it has weights for.
        hidden: the width of what it returns.
    """
    part = SkippedPart(site, (*ins, out))
    for path, width in ins.items():
        layer = site.get_submodule(path)
        vars(layer)["forward"] = FewNeurons(part, layer, width)
    vars(part.out)["forward"] = BiasAlone(part.out, stored, hidden)


def _stock(layer: nn.Module, given: Tensor) -> Tensor:
    cls: Any = type(layer)
    result: Tensor = cls.forward(layer, given)
    return result
