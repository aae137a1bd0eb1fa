"""The input of an encoder-decoder's decoder: what it is to write, or the text that the encoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from cahp_opt.torch.running.batches import (
    IGNORED,
    batch_size,
    device_of,
    has_decoder_input,
    inputs_of,
    prepare,
)
from cahp_opt.torch.running.cache_tensors import CACHE_NAMES, cache_of
from cahp_opt.torch.running.main_input import reads_decoder_ids
from cahp_opt.torch.running.undisturbed import evaluating

# Classes that read a text to its end make the decoder's input from it themselves.
_OWN = ("ForSequenceClassification", "ForQuestionAnswering")


def with_targets(
    batch: dict[str, Tensor], targets: Sequence[Sequence[int]], model: nn.Module, pad: int
) -> dict[str, Tensor]:
    """The batch, ``[batch, tokens]``, for a decoder that reads its target, one token later, and is to write it.

    Args:
        batch: what the encoder reads.
        targets: for every example the tokens to write, at least one.
        model: the model.
        pad: the id that fills.
    """
    longest = max(map(len, targets))
    labels = torch.tensor([[*own, *[IGNORED] * (longest - len(own))] for own in targets])
    make: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if make is not None:
        ids = make(labels=labels)
    else:
        ids = torch.cat([torch.full_like(labels[:, :1], first_token(model)), labels[:, :-1]], dim=1)
    return {
        **batch,
        "decoder_input_ids": torch.where(ids == IGNORED, pad, ids),
        "decoder_attention_mask": (labels != IGNORED).long(),
        "labels": labels,
    }


def with_same_text(batch: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The batch, for encoder-decoders with a decoder that reads the encoder's text, one token later.

    So the decoder predicts the text from the text, as BART does if nothing else is given. Models
    that have no decoder, or that make its input themselves, get the batch as it is.

    Args:
        batch: ``input_ids`` and ``attention_mask``, ``[batch, tokens]``, padded on the right.
        model: the model.
    """
    if not reads_decoder_ids(model) or type(model).__name__.endswith(_OWN):
        return batch
    if has_decoder_input(batch):
        return batch
    ids = batch["input_ids"]
    first = torch.full_like(ids[:, :1], first_token(model))
    return {
        **batch,
        "decoder_input_ids": torch.cat([first, ids[:, :-1]], dim=1),
        "decoder_attention_mask": batch["attention_mask"],
    }


def with_own_words(batch: dict[str, Tensor], model: nn.Module, *, most: int) -> dict[str, Tensor]:
    """The batch, for encoder-decoders that read images or recordings, with what the model itself writes about
    them: the likeliest token after the last, up to the end.

    So the decoder is judged on sentences of the kind that it is used for, without transcripts.

    Args:
        batch: images or recordings, ``[batch, ...]``.
        model: the unpruned model.
        most: the most tokens that the decoder reads.
    """
    inputs = inputs_of(prepare(batch, model, "batch"))
    end = torch.tensor(_ends(model), dtype=torch.long, device=device_of(model))
    ids = torch.full((batch_size(batch), 1), first_token(model), device=device_of(model))
    real = torch.ones_like(ids)
    with torch.no_grad(), evaluating(model):
        while ids.shape[1] < most and bool(real[:, -1].any()):
            step = ids[:, -1:] if set(CACHE_NAMES) & inputs.keys() else ids
            output: Any = model(**{**inputs, "decoder_input_ids": step, "use_cache": True})
            inputs |= _known(output)
            written = output.logits[:, -1].argmax(dim=-1, keepdim=True)
            ends = torch.isin(written, end).long()
            ids = torch.cat([ids, written], dim=1)
            real = torch.cat([real, real[:, -1:] * (1 - ends)], dim=1)
    longest = int(real.sum(dim=1).max())
    return {
        **batch,
        "decoder_input_ids": ids[:, :longest].cpu(),
        "decoder_attention_mask": real[:, :longest].cpu(),
    }


def _ends(model: nn.Module) -> list[int]:
    """The tokens that end a text, from wherever releases of transformers put them."""
    for name in ("config", "generation_config"):
        told: object = getattr(getattr(model, name, None), "eos_token_id", None)
        if isinstance(told, int):
            return [told]
        if isinstance(told, (list, tuple)) and told:
            return [int(each) for each in cast("Sequence[int]", told)]
    return []


def _known(output: Any) -> dict[str, Any]:
    """What a step need not compute again: what the encoder read, and the cache."""
    known: dict[str, Any] = {"encoder_outputs": BaseModelOutput(output.encoder_last_hidden_state)}
    cache = cache_of(output)
    if cache is not None:
        name = next(name for name in CACHE_NAMES if getattr(output, name, None) is not None)
        known[name] = cache
    return known


def longest_written(model: nn.Module) -> int:
    """The most tokens that a decoder may read; 128 if the model sets no limit."""
    config: Any = getattr(model, "config", None)
    for part in (config, getattr(config, "decoder", None)):
        for name in ("max_target_positions", "max_position_embeddings"):
            found: object = getattr(part, name, None)
            if isinstance(found, int) and found > 0:
                return found
    return 128


def first_token(model: nn.Module) -> int:
    """The token that the decoder begins with."""
    for told in (getattr(model, "config", None), getattr(model, "generation_config", None)):
        for name in ("decoder_start_token_id", "pad_token_id", "bos_token_id"):
            found: object = getattr(told, name, None)
            if isinstance(found, int):
                return found
    return 0
