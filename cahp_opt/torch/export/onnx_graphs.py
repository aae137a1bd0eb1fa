"""What is traced: a model as a function of tensors alone, with its cache or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from cahp_opt.torch.export.onnx_inputs import axes, in_size
from cahp_opt.torch.export.refusals import ExportError

_PAST = 4  # tokens in the cache that is traced with


@dataclass(frozen=True, eq=False)
class Graph:
    """A function of tensors, and tensors to try it with.

    Args:
        module: the function; it takes the inputs in their order, and returns the outputs as a tuple.
        outputs: their names.
        inputs: those that it is traced with, by name, ``[examples, ...]``.
        others: inputs of other sizes.
        axes: of every input, the axes that may have any size.
        cached: whether a cache goes in and out.
    """

    module: nn.Module
    outputs: tuple[str, ...]
    inputs: Mapping[str, Tensor]
    others: tuple[Mapping[str, Tensor], ...]
    axes: tuple[Mapping[int, str], ...]
    cached: bool = False


class _Plain(nn.Module):
    """A model as a function of tensors.

    Args:
        model: the model.
        names: of its inputs, in their order.
        options: what else its forward is given.
        outputs: names of its outputs, in their order.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        options: Mapping[str, object],
        outputs: Sequence[str],
    ) -> None:
        super().__init__()
        self.model, self.names, self.outputs = model, tuple(names), tuple(outputs)
        self.options = dict(options)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The outputs for the inputs, ``[examples, ...]``."""
        named = dict(zip(self.names, tensors, strict=True))
        output = self.model(**named, **self.options, return_dict=True)
        return tuple(output[name] for name in self.outputs)


class _Cached(nn.Module):
    """A decoder as a function of new tokens, of a mask over all tokens, and of a cache: the keys and the
    values of every layer in turn, ``[batch, heads, tokens, width]``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The logits of the new tokens, ``[batch, new, vocabulary]``, and the cache with them."""
        ids, mask, *past = tensors
        cache: Any = DynamicCache()
        for layer, (keys, values) in enumerate(zip(past[::2], past[1::2], strict=True)):
            cache.update(keys, values, layer)
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
        )
        return (output.logits, *_entries(output.past_key_values))


def plain_graph(
    model: nn.Module, inputs: Mapping[str, Tensor], options: Mapping[str, object]
) -> Graph:
    """The model as it is, for inputs ``[examples, ...]``, with ``options`` for its forward, such as not to make a
    cache."""
    with torch.no_grad():
        output: Any = model(**inputs, **options, return_dict=True)
    names = [name for name, value in output.items() if isinstance(value, Tensor)]
    return Graph(
        _Plain(model, list(inputs), options, names),
        tuple(names),
        inputs,
        (in_size(inputs, 1, 0.5), in_size(inputs, 3, 0.75)),
        tuple(axes(name) for name in inputs),
    )


def cached_graph(model: nn.Module, inputs: Mapping[str, Tensor]) -> Graph:
    """A decoder with its cache, traced on token ids ``[examples, tokens]``.

    Raises:
        ExportError: if its cache is not one of keys and values alone.
    """
    if not set(inputs) <= {"input_ids", "attention_mask", "token_type_ids"}:
        raise ExportError("it reads more than one text")
    ids = inputs["input_ids"]
    with torch.no_grad():
        output: Any = model(input_ids=ids, past_key_values=DynamicCache(), use_cache=True)
    found = getattr(output, "past_key_values", None)
    if not isinstance(found, DynamicCache) or "logits" not in output:
        raise ExportError(f"its cache is a {type(found).__name__}")
    heads = [(entry.shape[1], entry.shape[3]) for entry in _entries(found)]
    layers = range(len(heads) // 2)
    names = [f"{layer}.{what}" for layer in layers for what in ("key", "value")]

    def sized(size: int, past: int, new: int) -> dict[str, Tensor]:
        rows = ids[torch.arange(size) % len(ids)]
        with torch.no_grad():
            before = model(
                input_ids=rows[:, : max(past, 1)], past_key_values=DynamicCache(), use_cache=True
            )
        entries = [entry[:, :, :past] for entry in _entries(before.past_key_values)]
        mask = torch.ones(size, past + new, dtype=torch.int64)
        if past + new > 2:
            mask[-1, 0] = 0  # padding is on the left where texts are generated
        tensors = [rows[:, past : past + new], mask, *entries]
        keys = ("input_ids", "attention_mask", *(f"past_key_values.{name}" for name in names))
        return dict(zip(keys, tensors, strict=True))

    past = min(_PAST, ids.shape[1] - 3)
    if past < 2:
        raise ExportError("its inputs are too short to fill a cache")
    grown: list[Mapping[int, str]] = [{0: "batch", 1: "length"}, {0: "batch", 1: "total_length"}]
    return Graph(
        _Cached(model),
        ("logits", *(f"present.{name}" for name in names)),
        sized(2, past, ids.shape[1] - past),
        (sized(1, 0, ids.shape[1] - 1), sized(3, ids.shape[1] - 1, 1), sized(1, 2, 2)),
        (*grown, *({0: "batch", 2: "past_length"} for _ in names)),
        cached=True,
    )


def _entries(cache: Any) -> list[Tensor]:
    """The keys and values of every layer of a cache in turn."""
    return [entry for layer in cache.layers for entry in (layer.keys, layer.values)]
