"""How strongly a model's output depends on what each block writes, token by token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cahp_opt.arrays import Floats, Ints, constant
from cahp_opt.runs.measuring import Measuring
from cahp_opt.stats.column_form import ColumnForm
from cahp_opt.stats.sensitivity import BlockSensitivity, Sensitivity
from cahp_opt.stats.statistic import Statistic
from cahp_opt.torch.blocks.out_weight import readout_weight
from cahp_opt.torch.calibration.collector import Collecting, Collector, Dense, Subject, at_least_0
from cahp_opt.torch.calibration.output_moments import column_order, in_order
from cahp_opt.torch.calibration.token_flows import Flow, flows
from cahp_opt.torch.running.batches import Batch, batch_size, wide
from cahp_opt.torch.running.centring import GramSums, ScatterSums
from cahp_opt.torch.running.padding import Padding


@dataclass(frozen=True)
class TokenGradients(Collector):
    """Asks for the moments of head outputs, every token weighted by the output's sensitivity to it.

    Args:
        examples: the number of examples, from the start; None for all.
    """

    examples: int | None = 2048
    by_block = True

    def __post_init__(self) -> None:
        at_least_0("sensitivity_examples", self.examples)

    @classmethod
    def wanted(cls, measuring: Measuring) -> TokenGradients | None:
        asked = "sensitivity" in measuring and measuring.amounts.sensitivity_examples != 0
        return cls(measuring.amounts.sensitivity_examples) if asked else None

    def start(self, subject: Subject) -> SensitivitySums:
        return SensitivitySums(subject)


class SensitivitySums(Collecting):
    """Adds up the moments of the head outputs, every token weighted by the output's sensitivity to it.

    A batch is centred and multiplied in the precision of the model, at least single, and added up in double.

    Args:
        subject: what is measured.
    """

    differentiates = True

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._blocks = subject.prunable
        self._padding = Padding(self._blocks)
        self._readout = [readout_weight(block.out, block.width) for block in self._blocks]
        self._order = [column_order(block) for block in self._blocks]
        self._sums = [
            _Sums(block.width, len(w)) for block, w in zip(self._blocks, self._readout, strict=True)
        ]
        self._examples = 0

    def add(self, batch: Batch, dense: Dense) -> None:
        """Add one batch.

        Raises:
            ValueError: naming the block if a gradient or a head output is not finite.
        """
        on = self._subject
        found = dense.flows or flows(on.prunable, batch, on.fidelity, on.seed)
        for b, (block, runs) in enumerate(zip(self._blocks, found, strict=True)):
            for same in _by_run(runs):
                g = [self._padding.rows(b, flow.gradient, batch) for flow in same]
                z = wide(self._padding.rows(b, same[0].heads, batch))
                if not self._sums[b].add(z, g, wide(self._readout[b]).to(z.device)):
                    raise ValueError(
                        f"the gradients or head outputs of block {block.name!r} hold NaN or infinite "
                        "values; check the model's weights, or calibrate in float32."
                    )
        self._examples += batch_size(batch)

    def result(self) -> Mapping[str, Statistic]:
        """The weighted moments of every block; the columns stand unit by unit. The sums of a block are given up
        as its entry is made, so that nothing is there twice; there is one result."""
        entries = (
            self._sums.pop(0).result(order, readout, self._examples)
            for order, readout in zip(self._order, self._readout, strict=True)
        )
        return {"sensitivity": BlockSensitivity(entries)}


def _by_run(flows: Sequence[Flow]) -> list[list[Flow]]:
    """The flows of all probes through one run of a block, whose outputs are multiplied only once."""
    found: dict[int, list[Flow]] = {}
    for flow in flows:
        found.setdefault(id(flow.heads), []).append(flow)
    return list(found.values())


class _Sums:
    """The running sums of one block, in double precision in main memory."""

    def __init__(self, width: int, hidden: int) -> None:
        cpu = torch.device("cpu")
        self._heads = ScatterSums(width, cpu)
        # A block that writes to fewer features than it reads needs fewer products for the gradients by what it
        # writes than by what it reads; with far fewer, these and the projection are smaller than the metric too.
        self._by_written = hidden <= width
        self._in_factors = hidden * (hidden + width) < width**2
        self._metric = GramSums(hidden if self._by_written else width, cpu)

    def add(self, z: Tensor, gradients: Sequence[Tensor], readout: Tensor) -> bool:
        """Add rows of head outputs and their gradients, one for every probe; whether all were finite."""
        weights = sum((g.square().sum(dim=1) for g in gradients), z.new_zeros(len(z)))
        used = weights != 0  # NaN is
        if not bool(used.all()):
            z, weights, gradients = z[used], weights[used], [g[used] for g in gradients]
        self._heads.add(z, weights)
        if gradients:
            back = torch.cat([*gradients])
            self._metric.add(back if self._by_written else back @ readout)
        return self._heads.finite and math.isfinite(self._metric.trace)

    def result(self, order: Ints, readout: Tensor, examples: int) -> Sensitivity:
        """The sums of a block with this output projection, ``[hidden, width]``, in an order of its
        columns, ``[width]``."""
        sums = self._heads
        first: Floats = (sums.mean * sums.weight).numpy()
        scatter = in_order(sums.scatter.numpy(), order)
        metric: Floats = self._metric.matrix.numpy()
        if self._by_written:
            weight: Floats = readout.cpu().double().numpy()[:, order]
            form = ColumnForm(metric, weight)
            form = form if self._in_factors else ColumnForm(constant(form.matrix))
        else:
            form = ColumnForm(in_order(metric, order))
        return Sensitivity(first[order], scatter, form, sums.weight, examples)
