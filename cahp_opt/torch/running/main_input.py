"""What a model reads: its main input, and whether a decoder reads tokens beside it."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from cahp_opt.runs.media import Medium

_MEDIA = {
    "input_ids": Medium.TEXT,
    "pixel_values": Medium.IMAGE,
    "input_features": Medium.SOUND,
    "input_values": Medium.SOUND,
}
_WRITERS = ("ForConditionalGeneration", "MTModel", "EncoderDecoderModel")


def main_input(model: nn.Module) -> Any:
    """The name of the model's main input; a tuple of several for some models."""
    return getattr(model, "main_input_name", "input_ids")


def medium_of(model: nn.Module) -> Medium | None:
    """What the model reads, texts unless it says otherwise; None if it is something else."""
    name = main_input(model)
    return _MEDIA.get(name) if isinstance(name, str) else None


def reads_decoder_ids(model: nn.Module) -> bool:
    """Whether the model has a decoder beside its encoder, and takes the tokens that it reads."""
    config = getattr(model, "config", None)
    return bool(getattr(config, "is_encoder_decoder", False)) and (
        "decoder_input_ids" in inspect.signature(type(model).forward).parameters
    )


def writes(model: nn.Module) -> bool:
    """Whether the model is an encoder-decoder with a language model's head: it writes a text of its own."""
    return reads_decoder_ids(model) and type(model).__name__.endswith(_WRITERS)
