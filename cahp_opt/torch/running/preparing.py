"""Batches made ready for a model, and refused if a row is read otherwise in a batch than alone."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, cast

import torch
from torch import Tensor, nn

from cahp_opt.torch.running.batches import (
    POSITIONS,
    Batch,
    batch_size,
    decoder_tokens,
    examples,
    has_decoder_input,
    inputs_of,
    prepare,
    real_tokens,
)
from cahp_opt.torch.running.undisturbed import evaluating
from cahp_opt.torch.running.unfit_inputs import chooses, padding_id

_ALLOWED, _ALLOWED_IN_HALF = 1e-3, 0.1
"""Length of a difference over that of the values, their mean apart. A token that is read by mistake makes
one of around 1, and other shapes of the same row round otherwise."""

_BESIDE = ("bbox",)  # inputs of three axes whose second is that of tokens


class Doubt(Enum):
    """A kind of padding that some models handle and others do not."""

    LEFT = "padding before a token"
    FILLER = "padding that is not filled with the model's own id"
    NAMELESS = "padding of a model that names no id for it"
    VECTORS = "padding that is given as vectors"
    RIGHT = "padding behind the last token, which a head reads"
    COMPANY = "several examples for a classifier without an id that fills"


_LOOKS = "the model finds the last token of a text by the id that fills"
_SET = "`model.config.pad_token_id` to the id that the tokenizer fills with (in a folder: in config.json)"
_ADVICE = {
    Doubt.FILLER: f"{_LOOKS}: fill with {{pad}}, the `pad_token_id` of its configuration",
    Doubt.NAMELESS: f"{_LOOKS}: set {_SET}",
    Doubt.VECTORS: f"{_LOOKS}: pass `input_ids`, or rows of one length",
    Doubt.RIGHT: "the model reads the last place: pad on the left",
    Doubt.COMPANY: f"set {_SET}, or give batches of one example",
}


def prepared(batches: Iterable[Any], model: nn.Module) -> Iterator[Batch]:
    """:func:`~cahp_opt.torch.running.batches.prepare` for every batch, and :class:`PaddingCheck`.

    Raises:
        ValueError: naming the position of the batch that cannot be used, or if there is no batch.
    """
    position, check = -1, PaddingCheck(model)
    for position, batch in enumerate(batches):
        ready = prepare(batch, model, f"batches[{position}]")
        check.check(ready, f"batches[{position}]")
        yield ready
    if position < 0:
        raise ValueError("`batches` is empty; at least one batch with one text is needed.")


class PaddingCheck:
    """Refuses batches whose padding a model reads, or lets change what it reads.

    No configuration states whether a model accepts padding on the left, or finds the last token of
    a text whatever the filler. So the first batch with such padding is tried: a row of it must give
    the same output in the batch as alone. Batches that are padded on the right with the model's own
    id, as tokenizers do it, cost nothing.

    Args:
        model: the model, in any mode; it is left as it was.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._cleared = set[tuple[Doubt, bool]]()  # with positions that were given, or without

    def check(self, batch: Batch, argument: str) -> None:
        """Check one batch.

        Args:
            batch: a usable one, on any device.
            argument: its name, for messages.

        Raises:
            ValueError: naming ``argument``, the example and the way out.
        """
        told = any(isinstance(batch.get(name), Tensor) for name in POSITIONS)
        for doubt, rows in _doubts(batch, self._model).items():
            if (doubt, told) in self._cleared or not bool(rows.any()):
                continue
            if chooses(self._model):
                raise ValueError(
                    f"`{argument}` has {doubt.value} among its choices, and whether this "
                    f"{type(self._model).__name__} reads that is not known; {self._advice_on_choices()}."
                )
            row = _most_padded(batch, rows)
            batch = prepare(batch, self._model, argument)
            difference = self._difference(batch, row)
            if difference is not None:
                raise ValueError(
                    f"`{argument}` cannot be used with this {type(self._model).__name__}: its example {row} "
                    f"{difference}; {self._advice(doubt, batch, row)}."
                )
            self._cleared.add((doubt, told))

    def _difference(self, batch: Batch, row: int) -> str | None:
        """How a row differs in the batch from itself alone, half a sentence; None if it does
        not."""
        other = 0 if row else min(1, batch_size(batch) - 1)
        company = _rows(batch, [row, other] if other != row else [row])
        alone = _alone(batch, row)
        if alone is None:
            return None
        try:
            expected = self._run(alone)
        except Exception:  # it wants other inputs, which is told where it is run for its output
            return None
        try:
            found = self._run(company)
        except ValueError as error:
            return f"runs alone, and in the batch ends in {str(error).rstrip('.')!r}"
        masks = [decoder_tokens(company)[0], real_tokens(company)[0]]
        share = _distance(found, expected, masks)
        half = expected.dtype in (torch.float16, torch.bfloat16)
        if share is None or share <= (_ALLOWED_IN_HALF if half else _ALLOWED):
            return None
        if not math.isfinite(share):
            return "comes out as NaN in the batch, and alone it does not"
        return f"comes out otherwise in the batch than alone, by {share:.0%} of the output"

    def _advice_on_choices(self) -> str:
        """The way out where several choices per example are padded, half a sentence."""
        pad = padding_id(self._model)
        return f"pad on the right{'' if pad is None else f' with {pad}'}, and give the masks"

    def _advice(self, doubt: Doubt, batch: Batch, row: int) -> str:
        """The way out, half a sentence."""
        if doubt is not Doubt.LEFT:
            return _ADVICE[doubt].format(pad=padding_id(self._model))
        said = "its padding stands on the left: pad on the right"
        mask = batch.get("attention_mask")
        accepted = inspect.signature(type(self._model).forward).parameters
        if not isinstance(mask, Tensor) or "position_ids" not in accepted:
            return said
        counted = (mask.cumsum(1) - 1).clamp(min=0)
        if self._difference({**batch, "position_ids": counted}, row) is not None:
            return said
        if batch.get("position_ids") is not None:
            return f"{said}, or let `position_ids` count the tokens without the padding, from 0"
        return f"{said}, or pass `position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0)` with it"

    def _run(self, batch: Batch) -> Tensor:
        with torch.no_grad(), evaluating(self._model):
            output: object = self._model(**inputs_of(batch))
        values: tuple[object, ...] = (output,)
        if isinstance(output, Mapping):
            values = tuple(cast("Mapping[str, object]", output).values())
        elif isinstance(output, tuple):
            values = cast("tuple[object, ...]", output)
        tensors = (v for v in values if isinstance(v, Tensor) and v.is_floating_point() and v.ndim)
        return next(tensors, torch.zeros(0))


