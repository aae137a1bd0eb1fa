"""Labels of batches made by hand, checked where they are used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cahp_opt.torch.running.batches import IGNORED, PAIR_SCORES, Batch, batch_size, labels_of


def class_numbers(
    batch: Batch, shape: Sequence[int], classes: int, device: torch.device
) -> Tensor | None:
    """The labels of a batch as class numbers of this shape, on ``device``; None without labels.

    Args:
        batch: the batch.
        shape: of the labels: ``[batch]``, or ``[batch, tokens]``.
        classes: the number of classes.
        device: where the labels go.

    Raises:
        ValueError: for labels of another shape, or that are not class numbers.
    """
    labels = labels_of(batch, device)
    if labels is None:
        return None
    _check_size(labels, shape)
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"`labels` are of the type {labels.dtype}, and this model is a classifier; give class numbers "
            f"from 0 to {classes - 1}."
        )
    labels = labels.reshape(tuple(shape)).long()
    wrong = (labels != IGNORED) & ((labels < 0) | (labels >= classes))
    if bool(wrong.any()):
        raise ValueError(
            f"`labels` hold {int(labels[wrong][0])}, and the classes of this model are 0 to {classes - 1}; "
            f"give one of them, or {IGNORED} for no label."
        )
    return labels


def numbers(batch: Batch, shape: Sequence[int], device: torch.device) -> Tensor | None:
    """The labels of a batch as numbers of this shape, ``[...]``, on ``device``; None without
    labels.

    Raises:
        ValueError: for labels of another shape.
    """
    labels = labels_of(batch, device)
    if labels is None:
        return None
    _check_size(labels, shape)
    return labels.reshape(tuple(shape))


def yes_or_no(batch: Batch, shape: Sequence[int], device: torch.device) -> Tensor | None:
    """The labels of a batch of this shape, ``[batch, labels]``, 1 where a label holds and 0 where not, on ``device``; None
    without labels.

    Raises:
        ValueError: for labels of another shape, or other numbers.
    """
    labels = numbers(batch, shape, device)
    if labels is not None and bool(((labels != 0) & (labels != 1)).any()):
        raise ValueError(
            "`labels` hold other numbers than 0 and 1, and this model says yes or no to every label; give "
            "1 where a label holds, and 0 elsewhere."
        )
    return labels


def pair_scores(batch: Batch) -> Tensor | None:
    """The scores of the pairs of texts in a batch, ``[pairs]``, in double precision; None without.

    The texts of a pair stand one after the other.

    Raises:
        ValueError: for scores that are not one finite number per text, the same for both of a pair.
    """
    scores = batch.get(PAIR_SCORES)
    if scores is None:
        return None
    if not isinstance(scores, Tensor) or scores.shape != (batch_size(batch),) or len(scores) % 2:
        raise ValueError(
            f"`{PAIR_SCORES}` must be a tensor with one number per text, an even number of them, got "
            f"{list(scores.shape) if isinstance(scores, Tensor) else scores!r} for {batch_size(batch)} texts."
        )
    first, second = scores[::2].cpu().double(), scores[1::2].cpu().double()
    if not bool((first.isfinite() & (first == second)).all()):
        raise ValueError(
            f"`{PAIR_SCORES}` must be finite and the same for both texts of a pair, which stand one after the "
            "other."
        )
    return first


def _check_size(labels: Tensor, shape: Sequence[int]) -> None:
    given, wanted = ([n for n in sizes if n != 1] for sizes in (labels.shape, shape))
    if given != wanted:  # axes of one entry stand for nothing
        raise ValueError(
            f"`labels` have the shape {list(labels.shape)}, and this model's output is judged by labels of the "
            f"shape {list(shape)}."
        )
