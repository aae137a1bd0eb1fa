"""Measuring what heads cost on this machine."""

from __future__ import annotations

import copy
import inspect
import platform
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cahp_opt.anchoring import fit_anchors
from cahp_opt.heads import Bools, Floats, HeadSpace, Ints, Unit
from cahp_opt.latency import LatencyTable, Phase, Provenance
from cahp_opt.progress import Progress, silent
from cahp_opt.selection import Selection
from cahp_opt.torch.attention import Attention, AttentionBlock, find_attention
from cahp_opt.torch.batching import (
    Batch,
    batch_size,
    device_of,
    examples,
    inputs_of,
    prepare,
    real_tokens,
)
from cahp_opt.torch.blocks import submodules
from cahp_opt.torch.preserving import evaluating
from cahp_opt.torch.slicing import slice_heads
from cahp_opt.torch.stopwatch import Timing, interleaved

__all__ = ["Timing", "measure_latency", "time_models"]

_BLOCK_ROUNDS = 2  # blocks are short: more rounds cost little, and outlast a burst of other work
_PLACE = ("layer_idx", "layer_id")  # attributes that say where a block is, not what it does

Call = tuple[tuple[Any, ...], dict[str, Any]]


def time_models(
    models: Mapping[str, nn.Module],
    batch: Batch,
    *,
    repeats: int = 20,
    progress: Progress = silent,
) -> dict[str, Timing]:
    """Time whole models on one batch, in interleaved rounds, as :func:`measure_latency` times its blocks.

    Args:
        models: by name; all on one device.
        batch: keyword arguments for the models; labels are left out.
        repeats: rounds.
        progress: called once per round.

    Raises:
        ValueError: without models, for a batch that cannot be used, or if ``repeats`` is below 1.
    """
    if not models:
        raise ValueError("`models` is empty; name at least one model to time.")
    first = next(iter(models.values()))
    inputs = inputs_of(prepare(batch, first, "batch"))
    work = {name: _once(model, ((), inputs)) for name, model in models.items()}
    with evaluating(*models.values()), torch.inference_mode():
        return interleaved(
            work, device=device_of(first), repeats=repeats, progress=progress, stage="time models"
        )


