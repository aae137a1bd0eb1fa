"""Running figures of a model against the dense one, for each kind of task."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from cahp_opt.torch.evaluation.labels import class_numbers, numbers, yes_or_no
from cahp_opt.torch.running.batches import IGNORED, Batch, decoder_tokens
from cahp_opt.torch.running.centring import in_double


class Tally(ABC):
    """Adds up batches, then gives the figures."""

    @abstractmethod
    def add(self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch) -> None:
        """Add one batch: both outputs ``[batch, ...]``, the distance per example ``[batch]``, the
        batch."""

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """The figures over everything added, by name."""

    def notes(self) -> tuple[str, ...]:
        """Sentences on the limits of the figures."""
        return ()


class Mean:
    """The mean of all values added; NaN without any."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def add(self, values: Tensor) -> None:
        """Add every value of a tensor ``[...]``."""
        self.sum += float(in_double(values).sum())
        self.count += values.numel()

    @property
    def value(self) -> float:
        """The mean so far."""
        return self.sum / self.count if self.count else math.nan


class _Answers(Tally):
    """What the tallies of answers that are right or wrong have in common."""

    def __init__(self) -> None:
        self._kl, self._agreement = Mean(), Mean()
        self._dense_accuracy, self._accuracy = Mean(), Mean()

    def figures(self) -> dict[str, float]:
        found = {"kl": self._kl.value, "agreement": self._agreement.value}
        if self._accuracy.count:
            found["dense_accuracy"] = self._dense_accuracy.value
            found["accuracy"] = self._accuracy.value
        return found


class ClassTally(_Answers):
    """``kl`` (nats), ``agreement`` of the predicted classes; with labels ``dense_accuracy``, ``accuracy``."""

    def __init__(self) -> None:
        super().__init__()
        self._classes, self._labels = _Seen(), _Seen()

    def add(self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch) -> None:
        expected, predicted = dense.argmax(dim=-1), other.argmax(dim=-1)
        self._kl.add(distance)
        self._agreement.add(expected == predicted)
        self._classes.add(expected)
        labels = class_numbers(batch, dense.shape[:1], dense.shape[1], dense.device)
        if labels is not None:
            known = labels != IGNORED
            self._labels.add(labels[known])
            self._dense_accuracy.add((expected == labels)[known])
            self._accuracy.add((predicted == labels)[known])

    def notes(self) -> tuple[str, ...]:
        return _of_one_class(self._classes, self._labels)


class LabelTally(_Answers):
    """``kl`` (nats) and ``agreement``, the share of answers that are alike over examples and labels; with labels
    ``dense_accuracy`` and ``accuracy``, the shares that are right."""

    def add(self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch) -> None:
        expected, predicted = dense > 0, other > 0
        self._kl.add(distance)
        self._agreement.add(expected == predicted)
        labels = yes_or_no(batch, dense.shape, dense.device)
        if labels is not None:
            self._dense_accuracy.add(expected == (labels > 0))
            self._accuracy.add(predicted == (labels > 0))


class RegressionTally(Tally):
    """``rms_difference`` of the predictions; with labels ``dense_rms_error`` and ``rms_error``."""

    def __init__(self) -> None:
        self._difference, self._dense_error, self._error = Mean(), Mean(), Mean()

    def add(self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch) -> None:
        self._difference.add((dense - other).square())
        labels = numbers(batch, dense.shape, dense.device)
        if labels is not None:
            self._dense_error.add((dense - labels).square())
            self._error.add((other - labels).square())

    def figures(self) -> dict[str, float]:
        found = {"rms_difference": math.sqrt(self._difference.value)}
        if self._error.count:
            found["dense_rms_error"] = math.sqrt(self._dense_error.value)
            found["rms_error"] = math.sqrt(self._error.value)
        return found


