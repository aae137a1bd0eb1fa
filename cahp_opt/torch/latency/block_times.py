"""Measuring the time of heads and of feed-forward neurons on this machine."""

from __future__ import annotations

import math
import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.costs.latency_table import LatencyTable
from cahp_opt.costs.provenance import Execution, Phase, Provenance
from cahp_opt.costs.whole_models import fit_whole_models
from cahp_opt.progress import Progress, silent
from cahp_opt.space import HeadSpace, Unit
from cahp_opt.torch.blocks.blocks import submodules
from cahp_opt.torch.blocks.finder import Prunable, blocks_of
from cahp_opt.torch.latency.block_parts import parts, watched
from cahp_opt.torch.latency.execution import (
    captured,
    on,
    refuse_unfit,
    room_to_compile,
)
from cahp_opt.torch.latency.model_times import provenance, time_models, whole_model
from cahp_opt.torch.latency.recorded_calls import Call, again, record
from cahp_opt.torch.latency.stopwatch import Meter, Timing, Work, interleaved
from cahp_opt.torch.latency.timing_log import SampleFile
from cahp_opt.torch.running.batches import (
    Batch,
    device_of,
    examples,
    prepare,
)
from cahp_opt.torch.running.undisturbed import evaluating
from cahp_opt.torch.slicing.slicing import thin_copy
from cahp_opt.torch.slicing.timing_copies import timing_copy

__all__ = ["Timing", "measure_latency", "time_models"]

_BLOCK_ROUNDS = 2  # blocks are short: more rounds cost little, and outlast a burst of other work
_PLACE = ("layer_idx", "layer_id")  # attributes with the position of a block, not its function
_DENSE = "unpruned"
_EVEN = {"three quarters": 0.75, "half": 0.5, "quarter": 0.25, "nothing": 0.0}
_FEW = 0.25
_UNEVEN = 3


def measure_latency(
    model: nn.Module | Prunable,
    batch: Batch,
    *,
    phase: Phase = Phase.PREFILL,
    execution: Execution = Execution.EAGER,
    repeats: int = 20,
    unit: Unit | None = None,
    samples: SampleFile | None = None,
    progress: Progress = silent,
) -> LatencyTable:
    """Measure the time of every block at every number of kept units, on this machine.

    Each count runs with really sliced weights on the block's inputs for ``batch``, and no unit kept
    runs as :func:`~cahp_opt.torch.from_pretrained` loads it: skipped, if
    :func:`~cahp_opt.torch.bypass_empty` finds that it can be. Blocks that are alike (class, shapes,
    settings, precision, inputs) share one measurement, and one that several layers share counts as
    often as it runs. Blocks that a decoding step does not reach, such as those of an encoder, cost
    nothing there. The model is not changed.

    Blocks alone run faster than in the model (see :func:`~cahp_opt.costs.whole_models.fit_whole_models`), so the table
    is fitted to whole models, from unpruned to nothing kept, even and uneven, that are timed in the
    same way::

        seconds = max(least, fixed + sum over blocks b of scale[kind of b] * alone[b, kept in b])

    with one factor for attention and one for feed-forward parts, the time outside of the blocks in ``fixed``, and in ``least`` the time to launch all
    operations, where a fast device waits for that. ``provenance.error`` is the error, on the uneven
    models, of a fit to the even ones alone.

    Args:
        model: the unpruned model, on the device and in the precision that it will run in; or its blocks, such
            as blocks of both kinds by :func:`~cahp_opt.torch.find_prunable`.
        batch: keyword arguments for the model, of the size to be optimised for; for decoding, the
            context that fills the key/value cache.
        phase: whether the forward pass over the batch is timed, or one new token per example after it.
        execution: how the model will be run. Compiling takes long: every count is compiled.
        repeats: timed runs of every whole model; every point of a block, which is short, gets twice as
            many, and as many if there are blocks of both kinds. A low quantile of them is reported.
        unit: as for :func:`~cahp_opt.torch.find_attention`.
        samples: a file that keeps every run, so that an interrupted measurement can resume.
        progress: called once per round.

    Raises:
        ExecutionError: if the model cannot be run in that way.
        RecordError: if ``samples`` are of another measurement.
        UnsupportedModelError: if the model's attention is not understood.
        ValueError: for a batch or a phase that cannot be used, or if ``repeats`` is below 1.
    """
    return time_blocks(
        blocks_of(model, unit),
        batch,
        phase=phase,
        execution=execution,
        repeats=repeats,
        samples=samples,
        progress=progress,
    )


