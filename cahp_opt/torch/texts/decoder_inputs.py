"""The input of an encoder-decoder's decoder if only texts are given."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from cahp_opt.torch.running.batches import has_decoder_input

# Classes that read a text to its end make the decoder's input from it themselves.
_OWN = ("ForSequenceClassification", "ForQuestionAnswering")


def reads_decoder_ids(model: nn.Module) -> bool:
    """Whether the model has a decoder beside its encoder, and takes the tokens that it reads."""
    config = getattr(model, "config", None)
    return bool(getattr(config, "is_encoder_decoder", False)) and (
        "decoder_input_ids" in inspect.signature(type(model).forward).parameters
    )


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
    first = torch.full_like(ids[:, :1], _start(model))
    return {
        **batch,
        "decoder_input_ids": torch.cat([first, ids[:, :-1]], dim=1),
        "decoder_attention_mask": batch["attention_mask"],
    }


def _start(model: nn.Module) -> int:
    """The token that the decoder begins with."""
    for told in (getattr(model, "config", None), getattr(model, "generation_config", None)):
        for name in ("decoder_start_token_id", "pad_token_id", "bos_token_id"):
            found: object = getattr(told, name, None)
            if isinstance(found, int):
                return found
    return 0
