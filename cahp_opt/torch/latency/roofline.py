"""Estimating latency without the device, from a description of the hardware."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from cahp_opt.torch.blocks.finder import Prunable, blocks_of, reread
from cahp_opt.torch.latency.block_parts import parts, watched
from cahp_opt.torch.latency.block_times import places
from cahp_opt.torch.latency.decoding_step import decoding_step
from cahp_opt.torch.latency.model_times import dtype_name, provenance
from cahp_opt.torch.latency.operations import Operation, Operations
from cahp_opt.torch.latency.stopwatch import Work
from cahp_opt.torch.latency.weightless import rehearse, skeleton
from cahp_opt.torch.running.batches import Batch, inputs_of, prepare
from cahp_opt.torch.slicing.bypass import bypass_unverified
from cahp_opt.torch.slicing.ghost_layers import Onlooker
from cahp_opt.torch.slicing.slicing import thin_copy


def estimate_latency(
    model: nn.Module | Prunable,
    batch: Batch,
    hardware: Hardware,
    *,
    phase: Phase = Phase.PREFILL,
    unit: Unit | None = None,
    progress: Progress = silent,
) -> LatencyTable:
    """Estimate the time of every block at every number of kept units, without the device.

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
        model: the unpruned model, or its blocks; it is not changed.
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
    return estimate(blocks_of(model, unit), batch, hardware, phase=phase, progress=progress)


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
    bare, space = prunable.at(skeleton(model).eval()), prunable.space.unordered()
    place, found = places(space), _parts(bare, inputs, phase)
    seconds = [np.zeros(units + 1) for units in space.units.tolist()]
    most = int(space.units.max())
    fixed = least = 0.0
    for k in range(most, -1, -1):
        small = reread(bare.at(thin_copy(bare, place < k)))
        times = _rehearsed(small, found, inputs, phase, lambda o: _seconds(hardware, dtype, o))
        for own, time in zip(seconds, times.blocks, strict=True):
            own[min(k, len(own) - 1)] = time
        if k == most:
            fixed, least = times.outside, times.launches * hardware.launch_seconds
        progress("estimate blocks", most - k + 1, most + 1)
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


def _parts(prunable: Prunable, inputs: Mapping[str, Any], phase: Phase) -> list[tuple[str, ...]]:
    """The parts of every block, by their paths in its site."""
    modules = [watched(prunable, block) for block in prunable]
    called: list[list[str]] = [[] for _ in modules]

    def listener(heard: list[str], path: str) -> Callable[..., None]:
        return lambda *_: heard.append(path)

    def run(copied: nn.Module, sites: list[nn.Module], given: dict[str, Any]) -> None:
        piece, there = _piece(copied, given, phase), iter(sites)
        for own, heard in zip(modules, called, strict=True):
            for path in own:
                next(there).register_forward_pre_hook(listener(heard, path))
        piece.run()

    rehearse(prunable.model, [m for own in modules for m in own.values()], inputs, run)
    return [parts(prunable, *both) for both in zip(prunable, called, strict=True)]


def _rehearsed(
    prunable: Prunable,
    found: Sequence[tuple[str, ...]],
    inputs: Mapping[str, Any],
    phase: Phase,
    seconds: Callable[[Operation], float],
) -> _Times:
    """One run of a model, or one step after it."""

    def run(copied: nn.Module, _: list[nn.Module], given: dict[str, Any]) -> _Times:
        times, inside = _Times([0.0] * len(prunable)), list[int]()

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

        here = prunable.at(copied)
        if any(block.ghost for block in here):
            bypass_unverified(here, given)
        piece = _piece(copied, given, phase)
        for b, (block, own) in enumerate(zip(here, found, strict=True)):
            for path in own:
                module = block.site.get_submodule(path)
                module.register_forward_pre_hook(Onlooker(enter(b)), prepend=True, with_kwargs=True)
                module.register_forward_hook(Onlooker(leave))
        with Operations(add):
            piece.run()
        return times

    return rehearse(prunable.model, [], inputs, run)


def _piece(model: nn.Module, given: dict[str, Any], phase: Phase) -> Work:
    """What is estimated: a run of the model, or a step after it."""
    return decoding_step(model, given) if phase is Phase.DECODE else Work(lambda: model(**given))


def _seconds(hardware: Hardware, dtype: torch.dtype, operation: Operation) -> float:
    rates = hardware.flops_per_second
    own = dtype_name(operation.dtype or dtype)
    arithmetic = operation.flops / rates.get(own, rates[dtype_name(dtype)])
    traffic = operation.moved / hardware.bytes_per_second
    launch = 0.0 if hardware.runs_ahead else hardware.launch_seconds
    return launch + max(arithmetic, traffic)
