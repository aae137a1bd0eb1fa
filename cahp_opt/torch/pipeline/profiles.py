"""A model's cost at every number of kept units: measured here, or estimated for another device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cahp_opt.costs.cost_table import CostTable
from cahp_opt.costs.hardware import Hardware
from cahp_opt.costs.latency_table import LatencyTable
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.provenance import Execution, Phase
from cahp_opt.costs.quantities import resource_of, workload_of
from cahp_opt.costs.workloads import Workload
from cahp_opt.progress import Stages
from cahp_opt.runs.media import Medium
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.latency.block_times import time_blocks
from cahp_opt.torch.latency.decoding_step import decoding_step
from cahp_opt.torch.latency.exact_counts import count_held
from cahp_opt.torch.latency.execution import ExecutionError, refuse_unfit
from cahp_opt.torch.latency.meters import measure_resource
from cahp_opt.torch.latency.roofline import estimate
from cahp_opt.torch.latency.timing_log import SampleFile
from cahp_opt.torch.latency.weightless import skeleton
from cahp_opt.torch.running.batches import device_of
from cahp_opt.torch.running.main_input import medium_of
from cahp_opt.torch.running.undisturbed import evaluating
from cahp_opt.torch.texts.encoding import timing_batch
from cahp_opt.torch.texts.files import timing_files


def measure_profile(
    prunable: Prunable,
    workloads: Sequence[Workload],
    display: Stages,
    *,
    timed: bool = True,
    measured: Sequence[str] = (),
    samples: Mapping[str, Path] | None = None,
    processor: Any = None,
) -> Profile:
    """The latency tables of a model on this machine, and the exact counts of its weights and cache.

    The key/value cache is that of the first workload that decodes, or of the first if none does.

    Args:
        prunable: the blocks of the unpruned model.
        workloads: the workloads to time, at least one.
        display: shows the stages.
        timed: whether there are latency tables, and not only the counts.
        measured: names of other tables to measure, each of a resource and a workload.
        samples: by name of the workload, a file that keeps every run; the caller removes it.
        processor: as for :func:`batch_of`.
    """
    model = prunable.model
    if timed:
        batches = timed_batches(model, workloads, processor)
    else:
        batches = {workload.name: batch_of(model, workload, processor) for workload in workloads}
    resources = _counted(prunable, workloads, batches, display)
    tables: dict[str, LatencyTable] = {}
    for workload in workloads if timed else ():
        with display.stage("latency") as progress:
            tables[workload.name] = time_blocks(
                prunable,
                batches[workload.name],
                phase=workload.phase,
                execution=workload.execution,
                repeats=workload.repeats,
                samples=SampleFile(samples[workload.name]) if samples else None,
                progress=progress,
            )
    named = {workload.name: workload for workload in workloads}
    for name in dict.fromkeys(measured):
        about = named.get(workload_of(name))
        if about is None:
            raise ValueError(
                f"`{name}` is about a workload that is not timed, and there are {list(named)}; give it as "
                "`--workload`."
            )
        with display.stage(resource_of(name)) as progress:
            resources[name] = measure_resource(
                prunable,
                batches[about.name],
                name,
                phase=about.phase,
                execution=about.execution,
                repeats=about.repeats,
                progress=progress,
            )
    return Profile(prunable.space.unordered(), tables, resources)


def estimate_profile(
    prunable: Prunable,
    workloads: Sequence[Workload],
    hardware: Hardware,
    display: Stages,
    processor: Any = None,
) -> Profile:
    """As :func:`measure_profile`, with estimates for a device that is not here.

    Args:
        prunable: the blocks of the unpruned model.
        workloads: the workloads to estimate, all run eagerly, at least one.
        hardware: the rates of the device.
        display: shows the stages.
        processor: as for :func:`batch_of`.

    Raises:
        ExecutionError: for a workload that is not run eagerly.
    """
    for workload in workloads:
        if workload.execution is not Execution.EAGER:
            raise ExecutionError(
                f"`execution` is {workload.execution.value}, and only eager execution can be estimated; "
                "measure on the device."
            )
    batches = {each.name: batch_of(prunable.model, each, processor) for each in workloads}
    bare = prunable.at(skeleton(prunable.model))
    resources = _counted(bare, workloads, batches, display)
    tables: dict[str, LatencyTable] = {}
    for workload in workloads:
        with display.stage("estimate") as progress:
            tables[workload.name] = estimate(
                bare,
                batches[workload.name],
                hardware,
                phase=workload.phase,
                progress=progress,
            )
    return Profile(prunable.space.unordered(), tables, resources)


def _counted(
    prunable: Prunable,
    workloads: Sequence[Workload],
    batches: Mapping[str, Mapping[str, Tensor]],
    display: Stages,
) -> dict[str, CostTable]:
    filling = next((w for w in workloads if w.phase is Phase.DECODE), workloads[0])
    with display.stage("count"):
        return count_held(prunable, batches[filling.name])


def timed_batches(
    model: nn.Module, workloads: Sequence[Workload], processor: Any = None
) -> dict[str, Mapping[str, Tensor]]:
    """The batch of every workload, tensors ``[batch, ...]`` as :func:`batch_of` makes them; refuses unfit ones
    before long work."""
    batches: dict[str, Mapping[str, Tensor]] = {}
    for workload in workloads:
        batches[workload.name] = batch_of(model, workload, processor)
        refuse_unfit(workload.execution, device_of(model))
        if workload.phase is Phase.DECODE:
            with evaluating(model):
                decoding_step(model, batches[workload.name])
    return batches


def batch_of(model: nn.Module, workload: Workload, processor: Any = None) -> dict[str, Tensor]:
    """The batch of a workload: texts, ``[batch, tokens]``, for decoding the context; or images or recordings.

    Args:
        model: the model.
        workload: the sizes; of images and recordings the number alone.
        processor: the :class:`~cahp_opt.torch.checkpoints.processors.Preparation` of a model that reads such,
            which has their size; not looked at for models of texts.

    Raises:
        ValueError: if the model cannot be run on what is made up.
    """
    if medium_of(model) in (Medium.IMAGE, Medium.SOUND):
        if processor is None:
            raise ValueError(
                f"the model, a {type(model).__name__}, is timed on what its processor makes, and there is none; "
                "save the processor beside the model."
            )
        return timing_files(
            model,
            processor.processor,
            batch_size=workload.batch_size,
            sequence_length=workload.sequence_length,
            new_tokens=int(workload.phase is Phase.DECODE),
        )
    return timing_batch(
        model,
        batch_size=workload.batch_size,
        sequence_length=workload.sequence_length,
        new_tokens=int(workload.phase is Phase.DECODE),
    )
