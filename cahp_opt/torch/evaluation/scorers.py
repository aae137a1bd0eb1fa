"""Numbers per example of a model beside the unpruned one, for each kind of task."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cahp_opt.arrays import Floats
from cahp_opt.studies.figures import NEIGHBOURS, Judging
from cahp_opt.studies.scores import Scores
from cahp_opt.torch.evaluation.labels import class_numbers, numbers, pair_scores, yes_or_no
from cahp_opt.torch.running.batches import IGNORED, Batch, decoder_tokens
from cahp_opt.torch.running.centring import in_double

_OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "labelled": ("right", "squared_error"),
    "targets": ("nll",),
}
"""Numbers of answers that may all be 0, and the sums over these answers."""


class Scorer(ABC):
    """Takes numbers per example from batches, then gives the scores of both models.

    :data:`~cahp_opt.studies.figures.FIGURES` has what they are and which figures they make.
    """

    judging: ClassVar[Judging]

    def __init__(self) -> None:
        self._dense = _Columns()
        self._other = _Columns()
        self._answers, self._labels = _Seen(), _Seen()

    def add(self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch) -> None:
        """Add one batch: both outputs ``[batch, ...]``, the distance per example ``[batch]``, the
        batch."""
        self._dense.add(self.alone(dense, batch))
        together = self.together(dense, other, distance, batch)
        self._other.add({**together, **self.alone(other, batch)})

    @abstractmethod
    def together(
        self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """What depends on both outputs, ``[batch, ...]``: by name, one number per example,
        ``[batch]``."""

    def alone(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What depends on one model's output, ``[batch, ...]``: by name, one number per example,
        ``[batch]``."""
        del output, batch
        return {}

    def scores(self) -> Scores:
        """The scores of the model that is judged, over everything added."""
        return Scores(self.judging, self._other.arrays())

    def dense_scores(self) -> Scores | None:
        """What depends on the unpruned model's outputs alone; None without labels or texts."""
        arrays = self._dense.arrays()
        return Scores(self.judging, arrays) if arrays else None

    def notes(self) -> tuple[str, ...]:
        """Sentences on the limits of the figures."""
        return _of_one_class(self._answers, self._labels)


