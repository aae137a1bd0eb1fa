"""Feed-forward neurons in groups by their worth, as measured on texts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from cahp_opt.progress import Progress, silent
from cahp_opt.space import HeadSpace
from cahp_opt.stats.neuron_order import in_order_of_price
from cahp_opt.torch.blocks.finder import Prunable, find_prunable
from cahp_opt.torch.calibration.calibration import measure
from cahp_opt.torch.calibration.output_moments import HeadOutputs
from cahp_opt.torch.calibration.token_gradients import TokenGradients
from cahp_opt.torch.evaluation.fidelity import Fidelity
from cahp_opt.torch.running.batches import Batch


def order_neurons(
    model: nn.Module | Prunable,
    batches: Iterable[Batch],
    *,
    sensitivity_examples: int | None = 256,
    refitted: bool = True,
    ridge: float = 1e-2,
    fidelity: Fidelity | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Prunable:
    """The same blocks with the neurons of every feed-forward part grouped by their worth.

    A neuron is worth what least squares on those that are left explains less without it, after all that
    are worth less (:func:`~cahp_opt.stats.neuron_order.removal`); or, where nothing will be refitted, what the
    output misses without it (:func:`~cahp_opt.stats.neuron_order.loss`). The first group holds the most valuable
    neurons, so that to keep the first ``k`` groups is nearly always the best for ``k`` groups. Weights
    do not move. Parts that were sliced keep their groups.

    ::

        prunable = order_neurons(model, batches)
        stats = calibrate(prunable, batches, sensitivity_examples=2048)

    Statistics of moments and sensitivity alone can be ordered afterwards, which saves this pass:
    :func:`~cahp_opt.stats.neuron_order.in_order_of_price`.

    Args:
        model: the model, of which heads and neurons are found, or its blocks if they were found already.
        batches: as for :func:`~cahp_opt.torch.calibrate`; read once.
        sensitivity_examples: the number of examples, from the start, that tell how strongly the output depends
            on each token; None for all, 0 to count all tokens alike, over all examples.
        refitted: whether the pruned model will be refitted.
        ridge: as in :class:`~cahp_opt.objectives.ExplainedVariance`.
        fidelity, seed, progress: as for :func:`~cahp_opt.torch.calibrate`.

    Raises:
        UnsupportedModelError: as :func:`~cahp_opt.torch.find_prunable` does, for a model.
        ValueError: as :func:`~cahp_opt.torch.calibrate` does.
    """
    prunable = model if isinstance(model, Prunable) else find_prunable(model)
    parts = tuple(b for b in prunable.feed_forward if b.cut.whole)
    if not parts:
        return prunable
    weighted = sensitivity_examples != 0
    stats = measure(
        replace(prunable, blocks=parts),
        batches,
        [TokenGradients(sensitivity_examples) if weighted else HeadOutputs()],
        fidelity=fidelity,
        seed=seed,
        progress=progress,
    )
    found = in_order_of_price(stats, refitted=refitted, ridge=ridge)
    ordered = {block.name: block for block in found.space.blocks}
    entries = (ordered.get(block.name, block) for block in prunable.space.blocks)
    return prunable.grouped(HeadSpace(tuple(entries)))
