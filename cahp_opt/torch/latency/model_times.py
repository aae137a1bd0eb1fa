"""Times of whole models, and where they were measured."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from cahp_opt.costs.processors import granted
from cahp_opt.costs.provenance import Execution, Phase, Provenance
from cahp_opt.progress import Progress, silent
from cahp_opt.torch.blocks.fingerprint import structure
from cahp_opt.torch.latency.decoding_step import decoding_step
from cahp_opt.torch.latency.execution import (
    captured,
    compiled,
    on,
    refuse_unfit,
    room_to_compile,
)
from cahp_opt.torch.latency.stopwatch import Meter, Timing, Work, interleaved
from cahp_opt.torch.running.batches import (
    Batch,
    batch_size,
    device_of,
    inputs_of,
    prepare,
    real_tokens,
)
from cahp_opt.torch.running.undisturbed import evaluating


def time_models(
    models: Mapping[str, nn.Module],
    batch: Batch,
    *,
    phase: Phase = Phase.PREFILL,
    execution: Execution = Execution.EAGER,
    repeats: int = 20,
    progress: Progress = silent,
    meter: Meter | None = None,
) -> dict[str, Timing]:
    """Time whole models on one batch, in interleaved rounds, as :func:`measure_latency` times its blocks.

    Args:
        models: by name; all on one device.
        batch: keyword arguments for the models; labels are left out.
        phase: whether the forward pass over the batch is timed, or one new token per example after it.
        execution: how the models are run.
        repeats: the number of rounds.
        progress: called once per round.
        meter: a counter that is read in place of a clock, such as of joules; None for the time.

    Raises:
        ExecutionError: if the models cannot be run in that way.
        ValueError: without models, for a batch or a phase that cannot be used, or if ``repeats`` is
            below 1.
    """
    if not models:
        raise ValueError("`models` is empty; name at least one model to time.")
    first = next(iter(models.values()))
    refuse_unfit(execution, device_of(first))
    inputs = prepare(batch, first, "batch")
    with (
        on(device_of(first)),
        evaluating(*models.values()),
        torch.no_grad(),
        room_to_compile(execution),
    ):
        work = {
            name: whole_model(model, inputs, phase, execution) for name, model in models.items()
        }
        return interleaved(
            captured(work, execution),
            device=device_of(first),
            repeats=repeats,
            progress=progress,
            stage="time models",
            meter=meter,
        )


def whole_model(model: nn.Module, batch: Batch, phase: Phase, execution: Execution) -> Work:
    """The work of a whole model."""
    run = compiled(model, execution)
    if phase is Phase.DECODE:
        return decoding_step(model, batch, run)
    inputs = inputs_of(batch)
    return Work(lambda: run(**inputs))


def provenance(model: nn.Module, batch: Batch, phase: Phase, execution: Execution) -> Provenance:
    """Where and how a model is timed here.

    Args:
        model: the model.
        batch: one that is prepared for it.
        phase: what is timed.
        execution: how the model is run.
    """
    parameter = next(model.parameters())
    attention: object = getattr(getattr(model, "config", None), "_attn_implementation", None)
    versions = {
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    if parameter.device.type == "cuda":
        versions["cuda"] = str(torch.version.cuda)
    return Provenance(
        device=device_name(parameter.device),
        dtype=dtype_name(parameter.dtype),
        batch=batch_size(batch),
        sequence_length=int(real_tokens(batch).shape[1]),
        phase=phase,
        execution=execution,
        attention=attention if isinstance(attention, str) else "",
        threads=torch.get_num_threads(),
        quota=granted() if parameter.device.type == "cpu" else 0.0,
        versions=versions,
        model=structure(model),
    )


def device_name(device: torch.device) -> str:
    """The name of the processor behind ``device``, as the machine gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def dtype_name(dtype: torch.dtype) -> str:
    """A precision as records name it, such as ``float32``."""
    return str(dtype).removeprefix("torch.")
