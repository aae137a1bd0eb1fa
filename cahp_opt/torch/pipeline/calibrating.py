"""Statistics of both kinds of blocks: the neurons are put in order between two passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from cahp_opt.progress import Progress, silent
from cahp_opt.runs.measuring import Measuring
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.neuron_order import in_order_of_price
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.calibration.across_processes import gather_stats
from cahp_opt.torch.calibration.calibration import measure
from cahp_opt.torch.calibration.collector import Collector, Subject
from cahp_opt.torch.calibration.collectors import collectors_for
from cahp_opt.torch.calibration.gate_gradients import GateGradients
from cahp_opt.torch.calibration.shares import Share, told_by_first
from cahp_opt.torch.evaluation.fidelity import Fidelity, fidelity_of
from cahp_opt.torch.recovery.token_weights import TokenWeights, share_weights
from cahp_opt.torch.running.batches import batch_size

Batches = Sequence[Mapping[str, Tensor]]


class Calibrated(NamedTuple):
    """What was measured.

    Args:
        prunable: the blocks, their neurons in the order of their prices.
        stats: the statistics of their units.
    """

    prunable: Prunable
    stats: HeadStats


def calibrate_kinds(
    prunable: Prunable,
    batches: Batches,
    measuring: Measuring,
    *,
    token_weights: TokenWeights | None = None,
    fidelity: Fidelity | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Calibrated:
    """Measure statistics, and put neurons into groups of those that are worth as much.

    What tells the worth of single neurons is measured first, and put in order with them; where nothing will be
    refitted, that is the sensitivity, whether or not it is asked for. Statistics of gates on the groups take a
    second pass over the examples that they are taken on. Feed-forward parts that were sliced keep their groups.

    Where ``torch.distributed`` is initialised, every process calls this with all batches, measures some of them, and gets
    the statistics of all.

    Args:
        prunable: the blocks, the neurons grouped in any way.
        batches: tensors ``[batch, tokens]``; everything else as for
            :func:`~cahp_opt.torch.calibration.calibration.measure`.
        measuring: the statistics to measure.
    """

    share = Share.here()
    weights = token_weights
    if token_weights is not None and share.processes > 1:
        weights = token_weights.apart()

    def measured(of: Prunable, on: Batches, collectors: list[Collector]) -> HeadStats:
        stats = measure(
            of,
            share.of(on),
            [share.asking(collector, on) for collector in collectors],
            token_weights=weights,
            fidelity=fidelity,
            seed=seed,
            progress=progress,
        )
        return gather_stats(stats)

    if prunable.feed_forward:
        measuring = measuring.ordering_neurons()
    every = collectors_for(measuring)
    sliced = {b.name for b in prunable.feed_forward if not b.cut.whole}
    together = len(sliced) == len(prunable.feed_forward)
    first = [each for each in every if together or not isinstance(each, GateGradients)]
    stats = measured(prunable, batches, first)
    if token_weights is not None and weights is not None and weights is not token_weights:
        share_weights(token_weights, weights)
    if together:
        return Calibrated(prunable, stats)
    stats = in_order_of_price(stats, refitted=measuring.refitted, fixed=sliced)
    # Other machines may round in other ways: the order of the first process is that of all.
    prunable = prunable.grouped(told_by_first(stats.space))
    gates = GateGradients.wanted(measuring)
    if gates.examples == 0:  # its empty sums take no pass
        fidelity = fidelity_of(prunable.model) if fidelity is None else fidelity
        found = gates.start(Subject(prunable, fidelity, seed)).result()
    else:
        few = list(_first(batches, gates.examples, share.processes))
        found = measured(prunable, few, [gates]).statistics
    return Calibrated(prunable, replace(stats, statistics={**stats.statistics, **found}))


def _first(batches: Batches, examples: int | None, least: int) -> Iterator[Mapping[str, Tensor]]:
    """The batches that hold the first examples; at least this many batches, if there are as many."""
    seen = 0
    for number, batch in enumerate(batches, start=1):
        yield batch
        seen += batch_size(batch)
        if examples is not None and seen >= examples and number >= least:
            return
