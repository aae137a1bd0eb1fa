"""Signatures of the units: how each attends, class by class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cahp_opt.arrays import Floats
from cahp_opt.runs.measuring import Measuring
from cahp_opt.stats.signatures import Signatures
from cahp_opt.stats.statistic import Statistic
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.calibration.attention_maps import AttentionMaps
from cahp_opt.torch.calibration.collector import Collecting, Collector, Dense, Subject, at_least_0
from cahp_opt.torch.running.batches import Batch, batch_size, labels_of


@dataclass(frozen=True)
class ClassMaps(Collector):
    """Asks for the mean and the spread of every unit's attention map by class.

    Args:
        size: cells along each side of the resized maps.
    """

    size: int = 32

    def __post_init__(self) -> None:
        at_least_0("signature_size", self.size)

    @classmethod
    def wanted(cls, measuring: Measuring) -> ClassMaps | None:
        asked = "signatures" in measuring and measuring.amounts.signature_size != 0
        return cls(measuring.amounts.signature_size) if asked else None

    def start(self, subject: Subject) -> SignatureSums:
        return SignatureSums(subject.prunable, self.size)


class SignatureSums(Collecting):
    """Running means and squared deviations of resized attention maps, by class (Welford 1962).

    Every example's maps are cropped to its real tokens and resized bilinearly to ``size`` by ``size``
    cells. It holds two numbers per unit, class and cell.
    """

    def __init__(self, prunable: Prunable, size: int) -> None:
        self._maps = AttentionMaps(prunable, "signature_size")
        self._size, self._n = size, prunable.space.n
        self._counts: list[int] = []
        self._mean: list[Floats] = []
        self._squares: list[Floats] = []

    def add(self, batch: Batch, dense: Dense) -> None:
        """Add one batch.

        Raises:
            ValueError: if it has no class labels, or the model does not return its attention maps.
        """
        del dense
        labels = class_labels(batch)
        for label, maps in zip(labels, self._maps.each(batch), strict=True):
            while len(self._counts) <= label:
                self._counts.append(0)
                self._mean.append(np.zeros((self._n, self._size, self._size)))
                self._squares.append(np.zeros((self._n, self._size, self._size)))
            values = resized(maps, self._size)
            self._counts[label] += 1
            before = values - self._mean[label]
            self._mean[label] += before / self._counts[label]
            self._squares[label] += before * (values - self._mean[label])

    def result(self) -> Mapping[str, Statistic]:
        """The signatures, one row for every label up to the largest."""
        counts = np.array(self._counts, dtype=np.int64)
        return {"signatures": Signatures(counts, np.array(self._mean), np.array(self._squares))}


def resized(maps: Tensor, size: int) -> Floats:
    """Maps ``[n, tokens, tokens]`` resized bilinearly to ``[n, size, size]``."""
    found = torch.nn.functional.interpolate(
        maps[None], size=(size, size), mode="bilinear", align_corners=False
    )
    array: Floats = found[0].cpu().double().numpy()
    return array


def class_labels(batch: Batch) -> list[int]:
    """The class of every example.

    Raises:
        ValueError: if the batch has no labels, or other labels than one class number per example.
    """
    labels = labels_of(batch)
    if labels is None:
        raise ValueError(
            "`batches` have no `labels`, and signatures are taken by class; give every batch its "
            "class numbers as `labels`, or calibrate with `signature_size=0`."
        )
    whole = not (labels.is_floating_point() or labels.is_complex())
    if not whole or labels.shape != (batch_size(batch),) or bool((labels < 0).any()):
        raise ValueError(
            f"`labels` of shape {list(labels.shape)} and type {labels.dtype} are not class numbers, which "
            "signatures need: one whole number of at least 0 per example; or calibrate with "
            "`signature_size=0`."
        )
    return [int(label) for label in labels]