def time_blocks(
    prunable: Prunable,
    batch: Batch,
    *,
    phase: Phase = Phase.PREFILL,
    execution: Execution = Execution.EAGER,
    repeats: int = 20,
    samples: SampleFile | None = None,
    progress: Progress = silent,
    meter: Meter | None = None,
) -> LatencyTable:
    """As :func:`measure_latency`, for blocks that were found already.

    ``meter`` is a counter that is read in place of a clock, such as of joules; None for the time.
    """
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1, got {repeats}.")
    model, space = prunable.model, prunable.space.unordered()
    mixed = len({*space.of_attention.tolist()}) > 1
    device = device_of(model)
    refuse_unfit(execution, device)
    batch = prepare(batch, model, "batch")
    facts = provenance(model, batch, phase, execution)
    if samples is not None:
        samples.open({"blocks": space.to_json(), **_subject(model), **_setting(facts)})
    keep_sets = _keep_sets(space)
    # One checked copy: what is misread ends here, and the others are cut in the same way.
    thin_copy(prunable, keep_sets["half"], batch=examples(batch, 0, 1))

    def timed(work: Mapping[Any, Work], rounds: int, stage: str) -> dict[Any, Timing]:
        return interleaved(
            captured(work, execution),
            device=device,
            repeats=rounds,
            progress=progress,
            stage=stage,
            samples=samples,
            meter=meter,
        )

    with on(device), evaluating(model), torch.no_grad(), room_to_compile(execution):
        # Whole models first: the copies of blocks leave a scattered heap, in which all of them run slower.
        wholes = timed(
            {
                name: whole_model(timing_copy(prunable, kept), batch, phase, execution)
                for name, kept in keep_sets.items()
            },
            repeats,
            "time models",
        )
        found, alike, times = _alike(prunable, batch, phase, execution)
        blocks = timed(
            _sliced_parts(prunable, found, alike, batch, phase, execution),
            repeats if mixed else _BLOCK_ROUNDS * repeats,
            "time blocks",
        )
        again = timed(
            {_DENSE: whole_model(model, batch, phase, execution)},
            math.ceil(repeats / 2),
            "time again",
        )
    alone = tuple(
        np.zeros(units + 1)
        if first is None
        else np.array([runs * blocks[first, k].seconds for k in range(units + 1)])
        for first, units, runs in zip(alike, space.units.tolist(), times, strict=True)
    )
    kinds = [of_kind for of_kind in (space.of_attention, ~space.of_attention) if of_kind.any()]
    summed = np.array(
        [
            [_total(alone, space.counts(kept), of_kind) for of_kind in kinds]
            for kept in keep_sets.values()
        ]
    )
    measured = np.array([wholes[name].seconds for name in keep_sets])
    fit, even = fit_whole_models(summed, measured), len(keep_sets) - _UNEVEN
    known = fit_whole_models(summed[:even], measured[:even])
    facts = replace(
        facts,
        repeats=repeats,
        spread=max(timing.spread for timing in (*blocks.values(), *wholes.values())),
        drift=again[_DENSE].seconds / wholes[_DENSE].seconds - 1,
        error=float(np.abs(known.at(summed) / measured - 1)[even:].max()),
    )
    scales = np.array(fit.scales) @ np.array(kinds)
    return LatencyTable(
        space,
        fit.fixed,
        tuple(scale * seconds for scale, seconds in zip(scales.tolist(), alone, strict=True)),
        facts,
        fit.least,
    )


def _total(seconds: Sequence[Floats], counts: Ints, of_kind: Bools) -> float:
    both = zip(seconds, counts, of_kind, strict=True)
    return sum(float(own[k]) for own, k, counted in both if counted)


def _subject(model: nn.Module) -> dict[str, object]:
    """The facts that distinguish models whose blocks have the same names and units."""
    shapes = repr([(name, list(p.shape)) for name, p in model.named_parameters()])
    return {"model": type(model).__name__, "shapes": f"{zlib.crc32(shapes.encode()):08x}"}


def _setting(facts: Provenance) -> dict[str, object]:
    """The facts that two halves of one measurement must have in common."""
    names = ("device", "dtype", "batch", "sequence_length", "attention", "threads", "versions")
    told: dict[str, object] = {name: getattr(facts, name) for name in names}
    if facts.quota:  # without one, a file of an earlier release, which lacks it, resumes
        told["quota"] = facts.quota
    return told | {"phase": facts.phase.value, "execution": facts.execution.value}


