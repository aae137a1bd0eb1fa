"""Statistics of both kinds of blocks: the neurons are put in order between two passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from cahp_opt.files.records import PathLike
from cahp_opt.progress import Progress, silent
from cahp_opt.runs.measuring import Measuring
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.neuron_order import in_order_of_price
from cahp_opt.stats.single_blocks import of_all_blocks, of_single_blocks, on_disk
from cahp_opt.stats.statistic import Statistic
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.calibration.across_processes import gather_stats
from cahp_opt.torch.calibration.calibration import measure
from cahp_opt.torch.calibration.chunks import (
    block_bytes,
    check_room,
    chunks,
    memory_for_statistics,
)
from cahp_opt.torch.calibration.collector import Collector, Subject
from cahp_opt.torch.calibration.collectors import collectors_for
from cahp_opt.torch.calibration.gate_gradients import GateGradients
from cahp_opt.torch.calibration.shares import Share, told_by_first
from cahp_opt.torch.calibration.statistics_bytes import read_shapes
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
    folder: PathLike | None = None,
    progress: Progress = silent,
) -> Calibrated:
    """Measure statistics, and put neurons into groups of those that are worth as much.

    What tells the worth of single neurons is measured first, and put in order with them; where nothing will be
    refitted, that is the sensitivity, whether or not it is asked for. Statistics of gates on the groups take a
    second pass over the examples that they are taken on. Feed-forward parts that were sliced keep their groups.

    Where the statistics of all blocks take more than ``measuring.amounts.statistics_memory``, some of the blocks are
    measured in a pass, those of the next ones in another, and every block's go to a file without a name when it is done
    (:func:`~cahp_opt.stats.single_blocks.on_disk`). They are the same, and memory does not grow with depth.

    Where ``torch.distributed`` is initialised, every process calls this with all batches, measures some of them, and gets
    the statistics of all.

    Args:
        prunable: the blocks, the neurons grouped in any way.
        batches: tensors ``[batch, tokens]``; everything else as for
            :func:`~cahp_opt.torch.calibration.calibration.measure`.
        measuring: the statistics to measure.
        folder: for statistics that do not fit into memory; None for that of temporary files.

    Raises:
        ValueError: as there, or if the folder has no room for the statistics.
    """
    if prunable.feed_forward:
        measuring = measuring.ordering_neurons()
    sliced = frozenset(b.name for b in prunable.feed_forward if not b.cut.whole)
    ordered = len(sliced) < len(prunable.feed_forward)
    calibration = _Calibration(
        prunable,
        batches,
        token_weights,
        fidelity_of(prunable.model) if fidelity is None else fidelity,
        seed,
        progress,
    )
    every = collectors_for(measuring)
    first = [each for each in every if not ordered or not isinstance(each, GateGradients)]

    def in_order(of_block: HeadStats) -> HeadStats:
        if not ordered:
            return of_block
        return in_order_of_price(of_block, refitted=measuring.refitted, fixed=sliced)

    def in_file(of_block: HeadStats) -> HeadStats:
        return on_disk(in_order(of_block), folder)

    sizes = block_bytes(read_shapes(prunable), measuring)
    parts = told_by_first(chunks(sizes, memory_for_statistics(measuring.amounts)))
    if len(parts) == 1:
        stats = calibration.pass_over(first)
        if ordered:
            by_block = of_single_blocks(stats)
            del stats
            stats = of_all_blocks(_finished(by_block, in_order))
    else:
        check_room(sum(sizes), folder)
        others = calibration.pass_over_few([each for each in first if not each.by_block])
        of_blocks = [each for each in first if each.by_block]
        stats = calibration.passes_over(of_blocks, parts, in_file)
        stats = replace(stats, statistics={**stats.statistics, **others})
    if not ordered:
        return Calibrated(prunable, stats)
    # Other machines may round in other ways: the order of the first process is that of all.
    prunable = prunable.grouped(told_by_first(stats.space))
    gates = replace(calibration, prunable=prunable).pass_over_few([GateGradients.wanted(measuring)])
    return Calibrated(prunable, replace(stats, statistics={**stats.statistics, **gates}))


@dataclass(frozen=True, eq=False)
class _Calibration:
    """Passes of a model over batches; arguments as for :func:`calibrate_kinds`."""

    prunable: Prunable
    batches: Batches
    weights: TokenWeights | None
    fidelity: Fidelity
    seed: int
    progress: Progress

    def pass_over(self, collectors: Sequence[Collector]) -> HeadStats:
        """The statistics of one pass, in every process those of all; the weights of tokens are known after it."""
        share = Share.here()
        weights = self.weights
        if weights is not None and share.processes > 1:
            weights = weights.apart()
        stats = measure(
            self.prunable,
            share.of(self.batches),
            [share.asking(collector, self.batches) for collector in collectors],
            token_weights=weights,
            fidelity=self.fidelity,
            seed=self.seed,
            progress=self.progress,
        )
        if self.weights is not None and weights is not None and weights is not self.weights:
            share_weights(self.weights, weights)
        return gather_stats(stats)

    def passes_over(
        self,
        collectors: Sequence[Collector],
        parts: Sequence[range],
        finished: Callable[[HeadStats], HeadStats],
    ) -> HeadStats:
        """The same statistics from one pass for some of the blocks at a time.

        Args:
            collectors: of statistics that stand block by block.
            parts: the numbers of the blocks that are measured together.
            finished: what becomes of the statistics of a block before further ones are measured.
        """
        found: list[HeadStats] = []
        weights: dict[int, list[Tensor]] = {}
        for turn, numbers in enumerate(parts):
            some = self._of_blocks(numbers, turn, len(parts))
            found += _finished(of_single_blocks(some.pass_over(collectors)), finished)
            for batch, by_block in some.weights.taken.items() if some.weights else ():
                weights.setdefault(batch, []).extend(by_block)
        if self.weights is not None:
            self.weights.taken.update(weights)
        return of_all_blocks(found)

    def pass_over_few(self, collectors: Sequence[Collector]) -> Mapping[str, Statistic]:
        """The statistics of all blocks together, from no more batches than they are taken on."""
        numbers = [each.examples for each in collectors]
        if not any(number is None or number for number in numbers):  # empty sums take no pass
            subject = Subject(self.prunable, self.fidelity, self.seed)
            empty = [each.start(subject).result() for each in collectors]
            return {name: found for result in empty for name, found in result.items()}
        most = None if None in numbers else max(number or 0 for number in numbers)
        few = list(_first(self.batches, most, Share.here().processes))
        return replace(self, batches=few, weights=None).pass_over(collectors).statistics

    def _of_blocks(self, numbers: range, turn: int, turns: int) -> _Calibration:
        """The same of some blocks alone, in one of several turns."""

        def progress(stage: str, done: int, total: int) -> None:
            self.progress(stage, turn * total + done, turns * total)

        weights = None if self.weights is None else self.weights.of_blocks(numbers)
        blocks = self.prunable.blocks[numbers.start : numbers.stop]
        some = replace(self.prunable, blocks=blocks)
        return replace(self, prunable=some, weights=weights, progress=progress)


def _finished(
    by_block: list[HeadStats], finished: Callable[[HeadStats], HeadStats]
) -> list[HeadStats]:
    """The statistics of every block in turn; what they were before is given up at once."""
    for number in range(len(by_block)):
        by_block[number] = finished(by_block[number])
    return by_block


def _first(batches: Batches, examples: int | None, least: int) -> Iterator[Mapping[str, Tensor]]:
    """The batches that hold the first examples; at least this many batches, if there are as many."""
    seen = 0
    for number, batch in enumerate(batches, start=1):
        yield batch
        seen += batch_size(batch)
        if examples is not None and seen >= examples and number >= least:
            return
