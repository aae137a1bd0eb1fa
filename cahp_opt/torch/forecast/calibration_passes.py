"""The passes and the bytes of a calibration, from the statistics that are wanted and shapes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cahp_opt.runs.forecast import Passes
from cahp_opt.runs.measuring import Measuring
from cahp_opt.torch.calibration.attention_maps import MapDivergences
from cahp_opt.torch.calibration.chunks import block_bytes, chunks, sizes_by_block
from cahp_opt.torch.calibration.class_maps import ClassMaps
from cahp_opt.torch.calibration.collector import Collector
from cahp_opt.torch.calibration.collectors import collectors_for
from cahp_opt.torch.calibration.gate_gradients import GateGradients
from cahp_opt.torch.calibration.statistics_bytes import (
    ReadShape,
    by_kind,
    pairs_bytes,
    signatures_bytes,
    units_bytes,
)
from cahp_opt.torch.calibration.token_gradients import TokenGradients


@dataclass(frozen=True)
class CalibrationForecast:
    """What :func:`~cahp_opt.torch.pipeline.calibrating.calibrate_kinds` does.

    Args:
        measuring: the statistics, and the number of examples for each.
        sizes: the number of examples in every batch.
        shapes: of the layers that read the units of every block.
        units: the number of all units.
        probes: backward passes of a token's sensitivity (:meth:`~cahp_opt.torch.Fidelity.probes`).
        losses: whether the batches have labels that the output is judged by.
        ordered: whether neurons are put in order between two passes.
        weighted: whether a refit takes the weights of tokens, which come of the same gradients.
        classes: the number of classes of the labels; 0 without class labels.
        memory: bytes for the statistics of blocks.
    """

    measuring: Measuring
    sizes: Sequence[int]
    shapes: Sequence[ReadShape]
    units: int
    probes: int
    losses: bool
    ordered: bool
    weighted: bool = False
    classes: int = 0
    memory: float = math.inf

    @property
    def passes(self) -> Passes:
        """The passes over all texts: one of the model for the blocks that are measured together, and those of every
        statistic of its own. Backward passes end at the first of these blocks, and count as whole ones."""
        every, turns = collectors_for(self.measuring), len(self.parts)
        found = Passes(dense=1.0, backward=float(self.probes) if self.weighted else 0.0)
        for collector in every:
            found += self._own(collector) if collector.by_block else Passes()
        found = Passes(turns * found.dense, turns * found.backward)
        others = [collector for collector in every if not collector.by_block]
        apart = [c for c in others if turns > 1 or (self.ordered and isinstance(c, GateGradients))]
        for collector in others:
            found += self._own(collector)
        return found + Passes(
            dense=max((self._whole_batches(c.examples) for c in apart), default=0)
        )

    @property
    def parts(self) -> list[range]:
        """The numbers of the blocks that are measured together."""
        return chunks(self._sizes, self.memory)

    @property
    def on_disk(self) -> int:
        """The bytes of statistics that lie on a disk, because they take more than the memory."""
        return sum(self._sizes) if len(self.parts) > 1 else 0

    @property
    def _sizes(self) -> list[int]:
        return block_bytes(self.shapes, self.measuring)

    @property
    def products(self) -> tuple[float, float]:
        """Multiplications per token of the sums without weights, and of those weighted by sensitivity."""
        plain = weighted = 0.0
        for shape in self.shapes:
            d, hidden = shape.width, shape.hidden
            metric = hidden**2 if hidden <= d else d**2 + d * hidden
            plain += d**2 if "moments" in self.measuring else 0
            weighted += d**2 + self.probes * metric
        return plain, weighted

    @property
    def sensitive(self) -> float:
        """The share of the texts whose tokens are weighted by sensitivity."""
        asked = TokenGradients.wanted(self.measuring)
        return 0.0 if asked is None else self._share(asked.examples)

    @property
    def statistics(self) -> dict[str, int]:
        """The bytes of every statistic that are in memory at once, those by block in two kinds of blocks; of blocks
        that are not measured together, those that take most."""
        measuring, amounts = self.measuring, self.measuring.amounts
        found: dict[str, int] = {}
        largest = max(self.parts, key=lambda part: sum(self._sizes[number] for number in part))
        shapes = [self.shapes[number] for number in largest]
        for name, size_of in sizes_by_block(measuring).items():
            sizes = [size_of(shape) for shape in shapes]
            found |= {f"{name} of {k}": size for k, size in by_kind(shapes, sizes).items()}
        gates = GateGradients.wanted(measuring)
        found["salience"] = units_bytes(self.units)
        pairs = pairs_bytes(self.units)
        if gates.densities:
            found["gauss_newton"] = len(gates.densities) * pairs
        if gates.densities and gates.fisher:
            found["fisher"] = len(gates.densities) * pairs
        if "divergence" in measuring and amounts.divergence_examples:
            found["divergence"] = pairs
        if "signatures" in measuring and amounts.signature_size:
            size = signatures_bytes(self.units, amounts.signature_size, self.classes)
            found["signatures"] = size
        return found

    def _own(self, collector: Collector) -> Passes:
        share = self._share(collector.examples)
        if isinstance(collector, TokenGradients):
            whole = self._within_batches(collector.examples)
            cut = share - whole  # of a batch that holds more runs once more
            return Passes(cut, self.probes * (cut + (0.0 if self.weighted else whole)))
        if isinstance(collector, GateGradients):
            densities = {1.0, *collector.densities}
            losses = sum(
                self.losses and (rho == 1.0 or collector.fisher) for rho in densities
            )  # a second gradient of the same forward pass
            return Passes(share * len(densities), share * (len(densities) + losses))
        again = isinstance(collector, (MapDivergences, ClassMaps))  # for the maps themselves
        return Passes(dense=share if again else 0.0)

    def _share(self, examples: int | None) -> float:
        number = sum(self.sizes)
        return 1.0 if examples is None else min(examples, number) / number

    def _within_batches(self, examples: int | None) -> float:
        """The share of the texts in batches of the first examples alone."""
        seen = whole = 0
        for size in self.sizes:
            seen += size
            whole += size if examples is None or seen <= examples else 0
        return whole / sum(self.sizes)

    def _whole_batches(self, examples: int | None) -> float:
        """The share of the texts in the batches that hold the first examples."""
        seen = 0
        if examples == 0:
            return 0.0
        for size in self.sizes:
            seen += size
            if examples is not None and seen >= examples:
                break
        return seen / sum(self.sizes)
