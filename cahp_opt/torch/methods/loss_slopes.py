"""The gradient of every example's task loss by the masks of all units."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from cahp_opt.progress import Progress, silent
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.calibration.gate_gradients import run_gated, runs_together
from cahp_opt.torch.evaluation.fidelity import Fidelity
from cahp_opt.torch.running.batches import Batch, batch_size, examples, length
from cahp_opt.torch.running.preparing import prepared
from cahp_opt.torch.running.undisturbed import evaluating

Slopes = npt.NDArray[np.float32]


def loss_slopes(
    prunable: Prunable,
    batches: Iterable[Batch],
    fidelity: Fidelity,
    *,
    most: int | None = None,
    progress: Progress = silent,
) -> list[Slopes]:
    """The gradients at the unpruned model, for every block ``[examples, units]``.

    Args:
        prunable: the blocks.
        batches: labelled.
        fidelity: gives the task loss.
        most: examples to take, from the start; None for all.
        progress: called once per batch.

    Raises:
        ValueError: if there is no task loss, or a gradient is not finite.
    """
    found = list[Slopes]()
    for number, part in enumerate(in_parts(prunable, batches, most)):
        run = run_gated(prunable, fidelity, part, np.ones((batch_size(part), prunable.space.n)))
        loss = fidelity.loss(run.output, part)
        if loss is None:
            raise ValueError(
                "the gradient of a task loss is needed, and these texts have no `labels` that the model's output can "
                "be judged by; give labels that fit its head, or choose another method."
            )
        found.append(run.gradients(loss.sum()).astype(np.float32))
        progress("differentiate", number + 1, length(batches))
    every = np.concatenate(found)
    return [every[:, where] for where in prunable.space.slices]


def in_parts(
    prunable: Prunable, batches: Iterable[Batch], most: int | None = None
) -> Iterator[Batch]:
    """Batches ready for gates of their own for every example: one by one where examples share an activation.

    The model is in evaluation mode meanwhile, also where the caller has inference mode on.

    Args:
        prunable: the blocks.
        batches: as they came.
        most: examples to take, from the start; None for all.
    """
    together, seen = None, 0
    with torch.inference_mode(False), evaluating(prunable.model):
        for batch in prepared(batches, prunable.model):
            left = batch_size(batch) if most is None else min(batch_size(batch), most - seen)
            if left <= 0:
                return
            if together is None:
                together = runs_together(prunable, batch)
            step = left if together else 1
            for start in range(0, left, step):
                yield examples(batch, start, start + step)
            seen += left
