"""The inputs that a graph is traced and checked with, in several sizes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cahp_opt.torch.export.refusals import ExportError
from cahp_opt.torch.running.batches import inputs_of, prepare
from cahp_opt.torch.running.made_up_inputs import sample_inputs
from cahp_opt.torch.running.unfit_inputs import longest

_TEXTS = (
    "A pruned model computes less, and a graph of it runs where there is no Python at all.",
    "The second text is shorter than the first.",
)
_TOKENS = 24
_GROWING = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
"""Inputs of texts, ``[examples, tokens]``; and those of decoders, with ``decoder_`` before their names."""


def example(
    model: nn.Module, tokenizer: Any = None, batch: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Inputs of at least two examples for a model, ``[examples, ...]``, with padding where it reads texts.

    Raises:
        ExportError: if none can be made.
        ValueError: if ``batch`` cannot be used.
    """
    if batch is not None:
        told = inputs_of(prepare(batch, model, "batch"))
        given = {name: value for name, value in told.items() if isinstance(value, Tensor)}
        if min(len(value) for value in given.values()) < 2:
            raise ValueError("`batch` must hold at least two examples, got one; pass two.")
        return given
    made = sample_inputs(model)
    if made is None:
        raise ExportError(
            f"no inputs for a {type(model).__name__} can be made up from its configuration; pass a `batch`."
        )
    if "input_ids" not in made:
        return made
    accepted = inspect.signature(type(model).forward).parameters
    if hasattr(tokenizer, "pad_token_id"):
        encoded = _encoded(tokenizer, longest(model))
        made |= {name: value for name, value in encoded.items() if name in accepted}
    elif "attention_mask" in accepted:
        mask = torch.ones_like(made["input_ids"])
        mask[1, -2:] = 0
        made["attention_mask"] = mask
    return made


def _encoded(tokenizer: Any, most: int | None) -> dict[str, Tensor]:
    """Two texts as token ids of at most so many tokens; of one length for a tokenizer that does not pad."""
    options: dict[str, Any] = {"truncation": True, "max_length": min(most or _TOKENS, _TOKENS)}
    if tokenizer.pad_token_id is None:
        lengths = [len(tokenizer(text, **options)["input_ids"]) for text in _TEXTS]
        encoded = tokenizer(list(_TEXTS), **{**options, "max_length": min(lengths)})
        return {name: torch.tensor(rows) for name, rows in encoded.items()}
    return dict(tokenizer(list(_TEXTS), padding=True, return_tensors="pt", **options))


def axes(name: str) -> dict[int, str]:
    """The axes of an input that may have any size, by their places."""
    first = {0: "batch"}
    if name.removeprefix("decoder_") not in _GROWING:
        return first
    return {**first, 1: "decoder_length" if name.startswith("decoder_") else "length"}


def in_size(inputs: Mapping[str, Tensor], size: int, share: float) -> dict[str, Tensor]:
    """Inputs ``[examples, ...]`` with another number of examples and, for texts, a share of the tokens, at least
    two."""
    found: dict[str, Tensor] = {}
    for name, value in inputs.items():
        rows = torch.arange(size) % len(value)
        grown = value[rows]
        found[name] = grown[:, : max(2, int(share * value.shape[1]))] if 1 in axes(name) else grown
    return found
