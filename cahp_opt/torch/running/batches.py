"""Batches: their inputs, labels, size and padding."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor, nn

from cahp_opt.torch.running.cache_tensors import takes_cache
from cahp_opt.torch.running.centring import has_double
from cahp_opt.torch.running.unfit_inputs import MASKS, refuse_unfit_inputs

Batch = Mapping[str, Any]
"""The keyword arguments of ``model(**batch)``, and ``labels`` or :data:`PAIR_SCORES` where there are any."""

_MAIN = ("input_ids", "inputs_embeds", "pixel_values", "input_features", "input_values")
_DECODER_MASK = "decoder_attention_mask"
_DECODER = ("decoder_input_ids", "decoder_inputs_embeds")

POSITIONS = ("position_ids", "decoder_position_ids")
"""Inputs with the positions of tokens, of the encoder and of the decoder."""

IGNORED = -100
"""The label that means "no label here" throughout PyTorch and transformers."""


PAIR_SCORES = "pair_scores"
"""The entry of a batch with the scores of pairs, such as how alike two texts are rated: one number per text,
``[batch]``. The texts of a pair stand one after the other, and have the same number."""


def prepare(
    batch: object,
    model: nn.Module,
    argument: str,
    device: torch.device | None = None,
    *,
    known: bool = False,
) -> Batch:
    """One batch, checked and moved to ``device``; None for the model's.

    A batch that is ``known`` was checked before, and is moved alone.

    An encoder-decoder model that is given labels and no decoder input gets the input that it makes
    from labels itself, because labels never reach a model here. The cache is turned off.

    Raises:
        ValueError: naming ``argument``, if the batch cannot be used: not a mapping, without tensors, with
            labels that are not a tensor, NaN or infinite, or as described at
            :func:`~cahp_opt.torch.running.unfit_inputs.refuse_unfit_inputs`.
    """
    device = device_of(model) if device is None else device
    if not isinstance(batch, Mapping):
        raise ValueError(
            f"`{argument}` must be a mapping of keyword arguments for the model, such as a tokenizer's "
            f"output, got {type(batch).__name__}."
        )
    given = dict(cast("Mapping[str, Any]", batch))
    moved = {k: _sent(v, device) if isinstance(v, Tensor) else v for k, v in given.items()}
    if not any(isinstance(value, Tensor) and value.ndim for value in moved.values()):
        raise ValueError(
            f"`{argument}` has no tensor among {sorted(moved)}; tokenize with `return_tensors='pt'`."
        )
    if not batch_size(moved):
        raise ValueError(f"`{argument}` holds no examples; drop empty batches.")
    if not known:
        refuse_unfit_inputs(given, model, argument)
    if takes_cache(model):
        moved["use_cache"] = (
            False  # texts are read whole, and a cache changes how some models do that
        )
    if not known:
        _check_labels(moved, argument)
    return _with_decoder_input(moved, model)


def _sent(value: Tensor, device: torch.device) -> Tensor:
    """``value`` on ``device``, in single precision if it comes in double, which the device
    lacks."""
    if value.dtype == torch.float64 and value.device != device and not has_double(device):
        value = value.float()
    return value.to(device)


def _check_labels(batch: Batch, argument: str) -> None:
    labels = batch.get("labels")
    if labels is None:
        return
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"`{argument}` has `labels` of the type {type(labels).__name__}; give them as a tensor."
        )
    if labels.is_floating_point() and not bool(labels.isfinite().all()):
        raise ValueError(
            f"`{argument}` has `labels` that are NaN or infinite; leave the examples out that have no label."
        )


def _with_decoder_input(batch: Batch, model: nn.Module) -> Batch:
    labels, make = labels_of(batch), _decoder_input_maker(model)
    if labels is None or make is None or has_decoder_input(batch):
        return batch
    # Position t of the decoder reads label t - 1 and predicts label t: it is real where that label is.
    real = (labels != IGNORED).long()
    return {"decoder_input_ids": make(labels), _DECODER_MASK: real, **batch}


def _decoder_input_maker(model: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The function that makes a decoder's input from labels: a method, or one beside the model's
    class."""
    method = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if method is not None:
        return lambda labels: method(labels=labels)
    config: Any = getattr(model, "config", None)
    shift = getattr(sys.modules[type(model).__module__], "shift_tokens_right", None)
    start, pad = (getattr(config, f"{n}_token_id", None) for n in ("decoder_start", "pad"))
    if shift is None or start is None or pad is None:
        return None
    if not type(model).__name__.endswith("ForConditionalGeneration"):
        return None
    return lambda labels: shift(labels, pad, start)


def inputs_of(batch: Batch) -> dict[str, Any]:
    """The batch without its labels and scores: the keyword arguments of the model."""
    return {key: value for key, value in batch.items() if key not in ("labels", PAIR_SCORES)}


def labels_of(batch: Batch, device: torch.device | None = None) -> Tensor | None:
    """The labels of the batch, ``[batch]`` or ``[batch, tokens]``, on ``device`` if given; None
    without."""
    labels = batch.get("labels")
    return labels.to(device) if isinstance(labels, Tensor) else None