class ClassScorer(Scorer):
    """For :attr:`Judging.CLASSES`."""

    judging = Judging.CLASSES

    def together(
        self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        del batch
        expected = dense.argmax(dim=-1)
        self._answers.add(expected)
        return {"kl": distance, "agreement": expected == other.argmax(dim=-1)}

    def alone(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        predicted = output.argmax(dim=-1)
        labels = class_numbers(batch, output.shape[:1], output.shape[1], output.device)
        label = torch.full(predicted.shape, math.nan)
        if labels is not None:
            known = labels != IGNORED
            self._labels.add(labels[known])
            label = labels.float().masked_fill(~known, math.nan)
        return {"predicted": predicted, "label": label}


class LabelScorer(Scorer):
    """For :attr:`Judging.LABELS`."""

    judging = Judging.LABELS

    def together(
        self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        del batch
        alike = (dense > 0) == (other > 0)
        return {"kl": distance, "agreement": alike.sum(dim=1), "answers": _sizes(alike)}

    def alone(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        labels = yes_or_no(batch, output.shape, output.device)
        if labels is None:
            return _none("right", "labelled", output)
        right = (output > 0) == (labels > 0)
        return {"right": right.sum(dim=1), "labelled": _sizes(right)}


class NumberScorer(Scorer):
    """For :attr:`Judging.NUMBERS`."""

    judging = Judging.NUMBERS

    def together(
        self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        del distance, batch
        squares = in_double((dense - other).square()).sum(dim=1)
        return {"squared_difference": squares, "values": _sizes(dense)}

    def alone(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        labels = numbers(batch, output.shape, output.device)
        if labels is None:
            return _none("squared_error", "labelled", output)
        squares = in_double((output - labels).square()).sum(dim=1)
        return {"squared_error": squares, "labelled": _sizes(output)}


class TokenScorer(Scorer):
    """For :attr:`Judging.TOKENS`: the likeliest class at every real token."""

    judging = Judging.TOKENS

    def together(
        self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        real = decoder_tokens(batch).to(dense.device)
        tokens, expected = real.sum(dim=1), dense.argmax(dim=-1)
        self._answers.add(expected[real])
        alike = (expected == other.argmax(dim=-1)) & real
        kl = in_double(distance) * in_double(tokens)
        return {"kl": kl, "tokens": tokens, "agreement": alike.sum(dim=1)}

    def alone(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        labels = class_numbers(batch, output.shape[:2], output.shape[2], output.device)
        if labels is None:
            return _none("right", "labelled", output)
        known = labels != IGNORED
        self._labels.add(labels[known])
        right = (output.argmax(dim=-1) == labels) & known
        return {"right": right.sum(dim=1), "labelled": known.sum(dim=1)}


class NextTokenScorer(TokenScorer):
    """For :attr:`Judging.NEXT_TOKENS`: every token that follows one is predicted."""

    judging = Judging.NEXT_TOKENS

    def alone(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        if not isinstance(batch.get("input_ids"), Tensor):
            return _none("nll", "targets", output)
        real = decoder_tokens(batch).to(output.device)
        follows = real[:, :-1] & real[:, 1:]
        targets = batch["input_ids"].to(output.device)[:, 1:][follows]
        losses = functional.cross_entropy(
            output[:, :-1][follows].float(), targets, reduction="none"
        )
        by_token = torch.zeros(follows.shape, dtype=losses.dtype, device=losses.device)
        by_token[follows] = losses
        return {"nll": in_double(by_token).sum(dim=1), "targets": follows.sum(dim=1)}


class FrameScorer(Scorer):
    """For :attr:`Judging.FRAMES`."""

    judging = Judging.FRAMES

    def together(
        self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        del batch
        expected = dense.argmax(dim=-1)
        self._answers.add(expected)
        alike = expected == other.argmax(dim=-1)
        return {"kl": distance, "agreement": alike.sum(dim=1), "frames": _sizes(alike)}


class SpanScorer(Scorer):
    """For :attr:`Judging.SPANS`: answers agree where both the likeliest start and the likeliest end do."""

    judging = Judging.SPANS

    def together(
        self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        del batch
        alike = (dense.argmax(dim=-1) == other.argmax(dim=-1)).all(dim=-1)
        return {"kl": distance, "agreement": alike}


class EmbeddingScorer(Scorer):
    """For :attr:`Judging.EMBEDDINGS`: the distance, and the share of a text's ten nearest other texts (by
    cosine) that both models agree on.

    If ten are more than a quarter of the other texts, a quarter of them is taken, and the figure is
    named after that number; below five texts there is no figure. So two unrelated models agree on a
    quarter at most.

    Of scored pairs (``pair_scores`` in the batch) an example is a pair, with the means of its texts, the
    cosine of both, and the score as its label.
    """

    judging = Judging.EMBEDDINGS
    SHARE = 4

    def __init__(self) -> None:
        super().__init__()
        self._vectors: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._paired = list[bool]()

    def add(self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch) -> None:
        super().add(dense, other, distance, batch)
        for vectors, each in zip(self._vectors, (dense, other), strict=True):
            vectors.append(functional.normalize(each, dim=-1).cpu())
        self._paired.append(pair_scores(batch) is not None)
        if self._paired[0] is not self._paired[-1]:
            raise ValueError(
                "`batches` has `pair_scores` in some batches only; give them to all of them or none."
            )

    def together(
        self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        del dense, other
        paired = pair_scores(batch) is not None
        return {"cosine_distance": _of_pairs(distance) if paired else distance}

    def alone(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        label = pair_scores(batch)
        if label is None:
            return {}
        similarity = functional.cosine_similarity(output[::2], output[1::2], dim=-1)
        return {"similarity": similarity, "label": label}

    def scores(self) -> Scores:
        arrays = self._other.arrays()
        dense, other = (torch.cat(vectors) for vectors in self._vectors)
        k = min(NEIGHBOURS, (len(dense) - 1) // self.SHARE)
        if k:
            shares = neighbour_agreement(dense, other, k)
            shares = _of_pairs(shares) if self._paired[0] else shares
            arrays[f"neighbour_agreement_at_{k}"] = shares.numpy()
        return Scores(self.judging, arrays)


def neighbour_agreement(dense: Tensor, other: Tensor, k: int) -> Tensor:
    """For every row the share of its ``k`` nearest other rows by inner product that is the same in both matrices
    ``[n, d]``, ``[n]``.

    Raises:
        ValueError: if ``k`` is below 1, or all other rows.
    """
    n = len(dense)
    if not 0 < k < n - 1:
        raise ValueError(
            f"`k` must be at least 1 and less than the {n - 1} other rows, which are always the same, got {k}."
        )
    rows = max(1, 2**24 // n)  # a slab of similarities of at most 64 MiB
    shares = list[Tensor]()
    for start in range(0, n, rows):
        own = torch.arange(start, min(start + rows, n))
        nearest: list[Tensor] = []
        for vectors in (dense, other):
            similarity = vectors[own] @ vectors.T
            similarity[torch.arange(len(own)), own] = -math.inf  # a text is not its own neighbour
            nearest.append(similarity.topk(k, dim=1).indices)
        shared = (nearest[0][:, :, None] == nearest[1][:, None, :]).sum(dim=(1, 2))
        shares.append(shared.double() / k)
    return torch.cat(shares)


class _Columns:
    """Numbers per example by name, collected over batches."""

    def __init__(self) -> None:
        self._parts = dict[str, list[Floats]]()

    def add(self, found: Mapping[str, Tensor]) -> None:
        """Add one batch, ``[batch]`` each."""
        for name, values in found.items():
            self._parts.setdefault(name, []).append(in_double(values).cpu().numpy())

    def arrays(self) -> dict[str, Floats]:
        """The arrays ``[examples]``, without labels and answers if no example has any."""
        arrays = {name: np.concatenate(parts) for name, parts in self._parts.items()}
        if "label" in arrays and np.isnan(arrays["label"]).all():
            del arrays["label"]
        for number, sums in _OPTIONAL.items():
            if number in arrays and not arrays[number].any():
                for name in (number, *sums):
                    arrays.pop(name, None)
        return arrays


def _sizes(values: Tensor) -> Tensor:
    """How many values every example has, ``[batch]``."""
    return torch.full(values.shape[:1], values[0].numel())


def _none(of: str, per: str, output: Tensor) -> dict[str, Tensor]:
    """A sum over no answers, and their number."""
    zeros = torch.zeros(len(output))
    return {of: zeros, per: zeros}


def _of_pairs(values: Tensor) -> Tensor:
    """The mean of every two neighbours."""
    return in_double(values).reshape(-1, 2).mean(dim=1)


class _Seen:
    """Whether values are all the same, without keeping them."""

    def __init__(self) -> None:
        self._span: tuple[int, int] | None = None

    def add(self, values: Tensor) -> None:
        if not values.numel():
            return
        low, high = int(values.min()), int(values.max())
        if self._span is not None:
            low, high = min(low, self._span[0]), max(high, self._span[1])
        self._span = low, high

    @property
    def alike(self) -> bool:
        return self._span is not None and self._span[0] == self._span[1]


def _of_one_class(predicted: _Seen, labels: _Seen) -> tuple[str, ...]:
    notes = list[str]()
    if predicted.alike:
        notes.append(
            "the unpruned model gives the same answer to all held-out examples, so that agreement with "
            "it says little."
        )
    if labels.alike:
        notes.append(
            "the held-out examples have a single label, so that a model that always gives it has the "
            "accuracy 1."
        )
    return tuple(notes)
