"""Examples as batches, whatever they are: texts, images or recordings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from cahp_opt.runs.media import Medium
from cahp_opt.runs.plan import Reading
from cahp_opt.runs.text_counts import TextCounts
from cahp_opt.runs.texts import Example
from cahp_opt.torch.running.main_input import medium_of
from cahp_opt.torch.texts.encoding import Encoded, encode_and_count
from cahp_opt.torch.texts.files import encode_files


def encode_examples(
    examples: Sequence[Example],
    processor: Any,
    model: nn.Module,
    reading: Reading,
    seed: int,
    *,
    scored_pairs: bool = False,
) -> Encoded:
    """The batches of some examples of what the model reads; only texts are counted.

    Args:
        examples: texts, or paths of images or recordings.
        processor: the tokenizer of a model of texts, otherwise its
            :class:`~cahp_opt.torch.checkpoints.processors.Preparation`.
        model: the model.
        reading: how they become batches.
        seed: of the order of the batches.
        scored_pairs: as for :func:`~cahp_opt.torch.texts.encoding.encode_and_count`.

    Raises:
        ValueError: as :func:`~cahp_opt.torch.texts.encoding.encode` and
            :func:`~cahp_opt.torch.texts.files.encode_files` do.
        OSError: if a file cannot be read.
    """
    if medium_of(model) in (Medium.IMAGE, Medium.SOUND):
        batches = encode_files(
            examples,
            processor.processor,
            model,
            batch_size=reading.batch_size,
            max_seconds=reading.max_seconds,
            max_length=reading.max_length,
            seed=seed,
        )
        return Encoded(batches, TextCounts())
    return encode_and_count(
        examples,
        processor,
        model,
        batch_size=reading.batch_size,
        max_length=reading.max_length,
        seed=seed,
        scored_pairs=scored_pairs,
    )