def _alike(
    prunable: Prunable, batch: Batch, phase: Phase, execution: Execution
) -> tuple[list[tuple[str, ...]], list[int | None], list[int]]:
    """For every block its parts, the first block that is alike (None if it does not run), and how often
    it runs."""
    modules = {
        (b, path): module
        for b, block in enumerate(prunable)
        for path, module in watched(prunable, block).items()
    }
    calls, order = record(prunable.model, modules, batch, phase, execution)
    called: list[list[str]] = [[] for _ in prunable]
    for b, path in order:
        called[b].append(path)
    found = [parts(prunable, block, called[b]) for b, block in enumerate(prunable)]
    missing = [block.name for block, own in zip(prunable, found, strict=True) if not own]
    if missing and (phase is Phase.PREFILL or len(missing) == len(prunable)):
        raise ValueError(
            f"`batch` does not reach the blocks {missing}; pass inputs that all blocks see."
        )
    first: dict[Hashable, int] = {}
    alike: list[int | None] = []
    for b, (block, own) in enumerate(zip(prunable, found, strict=True)):
        kinds = tuple(_kind(modules[b, path], calls[b, path]) for path in own)
        alike.append(first.setdefault((block.units, kinds), b) if own else None)
    # The first part holds a layer of the block; what runs between those may run elsewhere too.
    times = [called[b].count(own[0]) if own else 0 for b, own in enumerate(found)]
    return found, alike, times


def _kind(module: nn.Module, call: Call) -> Hashable:
    """A key of all that a part's time depends on: structure, settings, precision, inputs; not
    weights."""
    settings: list[tuple[str, str, object]] = []
    for path, inner in submodules(module):
        attributes: dict[str, object] = vars(inner)
        for key, value in sorted(attributes.items()):
            if isinstance(value, bool | int | float | str) and key not in _PLACE:
                settings.append((path, key, value))
    weights = [(path, p.shape, p.dtype) for path, p in module.named_parameters()]
    inputs = [
        (key, tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__)
        for key, value in [*enumerate(call.args), *sorted(call.kwargs.items())]
    ]
    return (repr(module), str(settings), str(weights), str(inputs))


def _sliced_parts(
    prunable: Prunable,
    found: Sequence[tuple[str, ...]],
    alike: Sequence[int | None],
    batch: Batch,
    phase: Phase,
    execution: Execution,
) -> dict[tuple[int, int], Work]:
    """By block and count, the work of the block's parts with that many units.

    The inputs come from a model whose blocks all have as many, because a key/value cache does.
    """
    space = prunable.space
    place = places(space)
    firsts = sorted({b for b in alike if b is not None})
    work: dict[tuple[int, int], Work] = {}
    for k in range(int(space.units.max()) + 1):
        small = prunable.at(timing_copy(prunable, place < k))
        wanted = [b for b in firsts if k <= space.units[b]]
        modules = {
            (b, path): small.blocks[b].site.get_submodule(path) for b in wanted for path in found[b]
        }
        calls, _ = record(small.model, modules, batch, phase, execution)
        work |= {
            (b, k): again([(modules[b, path], calls[b, path]) for path in found[b]], execution)
            for b in wanted
        }
    return work


def places(space: HeadSpace) -> Ints:
    """Every unit's place in its block, ``[n]``; ``places < k`` keeps ``k`` units per block."""
    starts = np.array([where.start for where in space.slices], dtype=np.int64)
    return np.arange(space.n) - starts[space.block_of]


def _keep_sets(space: HeadSpace) -> dict[str, Bools]:
    """Keep-sets whose whole models the table is fitted to: from all to nothing, then ones with much more of
    one kind than of the other, which tell the kinds apart, then uneven ones."""
    place = places(space)
    units = space.units[space.block_of]
    chosen = {_DENSE: place < units}
    chosen |= {name: place < np.ceil(share * units) for name, share in _EVEN.items()}
    of_attention = space.of_attention[space.block_of]
    if of_attention.any() and not of_attention.all():
        few = place < np.ceil(_FEW * units)
        chosen |= {"few heads": few | ~of_attention, "few neurons": few | of_attention}
    rng = np.random.default_rng(0)
    for number in range(_UNEVEN):
        counts = rng.integers(0, space.units + 1)
        chosen[f"uneven {number + 1}"] = place < counts[space.block_of]
    return chosen
