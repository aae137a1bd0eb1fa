"""Small random inputs for a transformers model, made from its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_BATCH, _LENGTH = 2, 8


def headless(model: nn.Module) -> nn.Module:
    """A model without its head and adapters; the model itself if it has none."""
    unwrap: Any = getattr(model, "get_base_model", None)
    whole: Any = model if unwrap is None else unwrap()
    base: nn.Module = getattr(whole, "base_model", whole)
    return base


def sample_inputs(model: nn.Module) -> dict[str, Tensor] | None:
    """Two random examples, on the CPU: token ids ``[2, 8]``, images, sound features, or several of
    them.

    Args:
        model: a transformers model, with or without a head.

    Returns:
        Keyword arguments for ``model``, the same on every call; None if its configuration does not
        state its inputs.
    """
    config: Any = getattr(model, "config", None)
    if config is None:
        return None
    accepted = inspect.signature(type(model).forward).parameters
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}
    main: object = getattr(model, "main_input_name", "input_ids")
    if not isinstance(main, str):  # several, of which one is not to be made up
        return None
    makers = {"input_ids": _ids, "pixel_values": _image, "input_features": _features}
    for name, make in makers.items():
        if name in accepted and (name == main or _has_two_towers(config)):
            made = make(config, generator)
            if made is not None:
                found[name] = made
    if main not in found:
        return None
    if "decoder_input_ids" in accepted and getattr(config, "is_encoder_decoder", False):
        ids = _ids(config, generator)
        if ids is None:
            return None
        found["decoder_input_ids"] = ids
    return found


def _has_two_towers(config: Any) -> bool:
    return hasattr(config, "text_config") and hasattr(config, "vision_config")


def _parts(config: Any) -> Iterator[Any]:
    """The configuration and those inside it."""
    yield config
    for name in ("text_config", "vision_config", "audio_config", "decoder", "encoder"):
        inner: object = getattr(config, name, None)
        if inner is not None and not isinstance(inner, str):
            yield inner


def _number(config: Any, *names: str) -> int | None:
    for part in _parts(config):
        for name in names:
            value: object = getattr(part, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _ids(config: Any, generator: torch.Generator) -> Tensor | None:
    vocabulary = _number(config, "vocab_size")
    if vocabulary is None:
        return None
    positions = _number(config, "max_position_embeddings")
    # RoBERTa and MPNet lose two positions to padding.
    length = _LENGTH if positions is None else min(_LENGTH, max(positions - 2, 1))
    return torch.randint(0, vocabulary, (_BATCH, length), generator=generator)


def _image(config: Any, generator: torch.Generator) -> Tensor | None:
    size = _number(config, "image_size")
    if size is None:
        return None
    channels = _number(config, "num_channels") or 3
    return torch.randn(_BATCH, channels, size, size, generator=generator)


def _features(config: Any, generator: torch.Generator) -> Tensor | None:
    bins, length = _number(config, "num_mel_bins"), _number(config, "max_source_positions")
    if bins is None or length is None:
        return None
    return torch.randn(_BATCH, bins, 2 * length, generator=generator)
