"""Estimating latency without the device, from a description of the hardware."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from cahp_opt.costs.hardware import Hardware
from cahp_opt.costs.latency_table import LatencyTable
from cahp_opt.costs.provenance import Execution, Phase
from cahp_opt.progress import Progress, silent
from cahp_opt.space import Unit
from cahp_opt.torch.blocks.finder import Prunable, find_attention
from cahp_opt.torch.latency.block_times import places
from cahp_opt.torch.latency.decoding_step import decoding_step
from cahp_opt.torch.latency.model_times import dtype_name, provenance
from cahp_opt.torch.latency.operations import Operation, Operations
from cahp_opt.torch.latency.stopwatch import Work
from cahp_opt.torch.latency.weightless import rehearse, skeleton
from cahp_opt.torch.running.batches import Batch, inputs_of, prepare
from cahp_opt.torch.slicing.slicing import thin_copy


def estimate_latency(
    model: nn.Module,
    batch: Batch,
    hardware: Hardware,
    *,
    phase: Phase = Phase.PREFILL,
    unit: Unit | None = None,
    progress: Progress = silent,
) -> LatencyTable:
    """Estimate the time of every attention block at every number of kept units, without the device.

    For planning only: a budget should use :func:`~cahp_opt.torch.measure_latency`. The
    sliced models run without weights and arithmetic, so ``model`` may be on the meta device
    (``with torch.device("meta"): ...``) and of any size. Every operation takes a launch and::

        max(flops / peak flops per second, bytes moved / bandwidth)    (a roofline)

    If launches run ahead of the device, their sum is the table's ``least``; otherwise they are
    added.

    It ignores that small and odd sizes reach no peak (there are no staircases), caches of the processor,
    kernels that are fused, and arithmetic outside of matrix products, convolutions and attention. On one
    thread of a CPU, estimates of BERT-base on 8 x 128 tokens were 1.0 to 1.5 times the measured time, other
    forward passes 0.6 to 1.4 times, and decoding steps only 0.2 to 0.7 times. Pruned relative to unpruned,
    which a budget by ratio needs, forward passes were within 11 %. No GPU was compared.

    Args:
        model: the unpruned model; it is not changed.
        batch: keyword arguments for the model, of the size to be planned for.
        hardware: the rates of the device, including one for the precision of the model.
        phase: whether the forward pass over the batch is estimated, or one new token per example after it.
        unit: as for :func:`~cahp_opt.torch.find_attention`.
        progress: called once per number of kept units.

    Returns:
        A table whose provenance states that it is an estimate.

    Raises:
        UnsupportedModelError: if the model's attention is not understood.
        ValueError: for a batch that cannot be used, a precision that ``hardware`` does not know, or a
            model that looks at values on its way.
    """
    prunable = find_attention(model, unit=unit)
    return estimate(prunable, batch, hardware, phase=phase, progress=progress)


def estimate(
    prunable: Prunable,
    batch: Batch,
    hardware: Hardware,
    *,
    phase: Phase = Phase.PREFILL,
    progress: Progress = silent,
) -> LatencyTable:
    """:func:`estimate_latency` for blocks that were found already."""
    model = prunable.model
    dtype = next(model.parameters()).dtype
    if dtype_name(dtype) not in hardware.flops_per_second:
        raise ValueError(
            f"`hardware` ({hardware.name}) has rates for {sorted(hardware.flops_per_second)} and the "
            f"model is in {dtype_name(dtype)}; measure the hardware in that precision, or add its rate."
        )
    batch = prepare(batch, model, "batch", torch.device("cpu"))
    inputs = inputs_of(batch)
    bare, space = prunable.at(skeleton(model).eval()), prunable.space
    place = places(space)
    seconds = [np.zeros(units + 1) for units in space.units.tolist()]
    most = int(space.units.max())
    fixed = least = 0.0
    for k in range(most, 0, -1):
        small = bare.at(thin_copy(bare, place < k))
        times = _rehearsed(small, inputs, phase, lambda o: _seconds(hardware, dtype, o))
        for own, time in zip(seconds, times.blocks, strict=True):
            own[min(k, len(own) - 1)] = time
        if k == most:
            fixed, least = times.outside, times.launches * hardware.launch_seconds
        progress("estimate blocks", most - k + 1, most)
    for own in seconds:
        own[0] = own[1]  # slicing stores one unit of a block that keeps none, and it runs
    facts = replace(
        provenance(model, batch, phase, Execution.EAGER),
        device=f"estimate for {hardware.name}",
        threads=0,
        quota=0.0,
        estimated=True,
    )
    return LatencyTable(space, fixed, tuple(seconds), facts, least if hardware.runs_ahead else 0.0)


@dataclass
class _Times:
    """The times of one run."""

    blocks: list[float]
    outside: float = 0.0
    launches: int = 0


def _rehearsed(
    prunable: Prunable,
    inputs: Mapping[str, Any],
    phase: Phase,
    seconds: Callable[[Operation], float],
) -> _Times:
    """One run of a model, or one step after it."""

    def run(copied: nn.Module, sites: list[nn.Module], given: dict[str, Any]) -> _Times:
        times, inside = _Times([0.0] * len(sites)), list[int]()

        def add(operation: Operation) -> None:
            times.launches += 1
            if inside:
                times.blocks[inside[-1]] += seconds(operation)
            else:
                times.outside += seconds(operation)

        def enter(b: int) -> Callable[..., None]:
            return lambda *_: inside.append(b)

        def leave(*_: object) -> None:
            inside.pop()

        decoding = phase is Phase.DECODE
        piece = decoding_step(copied, given) if decoding else Work(lambda: copied(**given))
        for b, site in enumerate(sites):
            site.register_forward_pre_hook(enter(b), prepend=True)
            site.register_forward_hook(leave)
        with Operations(add):
            piece.run()
        return times

    return rehearse(prunable.model, [block.site for block in prunable], inputs, run)


def _seconds(hardware: Hardware, dtype: torch.dtype, operation: Operation) -> float:
    rates = hardware.flops_per_second
    own = dtype_name(operation.dtype or dtype)
    arithmetic = operation.flops / rates.get(own, rates[dtype_name(dtype)])
    traffic = operation.moved / hardware.bytes_per_second
    launch = 0.0 if hardware.runs_ahead else hardware.launch_seconds
    return launch + max(arithmetic, traffic)
