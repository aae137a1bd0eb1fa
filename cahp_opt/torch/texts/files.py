"""Images and sound as batches, of examples that have the same shape."""

from __future__ import annotations

import inspect
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cahp_opt.runs.media import Medium
from cahp_opt.runs.texts import Example, TextError
from cahp_opt.torch.checkpoints.load_errors import sentence_of
from cahp_opt.torch.running.batches import device_of, inputs_of, prepare
from cahp_opt.torch.running.main_input import main_input, medium_of, writes
from cahp_opt.torch.running.undisturbed import evaluating
from cahp_opt.torch.texts.decoder_inputs import first_token, longest_written, with_own_words
from cahp_opt.torch.texts.labelling import Label, counted_labels
from cahp_opt.torch.texts.pictures import read_picture
from cahp_opt.torch.texts.waves import read_wave

TIMED_SECONDS = 5.0
"""The length of the sound that a model is timed on, unless its feature extractor has a length of its own."""


def encode_files(
    examples: Sequence[Example],
    processor: Any,
    model: nn.Module,
    *,
    batch_size: int,
    max_seconds: float,
    max_length: int,
    seed: int = 0,
) -> list[dict[str, Tensor]]:
    """Batches for ``model(**batch)`` of images, ``[batch, channels, height, width]``, or sound,
    ``[batch, samples]`` or ``[batch, bins, frames]``.

    Nothing is padded but what the processor pads by itself: a batch holds examples of one shape. The batches
    are shuffled. The decoder of an encoder-decoder reads what the model itself writes about them.

    Args:
        examples: paths of files, as :class:`~cahp_opt.runs.media_folders.MediaFolder` gives them.
        processor: the image processor or the feature extractor of the model.
        model: the model; it knows the names of its labels.
        batch_size: the most examples per batch.
        max_seconds: the most that is read of a recording.
        max_length: the most tokens that a decoder reads.
        seed: of the shuffle.

    Raises:
        TextError: if a file cannot be understood, or a label is not one of the model's.
        ValueError: for a size below 1.
        OSError: if a file cannot be read.
    """
    if batch_size < 1 or max_seconds <= 0:
        raise ValueError(
            "`batch_size` must be at least 1 and `max_seconds` above 0, got "
            f"{batch_size} and {max_seconds}."
        )
    labels = counted_labels(examples, model)
    alike: dict[object, list[tuple[dict[str, Tensor], Label | None]]] = defaultdict(list)
    for i, example in enumerate(examples):
        inputs = _inputs(Path(example.text), processor, model, max_seconds)
        shapes = tuple((name, tuple(value.shape)) for name, value in sorted(inputs.items()))
        alike[shapes].append((inputs, None if labels is None else labels[i]))
    batches = [
        _joined(same[start : start + batch_size])
        for same in alike.values()
        for start in range(0, len(same), batch_size)
    ]
    random.Random(seed).shuffle(batches)
    if not writes(model):
        return batches
    most = min(max_length, longest_written(model))
    return [with_own_words(batch, model, most=most) for batch in batches]


