"""Examples as rows of tokens with labels, and rows as batches: what every kind of head reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cahp_opt.runs.text_counts import TextCounts
from cahp_opt.runs.texts import Example, TextError
from cahp_opt.torch.running.batches import PAIR_SCORES
from cahp_opt.torch.running.main_input import writes
from cahp_opt.torch.running.unfit_inputs import chooses
from cahp_opt.torch.texts.decoder_inputs import with_targets
from cahp_opt.torch.texts.labelling import Label, counted_labels
from cahp_opt.torch.texts.scored_pairs import both_texts, scores_of
from cahp_opt.torch.texts.tokenizing import token_rows


class EncodedRow(NamedTuple):
    """One example in tokens.

    Args:
        texts: what the tokenizer made of its text, or of every choice.
        label: as the model counts; None without.
        target: the tokens that a decoder is to write; None without.
        score: how alike its two texts are; None where it is not a scored pair.
    """

    texts: Sequence[Mapping[str, list[int]]]
    label: Label | None
    target: list[int] | None
    score: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        """The number of texts, and the most tokens of one of them."""
        return len(self.texts), max(len(text["input_ids"]) for text in self.texts)


def encoded_rows(
    examples: Sequence[Example],
    tokenizer: Any,
    model: nn.Module,
    length: int,
    *,
    scored_pairs: bool = False,
) -> tuple[list[EncodedRow], TextCounts]:
    """The rows of some examples, without those of which the tokenizer leaves no token, and how much was read.

    Args:
        examples: the texts.
        tokenizer: the model's.
        model: the model; it says what becomes of pairs and choices.
        length: the most tokens per text.
        scored_pairs: whether both texts of a pair are read one by one, and its label is a score.

    Raises:
        TextError: as :func:`~cahp_opt.torch.texts.encoding.encode` does.
    """
    _check_choices(examples, model)
    scores = scores_of(examples) if scored_pairs else None
    labels = None if scored_pairs else counted_labels(examples, model)
    targets = None
    if not scored_pairs and writes(model) and examples and examples[0].pair is not None:
        targets = list(_target_rows(examples, tokenizer, length))
        examples = [replace(example, pair=None) for example in examples]
    parts = [both_texts(each) if scored_pairs else _texts(each) for each in examples]
    texts = [text for part in parts for text in part]
    found = iter(list(token_rows(texts, tokenizer, length)))
    rows, counts = list[EncodedRow](), TextCounts()
    for i, part in enumerate(parts):
        own = [next(found) for _ in part]
        whole = [text.values for text in own if text.values is not None]
        target = None if targets is None else targets[i]
        if len(whole) < len(own) or target == []:
            counts += TextCounts(empty=1)
            continue
        tokens, cut_off = sum(len(text["input_ids"]) for text in whole), sum(t.cut_off for t in own)
        counts += TextCounts(1, tokens, 0, int(cut_off > 0), cut_off)
        label = None if labels is None else labels[i]
        rows.append(EncodedRow(whole, label, target, None if scores is None else scores[i]))
    return rows, counts


def batch_of_rows(rows: Sequence[EncodedRow], pad: int, model: nn.Module) -> dict[str, Tensor]:
    """Rows as a batch, ``[batch, tokens]`` or ``[batch, choices, tokens]``, padded on the right; the texts of
    scored pairs one after the other.

    Args:
        rows: as many texts in each.
        pad: the id that fills.
        model: the model.
    """
    batch = _padded([text for row in rows for text in row.texts], pad)
    if chooses(model):
        each = (len(rows), len(rows[0].texts))
        batch = {name: values.reshape(*each, -1) for name, values in batch.items()}
    scores = [row.score for row in rows for _ in row.texts if row.score is not None]
    if scores:
        batch[PAIR_SCORES] = torch.tensor(scores, dtype=torch.float64)
    if rows[0].label is not None:
        batch["labels"] = torch.tensor([row.label for row in rows])
    targets = [row.target for row in rows if row.target is not None]
    return with_targets(batch, targets, model, pad) if targets else batch


def _padded(texts: Sequence[Mapping[str, list[int]]], pad: int) -> dict[str, Tensor]:
    lengths = torch.tensor([len(text["input_ids"]) for text in texts])
    longest = int(lengths.max())
    batch: dict[str, Tensor] = {}
    for key in texts[0]:
        filler = pad if key == "input_ids" else 0
        padded = [[*text[key], *[filler] * (longest - len(text[key]))] for text in texts]
        batch[key] = torch.tensor(padded, dtype=torch.long)
    if "attention_mask" not in batch:
        batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
    return batch


def _texts(example: Example) -> list[Example]:
    """The texts, or pairs of texts, that an example is: one, or one for every choice."""
    if not example.choices:
        return [example]
    start = "" if example.pair is None else f"{example.pair} "
    return [Example(example.text, start + choice) for choice in example.choices]


def _target_rows(examples: Sequence[Example], tokenizer: Any, length: int) -> Iterator[list[int]]:
    targets = [example.pair or "" for example in examples]
    yield from tokenizer(text_target=targets, truncation=True, max_length=length)["input_ids"]


def _check_choices(examples: Sequence[Example], model: nn.Module) -> None:
    cls = type(model).__name__
    least = min((len(example.choices) for example in examples), default=0)
    if chooses(model) and least < 2:
        raise TextError(
            f"the model, a {cls}, chooses between several texts, and the texts have no choices; give a table "
            "with columns choice0, choice1 and so on beside text, and at least two of them filled in every row."
        )
    if not chooses(model) and any(example.choices for example in examples):
        raise TextError(
            f"the texts have choices, and the model, a {cls}, does not choose between texts; leave out the "
            "columns of choices, or take a model for multiple choice."
        )