def batch_size(batch: Batch) -> int:
    """The number of examples in the batch."""
    return int(_main(batch).shape[0])


def has_decoder_input(batch: Batch) -> bool:
    """Whether the batch holds the input of an encoder-decoder's decoder."""
    return any(isinstance(batch.get(key), Tensor) for key in _DECODER)


def real_tokens(batch: Batch) -> Tensor:
    """Which positions of the main input are real tokens rather than padding, bool ``[batch, tokens]``.

    Without an attention mask every token is real; inputs without tokens (images) count one per
    example. Several choices per example are as many texts, ``[batch * choices, tokens]``.
    """
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor):
        return texts_of(mask) != 0
    main = _main(batch)
    if "input_ids" in batch:
        main = texts_of(main)
    tokens = main.shape[1] if "input_ids" in batch or "inputs_embeds" in batch else 1
    return torch.ones(main.shape[0], tokens, dtype=torch.bool, device=main.device)


def decoder_tokens(batch: Batch) -> Tensor:
    """Which positions of a decoder are real tokens, bool ``[batch, tokens]``.

    Without a decoder input the decoder reads the main input.
    """
    if not has_decoder_input(batch):
        return real_tokens(batch)
    mask = batch.get(_DECODER_MASK)
    if isinstance(mask, Tensor):
        return mask != 0
    given = next(batch[key] for key in _DECODER if isinstance(batch.get(key), Tensor))
    return torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)


def texts_of(values: Tensor) -> Tensor:
    """One row per text, ``[texts, tokens]``, of numbers by token, ``[batch, tokens]``, or of several
    choices per example, ``[batch, choices, tokens]``."""
    return values.flatten(0, 1) if values.ndim == 3 else values


def contents_of(batch: Batch) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Every input of the model with one entry per example, in the order of their names.

    Masks and positions are left out: they describe the padding, not the example.

    Yields:
        The name, the values ``[batch, ...]``, and, if their axis behind that of examples (and of
        choices) is that of tokens, which of these are real, bool ``[batch, tokens]`` or ``[batch,
        choices, tokens]``; otherwise None.
    """
    size = batch_size(batch)
    for key, value in sorted(inputs_of(batch).items()):
        if key in (*MASKS, *POSITIONS) or not isinstance(value, Tensor) or not value.ndim:
            continue
        if value.shape[0] != size:
            continue
        real = decoder_tokens(batch) if key.startswith("decoder_") else real_tokens(batch)
        vectors = key.endswith("inputs_embeds")
        if value.ndim == 3 and not vectors and texts_of(value).shape == real.shape:
            yield key, value, real.reshape(value.shape)
            continue
        by_token = value.ndim == (3 if vectors else 2)
        yield key, value, real if by_token and value.shape[:2] == real.shape else None


def examples(batch: Batch, start: int, stop: int) -> Batch:
    """The batch cut to its examples from ``start`` up to, not including, ``stop``."""
    size = batch_size(batch)
    if start <= 0 and stop >= size:
        return batch
    cut = dict(batch)
    for key, value in batch.items():
        if key in POSITIONS and isinstance(value, Tensor) and value.ndim == 3:
            cut[key] = value[:, start:stop]  # positions of several kinds, [kinds, batch, tokens]
        elif isinstance(value, Tensor) and value.ndim and value.shape[0] == size:
            cut[key] = value[start:stop]
    return cut


def first_examples(batches: Iterable[Batch], number: int) -> Iterator[Batch]:
    """The batches cut to the first examples, up to this many in all."""
    left = number
    for batch in batches:
        if left <= 0:
            return
        part = examples(batch, 0, left)
        left -= batch_size(part)
        yield part


def device_of(model: nn.Module) -> torch.device:
    """The device of inputs: that of the input embedding or, without one, of the model's first
    weight.

    A model spread over several devices moves activations itself. For weights that are not in memory
    (offloaded by accelerate) it is the device that their hook names.

    Raises:
        ValueError: if the model has no weights, or none that are in memory.
    """
    first: Any = None
    with suppress(
        AttributeError, NotImplementedError
    ):  # not every model says what its embedding is
        first = cast("Any", model).get_input_embeddings()
    for module in (first, model):
        for part in module.modules() if isinstance(module, nn.Module) else ():
            device: object = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
            if device is not None and next(part.parameters(recurse=False), None) is not None:
                return torch.device(cast("Any", device))
            for parameter in part.parameters(recurse=False):
                if not parameter.is_meta:
                    return parameter.device
    raise ValueError("`model` has no weights in memory; pass a model with weights.")


def length(batches: Iterable[object]) -> int:
    """The number of batches, for progress; 0 if unknown."""
    return len(batches) if isinstance(batches, Sized) else 0


def _main(batch: Batch) -> Tensor:
    for key in _MAIN:
        value = batch.get(key)
        if isinstance(value, Tensor):
            return value
    return next(v for v in batch.values() if isinstance(v, Tensor) and v.ndim)


def wide(values: Tensor) -> Tensor:
    """``values``, ``[...]``, in at least single precision, because statistics need more than
    half."""
    return values if values.dtype == torch.float64 else values.float()
