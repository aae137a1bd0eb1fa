"""What the parts that run a model need to know about a batch: its size, its labels, its padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, cast

import torch
from torch import Tensor, nn

Batch = Mapping[str, Any]
"""The keyword arguments of ``model(**batch)``, and ``labels`` where there are any."""

_MAIN = ("input_ids", "inputs_embeds", "pixel_values", "input_features", "input_values")


def prepared(
    batches: Iterable[Any], model: nn.Module, argument: str = "batches"
) -> Iterator[Batch]:
    """Every batch, checked and moved to the model's device.

    Raises:
        ValueError: naming ``argument`` and the position of the batch that cannot be used: not a
            mapping, without tensors, with an attention mask that is not ``[batch, tokens]``, or with an
            example that has no real token; or if there is no batch at all.
    """
    device = device_of(model)
    position = -1
    for position, batch in enumerate(batches):
        yield prepare(batch, device, f"{argument}[{position}]")
    if position < 0:
        raise ValueError(f"`{argument}` is empty; at least one batch with one text is needed.")


def prepare(batch: object, device: torch.device, argument: str) -> Batch:
    """One batch, checked and moved to ``device``.

    Raises:
        ValueError: as :func:`prepared`.
    """
    if not isinstance(batch, Mapping):
        raise ValueError(
            f"`{argument}` must be a mapping of keyword arguments for the model, such as a tokenizer's "
            f"output, got {type(batch).__name__}."
        )
    moved: dict[str, Any] = {}
    for key, value in cast("Mapping[str, Any]", batch).items():
        moved[key] = value.to(device) if isinstance(value, Tensor) else value
    if not any(isinstance(value, Tensor) and value.ndim for value in moved.values()):
        raise ValueError(
            f"`{argument}` has no tensor among {sorted(moved)}; tokenize with `return_tensors='pt'`."
        )
    if not batch_size(moved):
        raise ValueError(f"`{argument}` holds no examples; drop empty batches.")
    mask = moved.get("attention_mask")
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(
                f"`{argument}` has an attention mask of shape {shape}; it must be [batch, tokens], "
                "1 for real tokens and 0 for padding."
            )
        empty = [i for i, row in enumerate(mask) if not bool(row.any())]
        if empty:
            raise ValueError(
                f"`{argument}` has no real tokens in its examples {empty}; drop the empty texts."
            )
    return moved


def inputs_of(batch: Batch) -> dict[str, Any]:
    """The batch without its labels: what the model is called with."""
    return {key: value for key, value in batch.items() if key != "labels"}


def labels_of(batch: Batch) -> Tensor | None:
    """The labels of the batch, or None."""
    labels = batch.get("labels")
    return labels if isinstance(labels, Tensor) else None


def batch_size(batch: Batch) -> int:
    """How many examples the batch holds."""
    return int(_main(batch).shape[0])


def real_tokens(batch: Batch) -> Tensor:
    """Which positions are real tokens rather than padding, bool ``[batch, tokens]``.

    Without an attention mask every token is real; inputs without tokens (images) count one per
    example.
    """
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor):
        return mask != 0
    main = _main(batch)
    tokens = main.shape[1] if "input_ids" in batch or "inputs_embeds" in batch else 1
    return torch.ones(main.shape[0], tokens, dtype=torch.bool, device=main.device)


def rows_of(values: Tensor, batch: Batch) -> Tensor:
    """The rows of ``values`` ``[batch, tokens, width]`` at real tokens, ``[real tokens, width]``."""
    rows = values.flatten(0, -2)
    return rows[real_tokens(batch).flatten()] if "attention_mask" in batch else rows


def first_examples(batch: Batch, n: int) -> Batch:
    """The batch cut to its first ``n`` examples."""
    size = batch_size(batch)
    if n >= size:
        return batch
    return {
        key: value[:n]
        if isinstance(value, Tensor) and value.ndim and value.shape[0] == size
        else value
        for key, value in batch.items()
    }


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter; inputs go there."""
    for parameter in model.parameters():
        return parameter.device
    raise ValueError("`model` has no parameters; pass a model with weights.")


def length(batches: Iterable[object]) -> int:
    """How many batches there are, for progress; 0 where that is unknown."""
    return len(batches) if isinstance(batches, Sized) else 0


def _main(batch: Batch) -> Tensor:
    for key in _MAIN:
        value = batch.get(key)
        if isinstance(value, Tensor):
            return value
    return next(v for v in batch.values() if isinstance(v, Tensor) and v.ndim)