def _doubts(batch: Batch, model: nn.Module) -> dict[Doubt, Tensor]:
    """By doubt, the rows that it is about, bool ``[batch]``."""
    real = real_tokens(batch)
    left = _begins_late(real)
    padded = ~real.all(dim=1)
    none = torch.zeros_like(left)
    if has_decoder_input(batch):
        left = left | _begins_late(decoder_tokens(batch))
    ids, pad = batch.get("input_ids"), padding_id(model)
    named = isinstance(ids, Tensor) and ids.shape == real.shape
    vectors = not named and isinstance(batch.get("inputs_embeds"), Tensor)
    strange = ((ids != pad) & ~real).any(dim=1) if named and pad is not None else none
    config: object = getattr(model, "config", None)
    reads_last = getattr(config, "summary_type", None) == "last"
    alone = pad is not None or "ForSequenceClassification" not in type(model).__name__
    return {
        Doubt.COMPANY: none if alone or len(real) < 2 else ~none,
        Doubt.LEFT: left,
        Doubt.FILLER: strange,
        Doubt.NAMELESS: padded if named and pad is None else none,
        Doubt.VECTORS: padded if vectors else none,
        Doubt.RIGHT: padded & ~left if reads_last else none,
    }


def _begins_late(real: Tensor) -> Tensor:
    """Which rows have padding before a real token, bool ``[batch]``."""
    return (real[:, 1:] & ~real[:, :-1]).any(dim=1)


def _most_padded(batch: Batch, rows: Tensor) -> int:
    padding = (~real_tokens(batch)).sum(dim=1) + (~decoder_tokens(batch)).sum(dim=1)
    return int(torch.where(rows, padding, -1).argmax())


def _rows(batch: Batch, rows: list[int]) -> Batch:
    parts = [examples(batch, row, row + 1) for row in rows]
    if len(parts) == 1:
        return parts[0]
    joined = dict(parts[0])
    for key, value in parts[0].items():
        if isinstance(value, Tensor) and value is not parts[1][key]:
            joined[key] = torch.cat([value, parts[1][key]], dim=int(_by_kind(key, value)))
    return joined


def _by_kind(key: str, value: Tensor) -> bool:
    """Whether its second axis is that of examples: positions of several kinds."""
    return key.endswith("position_ids") and value.ndim == 3


def _alone(batch: Batch, row: int) -> Batch | None:
    """One row without its padding and with the model's own positions; None if it cannot be told apart."""
    size, cut = batch_size(batch), dict[str, Any]()
    sides = {"": real_tokens(batch), "decoder_": decoder_tokens(batch)}
    for key, value in batch.items():
        if key.endswith("position_ids"):
            continue
        if not isinstance(value, Tensor) or not value.ndim:
            cut[key] = value
            continue
        if value.shape[0] != size:
            return None  # such as the images of all texts, side by side
        real = sides["decoder_" if key.startswith("decoder_") else ""]
        by_token = key.endswith("inputs_embeds") or key in _BESIDE or value.ndim == 2
        if by_token and value.shape[:2] == real.shape and not key.startswith("encoder_"):
            cut[key] = value[row : row + 1, real[row].to(value.device)]
        else:
            cut[key] = value[row : row + 1]
    return cut


def _distance(found: Tensor, expected: Tensor, masks: list[Tensor]) -> float | None:
    """Relative difference of the first example of ``found`` from ``expected``; None if not
    comparable."""
    if not found.numel() or not expected.numel():
        return None
    one, goal = found[0].cpu().double(), expected[0].cpu().double()
    if one.shape != goal.shape:
        fitting = (m.cpu() for m in masks if one.ndim and len(m) == len(one))
        cuts = (one[mask] for mask in fitting)
        one = next((cut for cut in cuts if cut.shape == goal.shape), one)
    if one.shape != goal.shape or not bool(goal.isfinite().all()):
        return None
    middle = goal.mean(dim=-1, keepdim=True) if goal.ndim and goal.shape[-1] > 1 else 0
    length = float((goal - middle).square().sum().sqrt())
    difference = float((one - goal).square().sum().sqrt())
    return difference / length if length else float(difference > 0)
