"""Running figures of one model against the dense one: what a table shows about each kind of task."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from cahp_opt.torch.batching import Batch, decoder_tokens, labels_of


class Tally(ABC):
    """Adds up batches, then gives the figures."""

    @abstractmethod
    def add(self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch) -> None:
        """Add one batch: both outputs, the distance per example ``[batch]``, and the batch itself."""

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """The figures over everything added, by name."""


class Mean:
    """A mean of what is added; NaN while nothing was."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def add(self, values: Tensor) -> None:
        """Add every value of a tensor."""
        self.sum += float(values.double().sum())
        self.count += values.numel()

    @property
    def value(self) -> float:
        """The mean so far."""
        return self.sum / self.count if self.count else math.nan


class ClassTally(Tally):
    """``kl`` (nats), ``agreement`` of the predicted classes; with labels ``dense_accuracy``, ``accuracy``."""

    def __init__(self) -> None:
        self._kl, self._agreement = Mean(), Mean()
        self._dense_accuracy, self._accuracy = Mean(), Mean()

    def add(self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch) -> None:
        expected, predicted = dense.argmax(dim=-1), other.argmax(dim=-1)
        self._kl.add(distance)
        self._agreement.add(expected == predicted)
        labels = labels_of(batch, dense.device)
        if labels is not None:
            self._dense_accuracy.add(expected == labels.reshape(-1))
            self._accuracy.add(predicted == labels.reshape(-1))

    def figures(self) -> dict[str, float]:
        found = {"kl": self._kl.value, "agreement": self._agreement.value}
        if self._accuracy.count:
            found["dense_accuracy"] = self._dense_accuracy.value
            found["accuracy"] = self._accuracy.value
        return found


class RegressionTally(Tally):
    """``rms_difference`` of the predictions; with labels ``dense_rms_error`` and ``rms_error``."""

    def __init__(self) -> None:
        self._difference, self._dense_error, self._error = Mean(), Mean(), Mean()

    def add(self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch) -> None:
        self._difference.add((dense - other).square())
        labels = labels_of(batch, dense.device)
        if labels is not None:
            labels = labels.reshape(dense.shape)
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

    def add(self, dense: Tensor, other: Tensor, distance: Tensor, batch: Batch) -> None:
        real = decoder_tokens(batch).to(dense.device)
        self._kl += float((distance.double() * real.sum(dim=1)).sum())
        self._tokens += int(real.sum())
        expected, predicted = dense.argmax(dim=-1), other.argmax(dim=-1)
        self._agreement.add((expected == predicted)[real])
        labels = labels_of(batch, dense.device)
        if self._causal and isinstance(batch.get("input_ids"), Tensor):
            follows = real[:, :-1] & real[:, 1:]
            targets = batch["input_ids"].to(dense.device)[:, 1:][follows]
            for logits, mean in ((dense, self._dense), (other, self._other)):
                mean.add(
                    functional.cross_entropy(
                        logits[:, :-1][follows].float(), targets, reduction="none"
                    )
                )
        elif not self._causal and labels is not None:
            known = labels >= 0
            self._dense.add((expected == labels)[known])
            self._other.add((predicted == labels)[known])

    def figures(self) -> dict[str, float]:
        found = {"kl_per_token": self._kl / self._tokens, "agreement": self._agreement.value}
        if self._other.count:
            name = "perplexity" if self._causal else "accuracy"
            for prefix, mean in (("dense_", self._dense), ("", self._other)):
                found[prefix + name] = _perplexity(mean.value) if self._causal else mean.value
        return found


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
    other texts (by cosine) that both models agree on; fewer than ten if there are fewer texts."""

    NEIGHBOURS = 10

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
        if len(dense) > 1:
            found["neighbour_agreement_at_10"] = neighbour_agreement(dense, other, self.NEIGHBOURS)
        return found


def neighbour_agreement(dense: Tensor, other: Tensor, k: int) -> float:
    """Mean overlap, 0 to 1, of the ``k`` nearest other rows by inner product in both matrices."""
    n = len(dense)
    k = min(k, n - 1)
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


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