def timing_files(
    model: nn.Module,
    processor: Any,
    *,
    batch_size: int,
    sequence_length: int | None,
    new_tokens: int = 0,
) -> dict[str, Tensor]:
    """Random images or recordings, ``[batch, ...]``, of the size that the processor makes, for timing a model.

    Args:
        model: the model.
        processor: its image processor or feature extractor.
        batch_size: examples.
        sequence_length: tokens that a decoder reads; None for 128, or fewer if it has fewer positions.
        new_tokens: positions to leave behind them for tokens that are decoded.

    Raises:
        ValueError: if the model cannot be run on them, or for a size that is too small or too large.
    """
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch_size}.")
    rng = np.random.default_rng(0)
    if medium_of(model) is Medium.IMAGE:
        from PIL import Image

        pixels = rng.integers(0, 256, (256, 256, 3), np.uint8)
        colours = {1: "L", 4: "RGBA"}.get(_channels(model), "RGB")
        given: dict[str, Any] = {"images": Image.fromarray(pixels).convert(colours)}
    else:
        samples = round(TIMED_SECONDS * _rate(processor))
        noise = rng.uniform(-0.5, 0.5, samples).astype(np.float32)
        given = {"raw_speech": noise}
    one = _processed(given, processor, model)
    batch = {
        name: value.expand(batch_size, *value.shape[1:]).clone().to(device_of(model))
        for name, value in one.items()
    }
    if writes(model):
        limit = longest_written(model) - new_tokens
        length = min(128, limit) if sequence_length is None else sequence_length
        if not 1 <= length <= limit:
            raise ValueError(
                f"the sequence length {length} must be from 1 to {limit}, the positions of the decoder"
                f"{f', of which {new_tokens} must be left to decode' if new_tokens else ''}."
            )
        batch["decoder_input_ids"] = torch.full(
            (batch_size, length), first_token(model), device=device_of(model)
        )
    if not any(parameter.is_meta for parameter in model.parameters()):
        ready = prepare(batch, model, "batch")
        try:
            with torch.no_grad(), evaluating(model):
                model(**inputs_of(ready))
        except Exception as error:  # model code raises anything over inputs that it did not expect
            raise ValueError(
                f"what this {type(model).__name__} is timed on, made by its {type(processor).__name__}, does "
                f"not run ({sentence_of(error).rstrip('.')}); check that the processor is the model's."
            ) from error
    return batch


def _inputs(path: Path, processor: Any, model: nn.Module, max_seconds: float) -> dict[str, Tensor]:
    """The inputs of one file, with a first axis of 1."""
    if medium_of(model) is Medium.IMAGE:
        given = {"images": read_picture(path, _channels(model))}
    else:
        given = {"raw_speech": read_wave(path, _rate(processor), max_seconds)}
    try:
        return _processed(given, processor, model)
    except Exception as error:  # the code of a processor raises anything over odd files
        if type(error).__module__.startswith("cahp_opt."):
            raise
        raise TextError(
            f"{path} cannot be prepared by the model's {type(processor).__name__} "
            f"({sentence_of(error).rstrip('.')}); remove it."
        ) from error


def _processed(given: Mapping[str, Any], processor: Any, model: nn.Module) -> dict[str, Tensor]:
    """What the processor makes of one image or sound, as far as the model reads it."""
    if "images" in given:
        made: Any = processor(images=given["images"], return_tensors="pt")
    else:
        made = processor(given["raw_speech"], sampling_rate=_rate(processor), return_tensors="pt")
    known = inspect.signature(type(model).forward).parameters
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    found = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in _tensors(made)
        if name in known and not _all_real(name, value)
    }
    if main_input(model) not in found:
        raise TextError(
            f"the {type(processor).__name__} makes {sorted(made)}, and a {type(model).__name__} reads "
            f"{main_input(model)!r}; save the processor that belongs to the model beside it."
        )
    return found


def _tensors(made: Any) -> Iterator[tuple[str, Tensor]]:
    for name, value in made.items():
        if isinstance(value, Tensor):
            yield name, value


def _all_real(name: str, value: Tensor) -> bool:
    """Whether it is a mask that hides nothing, which some models would be better off without."""
    return name.endswith("_mask") and bool((value == 1).all())


def _joined(same: Sequence[tuple[Mapping[str, Tensor], Label | None]]) -> dict[str, Tensor]:
    batch = {name: torch.cat([inputs[name] for inputs, _ in same]) for name in same[0][0]}
    if same[0][1] is not None:
        batch["labels"] = torch.tensor([label for _, label in same])
    return batch


def _channels(model: nn.Module) -> int:
    config: Any = getattr(model, "config", None)
    told: object = getattr(getattr(config, "vision_config", None) or config, "num_channels", 3)
    return told if isinstance(told, int) else 3


def _rate(processor: Any) -> int:
    told: object = getattr(processor, "sampling_rate", None)
    if not isinstance(told, int):
        raise TextError(
            f"the {type(processor).__name__} beside the model states no `sampling_rate`; write it into "
            "preprocessor_config.json."
        )
    return told
