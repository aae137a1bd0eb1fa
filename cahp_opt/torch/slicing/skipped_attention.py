"""The forward of an attention module without kept units: what it returns is known beforehand."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import Cache, EncoderDecoderCache

# Relative, because these files travel together.
from .ghost_layers import adds_bias_alone, is_in_place

_WEIGHTS_WANTED = ("output_attentions", "need_weights")
"""Arguments by which a caller asks for attention weights; a block that does not run has none."""

_OTHER_SEQUENCES = ("encoder_hidden_states", "key_value_states")
"""Arguments with the sequence that cross-attention takes its keys from."""


class Bypass:
    """The forward of an attention module without kept units; set as its attribute ``forward``.

    The stock forward runs in training (otherwise the norm before the block would get no gradient),
    when attention weights are requested, when something listens at the output projection or has
    replaced it, when its weight can be trained or is not zero any more, when the attention backend is
    another, and with a cache if that was not verified. A class rather than a closure, so that models
    with it can be copied and pickled.

    Args:
        module: the attention module of a block without kept units.
        site: a module around it and its output projection.
        path: the path of the output projection from there.
        width: of what the module returns.
        entries: whether the output stands at each place of the tuple that is returned; the other
            places are None. None if the output is returned alone.
        cached: whether to go without the stock forward when there is a cache.
        backend: of attention, with which that holds.
    """

    def __init__(
        self,
        module: nn.Module,
        site: nn.Module,
        path: str,
        width: int,
        entries: tuple[bool, ...] | None,
        cached: bool,
        backend: object,
    ) -> None:
        self.module, self.site, self.path = module, site, path.split(".")
        self.out = site.get_submodule(path)
        self.width, self.entries, self.cached, self.backend = width, entries, cached, backend
        # Where the output projection is outside, as in BERT, it runs, on zeros.
        self.inside = any(m is self.out for m in module.modules())
        self.plain: object = vars(module).get("forward")
        layer: object = getattr(module, "layer_idx", None)
        self.layer = layer if isinstance(layer, int) else None
        parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
        self.first = parameters[0].name
        named = {p.name: (i, p.default) for i, p in enumerate(parameters)}
        self.asked = {n: named[n] for n in (*_WEIGHTS_WANTED, *_OTHER_SEQUENCES) if n in named}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The return value of the stock forward, for the same arguments."""
        states: object = args[0] if args else kwargs.get(self.first)
        cache = next((x for x in (*args, *kwargs.values()) if isinstance(x, Cache)), None)
        if not isinstance(states, Tensor) or not self._applies(states, cache, args, kwargs):
            if callable(self.plain):
                return self.plain(*args, **kwargs)
            return type(self.module).forward(self.module, *args, **kwargs)
        if cache is not None and self.layer is not None:
            others = (self._argument(name, args, kwargs) for name in _OTHER_SEQUENCES)
            _feed(cache, self.layer, states, next((x for x in others if x is not None), None))
        output = self._output(states)
        if self.entries is None:
            return output
        return tuple([output if main else None for main in self.entries])

    def _applies(
        self, states: Tensor, cache: Cache | None, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> bool:
        if self.module.training or not is_in_place(self.site, self.path, self.out):
            return False
        if any(self._argument(name, args, kwargs) for name in _WEIGHTS_WANTED):
            return False
        if cache is not None and not (self.cached and self.layer is not None and states.ndim == 3):
            return False
        return backend_of(self.module) == self.backend and adds_bias_alone(self.out)

    def _argument(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if name in kwargs or name not in self.asked:
            return kwargs.get(name)
        position, default = self.asked[name]
        return args[position] if position < len(args) else default

    def _output(self, states: Tensor) -> Tensor:
        shape = (*states.shape[:-1], self.width)
        bias: object = getattr(self.out, "bias", None) if self.inside else None
        # A copy, because code that adds to it in place would change the bias.
        return bias.expand(shape).clone() if isinstance(bias, Tensor) else states.new_zeros(shape)


def _feed(cache: Cache, layer: int, states: Tensor, others: Tensor | None) -> None:
    """Put as many positions into the cache as the stock forward would, one number wide."""
    target: Any = cache
    if isinstance(cache, EncoderDecoderCache):
        if others is not None:
            if target.is_updated.get(layer):
                return
            target.is_updated[layer] = True
        target = cache.self_attention_cache if others is None else cache.cross_attention_cache
    positions = (states if others is None else others).shape[1]
    ghost = states.new_zeros(states.shape[0], 1, positions, 1)
    target.update(ghost, ghost, layer)


def backend_of(module: nn.Module) -> object:
    """The backend of attention that a module uses; None if its configuration names none."""
    return getattr(getattr(module, "config", None), "_attn_implementation", None)
