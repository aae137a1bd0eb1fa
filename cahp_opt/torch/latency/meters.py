"""Costs that are read from a counter of the device, such as its joules, in place of the time."""

from __future__ import annotations

from importlib import import_module

import torch

from cahp_opt.costs.cost_table import CostTable
from cahp_opt.costs.provenance import Execution, Phase
from cahp_opt.costs.quantities import RESOURCES, resource_of, unit_of_measure
from cahp_opt.progress import Progress, silent
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.latency.block_times import time_blocks
from cahp_opt.torch.latency.stopwatch import Meter
from cahp_opt.torch.running.batches import Batch, device_of


def meter_of(name: str, device: torch.device) -> Meter | None:
    """The counter behind a measured table, by its name in a profile; None for the time of a workload.

    Raises:
        ValueError: if the device has no such counter.
    """
    resource = RESOURCES.get(resource_of(name))
    if resource is None or not resource.meter:
        return None
    module, _, function = resource.meter.partition(":")
    meter: Meter = getattr(import_module(module), function)(device)
    return meter


def measure_resource(
    prunable: Prunable,
    batch: Batch,
    name: str,
    *,
    phase: Phase = Phase.PREFILL,
    execution: Execution = Execution.EAGER,
    repeats: int = 20,
    progress: Progress = silent,
) -> CostTable:
    """Measure a resource at every number of kept units, as :func:`~cahp_opt.torch.measure_latency` the time.

    Args:
        prunable: the blocks of the unpruned model.
        batch: of the workload.
        name: of the resource and its workload, such as ``NAME of prefill``.
        phase: whether the forward pass over the batch counts, or one new token per example after it.
        execution: how the model is run.
        repeats: measured runs of every whole model.
        progress: called once per round.

    Raises:
        ValueError: if nothing reads the resource, and as ``measure_latency``.
    """
    meter = meter_of(name, device_of(prunable.model))
    if meter is None:
        raise ValueError(f"`name` must be a resource that is measured, got {name!r}.")
    found = time_blocks(
        prunable,
        batch,
        phase=phase,
        execution=execution,
        repeats=repeats,
        progress=progress,
        meter=meter,
    )
    where = found.provenance
    return CostTable(
        found.space, found.fixed, found.costs, unit_of_measure(name), where, found.least
    )