def measure_latency(
    model: nn.Module,
    batch: Batch,
    *,
    repeats: int = 20,
    unit: Unit | None = None,
    progress: Progress = silent,
) -> LatencyTable:
    """Measure the time of every attention block at every number of kept units, on this machine.

    Each count runs with really sliced weights on the inputs that ``batch`` brings to the block, and
    no unit kept runs as :func:`~cahp_opt.torch.slice_heads` stores it. Blocks that are alike (class,
    shapes, settings, precision, inputs) share one measurement, and one that several layers share counts
    as often as it runs. The model is not changed.

    Blocks alone run faster than in the model (see :func:`~cahp_opt.anchoring.fit_anchors`), so the table is anchored on six
    whole models, from unpruned to nothing kept, even and uneven, that are timed in the same way: one
    factor for all blocks, and everything outside them as the offset, make it predict these best.
    ``provenance.error`` is its largest relative error on them.

    Args:
        model: the unpruned model, on the device and in the precision that it will run in.
        batch: keyword arguments for the model, of the size to be optimised for.
        repeats: timed runs of every whole model; every point of a block, which is short, gets twice as
            many. A low quantile of them is reported.
        unit: as for :func:`~cahp_opt.torch.find_attention`.
        progress: called once per round.

    Raises:
        UnsupportedModelError: if the model's attention is not understood.
        ValueError: for a batch that cannot be used, or if ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1, got {repeats}.")
    attention, device = find_attention(model, unit=unit), device_of(model)
    space = attention.space
    batch = prepare(batch, model, "batch")
    anchors = _anchors(space)
    with evaluating(model):
        # Whole models first: the copies of blocks leave a scattered heap, in which all of them run slower.
        wholes = time_models(
            {name: _pruned(model, attention, kept, batch) for name, kept in anchors.items()},
            batch,
            repeats=repeats,
            progress=progress,
        )
        alike, calls, times = _alike(model, attention, batch)
        sites = _sliced_sites(model, attention, sorted(set(alike)), batch)
        with torch.inference_mode():
            blocks = interleaved(
                {point: _once(site, calls[point[0]]) for point, site in sites.items()},
                device=device,
                repeats=_BLOCK_ROUNDS * repeats,
                progress=progress,
                stage="time blocks",
            )
    alone = tuple(
        np.array([runs * blocks[first, k].seconds for k in range(units + 1)])
        for first, units, runs in zip(alike, space.units.tolist(), times, strict=True)
    )
    counts = [space.counts(kept) for kept in anchors.values()]
    measured = np.array([wholes[name].seconds for name in anchors])
    fit = fit_anchors(np.array([_total(alone, c) for c in counts]), measured)
    seconds = tuple(fit.scale * own for own in alone)
    table = LatencyTable(space, fit.fixed, seconds, least=fit.least)
    predicted = np.array([table.predict(c) for c in counts])
    spread = max(timing.spread for timing in (*blocks.values(), *wholes.values()))
    error = float(np.abs(predicted / measured - 1).max())
    return replace(table, provenance=_provenance(model, batch, repeats, spread, error))


def _total(seconds: Sequence[Floats], counts: Ints) -> float:
    return sum(float(s[k]) for s, k in zip(seconds, counts, strict=True))


def _provenance(
    model: nn.Module, batch: Batch, repeats: int, spread: float, error: float
) -> Provenance:
    parameter = next(model.parameters())
    attention: object = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return Provenance(
        device=device_name(parameter.device),
        dtype=str(parameter.dtype).removeprefix("torch."),
        batch=batch_size(batch),
        sequence_length=int(real_tokens(batch).shape[1]),
        phase=Phase.PREFILL,
        attention=attention if isinstance(attention, str) else "",
        threads=torch.get_num_threads(),
        repeats=repeats,
        spread=spread,
        error=error,
        versions={
            "python": platform.python_version(),
            "torch": version("torch"),
            "transformers": version("transformers"),
        },
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


def _once(module: nn.Module, call: Call) -> Callable[[], object]:
    args, kwargs = call
    return lambda: module(*args, **kwargs)


def _alike(
    model: nn.Module, attention: Attention, batch: Batch
) -> tuple[list[int], list[Call], list[int]]:
    """For every block the first block that is alike, its last arguments, and how often it runs."""
    calls: dict[int, Call] = {}
    times = [0] * len(attention)

    def listener(b: int) -> Callable[..., None]:
        def listen(site: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[b] = (args, kwargs)
            times[b] += 1

        return listen

    inputs = inputs_of(batch)
    if _takes_cache(model):
        inputs["use_cache"] = False  # a cache would grow with every timed call
    with ExitStack() as stack, torch.inference_mode():
        for b, block in enumerate(attention):
            hook = block.site.register_forward_pre_hook(listener(b), with_kwargs=True, prepend=True)
            stack.callback(hook.remove)
        model(**inputs)
    missing = [block.name for b, block in enumerate(attention) if b not in calls]
    if missing:
        raise ValueError(
            f"`batch` does not reach the blocks {missing}; pass inputs that all blocks see."
        )
    first: dict[Hashable, int] = {}
    alike = [first.setdefault(_kind(block, calls[b]), b) for b, block in enumerate(attention)]
    return alike, [calls[b] for b in range(len(attention))], times


def _takes_cache(model: nn.Module) -> bool:
    parameters = inspect.signature(type(model).forward).parameters
    takes = "use_cache" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return takes and hasattr(getattr(model, "config", None), "use_cache")


def _kind(block: AttentionBlock, call: Call) -> Hashable:
    """What the time of a block depends on: structure, settings, precision and inputs, not weights."""
    settings: list[tuple[str, str, object]] = []
    for path, module in submodules(block.site):
        attributes: dict[str, object] = vars(module)
        for key, value in sorted(attributes.items()):
            if isinstance(value, bool | int | float | str) and key not in _PLACE:
                settings.append((path, key, value))
    weights = [(path, p.shape, p.dtype) for path, p in block.site.named_parameters()]
    args, kwargs = call
    inputs = [
        (key, tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__)
        for key, value in [*enumerate(args), *sorted(kwargs.items())]
    ]
    return (repr(block.site), block.units, str(settings), str(weights), str(inputs))


def _sliced_sites(
    model: nn.Module, attention: Attention, blocks: Sequence[int], batch: Batch
) -> dict[tuple[int, int], nn.Module]:
    """By block and count, the attention site with only so many units."""
    space = attention.space
    place = places(space)
    sites: dict[tuple[int, int], nn.Module] = {}
    for k in range(int(space.units.max()) + 1):
        small = _pruned(model, attention, place < k, batch)
        for b in blocks:
            if k <= space.units[b]:
                sites[b, k] = small.get_submodule(attention.blocks[b].name)
    return sites


def _pruned(model: nn.Module, attention: Attention, kept: Bools, batch: Batch) -> nn.Module:
    """A sliced copy; all its weights outside the attention are the original's, to save memory."""
    if kept.all():
        return model
    own = {id(t) for block in attention for t in block.site.parameters()}
    shared = [t for t in (*model.parameters(), *model.buffers()) if id(t) not in own]
    copied = copy.deepcopy(model, {id(t): t for t in shared})
    selection = Selection.from_kept(attention.space, kept)
    return slice_heads(copied, selection, in_place=True, batch=examples(batch, 0, 1))


def places(space: HeadSpace) -> Ints:
    """Every unit's place in its block, ``[n]``; ``places < k`` keeps ``k`` units per block."""
    starts = np.array([where.start for where in space.slices], dtype=np.int64)
    return np.arange(space.n) - starts[space.block_of]


def _anchors(space: HeadSpace) -> dict[str, Bools]:
    """Keep-sets whose whole models anchor the table: from all to nothing, even and uneven."""
    place = places(space)
    units = space.units[space.block_of]
    chosen = {
        "unpruned": place < units,
        "half": place < np.ceil(units / 2),
        "quarter": place < np.ceil(units / 4),
        "nothing": place < 0,
    }
    rng = np.random.default_rng(0)
    for number in (1, 2):
        counts = rng.integers(0, space.units + 1)
        chosen[f"uneven {number}"] = place < counts[space.block_of]
    return chosen