class TokenTally(Tally):
    """``kl_per_token`` (nats) and ``agreement`` of the likeliest token; for causal models ``dense_perplexity``
    and ``perplexity`` of the texts, otherwise, with labels, ``dense_accuracy`` and ``accuracy``."""

    def __init__(self, causal: bool) -> None:
        self._causal = causal
        self._kl, self._tokens, self._agreement = 0.0, 0, Mean()
        self._dense, self._other = Mean(), Mean()
        self._classes, self._labels = _Seen(), _Seen()

    def add(self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch) -> None:
        real = decoder_tokens(batch).to(dense.device)
        self._kl += float((in_double(distance) * in_double(real.sum(dim=1))).sum())
        self._tokens += int(real.sum())
        expected, predicted = dense.argmax(dim=-1), other.argmax(dim=-1)
        self._agreement.add((expected == predicted)[real])
        self._classes.add(expected[real])
        if self._causal and isinstance(batch.get("input_ids"), Tensor):
            follows = real[:, :-1] & real[:, 1:]
            targets = batch["input_ids"].to(dense.device)[:, 1:][follows]
            for logits, mean in ((dense, self._dense), (other, self._other)):
                mean.add(
                    functional.cross_entropy(
                        logits[:, :-1][follows].float(), targets, reduction="none"
                    )
                )
            return
        labels = None
        if not self._causal:
            labels = class_numbers(batch, dense.shape[:2], dense.shape[2], dense.device)
        if labels is not None:
            known = labels != IGNORED
            self._labels.add(labels[known])
            self._dense.add((expected == labels)[known])
            self._other.add((predicted == labels)[known])

    def figures(self) -> dict[str, float]:
        found = {"kl_per_token": self._kl / self._tokens, "agreement": self._agreement.value}
        if self._other.count:
            name = "perplexity" if self._causal else "accuracy"
            for prefix, mean in (("dense_", self._dense), ("", self._other)):
                found[prefix + name] = _perplexity(mean.value) if self._causal else mean.value
        return found

    def notes(self) -> tuple[str, ...]:
        return _of_one_class(self._classes, self._labels)


class FrameTally(Tally):
    """``kl`` (nats) per frame or place, and ``agreement`` of the likeliest classes there."""

    def __init__(self) -> None:
        self._kl, self._agreement = Mean(), Mean()
        self._classes = _Seen()

    def add(self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch) -> None:
        del batch
        expected, predicted = dense.argmax(dim=-1), other.argmax(dim=-1)
        self._kl.add(distance)
        self._agreement.add(expected == predicted)
        self._classes.add(expected)

    def figures(self) -> dict[str, float]:
        return {"kl": self._kl.value, "agreement": self._agreement.value}

    def notes(self) -> tuple[str, ...]:
        return _of_one_class(self._classes, _Seen())


class SpanTally(Tally):
    """``kl`` (nats) of both ends of an answer together, and ``agreement``: the share of examples where the
    likeliest start and the likeliest end are both those of the dense model."""

    def __init__(self) -> None:
        self._kl, self._agreement = Mean(), Mean()

    def add(self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch) -> None:
        del batch
        self._kl.add(distance)
        self._agreement.add((dense.argmax(dim=-1) == other.argmax(dim=-1)).all(dim=-1))

    def figures(self) -> dict[str, float]:
        return {"kl": self._kl.value, "agreement": self._agreement.value}


class EmbeddingTally(Tally):
    """``cosine_distance``, and ``neighbour_agreement_at_10``: the mean share of a text's ten nearest
    other texts (by cosine) that both models agree on.

    If ten are more than a quarter of the other texts, a quarter of them is taken, and the figure is
    named after that number; below five texts there is no figure. So two unrelated models agree on a
    quarter at most.
    """

    NEIGHBOURS, SHARE = 10, 4

    def __init__(self) -> None:
        self._distance = Mean()
        self._dense: list[Tensor] = []
        self._other: list[Tensor] = []

    def add(self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch) -> None:
        self._distance.add(distance)
        self._dense.append(functional.normalize(dense, dim=-1).cpu())
        self._other.append(functional.normalize(other, dim=-1).cpu())

    def figures(self) -> dict[str, float]:
        found = {"cosine_distance": self._distance.value}
        dense, other = torch.cat(self._dense), torch.cat(self._other)
        k = min(self.NEIGHBOURS, (len(dense) - 1) // self.SHARE)
        if k:
            found[f"neighbour_agreement_at_{k}"] = neighbour_agreement(dense, other, k)
        return found


def neighbour_agreement(dense: Tensor, other: Tensor, k: int) -> float:
    """Mean overlap, 0 to 1, of the ``k`` nearest other rows by inner product in both matrices
    ``[n, d]``.

    Raises:
        ValueError: if ``k`` is below 1, or all other rows.
    """
    n = len(dense)
    if not 0 < k < n - 1:
        raise ValueError(
            f"`k` must be at least 1 and less than the {n - 1} other rows, which are always the same, got {k}."
        )
    rows = max(1, 2**24 // n)  # a slab of similarities of at most 64 MiB
    shared = 0
    for start in range(0, n, rows):
        own = torch.arange(start, min(start + rows, n))
        nearest: list[Tensor] = []
        for vectors in (dense, other):
            similarity = vectors[own] @ vectors.T
            similarity[torch.arange(len(own)), own] = -math.inf  # a text is not its own neighbour
            nearest.append(similarity.topk(k, dim=1).indices)
        shared += int((nearest[0][:, :, None] == nearest[1][:, None, :]).sum())
    return shared / (n * k)


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


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
