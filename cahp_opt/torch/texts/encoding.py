"""Encoding texts as batches: tokens, padding, labels; and random batches for timing."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cahp_opt.runs.text_counts import TextCounts
from cahp_opt.runs.texts import Example, TextError
from cahp_opt.torch.running.batches import device_of, examples, inputs_of, prepare
from cahp_opt.torch.running.main_input import main_input, reads_decoder_ids
from cahp_opt.torch.running.preparing import PaddingCheck
from cahp_opt.torch.running.undisturbed import evaluating
from cahp_opt.torch.running.unfit_inputs import (
    chooses,
    longest,
    padding_id,
    refuse_unfit_inputs,
    vocabulary_size,
)
from cahp_opt.torch.texts.decoder_inputs import with_same_text
from cahp_opt.torch.texts.rows import EncodedRow, batch_of_rows, encoded_rows

_WINDOW = 64  # batches that are sorted by length together: hardly any padding


class Encoded(NamedTuple):
    """Texts as batches.

    Args:
        batches: tensors ``[batch, tokens]`` by name of the input.
        counts: how many texts and tokens they hold, and how many not.
    """

    batches: list[dict[str, Tensor]]
    counts: TextCounts


def encode(
    examples: Sequence[Example],
    tokenizer: Any,
    model: nn.Module,
    *,
    batch_size: int,
    max_length: int,
    seed: int = 0,
) -> list[dict[str, Tensor]]:
    """The batches, ``[batch, tokens]``, of :func:`encode_and_count` alone."""
    return encode_and_count(
        examples, tokenizer, model, batch_size=batch_size, max_length=max_length, seed=seed
    ).batches


def encode_and_count(
    examples: Sequence[Example],
    tokenizer: Any,
    model: nn.Module,
    *,
    batch_size: int,
    max_length: int,
    seed: int = 0,
    scored_pairs: bool = False,
) -> Encoded:
    """Batches for ``model(**batch)``, ``[batch, tokens]``, padded on the right to their longest
    example.

    The filler is the id in the model's configuration, because classifiers that are decoders find
    the last token of a text by it, or the tokenizer's if there is none.

    Examples of a window are sorted by length, to pad little, and its batches shuffled, so that the
    first batches are not special. Classifiers get ``labels`` if the examples have them. Texts of
    which the tokenizer leaves no token are left out. Models for multiple choice get ``[batch, choices,
    tokens]``. The decoder of an encoder-decoder reads the second text of a pair, one token later, as it would
    have written it; without pairs the text itself, unless the model makes its input itself.

    Args:
        examples: the texts.
        tokenizer: the model's.
        model: the model; it bounds the length and knows the names of its labels.
        batch_size: texts per batch; a pair that is read as one text is one.
        max_length: the most tokens per example; never more than the model has positions for.
        seed: of the shuffle.
        scored_pairs: whether the texts of a pair are read one by one and stand one after the other, with the
            label as :data:`~cahp_opt.torch.running.batches.PAIR_SCORES`.

    Raises:
        TextError: if no token is left of any text, a label is not one of the model's, or the examples have
            no choices where the model chooses, or have some where it does not.
        ValueError: for a size below 1, a tokenizer of another model, or a model that reads the filler.
    """
    if batch_size < 1 or max_length < 1:
        raise ValueError(
            f"`batch_size` and `max_length` must be at least 1, got {batch_size} and {max_length}."
        )
    length = min([max_length, *(x for x in (longest(model), _limit(tokenizer)) if x)])
    pairs = [e.pair for e in examples]
    if any(pair is None for pair in pairs) and any(pair is not None for pair in pairs):
        raise TextError(
            "some texts have a pair and some have none; give all of them pairs or none."
        )
    rows, counts = encoded_rows(examples, tokenizer, model, length, scored_pairs=scored_pairs)
    if scored_pairs:
        batch_size = max(1, batch_size // 2)
    if not rows:
        raise TextError("the tokenizer leaves no token of any text; check that it is the model's.")
    pad = _filler(tokenizer, model)
    shuffler = random.Random(seed)
    batches: list[dict[str, Tensor]] = []
    for start in range(0, len(rows), _WINDOW * batch_size):
        window = sorted(rows[start : start + _WINDOW * batch_size], key=lambda row: row.size)
        own = list[list[EncodedRow]]()
        for _, alike in groupby(window, key=lambda row: len(row.texts)):
            same = list(alike)
            own += [same[i : i + batch_size] for i in range(0, len(same), batch_size)]
        shuffler.shuffle(own)
        batches.extend(with_same_text(batch_of_rows(part, pad, model), model) for part in own)
    check = PaddingCheck(model)
    for batch in batches:
        refuse_unfit_inputs(batch, model, "texts")
        check.check(batch, "texts")
    return Encoded(batches, counts)


def timing_batch(
    model: nn.Module, *, batch_size: int, sequence_length: int | None, new_tokens: int = 0
) -> dict[str, Tensor]:
    """Random token ids ``[batch, tokens]`` without padding, for timing a model.

    The decoder of an encoder-decoder reads as many tokens as the encoder.

    Args:
        model: the model.
        batch_size: texts.
        sequence_length: tokens per text; None for 128, or fewer if the model has fewer positions.
        new_tokens: positions to leave behind them for tokens that are decoded.

    Raises:
        ValueError: if the model has fewer positions, does not state its vocabulary, reads no text,
            or cannot be run on the ids.
    """
    positions = longest(model)
    limit = None if positions is None else positions - new_tokens
    if sequence_length is None:
        sequence_length = 128 if limit is None else min(128, limit)
    if batch_size < 1 or sequence_length < 1:
        raise ValueError(
            "the batch size and the sequence length must be at least 1, got "
            f"{batch_size} and {sequence_length}."
        )
    if limit is not None and sequence_length > limit:
        left = f", of which {new_tokens} must be left to decode" if new_tokens else ""
        raise ValueError(
            f"the sequence length {sequence_length} is more than the {positions} positions of this "
            f"model allow{left}; give at most {limit}."
        )
    config = getattr(model, "config", None)
    vocabulary = getattr(config, "vocab_size", None)
    main = main_input(model)
    if not isinstance(vocabulary, int) or main != "input_ids":
        raise ValueError(
            f"`model` is a {type(model).__name__} that reads {main} or does not state its vocabulary, so that "
            "no texts can be made up to time it; give `measure_latency` a batch of your own, from Python."
        )
    ids = _random_ids(config, vocabulary, (batch_size, sequence_length))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if chooses(model):  # every text is the only choice of its example
        batch = {name: tensor[:, None] for name, tensor in batch.items()}
    if reads_decoder_ids(model):
        batch["decoder_input_ids"] = ids
    batch = {name: tensor.to(device_of(model)) for name, tensor in batch.items()}
    if not any(parameter.is_meta for parameter in model.parameters()):
        _try(model, batch)
    return batch


def _random_ids(config: Any, vocabulary: int, shape: tuple[int, int]) -> Tensor:
    """Ids of ordinary tokens; where there is an encoder, the last one ends the text, as heads may want."""
    names = ("bos", "eos", "pad", "cls", "sep", "mask", "decoder_start")
    special = [getattr(config, f"{name}_token_id", None) for name in names]
    ordinary = torch.tensor([i for i in range(vocabulary) if i not in special] or [0])
    generator = torch.Generator().manual_seed(0)
    ids = ordinary[torch.randint(0, len(ordinary), shape, generator=generator)]
    end: object = getattr(config, "eos_token_id", None)
    if getattr(config, "is_encoder_decoder", False) and isinstance(end, int) and end < vocabulary:
        ids[:, -1] = end
    return ids


def _try(model: nn.Module, batch: Mapping[str, Tensor]) -> None:
    """Run two of the texts, so that unfit inputs are refused before timing."""
    PaddingCheck(model).check(batch, "batch")
    two = prepare(examples(batch, 0, 2), model, "batch")
    try:
        with torch.no_grad(), evaluating(model):
            model(**inputs_of(two))
    except Exception as error:  # model code raises anything over inputs that it did not expect
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"texts to time this {type(model).__name__} with could not be made up from its configuration: it "
            f"ends in {reason!r}; give `measure_latency` a batch of your own, from Python."
        ) from error


def _filler(tokenizer: Any, model: nn.Module) -> int:
    entries = vocabulary_size(model)
    known = (padding_id(model), tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((x for x in known if x is not None and 0 <= x < (entries or math.inf)), 0)


def _limit(tokenizer: Any) -> int | None:
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if limit is not None and limit < 10**9 else None
